"""Hostile clients: what they send is refused in words, before it costs anything, and others don't notice.
`python -m tests.fuzz.clients` has the same in large, and measures memory and waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.datastructures import Headers

from attacks import bombs, cases
from attacks.victim import MIB, Victim, victim
from attacks.wires import CUT, answer_of, ask, head, post, whole_answer, wire
from cm3serve.connections import Keeper
from cm3serve.errors import APIError
from cm3serve.intake import Structure, body_of
from cm3serve.settings import Limits
from messages import tells
from toy_model import picture
from toy_server import EDIT, GENERATE, Served, png, served, toy, tuned

SMALL = Limits(
    body_bytes=2 * MIB,
    all_body_bytes=4 * MIB,
    picture_pixels=1_000_000,
    all_pixels=4_000_000,
    side=512,
    connections=20,
    header_seconds=0.5,
    body_seconds=1.5,
    idle_seconds=0.6,
    send_seconds=1.0,
)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served({"toy": toy(), "tuned": tuned()}, limits=SMALL) as running:
        yield running


def port_of(server: Served) -> int:
    return int(server.url.rpartition(":")[2])


def metric(server: Served, name: str) -> float:
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    return next((float(one.split()[-1]) for one in lines if one.startswith(name + " ")), 0.0)


def all_is_given_back(server: Served) -> bool:
    names = ("cm3_body_bytes", "cm3_pixels", "cm3_unsent_bytes", "cm3_spooled_bytes")
    return all(metric(server, name) == 0 for name in names)


# ---- what is not HTTP


@pytest.mark.parametrize("request_", cases.FRAMING, ids=lambda one: repr(one[:60]))
def test_what_is_no_http_is_refused_in_the_shape_of_the_api(server, request_):
    expected = cases.FRAMING[request_]
    with wire(port_of(server), 20) as client:
        with contextlib.suppress(OSError):
            client.sendall(request_)
        assert answer_of(client) == expected


def test_no_traceback_is_logged_for_any_of_them(caplog):
    with served(limits=SMALL) as server:
        for request in cases.FRAMING:
            ask(port_of(server), [request], seconds=20)
    assert not [one for one in caplog.records if one.exc_info or "Traceback" in one.getMessage()]
    assert "Fatal error" not in caplog.text


def test_both_framings_at_once_are_refused_in_words(server):
    with wire(port_of(server), 20) as client:
        client.sendall(head(GENERATE, 1, Transfer_Encoding="chunked") + b"0\r\n\r\n")
        _, body = whole_answer(client)
    assert tells(
        json.loads(body)["error"]["message"],
        "the request can't be read: it has both Content-Length and Transfer-Encoding",
    )


def test_a_token_comes_before_everything_else():
    with served(token="a-long-enough-token", limits=SMALL) as server:
        port = port_of(server)
        for request in (
            head(GENERATE, 10**12),
            head(GENERATE, 100),  # whose body never comes
            head(GENERATE, None) + b"1\r\n \r\n" * 9,
            head(EDIT, 5, "text/plain", Content_Encoding="gzip"),
            head(GENERATE, 1, Origin="http://["),
            head("/v1/nothing", 5),
        ):
            assert ask(port, [request], seconds=5) == "401 invalid_api_key"
        right = head(GENERATE, 2, Authorization="Bearer a-long-enough-token")
        assert ask(port, [right + b"{}"], seconds=5) == "400 missing_required_parameter"


# ---- what becomes large


@pytest.mark.parametrize("name", bombs.JSON_BOMBS)
def test_json_is_refused_before_it_is_parsed(server, name):
    status = ask(port_of(server), [post(bombs.JSON_BOMBS[name](MIB))])
    assert status.split()[0] == ("200" if name == "long fraction" else "400")  # which is a number


def test_values_are_counted_while_they_arrive():
    count = Structure(5)
    count(b'{"a": [1, 2')
    count(b", 3, 4")
    with pytest.raises(APIError) as caught:
        count(b"}, {")
    assert caught.value.code == "too_many_values"
    assert tells(caught.value.message, "the body has ... than 5")


def test_a_bomb_of_lists_is_not_read_to_its_end(server):
    """Its end never comes, and the answer does."""
    start = head(GENERATE, SMALL.body_bytes) + b"[],[" * 60_000
    assert ask(port_of(server), [start], seconds=5) == "400 too_many_values"


@pytest.mark.parametrize("name", bombs.FORM_BOMBS)
def test_forms_that_become_large(server, name):
    status = ask(port_of(server), [post(bombs.FORM_BOMBS[name](MIB), EDIT, bombs.FORM)])
    assert status.split()[0] == "400"


#: What is read as small pictures.
_SMALL_ENOUGH = ("png larger than its head", "apng", "gif of frames", "webp of frames")


@pytest.mark.parametrize("name", bombs.PICTURE_BOMBS)
def test_pictures_that_become_large_in_every_way_to_send_them(server, name):
    data = bombs.PICTURE_BOMBS[name](1100 if "frames" not in name and name != "apng" else 2200)
    for carried in bombs.CARRIERS.values():
        path, sort, body = carried(data, 2)
        expected = "413" if len(body) > SMALL.body_bytes else "400"
        if name in _SMALL_ENOUGH and carried is bombs.in_documents:
            expected = "200"
        assert ask(port_of(server), [post(body, path, sort)]).split()[0] == expected
    server.until(lambda: all_is_given_back(server))


def test_pictures_are_refused_by_their_sum_before_any_is_decoded(server, monkeypatch):
    monkeypatch.setattr("cm3core.images.open_image", None)
    path, _, body = bombs.picture_body("png", "documents", 900, 5)
    response = httpx.post(
        server.url + path, content=body, headers={"content-type": "application/json"}
    )
    assert response.json()["error"] == {
        "message": "documents[0].image_url: 5 pictures have 4,050,000 pixels together, at most 4,000,000 are "
        "allowed",
        "type": "invalid_request_error",
        "param": "documents[0].image_url",
        "code": "invalid_value",
    }


def test_texts_are_refused_before_pictures_are_decoded(server, monkeypatch):
    monkeypatch.setattr("cm3core.images.open_image", None)
    one = {"image_url": bombs.url(png(picture(8, 8))), "text": "red"}
    too_long = server.post(prompt="red " * 50, documents=[one]).json()["error"]
    assert too_long["message"].startswith("prompt: is ")
    too_long = server.post(prompt="red", documents=[one | {"text": "red " * 50}]).json()["error"]
    assert too_long["message"].startswith("context 0, text: is ")
    too_many = server.post(prompt="red", n=10, candidates=16, documents=[one]).json()["error"]
    assert too_many["message"].startswith("n: 10 results of 16 candidates are 160")


def test_a_picture_that_is_filled_is_no_larger_than_one_that_is_returned(server):
    clear = png(np.zeros((8, 600, 4), np.uint8))
    error = server.post(EDIT, images=[{"image_url": bombs.url(clear)}]).json()["error"]
    assert tells(error["message"], "image: is 600x8; a ... exceed 512")


def test_results_of_a_fill_are_counted_too(server):
    clear = png(np.zeros((500, 500, 4), np.uint8))
    body = {"images": [{"image_url": bombs.url(clear)}], "prompt": "red", "n": 10, "candidates": 1}
    assert server.post(EDIT, **body, mask={"image_url": bombs.url(clear)}).json()["error"][
        "message"
    ] == (
        "image: 2 pictures and 10 results as large have 5,500,000 pixels together, at most 4,000,000 are allowed"
    ).replace("image:", "images[0]:")


def test_budgets_are_given_back_whatever_happens(server):
    """Refused, answered, cut off: nothing is held afterwards."""
    long = {
        "prompt": "red",
        "documents": [{"image_url": bombs.url(png(picture(300, 300))), "text": "x"}],
    }
    whole = post(long | {"padding": "x" * 100_000})
    for request in (post(long), whole, whole[:90_000], head(GENERATE, 90_000)):
        with wire(port_of(server), 20) as client:
            client.sendall(request)
            if request is not whole[:90_000]:
                answer_of(client)
    server.until(lambda: all_is_given_back(server))


def test_bodies_wait_for_room_and_small_ones_do_not():
    limits = Limits(body_bytes=MIB, all_body_bytes=MIB, body_seconds=3.0)
    with served(limits=limits) as server:
        port, size = port_of(server), MIB - 10
        with wire(port) as first, wire(port) as second:
            first.sendall(head(GENERATE, size))
            server.until(lambda: metric(server, "cm3_body_bytes") == size)
            second.sendall(head(GENERATE, size) + b" " * size)
            assert server.post(prompt="red").status_code == 200
            assert answer_of(first) == "408 timeout"
            assert answer_of(second) == "400 invalid_json"
        server.until(lambda: all_is_given_back(server))


# ---- what is slow


def paced(
    pieces: list[tuple[float, bytes]], length: int | None, limits: Limits
) -> bytes | APIError:
    """What `body_of` makes of pieces that come after so many seconds each."""

    async def main() -> bytes | APIError:
        left = iter([*pieces, (0.0, None)])

        async def receive() -> dict[str, Any]:
            seconds, piece = next(left)
            await asyncio.sleep(seconds)
            return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

        head = {} if length is None else {"content-length": str(length)}
        try:
            return bytes(await body_of(Headers(head), receive, limits))
        except APIError as error:
            return error

    return asyncio.run(main())


def test_a_body_comes_at_an_even_pace():
    limits = Limits(body_seconds=0.9)
    assert paced([(0.05, b"ab"), (0.05, b"c")], 3, limits) == b"abc"
    # of 6 bytes none came in the first third and the half of a sixth after it
    late = paced([(0.7, b"abc"), (0, b"def")], 6, limits)
    assert isinstance(late, APIError)
    assert (late.status, late.code) == (408, "timeout")
    assert late.message.endswith("s, which is too slow; the limit is 0.9 s")
    # a chunked one must bring 1,024 bytes a second after the first third
    assert isinstance(paced([(0.2, b"a")] * 4, None, limits), APIError)


def test_heads_that_do_not_arrive_and_connections_that_idle_are_closed(server):
    port = port_of(server)
    with wire(port, 5) as silent, wire(port, 5) as half, wire(port, 5) as kept:
        half.sendall(b"GET / HTTP/1.1\r\nHost: 127")
        kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert answer_of(kept) == "200"
        assert answer_of(half) == "408 timeout"
        assert answer_of(silent) == answer_of(kept) == CUT


def test_connections_that_wait_longest_make_room(server):
    """Twenty are allowed; forty idle ones leave room for a picture, also one that is being drawn."""
    with contextlib.ExitStack() as stack:
        for number in range(40):
            client = stack.enter_context(wire(port_of(server), 5))
            client.sendall((b"", b"GET / HT", head(GENERATE, 10))[number % 3])
        assert server.post(prompt="red").status_code == 200
        assert httpx.get(server.url + "/").status_code == 200
    assert metric(server, 'cm3_refused_total{reason="connections"}') > 0


class Waiting:
    """A connection that waits for its client, without a socket."""

    def __init__(self, address: str, since: float) -> None:
        self.address, self.since, self.waits, self.is_new = address, since, "head", True
        self.loop, self.transport = asyncio.get_running_loop(), self
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


def test_a_new_connection_makes_room_only_once_it_could_be_read():
    """Ten of one client arrive at once, where as many idle ones of other clients are: those go, though the one client
    has more. Once the loop has turned it has no advantage."""
    refused: list[str] = []

    async def main() -> tuple[list[Waiting], list[Waiting], list[Waiting]]:
        keeper = Keeper(Limits(connections=10), refused.append)
        idle = [Waiting(f"10.0.0.{number}", number) for number in range(10)]
        burst = [Waiting("10.0.1.1", 100 + number) for number in range(10)]
        late = [Waiting("10.0.2.1", 200 + number) for number in range(3)]
        for arriving in (idle, burst, late):
            for one in arriving:
                keeper.arrived(one)  # type: ignore[arg-type]  # stands for a connection
            for _ in range(3):
                await asyncio.sleep(0)
        assert len(keeper.wires) == 10
        return idle, burst, late

    idle, burst, late = asyncio.run(main())
    assert all(one.is_aborted for one in idle)
    assert [one.is_aborted for one in burst] == [True] * 3 + [False] * 7
    assert not any(one.is_aborted for one in late)
    assert refused == ["connections"] * 13


def test_work_is_not_ended_for_a_connection():
    """Only connections that wait for their client are closed."""
    with served({"toy": toy(0.05)}, limits=Limits(connections=4)) as server:
        port = port_of(server)
        with wire(port) as working, contextlib.ExitStack() as stack:
            working.sendall(post({"prompt": "red"}))
            server.until(lambda: server.workshop.queue.in_flight == 1)
            for _ in range(12):
                stack.enter_context(wire(port))
            assert answer_of(working) == "200"


def test_chunks_of_a_byte_are_refused(server):
    port, top = port_of(server), head(GENERATE, None)
    for body in (b"1\r\n \r\n" * 30_000, b"1;" + b"a" * 9000 + b"\r\n"):
        refused = ask(port, [top, *[body] * 10], seconds=10)
        assert refused in ("400 bad_request", CUT)  # closed while it was sent
    fine = (
        b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in (b'{"prompt"', b': "red"}'))
        + b"0\r\n\r\n"
    )
    assert ask(port, [top + fine]) == "200"


def test_pipelined_requests_are_answered_in_turn(server):
    with wire(port_of(server)) as client:
        client.sendall(
            post({"prompt": "red"}) + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        data = b""
        while data.count(b"HTTP/1.1 200") < 2:
            piece = client.recv(65536)
            assert piece != b""
            data += piece


# ---- readers that don't

#: Pictures that take megabytes, and little time to make.
LARGE = {"output_format": "jpeg", "output_compression": 100}


@contextlib.contextmanager
def never_reading(port: int, number: int, **body: Any) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(number):
            client = stack.enter_context(contextlib.closing(socket.socket()))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(post({"prompt": "red", "n": 5, "candidates": 1, **body}))
            found.append(client)
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_places_are_free_when_pictures_are_drawn_not_when_they_are_read(stream):
    limits = Limits(at_once=10, unsent_bytes=2 * MIB, spooled_bytes=400 * MIB)
    with served(limits=limits) as server:
        body = {"size": "2048x2048", "stream": stream, **LARGE}
        with never_reading(port_of(server), 4, **body):
            server.until(lambda: metric(server, 'cm3_results_total{sort="draw"}') == 20, 60)
            server.until(lambda: server.workshop.queue.in_flight == 0)
            assert server.post(prompt="red").status_code == 200
        server.until(lambda: all_is_given_back(server), 60)


@pytest.mark.slow
def test_a_stream_that_is_read_late_is_whole():
    """It went through a file meanwhile."""
    limits = Limits(unsent_bytes=MIB, spooled_bytes=400 * MIB)
    with served(limits=limits) as server:
        body = {"size": "2048x2048", "stream": True, "partial_images": 3, "seed": 3, **LARGE}
        with never_reading(port_of(server), 1, **body) as [client]:
            server.until(lambda: metric(server, 'cm3_results_total{sort="draw"}') == 5, 30)
            data = b""
            client.settimeout(20)
            while not data.endswith(b"0\r\n\r\n"):
                data += client.recv(1 << 20)
    with served() as server:  # the same, read at once
        whole = server.post(prompt="red", n=5, candidates=1, **body)
    pictures = [one for one in whole.text.split("\n\n") if "completed" in one]
    assert len(pictures) == 5
    for event in pictures:
        encoded = json.loads(event.partition("data: ")[2])["b64_json"].encode()
        assert encoded[:60] in data
    assert data.count(b"event: image_generation.completed") == 5


@pytest.mark.slow
def test_a_client_that_reads_nothing_is_dropped():
    limits = Limits(send_seconds=0.6)
    with served(limits=limits) as server:
        with never_reading(
            port_of(server), 1, size="2048x2048", stream=True, partial_images=3, **LARGE
        ):
            reason = 'cm3_refused_total{reason="slow_reader"}'
            server.until(lambda: metric(server, reason) == 1, 60)
        server.until(lambda: all_is_given_back(server))


# ---- a server of its own


@pytest.fixture(scope="module")
def process() -> Iterator[Victim]:
    with victim() as running:
        yield running


@pytest.mark.parametrize(
    "size",
    [pytest.param(0.4, marks=pytest.mark.slow), pytest.param(1.0, marks=pytest.mark.extended)],
)
@pytest.mark.parametrize("name", cases.ATTACKS)
def test_memory_and_waits_of_others(process, name, size):
    """2.5 GB at most, and nobody is kept; the program says for how long others waited."""
    with process.watched():
        cases.ATTACKS[name](process, random.Random(f"2 {name}"), size)
    assert max(process.memory) < 2500 * 10**6
    if (
        name == "idle"
    ):  # while connections are closed to make room, a new one may be among them: it is made again
        resets = [one for one in process.failures if one.endswith("ConnectionResetError")]
        assert resets == process.failures
        assert len(resets) <= 3 + len(process.health) // 20
    else:
        assert process.failures == []
    assert max(process.health) < 10
    assert process.draw()[0] == 200
