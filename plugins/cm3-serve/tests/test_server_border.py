"""Who gets past the guard, what a GET may do, and where a connection ends. `test_server_other_sites.py` tries the same in a
browser."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Route

from attacks.wires import head, wire
from cm3serve.app import OPEN_PATHS, PAGES, make_app
from cm3serve.errors import APIError
from cm3serve.guard import Guard
from cm3serve.http import Metrics
from cm3serve.ray import Doors
from cm3serve.scheduling import ModelPool
from cm3serve.settings import Limits
from messages import tells
from toy_model import toy_model
from toy_server import GENERATE, Served, served, toy

LINK = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as running:
        yield running


def routes_of(server: Served) -> list[Route]:
    """All routes of an application like the server's."""
    guard = make_app(server.workshop, Metrics())
    assert isinstance(guard, Guard)
    return [one for one in guard.app.routes if isinstance(one, Route)]  # type: ignore[attr-defined]  # Starlette's


# ---- pages of other sites


def sent(guard: Any, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    """The status and the body of a guard's answer; its application answers 200."""
    found: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        found.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "client": ("127.0.0.1", 5),
        "headers": [
            (name.replace("_", "-").encode(), value.encode("latin-1"))
            for name, value in {"host": "localhost", **headers}.items()
        ],
    }
    asyncio.run(guard(scope, lambda: None, send))
    return found[0]["status"], b"".join(one.get("body", b"") for one in found[1:])


async def welcome(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


GUARD = Guard(welcome, token=None, hosts={"localhost"}, open_paths=OPEN_PATHS, pages=PAGES)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize("site", ["cross-site", "same-site", "none, cross-site", ""])
def test_requests_of_other_sites_are_refused_everywhere(server, site, method):
    """With one answer for all paths, so that a page learns nothing from it, not even whether a path exists."""
    paths = {one.path for one in routes_of(server)} | {"/nothing"}
    answers = {
        sent(GUARD, path, method, **{"sec-fetch-site": site, "sec-fetch-mode": "no-cors"})
        for path in paths
    }
    [(status, body)] = answers
    assert (status, json.loads(body)["error"]["code"]) == (403, "foreign_origin")


@given(st.text(st.characters(codec="latin-1", exclude_categories=["C"]), max_size=20))
def test_only_two_values_are_the_servers_own_site(site):
    status, _ = sent(GUARD, "/v1/models", sec_fetch_site=site)
    assert status == (200 if site in ("same-origin", "none") else 403)


def test_programs_the_user_and_the_page_itself_are_answered():
    for headers in (
        {},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-origin", "origin": "http://localhost"},
    ):
        for method in ("GET", "POST"):
            assert sent(GUARD, GENERATE, method, **headers) == (200, GENERATE.encode())


@pytest.mark.parametrize(
    ("path", "method", "change", "status"),
    [
        ("/", "GET", {}, 200),
        ("/", "HEAD", {}, 200),
        ("/", "POST", {}, 403),
        ("/", "GET", {"sec-fetch-dest": "iframe"}, 403),
        ("/", "GET", {"sec-fetch-dest": "object"}, 403),
        ("/", "GET", {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "empty"}, 403),
        ("/", "GET", {"origin": "http://evil.example"}, 403),
        ("/docs", "GET", {}, 403),
        ("/v1/models", "GET", {}, 403),
        ("//", "GET", {}, 403),
    ],
)
def test_a_link_opens_the_page_alone(path, method, change, status):
    headers = {"sec-fetch-site": "cross-site", **LINK, **change}
    assert sent(GUARD, path, method, **headers)[0] == status


def test_a_link_needs_a_known_name_too():
    headers = {"host": "evil.example", "sec-fetch-site": "cross-site", **LINK}
    assert b"unknown_host" in sent(GUARD, "/", **headers)[1]


class Engine:
    """Stands for the handle of Ray's replicas; counts what is passed on."""

    def __init__(self) -> None:
        self.calls = 0
        self.answer = self

    def options(self, **_: Any) -> Engine:
        return self

    def remote(self, scope: Any, body: bytes) -> Any:
        self.calls += 1
        raise AssertionError("a request came through")


@pytest.mark.parametrize("token", [None, "a-long-enough-token"])
def test_the_doors_of_ray_have_the_same_guard(token):
    engine = Engine()
    doors = Doors(engine, Limits(), token, ["studio.example"]).__serve_build_asgi_app__()
    own = {} if token is None else {"authorization": f"Bearer {token}"}
    for path in ("/v1/models", GENERATE, "/docs", "/healthz", "/studio/facts"):
        for method in ("GET", "POST"):
            status, body = sent(doors, path, method, **own, **{"sec-fetch-site": "same-site"})
            assert (status, json.loads(body)["error"]["code"]) == (403, "foreign_origin")
    both = {"content-length": "5", "transfer-encoding": "chunked"}
    assert sent(doors, "/healthz", **own, **both)[0] == 400
    assert engine.calls == 0
    assert sent(doors, "/healthz") == (200, b'{"status": "ok"}')


# ---- what a GET does


def test_no_get_loads_a_model_or_drops_one():
    """Every route of the application, for the model in memory and for the one that would take its place."""
    with served({"toy": toy(), "other": toy()}, most_models=1) as server:
        drawn = server.post(prompt="red", model="other").json()["data"]
        original = drawn[0]["documents"][0]["original"]
        server.load("toy")
        pool = server.workshop.pool
        before = (2, 1, ["toy"])
        assert (pool.loads, pool.drops, pool.loaded) == before
        reading = [one for one in routes_of(server) if "GET" in (one.methods or ())]
        assert {"/studio/facts", "/v1/originals", "/v1/models", "/readyz", "/"} <= {
            one.path for one in reading
        }
        with httpx.Client(base_url=server.url) as client:
            for route in reading:
                for name in ("other", "toy", "nothing", ""):
                    path = re.sub(r"\{.*\}", name, route.path)
                    for query in ({}, {"model": name}, {"model": name, "id": "red"}):
                        for method in route.methods or ():
                            client.request(method, path, params=query)
                            assert (pool.loads, pool.drops, pool.loaded) == before, path
        for path in ("/studio/facts?model=other", original):
            refused = httpx.get(server.url + path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                409,
                "model_not_loaded",
            )
            assert tells(
                refused.json()["error"]["message"],
                "the model 'other' is not in memory, ... Next: POST /studio/facts with ...",
            )
        assert server.post("/studio/facts", model="other").json()["model"] == "other"
        assert pool.loaded == ["other"]
        assert httpx.get(server.url + "/studio/facts?model=other").status_code == 200
        assert httpx.get(server.url + original).status_code == 200


def test_a_model_that_is_read_stays_in_memory():
    pool = ModelPool({"a": toy_model, "b": toy_model}, 1)

    async def main() -> None:
        with pytest.raises(APIError), pool.held("a"):
            raise AssertionError("it was not loaded")
        async with pool.use("a"):
            pass

        async def used() -> None:
            async with pool.use("b"):
                assert pool.loaded == ["b"]

        with pool.held("a"):
            waiting = asyncio.create_task(used())
            await asyncio.sleep(0.05)
            assert pool.loaded == ["a"]
        await asyncio.wait_for(waiting, 20)
        await pool.close()

    asyncio.run(main())


# ---- what is said without a token


def test_nothing_without_a_token_names_a_model_or_its_place():
    place = "runs/for-ann/icons"
    with served({place: toy()}, token="a-long-enough-token") as server:
        assert httpx.get(server.url + "/readyz").json() == {
            "status": "not ready",
            "reason": "no model is loaded yet",
        }
        server.load()
        server.workshop.pool._lost.add(place)
        failing = httpx.get(server.url + "/healthz")
        assert failing.status_code == 503
        assert failing.json() == {
            "status": "failing",
            "reason": "an engine has stopped or is stuck; the log says which",
        }
        texts = [httpx.get(server.url + path).text for path in OPEN_PATHS]
        server.workshop.pool._lost.clear()
        texts += [httpx.get(server.url + path).text for path in OPEN_PATHS]
        assert not [one for one in texts if place in one]
        assert httpx.get(server.url + "/healthz").json() == {"status": "ok"}
        # with the token there is a route for names, and one for numbers
        allowed = {"authorization": "Bearer a-long-enough-token"}
        assert place in httpx.get(server.url + "/v1/models", headers=allowed).text


# ---- where a connection ends

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
NEXT = HEALTH + b"\r\n"
CHUNKED = head(GENERATE, None)


def changed(length: str, line: str = "") -> bytes:
    """A POST of {} whose length, and the line after it, are as given."""
    return head(GENERATE, 2).replace(b": 2\r\n", f": {length}\r\n{line}".encode()) + b"{}"


#: Requests after whose answer nobody knows where the next one begins, or with whose client something is wrong.
BROKEN = {
    "length and chunks": head(GENERATE, 5, Transfer_Encoding="chunked") + b"0\r\n\r\n",
    "chunks and length": HEALTH
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "both, of HTTP/1.0": head(GENERATE, 5, Transfer_Encoding="chunked").replace(b"/1.1", b"/1.0"),
    "two lengths": changed("2", "Content-Length: 3\r\n"),
    "a list of lengths": changed("2, 3"),
    "a negative length": changed("-2"),
    "a length with a sign": changed("+2"),
    "a hexadecimal length": changed("0x2"),
    "a length with an underscore": changed("1_0"),
    "an empty length": changed(""),
    "no length": head(GENERATE, 2).replace(b"Content-Length: 2\r\n", b""),
    "a space before a colon": changed("2", "A : b\r\n"),
    "a space before the length's colon": changed("2").replace(b"Length:", b"Length :"),
    "a continued line first": HEALTH.replace(b"Host", b" Host") + b"\r\n",
    "a continued coding": head(GENERATE, 2, Transfer_Encoding="\r\n chunked") + b"{}",
    "a bare carriage return": changed("2", "A: b\rContent-Length: 3\r\n"),
    "a null": changed("2", "A: \0\r\n"),
    "a line without a colon": changed("2", "abc\r\n"),
    "two codings": CHUNKED.replace(b"chunked", b"chunked, chunked") + b"0\r\n\r\n",
    "an unknown coding": CHUNKED.replace(b"chunked", b"xchunked") + b"0\r\n\r\n",
    "a coding after a tab": CHUNKED.replace(b"chunked", b"\x0bchunked") + b"0\r\n\r\n",
    "chunks of HTTP/1.0": CHUNKED.replace(b"/1.1", b"/1.0") + b"2\r\n{}\r\n0\r\n\r\n",
    "a negative chunk": CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n",
    "a chunk with a sign": CHUNKED + b"+2\r\n{}\r\n0\r\n\r\n",
    "a chunk with 0x": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk after a space": CHUNKED + b" 2\r\n{}\r\n0\r\n\r\n",
    "a chunk of a bare line feed": CHUNKED + b"2\n{}\r\n0\r\n\r\n",
    "an extension with a line feed": CHUNKED + b"2;a\nb\r\n{}\r\n0\r\n\r\n",
    "a chunk that goes on": CHUNKED + b"2\r\n{}XX0\r\n\r\n",
    "a chunk of 88 bits": CHUNKED + b"f" * 22 + b"\r\n{}\r\n0\r\n\r\n",
    "a trailer without a colon": CHUNKED + b"2\r\n{}\r\n0\r\nabc\r\n\r\n",
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "two hosts": HEALTH + b"Host: 127.0.0.1\r\n\r\n",
}
#: Requests whose body is not read, but known: it is skipped, and never taken for a request.
SKIPPED = {
    "a refused name": head(GENERATE, len(NEXT)).replace(b"127.0.0.1", b"evil.example"),
    "a wrong type": head(GENERATE, len(NEXT), "text/plain"),
    "no such path": head("/nothing", len(NEXT)),
    "a body that is too long": head(GENERATE, 10**12),
    "another site's": head(GENERATE, len(NEXT), Sec_Fetch_Site="cross-site"),
}


def answers(port: int, pieces: list[bytes]) -> tuple[list[str], bool]:
    """The statuses of all answers, and whether the server closed the connection."""
    data, closed = b"", False
    with wire(port, 0.5) as client:
        try:
            for piece in pieces:
                client.sendall(piece)
            while more := client.recv(65536):
                data += more
            closed = True
        except TimeoutError:
            pass
        except OSError:  # closed before it had read all
            closed = True
    return [one.decode() for one in re.findall(rb"HTTP/1\.1 (\d+)", data)], closed


@pytest.mark.parametrize("split", [False, True], ids=["at once", "in two pieces"])
@pytest.mark.parametrize("name", BROKEN)
def test_nothing_is_served_after_an_error_of_framing(server, name, split):
    port = int(server.url.rpartition(":")[2])
    found, closed = answers(port, [BROKEN[name], NEXT] if split else [BROKEN[name] + NEXT])
    assert closed
    assert "200" not in found
    assert found[:1] in ([], ["400"], ["411"], ["501"])  # [] where closing overtook the answer


@pytest.mark.parametrize("name", SKIPPED)
def test_an_unread_body_is_not_a_request(server, name):
    port = int(server.url.rpartition(":")[2])
    found, _ = answers(port, [SKIPPED[name] + NEXT])
    assert len(found) == 1
    assert found[0][0] == "4"


@given(st.lists(st.sampled_from(sorted(SKIPPED)[1:]), min_size=1, max_size=4))
def test_a_whole_request_after_skipped_bodies_is_answered(server, names):
    """`a body that is too long` never ends."""
    port = int(server.url.rpartition(":")[2])
    requests = b"".join(SKIPPED[name] + NEXT for name in names)
    close = HEALTH + b"Connection: close\r\n\r\n"
    found, closed = answers(port, [requests + close])
    assert closed
    assert [one[0] for one in found] == ["4"] * len(names) + ["2"]
