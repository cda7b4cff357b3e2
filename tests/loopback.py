"""A chat-completions server on this machine that does what a test tells it, good or bad.

A behaviour is a function of the HTTP handler and the request's payload that sends a response. A server takes a list of
them, one a request; the last one serves all further requests.
"""

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Behaviour = Callable[[BaseHTTPRequestHandler, dict], None]


@dataclass
class Loopback:
    """A running server.

    Attributes:
      url: the base address to give to a client.
      behaviours: what it does; may be changed while it runs.
      payloads: the JSON of every request, in the order in which they came.
      keys: the Authorization header of every request; empty where it had none.
      faults: what was wrong with requests; empty for a client that speaks the protocol.
      most_at_once: the most requests that were being answered at a time.
    """

    url: str
    behaviours: list[Behaviour]
    payloads: list[dict] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        payload = json.loads(body)
        with self._lock:
            behaviour = self.behaviours[min(len(self.payloads), len(self.behaviours) - 1)]
            self.payloads.append(payload)
            self.keys.append(handler.headers.get("Authorization", ""))
            self.faults += faults(handler, payload)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            behaviour(handler, payload)
        except (BrokenPipeError, ConnectionResetError):  # the client has seen enough
            handler.close_connection = True
        finally:
            with self._lock:
                self._at_once -= 1


@contextlib.contextmanager
def serving(*behaviours: Behaviour) -> Iterator[Loopback]:
    """A server for the length of a test; at its end every request must have been well-formed."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self):
            loopback.handle(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    loopback = Loopback(f"http://127.0.0.1:{server.server_port}/v1", list(behaviours))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    try:
        yield loopback
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not loopback.faults


def faults(handler: BaseHTTPRequestHandler, payload: object) -> list[str]:
    """What is wrong with a request, by the protocol."""
    found = [] if handler.path == "/v1/chat/completions" else [f"path {handler.path}"]
    if handler.headers.get("Content-Type") != "application/json":
        found.append("it is not declared as JSON")
    if handler.headers.get("Accept-Encoding") != "identity":
        found.append("it lets an answer be packed, so that a small one may be huge")
    for name, kind in (("model", str), ("messages", list), ("temperature", float), ("max_tokens", int), ("seed", int)):
        if not isinstance(payload.get(name), kind):
            found.append(f"{name} is {payload.get(name)!r}")
    if not isinstance(payload.get("n", 1), int) or payload.get("n", 1) < 1:
        found.append(f"n is {payload['n']!r}")
    roles = [message.get("role") for message in payload["messages"]]
    if roles not in (["user"], ["system", "user"]):
        found.append(f"roles {roles}")
    if not said(payload).strip():
        found.append("the user says nothing")
    return found


def said(payload: dict) -> str:
    """The user's text in a request."""
    content = payload["messages"][-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


def image_of(payload: dict) -> tuple[str, bytes]:
    """The media type and the bytes of the image in a request."""
    (url,) = [p["image_url"]["url"] for p in payload["messages"][-1]["content"] if p["type"] == "image_url"]
    head, data = url.split(",", 1)
    return head.removeprefix("data:").removesuffix(";base64"), base64.b64decode(data, validate=True)


# ---- behaviours ------------------------------------------------------------------------------------------------------


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def completion(*texts: object, finish: str = "stop", usage: object = (10, 5)) -> dict:
    """The JSON of a good answer with these choices."""
    choices = [{"index": i, "message": {"content": t}, "finish_reason": finish} for i, t in enumerate(texts)]
    if isinstance(usage, tuple):
        usage = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
    return {"object": "chat.completion", "choices": choices, "usage": usage}


def says(*texts: object, **more) -> Behaviour:
    """Answers with as many of the texts as asked for; asked for more, it has no more."""
    return lambda handler, payload: gives(completion(*texts[: payload.get("n", 1)], **more))(handler, payload)


def answers(function: Callable[[dict], str]) -> Behaviour:
    """Answers with `function(payload)`, once: `n` is ignored."""
    return lambda handler, payload: gives(completion(function(payload)))(handler, payload)


def gives(content: object) -> Behaviour:
    """Answers with any JSON."""
    return raw(json.dumps(content).encode())


def raw(body: bytes, **headers: str) -> Behaviour:
    """Answers with any bytes."""
    return lambda handler, payload: send(handler, body, **headers)


def status(code: int, message: object = "", **headers: str) -> Behaviour:
    """Refuses."""
    return lambda handler, payload: send(handler, json.dumps({"error": {"message": message}}).encode(), code, **headers)


def wire(data: bytes) -> Behaviour:
    """Writes any bytes in place of a response, and hangs up."""

    def behave(handler, payload):
        handler.wfile.write(data)
        handler.close_connection = True

    return behave


def broken_off(handler: BaseHTTPRequestHandler, payload: dict) -> None:
    """Hangs up in the middle of its answer."""
    wire(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"choices": [')(handler, payload)


def endless(head: bytes = b"200 OK", *, part: bytes = b" " * 65536, pause: float = 0.0) -> Behaviour:
    """Sends an answer without end, so many bytes at a time with so many seconds between them."""

    def behave(handler, payload):
        handler.wfile.write(b"HTTP/1.1 %s\r\n\r\n" % head)
        while True:
            handler.wfile.write(part)
            time.sleep(pause)

    return behave


def waiting(event: threading.Event, behaviour: Behaviour) -> Behaviour:
    """Does so once the event is set."""

    def behave(handler, payload):
        event.wait(60)
        behaviour(handler, payload)

    return behave


def together(parties: int, behaviour: Behaviour) -> Behaviour:
    """Does so for `parties` requests at once; too few fail."""
    barrier = threading.Barrier(parties)

    def behave(handler, payload):
        try:
            barrier.wait(60)
        except threading.BrokenBarrierError:
            behaviour_ = status(418, "alone")
        else:
            behaviour_ = behaviour
        behaviour_(handler, payload)

    return behave
