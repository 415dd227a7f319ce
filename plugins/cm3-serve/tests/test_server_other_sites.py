"""Pages of other sites in a real browser, against `cm3 serve` and `cm3 mcp --http`: what docs/security.md says about web
pages. Another port of the same host is another origin of the same site; another name of this machine is another site.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from attacks.other_site import Behind, other_site, running, unguarded
from cm3serve import guard as guarding
from cm3serve import running as serving
from cm3serve.guard import Guard
from toy_page import CHROMIUM, api, draw, opened, ready, says
from toy_server import Served, served, toy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium"),
]
HOSTS = ("127.0.0.1", "localhost")


@dataclass
class Target:
    """A server under attack: its address, what GETs and what POSTs it may answer, and what reached it."""

    url: str
    reading: list[str]
    writing: list[str]
    behind: Behind
    server: Served | None = None


@contextmanager
def target_server(
    monkeypatch: pytest.MonkeyPatch, *, guarded: bool, **settings: Any
) -> Iterator[Target]:
    """`cm3 serve` with two models, of which one fits in memory: "toy" is there, "other" would drop it."""
    found: list[Behind] = []
    make_app = serving.make_app

    def noted(*arguments: Any, **options: Any) -> Guard:
        guard = make_app(*arguments, **options)
        assert isinstance(guard, Guard)
        found.append(Behind(guard))
        return guard if guarded else unguarded(guard)

    with monkeypatch.context() as patched:
        patched.setattr(serving, "make_app", noted)
        if not guarded:
            patched.setattr(guarding, "HEADERS", {})
        with served({"toy": toy(), "other": toy()}, most_models=1, **settings) as server:
            server.load()
            [behind] = found
            routes = [one for one in behind.app.routes if isinstance(one, Route)]  # type: ignore[attr-defined]  # Starlette's
            reading = [path_of(one) for one in routes if "GET" in (one.methods or ())]
            writing = [one.path for one in routes if "POST" in (one.methods or ())]
            yield Target(server.url, [*reading, "/nothing"], writing, behind, server)


def path_of(route: Route) -> str:
    """An address of a route that would use the model that is not in memory."""
    return route.path.replace("{name:path}", "other") + "?model=other&id=red"


@contextmanager
def target_mcp(*, guarded: bool) -> Iterator[Target]:
    """`cm3 mcp --http`."""
    from cm3serve.connections import config_of
    from cm3serve.mcp.answering import LIMITS
    from cm3serve.mcp.given import AllowedFolders
    from cm3serve.mcp.serving import Tools, http_app

    guard = http_app(Tools(Namespace(), AllowedFolders([])), "127.0.0.1", ())
    behind = Behind(guard)
    with running(config_of(guard if guarded else unguarded(guard), LIMITS)) as port:
        yield Target(f"http://127.0.0.1:{port}", ["/mcp", "/"], ["/mcp"], behind)


#: What is sent by POST, to either server.
REQUEST = {"prompt": "red", "model": "other"}
MESSAGE = {"jsonrpc": "2.0", "id": "1", "method": "tools/list"}


def attacked(browser: Any, target: Target, site: str) -> list[tuple[str, str]]:
    """Let the page of a site try everything; what it learnt from what (way, address)."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(site)
    body = MESSAGE if target.server is None else REQUEST
    urls = [[target.url + path for path in paths] for paths in (target.reading, target.writing)]
    learnt = page.evaluate("([get, post, body]) => attack(get, post, body)", [*urls, body])
    context.close()
    return [(way, address) for way, address, knows in learnt if knows == "yes"]


@pytest.mark.parametrize("host", HOSTS)
def test_nothing_gets_past_the_guard_of_the_server(browser, monkeypatch, host):
    with other_site() as port, target_server(monkeypatch, guarded=True) as target:
        assert attacked(browser, target, f"http://{host}:{port}/") == []
        assert target.behind.reached == set()
        pool = target.server.workshop.pool
        assert (pool.loads, pool.drops, pool.loaded) == (1, 0, ["toy"])


@pytest.mark.parametrize("host", HOSTS)
def test_without_a_guard_the_same_page_reaches_everything(browser, monkeypatch, host):
    """The attack is a real one: each address is reached, and a form of another site makes a model load."""
    with other_site() as port, target_server(monkeypatch, guarded=False) as target:
        learnt = attacked(browser, target, f"http://{host}:{port}/")
        reached = target.behind.reached
        assert {f"GET {path.partition('?')[0]}" for path in target.reading} <= reached
        assert {f"POST {path}" for path in target.writing} <= reached
        assert "OPTIONS /v1/images/generations" in reached  # a browser asks before it sends JSON
        pool = target.server.workshop.pool
        assert (pool.drops, pool.loaded) == (1, ["other"])
        icon = f"{target.url}/icon.svg?model=other&id=red"
        assert ("image", icon) in learnt
        assert ("script", icon.replace("icon.svg", "api.js")) in learnt


@pytest.mark.skipif(find_spec("mcp") is None, reason="needs the package mcp")
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("guarded", [True, False])
def test_pages_and_the_server_for_agents(browser, host, guarded):
    with other_site() as port, target_mcp(guarded=guarded) as target:
        learnt = attacked(browser, target, f"http://{host}:{port}/")
        if guarded:
            assert (learnt, target.behind.reached) == ([], set())
        else:
            assert {"GET /mcp", "POST /mcp"} <= target.behind.reached


@pytest.mark.parametrize("host", HOSTS)
def test_a_link_opens_the_page_and_nothing_else(browser, monkeypatch, host):
    """The page itself asks for the model's facts; it loads none."""
    with other_site() as port, target_server(monkeypatch, guarded=True) as target:
        context = browser.new_context()
        page = context.new_page()
        for path in target.reading:
            page.goto(f"http://{host}:{port}/link?{target.url}{path}")
            with page.expect_navigation() as answer:
                page.click("a")
            assert answer.value.status == (200 if path.startswith("/?") else 403), path
        page.goto(f"http://{host}:{port}/link?{target.url}/%23draw?model=other%26prompt=red")
        page.click("a")
        ready(page)
        says(page, "#notice", "The model other is not in memory.")
        pool = target.server.workshop.pool
        assert (pool.loads, pool.drops, pool.loaded) == (1, 0, ["toy"])
        assert page.evaluate("window.opener") is None
        # the user may load it
        page.click("#load")
        page.wait_for_function("() => window.cm3.facts?.model === 'other'")
        api.expect(page.locator("#notice")).to_be_hidden()
        api.expect(page.locator("#prompt")).to_have_value("red")
        assert (pool.loads, pool.drops, pool.loaded) == (2, 1, ["other"])
        page.click("#draw")
        says(page, "#draw-status", "One picture in")
        context.close()
        assert not {one for one in target.behind.reached if one.startswith("POST")} - {
            "POST /studio/facts",
            "POST /v1/images/generations",
        }


def test_no_page_shows_the_page_inside_itself(browser, monkeypatch):
    with other_site() as port, target_server(monkeypatch, guarded=True) as target:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        for name, source in (("iframe", "src"), ("object", "data"), ("embed", "src")):
            page.evaluate(
                "([name, source, url]) => document.body.append(Object.assign(document.createElement(name), { [source]: url }))",
                [name, source, target.url + "/"],
            )
        page.wait_for_timeout(1000)
        assert all(frame.locator("#prompt").count() == 0 for frame in page.frames)
        assert target.behind.reached == set()
        context.close()


def test_names_that_lead_to_this_machine_are_no_way_around(browser):
    """DNS rebinding: the browser takes the server for a part of the other site, and sends it what that site's page asks."""
    with served() as server:
        port = server.url.rpartition(":")[2]
        misled = browser.browser_type.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1"],
        )
        page = misled.new_page()
        answer = page.goto(f"http://evil.example:{port}/")
        assert (answer.status, answer.json()["error"]["code"]) == (403, "unknown_host")
        seen = page.evaluate("fetch('/v1/models').then((answer) => answer.json())")
        assert seen["error"]["code"] == "unknown_host"
        misled.close()
        assert httpx.get(server.url + "/v1/models").status_code == 200


def test_over_plain_http_and_another_name_gets_change_nothing_and_are_not_read(
    browser, monkeypatch
):
    """Browsers don't say there which site a request is from. All that isn't a GET is refused by its `Origin`."""
    names = "MAP studio.example 127.0.0.1, MAP evil.example 127.0.0.1"
    misled = browser.browser_type.launch(
        executable_path=str(CHROMIUM), args=["--no-sandbox", f"--host-resolver-rules={names}"]
    )
    with (
        other_site() as port,
        target_server(monkeypatch, guarded=True, allowed_hosts=("studio.example",)) as target,
    ):
        target.url = target.url.replace("127.0.0.1", "studio.example")
        assert attacked(misled, target, f"http://evil.example:{port}/") == []
        reached = target.behind.reached
        assert "GET /v1/models" in reached  # as a picture
        assert {one.partition(" ")[0] for one in reached} == {"GET"}
        pool = target.server.workshop.pool
        assert (pool.loads, pool.drops, pool.loaded) == (1, 0, ["toy"])
    misled.close()


def test_the_servers_own_page_works(browser):
    """All that the page needs comes from its own origin, and the guard lets it through."""
    with served({"toy": toy(), "other": toy()}, most_models=1) as server:
        with opened(browser, server) as page:
            draw(page)
            says(page, "#draw-status", "2 pictures in")
            page.select_option("#model", "other")  # the user asked for it
            page.wait_for_function("() => window.cm3.facts.model === 'other'")
        assert server.workshop.pool.loaded == ["other"]
