"""Texts from a language model behind an OpenAI-compatible address: OpenAI's own, vLLM, Ollama, llama.cpp and others.

Every whole answer is kept on disk under what was asked, so a run that was killed or is repeated asks only for what is
missing. A server is never trusted: its answers are bounded in size and time, and whatever it sends is a text or a
reason of one line. Of a server that keeps failing the rest of the prompts are spared.
"""

import base64
import contextlib
import hashlib
import json
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from agriclip_jax.errors import UserError
from agriclip_jax.files import check_place

KEY = "OPENAI_API_KEY"  # the environment variable that holds the key; a local server needs none
MAX_BYTES = 1 << 20  # of an answer
PATIENCE = 5  # prompts in a row may fail for one reason before the endpoint is given up
BACK_OFF = 1.0  # seconds: the first retry comes at once, then they wait 2, 4, 8, ... times this
LONGEST_WAIT = 30.0  # seconds before a retry, whatever the server asks for
CONNECT = 10.0  # seconds

_PASSING = (408, 429, 500, 502, 503, 504)  # statuses of a server that may soon do better
_ADVICE = {
    301: "name the address it redirects to",
    302: "name the address it redirects to",
    307: "name the address it redirects to",
    308: "name the address it redirects to",
    401: f"check the environment variable {KEY}",
    403: f"check the environment variable {KEY}",
    404: "check the address and the model's name",
    405: "check the address",
}


@dataclass(frozen=True)
class Prompt:
    """What to ask.

    Attributes:
      text: what the user says.
      system: how to answer; empty for none.
      image: an encoded JPEG or PNG that the text speaks of; empty for none.
      count: how many answers to sample.
    """

    text: str
    system: str = ""
    image: bytes = b""
    count: int = 1


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
      texts: `count` of them, none empty; fewer when there is an error.
      cached: whether they came from the disk.
      error: one line; empty for a whole answer.
      tokens_in, tokens_out: as the server counts them, of all requests that this answer took; 0 from the disk.
    """

    texts: tuple[str, ...]
    cached: bool = False
    error: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass
class Usage:
    """What was spent so far: requests sent (retries too), prompts answered from the disk or not at all, tokens."""

    requests: int = 0
    cached: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def __str__(self) -> str:
        return (
            f"{self.requests:,} requests, {self.cached:,} from the cache, {self.failed:,} failed, "
            f"{self.tokens_in:,} + {self.tokens_out:,} tokens"
        )


class _Reply(NamedTuple):
    """What one request brought."""

    texts: list[str]
    tokens_in: int
    tokens_out: int


class _Failure(Exception):
    """A request without an answer.

    Attributes:
      reason: the same for every prompt that fails in this way.
      detail: what the server says of it.
      status: of HTTP; 0 when none came.
      wait: least seconds after which the same request may succeed; None when it will not.
      alive: whether the server did its part, and only this answer is of no use.
    """

    def __init__(self, reason, detail="", *, status=0, wait=None, alive=False):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.status, self.wait, self.alive = reason, status, wait, alive


class _Session(requests.Session):
    """Follows no redirect: the key and the prompts go where the user said."""

    def get_redirect_target(self, resp):
        return None  # `allow_redirects=False` would still read the whole body of a redirect, without a bound


class Endpoint:
    """A model at an address, with the memory of what it answered.

    Attributes:
      usage: what was spent so far, over all calls of `ask`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        cache: Path | str,
        workers: int = 8,
        retries: int = 4,
        timeout: float = 60.0,
        temperature: float = 0.9,
        max_tokens: int = 1024,
    ):
        """Sends nothing yet.

        Args:
          url: the base, "http://localhost:8000/v1"; "/chat/completions" is added where it is missing.
          model: as the server calls it.
          cache: a folder for the answers, one small file each; any number of processes may share it.
          workers: requests in flight.
          retries: how often a request is sent again after a failure that may pass.
          timeout: seconds for an answer to begin, and again for it to end.
          temperature: of the sampling.
          max_tokens: of one answer; one that is cut off there loses its last line.

        Raises:
          UserError: the address is none, the key can be no key, or nothing can be written at `cache`.
        """
        self.url, self.model, self.cache = _completions(url), model, Path(cache)
        self._where = self.url.partition("?")[0]  # what follows may be secret
        self.workers, self.retries, self.timeout = workers, retries, timeout
        self.usage = Usage()
        check_place(self.cache / "answers")
        self._sampling = {"temperature": temperature, "max_tokens": max_tokens}
        self._key = os.environ.get(KEY, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"the environment variable {KEY} holds characters that no key has; set it anew")
        self._session = _Session()
        self._session.auth = self._sign  # also keeps `requests` from taking a key out of ~/.netrc
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=workers))
        self._lock = threading.Lock()
        self._takes_n = True
        self._row = ("", 0)  # the reason of the latest failures, and how many in a row had it
        self._given_up = ""

    def ask(self, prompts: Iterable[Prompt]) -> Iterator[Answer]:
        """An answer to each prompt, in order; `workers` are asked at a time, and a few more held.

        Raises:
          UserError: an answer cannot be written to the cache.
        """
        stop = threading.Event()  # no more retries
        waiting = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for prompt in prompts:
                    waiting.append(pool.submit(self._answer, prompt, stop))
                    if len(waiting) >= 2 * self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # left early, by Ctrl-C too: only what is in flight comes to its end
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, prompt: Prompt, stop: threading.Event) -> Answer:
        kept = self._place(prompt)
        if texts := _kept(kept, prompt.count):
            with self._lock:
                self.usage.cached += 1
            return Answer(texts, cached=True)
        answer = Answer((), error=self._given_up) if self._given_up else self._ask(prompt, stop)
        with self._lock:
            self.usage.failed += bool(answer.error)
            self.usage.tokens_in += answer.tokens_in
            self.usage.tokens_out += answer.tokens_out
        if not answer.error:
            _keep(kept, answer.texts)
        return answer

    def _ask(self, prompt: Prompt, stop: threading.Event) -> Answer:
        """Asks until there are `count` texts: many servers give one answer whatever `n` says, so other seeds follow."""
        replies, texts, failure = [], [], None
        try:
            while len(texts) < prompt.count:
                replies.append(self._sample(prompt, prompt.count - len(texts), len(replies), stop))
                texts += replies[-1].texts
                if not replies[-1].texts:
                    raise _Failure("the answer is empty or cut off", alive=True)
        except _Failure as met:
            failure = met
        self._note(failure, stop)
        return Answer(
            tuple(texts[: prompt.count]),
            error=str(failure or ""),
            tokens_in=sum(reply.tokens_in for reply in replies),
            tokens_out=sum(reply.tokens_out for reply in replies),
        )

    def _note(self, failure: _Failure | None, stop: threading.Event) -> None:
        """Gives the endpoint up once the same failure comes too often in a row."""
        with self._lock:
            if failure is None or failure.alive:
                self._row = ("", 0)
                return
            reason, times = self._row
            self._row = (failure.reason, times + 1 if reason == failure.reason else 1)
            if self._row[1] == PATIENCE and not self._given_up:
                self._given_up = f"not asked any more after {PATIENCE} failures in a row: {failure}"
                stop.set()

    # ---- one request -------------------------------------------------------------------------------------------------

    def _sample(self, prompt: Prompt, count: int, seed: int, stop: threading.Event) -> _Reply:
        """Up to `count` texts."""
        if count > 1 and self._takes_n:
            try:
                return self._send_patiently({**self._payload(prompt, seed), "n": count}, stop)
            except _Failure as failure:
                if failure.status not in (400, 422):
                    raise
                self._takes_n = False  # some servers refuse it
        return self._send_patiently(self._payload(prompt, seed), stop)

    def _payload(self, prompt: Prompt, seed: int) -> dict:
        content = prompt.text
        if prompt.image:
            kind = "png" if prompt.image.startswith(b"\x89PNG") else "jpeg"
            data = f"data:image/{kind};base64,{base64.b64encode(prompt.image).decode()}"
            content = [{"type": "text", "text": prompt.text}, {"type": "image_url", "image_url": {"url": data}}]
        system = [{"role": "system", "content": prompt.system}] if prompt.system else []
        messages = [*system, {"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "seed": seed, **self._sampling}

    def _send_patiently(self, payload: dict, stop: threading.Event) -> _Reply:
        """Sends until there is an answer or no hope of one.

        Not left to `requests`, whose retries read a failed answer to its end, however long that takes.
        """
        retry = Retry(self.retries, backoff_factor=BACK_OFF, backoff_max=LONGEST_WAIT, backoff_jitter=BACK_OFF / 2)
        while True:
            try:
                return _reply(self._send(payload))
            except _Failure as failure:
                if failure.wait is None:
                    raise
                try:
                    retry = retry.increment()
                except urllib3.exceptions.MaxRetryError:
                    raise failure from None
                if stop.wait(max(failure.wait, retry.get_backoff_time())):
                    raise

    def _send(self, payload: dict) -> bytes:
        """The body of the answer to one request."""
        with self._lock:
            self.usage.requests += 1
        try:
            with self._session.post(
                self.url,
                json=payload,
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},  # no bomb to unpack
                timeout=(min(CONNECT, self.timeout), self.timeout),
                stream=True,
            ) as response:
                body = self._body(response)
        except (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError):
            raise _Failure(f"{self._where} gave no answer within {self.timeout:g} s", wait=0) from None
        except (OSError, urllib3.exceptions.HTTPError) as error:  # those of `requests` are the former
            cut = any(isinstance(wrapped, urllib3.exceptions.ProtocolError) for wrapped in (error, *error.args))
            raise _Failure(
                f"{self._where} {'broke off its answer' if cut else 'cannot be reached'}",
                self._line(_root(error)),
                wait=0 if cut else None,
            ) from None
        status = response.status_code
        if 200 <= status < 300:
            return body
        raise _Failure(
            f"{self._where} answered with HTTP status {status}{f'; {_ADVICE[status]}' if status in _ADVICE else ''}",
            self._line(_message(body)),
            status=status,
            wait=_retry_after(response) if status in _PASSING else None,
        )

    def _body(self, response: requests.Response) -> bytes:
        """The body as it arrives, bounded in size and in time: a timeout of sockets starts anew with every byte."""
        end = time.monotonic() + self.timeout
        body = b""
        while part := response.raw.read1(1 << 16, decode_content=False):
            body += part
            if len(body) > MAX_BYTES:
                raise _Failure(f"{self._where} sent an answer of more than {MAX_BYTES >> 10} KiB", alive=True)
            if time.monotonic() > end:
                raise _Failure(f"{self._where} did not end its answer within {self.timeout:g} s", alive=True)
        return body

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _line(self, text: str) -> str:
        """A server's text for a human: one line, short, printable, without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split())[:200])

    # ---- the cache ---------------------------------------------------------------------------------------------------

    def _place(self, prompt: Prompt) -> Path:
        """The file of a prompt: the same model at another address answers from it too."""
        asked = [self.model, prompt.system, prompt.text, hashlib.sha256(prompt.image).hexdigest(), prompt.count]
        name = hashlib.sha256(json.dumps([*asked, sorted(self._sampling.items())]).encode()).hexdigest()
        return self.cache / name[:2] / f"{name}.json"


def _kept(path: Path, count: int) -> tuple[str, ...]:
    """The texts of a file of the cache; none when it is missing or damaged: then they are asked for anew."""
    try:
        with path.open("rb") as file:
            texts = json.loads(file.read(2 * MAX_BYTES * count))["texts"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ()
    if not isinstance(texts, list) or len(texts) != count or not all(isinstance(text, str) and text for text in texts):
        return ()
    return tuple(texts)


def _keep(path: Path, texts: tuple[str, ...]) -> None:
    """Writes a file of the cache, whole or not at all, whoever else writes the same one."""
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            partial = Path(file.name)
            json.dump({"texts": texts}, file)
        partial.replace(path)
    except OSError as error:
        if partial:
            with contextlib.suppress(OSError):
                partial.unlink()
        where = path.parent.parent
        raise UserError(f"the cache {where} cannot be written ({error.strerror}); make room or name another") from error


# ---- what servers send -----------------------------------------------------------------------------------------------


def _completions(url: str) -> str:
    """The address that prompts are sent to.

    Raises:
      UserError: it is no http(s) address, or it holds a name or password.
    """
    if "@" in url:  # not repeated: it may be secret
        raise UserError(f"--rewriter holds a name or password; give a key in the environment variable {KEY}")
    try:
        parts = urlsplit(url.strip())
        path = parts.path.rstrip("/")
        path += "" if path.endswith("/chat/completions") else "/chat/completions"
        whole = urlunsplit(parts._replace(path=path, fragment=""))
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
            raise ValueError
        return requests.Request("POST", whole).prepare().url
    except ValueError:  # of `requests` too
        raise UserError(f"--rewriter={url!r} is no http(s) address such as http://localhost:8000/v1") from None


def _reply(body: bytes) -> _Reply:
    """What an answer says."""
    try:
        answer = json.loads(body)
        choices = [(choice["message"]["content"], choice.get("finish_reason")) for choice in answer["choices"]]
    except (ValueError, RecursionError):
        raise _Failure("the answer is no JSON", alive=True) from None
    except (LookupError, TypeError):
        raise _Failure("the answer has no choices with a message", alive=True) from None
    whole = (_text(content, cut=finish == "length") for content, finish in choices if isinstance(content, str))
    texts = [text for text in whole if text]
    usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
    tokens = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return _Reply(texts, *(count if type(count) is int and 0 < count < 1 << 40 else 0 for count in tokens))


def _text(content: str, *, cut: bool) -> str:
    """A text that can be written anywhere (no lone surrogates), without its broken last line if it was cut off."""
    text = content.encode("utf-8", "replace").decode()
    return (text.rpartition("\n")[0] if cut else text).strip()


def _message(body: bytes) -> str:
    """What the body of an error says, under "error" and "message", or only one of them, or "detail"."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    for key in ("error", "detail", "message"):
        said = said.get(key, said) if isinstance(said, dict) else said
    return said if isinstance(said, str) else ""


def _retry_after(response: requests.Response) -> float:
    """The seconds that a server asks to wait, within reason."""
    try:
        return min(Retry().get_retry_after(response.raw) or 0.0, LONGEST_WAIT)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return 0.0


def _root(error: BaseException) -> str:
    """What lies at the bottom of an error: "Connection refused"."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
