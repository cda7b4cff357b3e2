"""A language model is asked through a real connection: once for each prompt, patiently, and never believed."""

import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import (
    answers,
    broken_off,
    completion,
    endless,
    gives,
    image_of,
    raw,
    said,
    says,
    serving,
    status,
    together,
    waiting,
    wire,
)

from agriclip_jax.data import endpoint
from agriclip_jax.data.endpoint import Answer, Endpoint, Prompt, Usage
from agriclip_jax.errors import UserError


@pytest.fixture(autouse=True, scope="module")
def surroundings():
    """No back-off, no key and no proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endpoint, "BACK_OFF", 0.0)
        patch.delenv("OPENAI_API_KEY", raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


def ask(server, folder, *texts, count=1, **settings):
    """The endpoint and its answers to prompts of these texts."""
    asked = Endpoint(server.url, "tiny", cache=folder / "cache", **settings)
    return asked, list(asked.ask(Prompt(text, count=count) for text in texts))


def echo(payload):
    return f"you said {said(payload)}"


# ---- asking ----------------------------------------------------------------------------------------------------------


def test_a_prompt_gets_its_answer(tmp_path):
    with serving(says("a leaf", usage=(12, 3))) as server:
        asked = Endpoint(server.url, "tiny", cache=tmp_path, temperature=0.5, max_tokens=7)
        (answer,) = asked.ask([Prompt("what is it?", system="be brief")])
    assert answer == Answer(("a leaf",), tokens_in=12, tokens_out=3)
    assert server.payloads == [
        {
            "model": "tiny",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is it?"}],
            "seed": 0,
            "temperature": 0.5,
            "max_tokens": 7,
        }
    ]
    assert asked.usage == Usage(requests=1, tokens_in=12, tokens_out=3)


@pytest.mark.parametrize(("image", "kind"), [(b"\x89PNG 1", "image/png"), (b"\xff\xd8 2", "image/jpeg")])
def test_an_image_travels_with_the_prompt(tmp_path, image, kind):
    with serving(says("a leaf")) as server:
        list(Endpoint(server.url, "tiny", cache=tmp_path).ask([Prompt("what is it?", image=image)]))
    assert image_of(server.payloads[0]) == (kind, image)
    assert said(server.payloads[0]) == "what is it?"


def test_the_address_may_be_the_base_or_whole(tmp_path):
    with serving(says("a leaf")) as server:
        for number, url in enumerate((server.url, f"{server.url}/", f"{server.url}/chat/completions")):
            (answer,) = Endpoint(url, "tiny", cache=tmp_path).ask([Prompt(f"{number}")])
            assert answer.texts == ("a leaf",)


def test_answers_come_in_order_though_many_are_asked_at_once(tmp_path):
    texts = [str(number) for number in range(12)]
    with serving(together(4, answers(echo))) as server:  # a lone request would be refused
        asked, got = ask(server, tmp_path, *texts, workers=4)
    assert [answer.texts for answer in got] == [(f"you said {text}",) for text in texts]
    assert server.most_at_once == 4 and asked.usage.requests == 12


def test_prompts_are_made_as_they_are_needed(tmp_path):
    made = []

    def prompts():
        for number in range(1000):
            made.append(number)
            yield Prompt(str(number))

    with serving(answers(echo)) as server:
        got = list(islice(Endpoint(server.url, "tiny", cache=tmp_path, workers=2).ask(prompts()), 3))
        assert [answer.texts[0] for answer in got] == ["you said 0", "you said 1", "you said 2"]
    assert len(made) < 12 and len(server.payloads) < 12


def test_several_answers_come_from_one_request_where_the_server_can(tmp_path):
    with serving(says("a", "b", "c", usage=(10, 30))) as server:
        asked, (answer,) = ask(server, tmp_path, "x", count=3)
    assert answer == Answer(("a", "b", "c"), tokens_in=10, tokens_out=30)
    assert asked.usage.requests == 1 and server.payloads[0]["n"] == 3


def test_a_server_that_ignores_n_is_asked_with_other_seeds(tmp_path):
    with serving(answers(lambda payload: f"seed {payload['seed']}")) as server:
        asked, (answer,) = ask(server, tmp_path, "x", count=3)
    assert answer == Answer(("seed 0", "seed 1", "seed 2"), tokens_in=30, tokens_out=15)
    assert asked.usage.requests == 3


def test_a_server_that_refuses_n_is_asked_without_it(tmp_path):
    def refuses_n(handler, payload):
        (status(400, "n must be 1") if "n" in payload else says("a leaf"))(handler, payload)

    with serving(refuses_n) as server:
        asked, got = ask(server, tmp_path, "x", "y", count=2, workers=1)
    assert [answer.texts for answer in got] == [("a leaf", "a leaf")] * 2
    assert asked.usage.requests == 5  # only the first prompt met the refusal


def test_what_there_is_comes_with_the_error_that_ended_it(tmp_path):
    with serving(says("a leaf"), status(418)) as server:
        asked, (answer,) = ask(server, tmp_path, "x", count=3)
        assert answer.texts == ("a leaf",) and "418" in answer.error
        assert answer.tokens_in == asked.usage.tokens_in == 10  # they were spent
        server.behaviours = [says("a leaf", "b leaf", "c leaf")]
        _, (answer,) = ask(server, tmp_path, "x", count=3)
    assert answer.texts == ("a leaf", "b leaf", "c leaf") and not answer.cached


def test_an_answer_that_was_cut_off_loses_its_last_line(tmp_path):
    with serving(says("a green leaf\na brown le", finish="length")) as server:
        _, (answer,) = ask(server, tmp_path, "x")
        assert answer.texts == ("a green leaf",)
        server.behaviours = [says("a brown le", finish="length")]
        _, (answer,) = ask(server, tmp_path, "y")
        assert answer.error == "the answer is empty or cut off"


def test_what_is_no_text_in_an_answer_is_replaced(tmp_path):
    with serving(gives(completion("half a \ud83c leaf"))) as server:
        _, (answer,) = ask(server, tmp_path, "x")
    assert answer.texts == ("half a ? leaf",)


def test_the_bill_is_one_line():
    usage = Usage(requests=120, cached=30, failed=2, tokens_in=34_000, tokens_out=9_000)
    assert str(usage) == "120 requests, 30 from the cache, 2 failed, 34,000 + 9,000 tokens"


@pytest.mark.parametrize("usage", [None, 3, {}, {"prompt_tokens": "many"}, {"prompt_tokens": -1}, (True, float("nan"))])
def test_a_server_that_cannot_count_its_tokens_still_answers(tmp_path, usage):
    with serving(says("a leaf", usage=usage)) as server:
        _, (answer,) = ask(server, tmp_path, "x")
    assert answer == Answer(("a leaf",))


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_what_was_answered_is_never_asked_again(tmp_path):
    with serving(says("ein Blatt: ü \U0001f33f", "b")) as server:
        _, first = ask(server, tmp_path, "x", "y", count=2)
        again, second = ask(server, tmp_path, "x", "y", count=2)
    assert len(server.payloads) == 2
    assert second == [Answer(answer.texts, cached=True) for answer in first]
    assert again.usage == Usage(cached=2)


def test_whatever_changes_the_answer_is_asked_anew(tmp_path):
    prompts = [
        Prompt("x"),
        Prompt("y"),
        Prompt("x", system="s"),
        Prompt("x", image=b"1"),
        Prompt("x", image=b"2"),
        Prompt("x", count=2),
    ]
    ways = [{}, {"temperature": 0.1}, {"max_tokens": 5}]
    with serving(says("a", "b")) as server:
        for way in ways:
            list(Endpoint(server.url, "tiny", cache=tmp_path, workers=1, **way).ask(prompts))
        list(Endpoint(server.url, "other", cache=tmp_path, workers=1).ask(prompts))
        assert len(server.payloads) == 4 * len(prompts)
        list(Endpoint(server.url, "other", cache=tmp_path, workers=2, timeout=9.0, retries=0).ask(prompts))
    assert len(server.payloads) == 4 * len(prompts)  # how it is asked changes nothing


def test_failures_are_asked_again(tmp_path):
    with serving(gives({}), says("a leaf")) as server:
        assert ask(server, tmp_path, "x")[1][0].error
        assert ask(server, tmp_path, "x")[1][0] == Answer(("a leaf",), tokens_in=10, tokens_out=5)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b'{"texts": []}',
        b'{"texts": [3]}',
        b'{"texts": "x"}',
        b'{"texts": ["x", "y"]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_memory_is_asked_anew_and_mended(tmp_path, damage):
    with serving(says("a leaf")) as server:
        ask(server, tmp_path, "x")
        (kept,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
        whole = kept.read_bytes()
        kept.write_bytes(damage)
        _, (answer,) = ask(server, tmp_path, "x")
    assert answer.texts == ("a leaf",) and not answer.cached and len(server.payloads) == 2
    assert kept.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write into"):
        Endpoint("http://127.0.0.1:1/v1", "tiny", cache=tmp_path / "file")
    with serving(says("a leaf")) as server:
        asked = Endpoint(server.url, "tiny", cache=tmp_path / "cache")
        (tmp_path / "cache").write_text("", encoding="utf-8")
        with pytest.raises(UserError, match=r"the cache .* cannot be written \(.*\); make room or name another"):
            list(asked.ask([Prompt("x")]))


ASKING = """
import sys
from agriclip_jax.data.endpoint import Endpoint, Prompt
asked = Endpoint(sys.argv[1], "tiny", cache=sys.argv[2], workers=4)
assert all(a.texts for a in asked.ask(Prompt(str(n)) for n in range(40)))
"""


def test_processes_share_a_cache(tmp_path):
    with serving(answers(lambda payload: f"{said(payload)} " * (1 + int(said(payload)) ** 2))) as server:
        command = [sys.executable, "-c", ASKING, server.url, str(tmp_path / "cache")]
        processes = [subprocess.Popen(command) for _ in range(2)]
        assert [process.wait() for process in processes] == [0, 0]
        asked, got = ask(server, tmp_path, *map(str, range(40)))
    assert asked.usage == Usage(cached=40)
    assert all(set(answer.texts[0].split()) == {str(number)} for number, answer in enumerate(got))


def test_a_run_left_early_keeps_what_was_answered_and_asks_no_more(tmp_path, monkeypatch):
    rest = threading.Event()

    class Pool(ThreadPoolExecutor):
        """Lets the server go on once the client has said what it no longer wants."""

        def shutdown(self, wait=True, **more):
            super().shutdown(wait=False, **more)
            rest.set()
            super().shutdown(wait)

    def behave(handler, payload):  # whichever comes first, the prompt "0" is answered at once
        (answers(echo) if said(payload) == "0" else waiting(rest, answers(echo)))(handler, payload)

    monkeypatch.setattr(endpoint, "ThreadPoolExecutor", Pool)
    with serving(behave) as server:
        asked = Endpoint(server.url, "tiny", cache=tmp_path / "cache", workers=4)
        asking = asked.ask(Prompt(str(number)) for number in range(100))
        next(asking)
        asking.close()
        assert len(server.payloads) <= 1 + asked.workers
        again, _ = ask(server, tmp_path, *map(said, server.payloads))
    assert again.usage == Usage(cached=len(server.payloads))


# ---- servers that fail for a while -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        *(status(code) for code in (408, 429, 500, 502, 503, 504)),
        status(429, Retry_After="0"),
        status(503, Retry_After="Thu, 01 Jan 2015 00:00:00 GMT"),
        status(503, Retry_After="soon"),
        status(503, Retry_After="-1"),
        broken_off,
        wire(b""),
        wire(b"no HTTP at all\r\n\r\n"),
        wire(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"),
    ],
)
def test_what_may_pass_is_tried_again(tmp_path, trouble):
    with serving(trouble, trouble, says("a leaf")) as server:
        asked, (answer,) = ask(server, tmp_path, "x", retries=2)
    assert answer.texts == ("a leaf",) and asked.usage == Usage(3, 0, 0, 10, 5)


class Clock(threading.Event):
    """Never waits, but remembers how long it should have."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        return False


@pytest.mark.parametrize(
    ("retry_after", "wait"), [("7", 7.0), ("0", 0.0), ("86400", 30.0), ("9" * 5000, 0.0), ("a while", 0.0)]
)
def test_a_server_says_how_long_to_wait_within_reason(tmp_path, retry_after, wait):
    clock = Clock()
    with serving(status(429, Retry_After=retry_after), says("a leaf")) as server:
        asked = Endpoint(server.url, "tiny", cache=tmp_path)
        assert asked._send_patiently(asked._payload(Prompt("x"), 0), clock).texts == ["a leaf"]
    assert clock.waits == [wait]


def test_a_server_that_says_nothing_is_given_ever_more_time(tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "BACK_OFF", 4.0)
    clock = Clock()
    with serving(*[status(500)] * 5, says("a leaf")) as server:
        asked = Endpoint(server.url, "tiny", cache=tmp_path, retries=5)
        asked._send_patiently(asked._payload(Prompt("x"), 0), clock)
    first, *then = clock.waits
    assert first == 0 and then == sorted(then) and 8 <= then[0] <= 10 and then[-1] == endpoint.LONGEST_WAIT


@pytest.mark.parametrize("retries", [0, 2])
def test_patience_has_an_end(tmp_path, retries):
    with serving(status(503, "overloaded")) as server:
        asked, (answer,) = ask(server, tmp_path, "x", retries=retries)
    assert answer.error == f"{server.url}/chat/completions answered with HTTP status 503 (overloaded)"
    assert asked.usage == Usage(requests=1 + retries, failed=1)


def test_a_server_that_never_begins_to_answer_is_left(tmp_path):
    never = threading.Event()
    with serving(waiting(never, says("late"))) as server:
        _, (answer,) = ask(server, tmp_path, "x", retries=1, timeout=0.05)
        never.set()
    assert answer.error.endswith("gave no answer within 0.05 s") and len(server.payloads) == 2


# ---- servers that are down -------------------------------------------------------------------------------------------


def no_such_name(*_, **__):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize("reason", ["Connection refused", "Name or service not known"])
def test_nobody_there_is_said_soon(tmp_path, monkeypatch, reason):
    with serving() as server:
        url = server.url  # free again once it is closed
    if reason != "Connection refused":
        monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    asked = Endpoint(url, "tiny", cache=tmp_path, workers=2)
    got = list(asked.ask(Prompt(str(number)) for number in range(50)))
    assert got[0].error == f"{url}/chat/completions cannot be reached ({reason})"
    assert got[-1].error == f"not asked any more after 5 failures in a row: {got[0].error}"
    assert asked.usage.failed == 50 and asked.usage.requests <= 6  # none twice


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (400, "answered with HTTP status 400 (no such luck)"),
        (401, "answered with HTTP status 401; check the environment variable OPENAI_API_KEY (no such luck)"),
        (404, "answered with HTTP status 404; check the address and the model's name (no such luck)"),
        (307, "answered with HTTP status 307; name the address it redirects to (no such luck)"),
    ],
)
def test_a_refusal_is_not_argued_with(tmp_path, code, advice):
    with serving(status(code, "no such\nluck", Location="http://127.0.0.1:1/elsewhere")) as server:
        asked, got = ask(server, tmp_path, *map(str, range(50)), workers=1)
    assert got[0].error == f"{server.url}/chat/completions {advice}"
    assert got[-1].error == f"not asked any more after 5 failures in a row: {got[0].error}"
    assert asked.usage == Usage(requests=5, failed=50)


def test_after_it_was_given_up_the_disk_still_answers(tmp_path):
    with serving(says("a leaf"), status(401)) as server:
        ask(server, tmp_path, "known")
        _, got = ask(server, tmp_path, *map(str, range(10)), "known")
    assert got[-1].texts == ("a leaf",) and got[-1].cached


def test_a_failure_now_and_then_does_not_stop_the_rest(tmp_path):
    def fails_mostly(handler, payload):
        (answers(echo) if int(said(payload)) % 5 == 4 else status(418))(handler, payload)

    with serving(fails_mostly) as server:
        asked, _ = ask(server, tmp_path, *map(str, range(40)), workers=1)
    assert asked.usage.requests == 40 and asked.usage.failed == 32


# ---- answers of no use -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (raw(b""), "the answer is no JSON"),
        (raw(b'{"choices": ['), "the answer is no JSON"),
        (raw(b"<html>Hello</html>", Content_Type="text/html"), "the answer is no JSON"),
        (raw(b"\xff\xfe\xfd"), "the answer is no JSON"),
        (raw(b"[" * 100_000), "the answer is no JSON"),
        (raw(b"NaN"), "the answer has no choices with a message"),
        (gives(None), "the answer has no choices with a message"),
        (gives({"choices": None}), "the answer has no choices with a message"),
        (gives({"choices": "text"}), "the answer has no choices with a message"),
        (gives({"choices": [None]}), "the answer has no choices with a message"),
        (gives({"choices": [{"text": "x"}]}), "the answer has no choices with a message"),
        (gives({"choices": [{"message": {"role": "assistant"}}]}), "the answer has no choices with a message"),
        (gives({"choices": []}), "the answer is empty or cut off"),
        (says(" \n"), "the answer is empty or cut off"),
        (says(None), "the answer is empty or cut off"),
        (says(3), "the answer is empty or cut off"),
        (says(float("nan")), "the answer is empty or cut off"),
        (endless(), "sent an answer of more than 1024 KiB"),
        (endless(b"503 Busy\r\nRetry-After: 0"), "sent an answer of more than 1024 KiB"),
        (endless(b"307 Moved\r\nLocation: http://127.0.0.1:1/"), "sent an answer of more than 1024 KiB"),
        (says("x" * (2 << 20)), "sent an answer of more than 1024 KiB"),
        (endless(part=b" ", pause=0.01), "did not end its answer within 0.1 s"),
        (wire(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08"), "the answer is no JSON"),
    ],
)
def test_an_answer_of_no_use_costs_only_its_prompt(tmp_path, behaviour, reason):
    with serving(behaviour, says("a leaf")) as server:
        asked, (bad, good) = ask(
            server, tmp_path, "x", "y", workers=1, timeout=0.1 if reason.endswith("0.1 s") else 60.0
        )
    assert bad.texts == () and bad.error.endswith(reason) and "\n" not in bad.error
    assert good.texts == ("a leaf",)
    assert (asked.usage.requests, asked.usage.failed) == (2, 1)


def test_a_server_that_answers_nonsense_is_not_given_up(tmp_path):
    with serving(*[says("")] * 30, answers(echo)) as server:
        asked, got = ask(server, tmp_path, *map(str, range(31)), workers=1)
    assert got[-1].texts == ("you said 30",) and asked.usage == Usage(31, 0, 30, 310, 155)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    """A server whose next response can be set, and an endpoint that asks it once."""
    with serving(says("a leaf")) as server:
        yield server, Endpoint(server.url, "tiny", cache=tmp_path_factory.mktemp("cache"), retries=0, workers=1)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
bodies = (
    st.binary()
    | json_values.map(lambda value: json.dumps(value).encode())
    | json_values.map(lambda value: json.dumps({"choices": value}).encode())
    | json_values.map(lambda value: json.dumps(completion(value, usage=value)).encode())
)


@settings(deadline=None, max_examples=150)  # a busy machine may pause for long
@given(st.sampled_from([200, 400, 401, 503]), bodies)
def test_any_body_is_texts_or_one_line(scripted, code, body):
    server, asked = scripted
    asked._row = ("", 0)  # it would be given up
    server.behaviours = [lambda handler, payload: wire_of(handler, code, body)]
    (answer,) = asked.ask([Prompt(f"{len(server.payloads)}")])
    assert bool(answer.texts) != bool(answer.error) and "\n" not in answer.error
    assert all(text == text.strip() and text.encode("utf-8") for text in answer.texts)


def wire_of(handler, code, body):
    wire(b"HTTP/1.1 %d Any\r\nContent-Length: %d\r\n\r\n%s" % (code, len(body), body))(handler, {})


@settings(deadline=None)  # a busy machine may pause for long
@given(st.binary() | st.binary().map(lambda data: b"HTTP/1.1 200 OK\r\n" + data))
def test_any_bytes_in_place_of_http_are_one_line(scripted, data):
    server, asked = scripted
    asked._row = ("", 0)
    server.behaviours = [wire(data)]
    (answer,) = asked.ask([Prompt(f"{len(server.payloads)}")])
    assert answer.error and "\n" not in answer.error


# ---- addresses and keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000/v1",
        "ftp://host/v1",
        "http://",
        "http://[::1",
        "http://host:99999",
        "http://a\nb",
        "file:///x",
    ],
)
def test_an_address_that_is_none_is_one_line(tmp_path, url):
    with pytest.raises(UserError, match=r"is no http\(s\) address such as http://localhost:8000/v1") as error:
        Endpoint(url, "tiny", cache=tmp_path)
    assert str(error.value).startswith("--rewriter=") and "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["http://me:hush@host/v1", "http://me:hush@[bad/v1", "http://hush@host"])
def test_an_address_with_a_password_is_refused_and_not_repeated(tmp_path, url):
    with pytest.raises(UserError, match="OPENAI_API_KEY") as error:
        Endpoint(url, "tiny", cache=tmp_path)
    assert "hush" not in str(error.value)


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hush\n")
    with serving(says("a leaf"), status(401, "the key sk-hush is wrong")) as server:
        asked, (good, bad) = ask(server, tmp_path, "x", "y", workers=1)
    assert server.keys == ["Bearer sk-hush"] * 2
    assert good.texts and "the key *** is wrong" in bad.error
    shown = [repr(asked), str(asked.usage), repr(bad), *capfd.readouterr()]
    kept = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.json")]
    assert len(kept) == 1 and not any("hush" in text for text in shown + kept)


def test_without_a_key_none_is_sent_not_even_one_of_netrc(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hush", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    with serving(says("a leaf")) as server:
        ask(server, tmp_path, "x")
    assert server.keys == [""]


@pytest.mark.parametrize("key", ["sk-\n-hush", "schlüssel-hush", "sk\x00hush"])
def test_a_key_that_can_be_none_is_refused_and_not_repeated(tmp_path, monkeypatch, key):
    monkeypatch.setattr(endpoint.os, "environ", {"OPENAI_API_KEY": key})
    with pytest.raises(UserError, match="OPENAI_API_KEY") as error:
        Endpoint("http://localhost:1", "tiny", cache=tmp_path)
    assert "hush" not in str(error.value)


def test_what_follows_the_path_of_an_address_is_sent_but_not_shown(tmp_path):
    def gone(handler, payload):
        assert handler.path == "/v1/chat/completions?key=hush"
        handler.path = "/v1/chat/completions"
        status(404)(handler, payload)

    with serving(gone) as server:
        (answer,) = Endpoint(f"{server.url}?key=hush", "tiny", cache=tmp_path).ask([Prompt("x")])
        server.faults.clear()  # it minds the query
    assert "404" in answer.error and "hush" not in answer.error
