"""The door before several servers: a request whose server is lost is done again, with the same seed, and its
client sees one answer. Servers are stand-ins here; `test_server_ray.py` has real ones."""

from __future__ import annotations

import asyncio
import doctest
import json
from typing import Any

import pytest

from cm3serve import door
from cm3serve.door import SEED, Door, ServerLost, ServersBusy
from cm3serve.guard import Guard
from cm3serve.sending import Event
from cm3serve.settings import Limits
from messages import tells
from toy_server import CHAT, GENERATE

JSON = [(b"content-type", b"application/json"), (b"content-length", b"13")]
STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]


def start(headers: list[tuple[bytes, bytes]], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def piece(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def grown(index: int, number: int) -> bytes:
    body = {"index": index, "partial_image_index": number}
    return Event("image_generation.partial_image", body).encode()


def done(index: int) -> bytes:
    return Event("image_generation.completed", {"index": index}).encode()


class Servers:
    """Stand-ins: what each of them sends, one after the other; an exception ends it."""

    def __init__(self, *scripts: list[Any]) -> None:
        self.scripts, self.calls, self.left = list(scripts), [], 0

    async def __call__(self, scope: dict[str, Any], body: bytes) -> Any:
        self.calls.append((scope, body))
        try:
            for one in self.scripts[len(self.calls) - 1]:
                if isinstance(one, Exception):
                    raise one
                if one == "wait":
                    await asyncio.Event().wait()
                yield one
        finally:
            self.left += 1


def ask(
    servers: Servers, path: str = GENERATE, *, limits: Limits | None = None, leave: bool = False
) -> list[dict[str, Any]]:
    """What a client is sent; `leave`: it goes away when the first server is at work."""
    sent: list[dict[str, Any]] = []

    async def main() -> None:
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "app": object()}
        read = False

        async def receive() -> dict[str, Any]:
            nonlocal read
            if not read:
                read = True
                return {"type": "http.request", "body": b'{"prompt": 1}', "more_body": False}
            while leave and not servers.calls:
                await asyncio.sleep(0)
            await (asyncio.sleep(0.01) if leave else asyncio.Event().wait())
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await Door(servers, limits or Limits())(scope, receive, send)

    asyncio.run(asyncio.wait_for(main(), 20))
    return sent


def error_of(sent: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]


LOST = ServerLost("ActorDiedError")


def test_a_lost_server_is_not_seen_and_the_seed_stays():
    answer = [start(JSON), piece(b'{"data": [1]}', False)]
    servers = Servers([LOST], [start(JSON), LOST], answer)
    assert ask(servers) == answer
    scopes = [scope for scope, _ in servers.calls]
    assert len({scope[SEED] for scope in scopes}) == 1
    assert "app" not in scopes[0]  # what can't travel
    assert {body for _, body in servers.calls} == {b'{"prompt": 1}'}
    assert servers.left == 3


def test_other_requests_have_other_seeds():
    answer = [start(JSON), piece(b"{}", False)]
    servers = Servers(answer, answer)
    ask(servers)
    ask(servers)
    assert servers.calls[0][0][SEED] != servers.calls[1][0][SEED]


def test_a_stream_goes_on_where_it_was_lost():
    whole = [grown(0, 0), grown(1, 0), done(0), grown(1, 1), done(1)]
    servers = Servers(
        [start(STREAM), *map(piece, whole[:3]), LOST],
        # the second one draws in another order
        [start(STREAM), piece(whole[1]), piece(whole[3]), piece(whole[0]), LOST],
        [start(STREAM), *map(piece, whole), piece(b"", False)],
    )
    sent = ask(servers)
    assert [message["type"] for message in sent].count("http.response.start") == 1
    bodies = [message["body"] for message in sent[1:]]
    assert bodies == [*whole[:3], whole[3], done(1), b""]


def test_chunks_of_a_chat_are_told_apart_by_their_number():
    chunks = [f'data: {{"number": {number}}}\n\n'.encode() for number in range(3)]
    servers = Servers(
        [start(STREAM), piece(chunks[0]), piece(chunks[1]), LOST],
        [start(STREAM), *map(piece, chunks), piece(b"data: [DONE]\n\n", False)],
    )
    bodies = [message["body"] for message in ask(servers, CHAT)[1:]]
    assert bodies == [*chunks, b"data: [DONE]\n\n"]


def test_a_refusal_after_a_stream_has_begun_is_an_event_of_it():
    refusal = b'{"error": {"message": "busy"}}'
    servers = Servers(
        [start(STREAM), piece(grown(0, 0)), LOST], [start(JSON, 429), piece(refusal, False)]
    )
    sent = ask(servers)
    expected = Event("error", {"error": {"message": "busy"}}).encode()
    assert [message.get("body") for message in sent[1:]] == [grown(0, 0), expected, b""]
    assert sent[-1]["more_body"] is False


def test_a_request_that_ends_every_server_is_given_up():
    servers = Servers([LOST], [LOST], [LOST], [])
    status, error = error_of(ask(servers))
    assert (status, error["code"]) == (503, "servers_lost")
    assert tells(error["message"], "3 servers crashed")
    assert len(servers.calls) == 3
    servers = Servers(*[[start(STREAM), piece(grown(0, 0)), LOST]] * 3)
    sent = ask(servers)
    assert b'"code": "servers_lost"' in sent[2]["body"]
    assert (sent[3]["body"], sent[3]["more_body"]) == (b"", False)


def test_all_are_busy():
    sent = ask(Servers([ServersBusy()]))
    assert error_of(sent)[0] == 429
    assert (b"retry-after", b"5") in sent[0]["headers"]


def test_the_time_of_a_request_holds_over_all_servers():
    servers = Servers([LOST], ["wait"])
    status, error = error_of(ask(servers, limits=Limits(seconds=0.1)))
    assert (status, error["code"]) == (504, "timeout")
    assert servers.left == 2


def test_a_client_that_goes_away_ends_the_work():
    servers = Servers([start(STREAM), piece(grown(0, 0)), "wait"])
    ask(servers, leave=True)
    assert servers.left == 1


def test_a_body_that_is_too_long_reaches_no_server():
    servers = Servers([])
    assert error_of(ask(servers, limits=Limits(body_bytes=5)))[0] == 413
    assert servers.calls == []


@pytest.mark.parametrize(("path", "status"), [("/healthz", 200), ("/metrics", 404)])
def test_what_the_door_answers_itself(path, status):
    servers = Servers()
    assert ask(servers, path)[0]["status"] == status
    assert servers.calls == []


@pytest.mark.parametrize(
    ("client", "headers", "answered"),
    [
        (("127.0.0.1", 5), [], True),
        (("::1", 5), [], True),
        (("10.0.0.7", 5), [], False),
        (("127.0.0.1", 5), [(b"x-forwarded-for", b"127.0.0.1")], False),
        (("127.0.0.1", 5), [(b"forwarded", b"for=127.0.0.1")], False),
        (None, [], False),
        (("host", 5), [], False),
    ],
)
def test_without_a_token_only_this_machine_is_answered(client, headers, answered):
    seen, sent = [], []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "client": client, "headers": headers, "path": "/"}
    guard = Guard(inner, token=None, hosts=None, only_local=True)
    asyncio.run(guard({**scope, "method": "GET"}, lambda: None, send))
    assert bool(seen) == answered
    if not answered:
        assert error_of(sent)[0] == 403
        assert tells(
            error_of(sent)[1]["message"], "without a token ... CM3_SERVE_TOKEN ... token_file"
        )


def test_examples():
    assert doctest.testmod(door).attempted == 2
    assert doctest.testmod(door).failed == 0
