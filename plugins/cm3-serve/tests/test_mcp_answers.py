"""Every call has an answer, whatever it contains, and however the server is reached."""

from __future__ import annotations

import doctest
import json
import logging
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import DataError
from cm3serve.mcp.results import Document, Made, Reply

pytest.importorskip("mcp", reason="needs the package mcp")

from attacks.other_site import running
from cm3serve.connections import config_of
from cm3serve.mcp import answering
from cm3serve.mcp.answering import LIMITS, _fields, is_call, readable, refusal_of
from cm3serve.mcp.given import AllowedFolders
from cm3serve.mcp.serving import Tools, http_app
from toy_server import with_fixtures

HALF = r'"\ud800"'
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


def call(
    id: str = "1", method: str = '"tools/call"', name: str = '"provenance"', arguments: str = "{}"
) -> str:
    """A call as text."""
    params = f'{{"name": {name}, "arguments": {arguments}}}'
    return f'{{"jsonrpc": "2.0", "id": {id}, "method": {method}, "params": {params}}}'


def request(params: str) -> str:
    return f'{{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {params}}}'


#: Calls -> the id of the answer.
CALLS: dict[str, tuple[str, Any]] = {
    "in order": (call(arguments='{"picture": "<svg/>"}'), 1),
    "half a character in an argument": (call(arguments=f'{{"picture": {HALF}}}'), 1),
    "half a character in a key": (call(arguments=f"{{{HALF}: 1}}"), 1),
    "half a character in the tool": (call(name=HALF), 1),
    "half a character in the method": (call(method=HALF), 1),
    "half a character in the id": (call(id=HALF), None),
    "half a character elsewhere": (call()[:-1] + f', "x": {HALF}}}', 1),
    "half a character in a token": (request(f'{{"_meta": {{"progressToken": {HALF}}}}}'), 1),
    "NaN": (call(arguments='{"picture": NaN}'), 1),
    "an infinity": (call(arguments='{"picture": 1e999}'), 1),
    "a number of 100 digits": (call(arguments=f'{{"picture": {"9" * 100}}}'), 1),
    "a number of 5,000 digits": (call(arguments=f'{{"picture": {"9" * 5000}}}'), 1),
    "150 lists in each other": (call(arguments=f'{{"picture": {"[" * 150}{"]" * 150}}}'), 1),
    "20,000 lists": (call(arguments=f'{{"picture": {"[" * 20_000}{"]" * 20_000}}}'), 1),
    "20,000 open lists": (call(arguments=f'{{"picture": {"[" * 20_000}'), 1),
    "a null in a text": (call(arguments='{"picture": "\\u0000"}'), 1),
    "two ids": (call()[:-1] + ', "id": 2}', 2),
    "two methods": (call()[:-1] + ', "method": "ping"}', 1),
    "a list of params": (request("[1]"), 1),
    "a text as params": (request('"x"'), 1),
    "null as params": (request("null"), 1),
    "wrong _meta": (request('{"_meta": 5}'), 1),
    "a list of arguments": (call(arguments="[1]"), 1),
    "no arguments": (call(arguments="null"), 1),
    "a number as tool": (call(name="5"), 1),
    "no such tool": (call(name='"nothing"'), 1),
    "no such method": (call(method='"nothing"'), 1),
    "a number as method": (call(method="5"), 1),
    "null as method": (call(method="null"), 1),
    "no method": ('{"jsonrpc": "2.0", "id": 1}', 1),
    "another version": (call().replace("2.0", "1.0"), 1),
    "no version": ('{"id": 1, "method": "ping"}', 1),
    "a text as id": (call(id='"a"'), "a"),
    "an empty id": (call(id='""'), ""),
    "an id of 400 digits": (call(id="9" * 400), int("9" * 400)),
    "an id of 5,000 digits": (call(id="9" * 5000), None),
    "null as id": (call(id="null"), None),
    "a fraction as id": (call(id="1.5"), None),
    "true as id": (call(id="true"), None),
    "a list as id": (call(id="[1]"), None),
    "an object as id": (call(id='{"id": 1}'), None),
    "a batch": (f"[{call()}, {call(id='2')}]", None),
    "an empty batch": ("[]", None),
    "a number": ("5", None),
    "a text": ('"x"', None),
    "null": ("null", None),
    "no JSON": ("hello", None),
    "an empty object": ("{}", None),
    "half a call": (call()[:40], 1),
    "an open text": ('{"jsonrpc": "2.0", "id": 1, "method": "\\"', 1),
}
#: What is answered by nothing.
NO_CALLS = {
    "a notification": '{"jsonrpc": "2.0", "method": "notifications/nothing"}',
    "half a character in one": f'{{"jsonrpc": "2.0", "method": {HALF}}}',
    "a cancelled call": '{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": []}}',
    "an answer": '{"jsonrpc": "2.0", "id": 1, "result": {}}',
    "half a character in an answer": f'{{"jsonrpc": "2.0", "id": 1, "result": {{"x": {HALF}}}}}',
    "half a character in an error": f'{{"jsonrpc": "2.0", "id": 1, "error": {HALF}}}',
}


# ---- messages alone


@pytest.mark.parametrize("name", CALLS)
def test_a_refusal_has_the_id_of_its_call(name):
    text, id = CALLS[name]
    assert is_call(text)
    for message in (text, text.encode()):
        refusal = refusal_of(message)
        if refusal is not None:
            assert refusal.id == id
            assert refusal.error.code in (-32700, -32600)
            assert refusal.error.message.startswith("the message can't be read: ")
            json.dumps(refusal.model_dump(), ensure_ascii=False).encode()


@pytest.mark.parametrize("name", NO_CALLS)
def test_what_expects_no_answer(name):
    assert not is_call(NO_CALLS[name])


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None, exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    st.integers() | st.text(max_size=8), _JSON, st.sampled_from(["", ",", "}", "[", '"', "\ufeff"])
)
def test_whatever_follows_the_id_it_is_found(id, params, rest):
    text = json.dumps({"id": id, "params": params, "method": "\ud800"}) + rest
    refusal = refusal_of(text)
    assert refusal is not None
    assert refusal.id == id


@given(st.dictionaries(st.text(max_size=5), _JSON, max_size=5), st.booleans())
def test_outermost_keys_are_those_that_a_parser_finds(value, spaced):
    text = json.dumps(value, indent=1 if spaced else None)
    found = _fields(text)
    assert [json.loads(f'"{key}"') for key in found] == list(value)
    for given_text, one in zip(found.values(), value.values(), strict=True):
        expected = {list: "[", dict: "{"}.get(type(one))
        assert given_text == expected if expected else json.loads(given_text) == one


@given(st.text() | st.binary())
def test_no_text_raises(message):
    refusal_of(message)
    is_call(message)


def test_many_open_texts_take_no_time():
    """A search for each one's end would take hours."""
    assert is_call('{"id": 1, "' + '\\"' * 1_000_000)


def test_examples():
    assert doctest.testmod(answering).failed == 0


# ---- over HTTP


class Desk:
    """Stands for the tools' work: texts that can't be sent, as names of files may be."""

    def provenance(self, picture: str) -> Reply:
        if picture == "failing":
            raise ValueError("caf\udce9")
        if picture == "refused":
            raise DataError("caf\udce9", "is no picture", "name another")
        document = Document(id="caf\udce9", licence="MIT", collection="", attribution="")
        return Reply(Made(made={"caf\udce9": "\ud800"}, documents=[document]))


def tools() -> Tools:
    made = Tools(Namespace(), AllowedFolders([]))
    made.__dict__["_desk"] = Desk()
    return made


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(config_of(http_app(tools(), "127.0.0.1", ()), LIMITS)) as port:
        yield f"http://127.0.0.1:{port}/mcp"


@pytest.fixture(scope="module")
def session(url: str) -> dict[str, str]:
    """The headers of a session of the older protocol, which the SDK keeps."""
    headers = {
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
    }
    begun = httpx.post(url, json=INITIALIZE, headers=headers, timeout=30)
    return headers | {
        "mcp-session-id": begun.headers["mcp-session-id"],
        "mcp-protocol-version": "2025-06-18",
    }


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """The answer in a response, which is JSON or a stream."""
    text = response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        text = next(one[6:] for one in text.splitlines() if one.startswith("data: {"))
    return json.loads(text)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("version", ["2025-06-18", "2026-07-28"])
def test_every_call_over_http_has_an_answer_with_its_id(url, session, name, version):
    text, id = CALLS[name]
    headers = dict(session)
    if version != "2025-06-18":
        del headers["mcp-session-id"]
        headers["mcp-protocol-version"] = version
    response = httpx.post(url, content=text.encode(), headers=headers, timeout=10)
    answer = answer_of(response)
    assert answer["id"] == id
    assert ("result" in answer) != ("error" in answer)


@pytest.mark.parametrize("name", NO_CALLS)
def test_other_messages_over_http(url, session, name):
    response = httpx.post(url, content=NO_CALLS[name], headers=session, timeout=10)
    assert response.status_code in (202, 400)


@pytest.mark.parametrize("picture", ["shown", "refused", "failing"])
def test_results_that_can_not_be_written_are_written_in_escapes(url, session, picture, caplog):
    # pytest-xdist can't send a log that has half a character
    caplog.set_level(logging.CRITICAL, logger="mcp")
    text = call(arguments=json.dumps({"picture": picture}))
    answer = answer_of(httpx.post(url, content=text, headers=session, timeout=10))
    assert answer["result"].get("isError", False) == (picture != "shown")
    if picture != "failing":  # the SDK does not repeat what it does not know
        assert r"caf\udce9" in answer["result"]["content"][0]["text"].replace("\\\\", "\\")
    if picture == "shown":
        assert answer["result"]["structuredContent"]["made"] == {r"caf\udce9": r"\ud800"}


def test_a_message_that_is_too_long_is_answered(url, session):
    for content in (b" " * (LIMITS.body_bytes + 1), iter([b" " * 1_000_000] * 5)):
        response = httpx.post(url, content=content, headers=session, timeout=10)
        assert (response.status_code, response.json()["id"]) == (413, None)


@given(_JSON)
def test_readable_texts_stay_as_they_are(value):
    json.dumps(readable(value), ensure_ascii=False).encode()
    plain = json.loads(json.dumps(value).replace("\\ud", "x").replace("\\uD", "x"))
    assert readable(plain) == plain


# ---- over stdio


@pytest.mark.slow
def test_every_call_over_stdio_has_an_answer_with_its_id():
    """In one session, and each is answered before the next is sent; what expects no answer gets none."""
    with subprocess.Popen(
        [sys.executable, "-m", "cm3apps.cli.main", "mcp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=with_fixtures(),
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def ask(text: str) -> None:
            assert server.stdin is not None
            server.stdin.write(text.encode() + b"\n")
            server.stdin.flush()

        def answer() -> Any:
            assert server.stdout is not None
            return json.loads(server.stdout.readline())

        ask(json.dumps(INITIALIZE))
        assert answer()["id"] == 0
        ask('{"jsonrpc": "2.0", "method": "notifications/initialized"}')
        for name, (text, id) in CALLS.items():
            ask(text)
            answered = answer()
            assert answered["id"] == id, name
            assert ("result" in answered) != ("error" in answered)
        for text in ("", *NO_CALLS.values()):
            ask(text)
        ask('{"jsonrpc": "2.0", "id": "last", "method": "ping"}')
        assert answer()["id"] == "last"
        server.stdin.close()
        assert server.stdout.read() == b""
        assert server.wait(60) == 0
