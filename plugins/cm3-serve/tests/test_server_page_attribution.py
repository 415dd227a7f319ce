"""The page in a real browser: who is to be named for a picture, what it is a copy of, its original, and an SVG."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3core.interfaces.dataset import Original, Provenance
from cm3run.attribution import facts_in
from toy_model import Colours
from toy_page import CHROMIUM, api, draw, opened, says
from toy_server import served, toy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium"),
]
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><path d="M1 1h6v6z"/></svg>'


def test_a_card_names_documents_and_offers_originals(browser, server, monkeypatch):
    monkeypatch.setattr(Colours, "original", lambda self, index: Original(".svg", SVG))
    with opened(browser, server) as page:
        draw(page, "red", 1, "3")
        says(page, "#draw-status", "One picture in")
        card = page.locator("#draw-cards .card")
        sources = card.locator(".sources li")
        api.expect(sources).to_have_count(2)
        api.expect(sources.first).to_contain_text("red by Ann Colour, of colours, CC-BY-4.0")
        assert [one.get_attribute("href") for one in sources.first.locator("a").all()] == [
            "https://example.org/colours",
            "https://creativecommons.org/licenses/by/4.0/",
        ]
        with page.expect_download() as found:
            sources.first.get_by_role("button", name="Download the original of red").click()
        assert found.value.suggested_filename == "red.svg"
        content = Path(found.value.path()).read_bytes()
        assert facts_in(content, "original").texts["original"] == "red"
        with page.expect_download() as found:
            card.get_by_role("button", name="SVG").click()
        content = Path(found.value.path()).read_bytes()
        assert [one.id for one in facts_in(content, "svg").credits] == ["red", "green"]


def test_an_original_of_a_model_that_was_dropped_loads_it_again(browser, monkeypatch):
    monkeypatch.setattr(Colours, "original", lambda self, index: Original(".svg", SVG))
    with served({"toy": toy(), "other": toy()}, most_models=1) as server:
        with opened(browser, server) as page:
            draw(page, "red", 1, "3")
            says(page, "#draw-status", "One picture in")
            server.load("other")
            assert server.workshop.pool.loaded == ["other"]
            with page.expect_download() as found:
                page.get_by_role("button", name="Download the original of red").click()
            assert found.value.suggested_filename == "red.svg"
        assert server.workshop.pool.loaded == ["toy"]


def test_an_address_that_is_none_is_no_link(browser, monkeypatch):
    hostile = Provenance("MIT", "", "<b>Eve</b>", "", "", "javascript:alert(1)")
    monkeypatch.setattr(Colours, "provenance", lambda self, index: hostile)
    with served({"toy": toy()}) as server, opened(browser, server) as page:
        draw(page, "blue", 1, "4")
        says(page, "#draw-status", "One picture in")
        first = page.locator("#draw-cards .card .sources li").first
        api.expect(first).to_contain_text("by <b>Eve</b>, MIT")
        assert [one.get_attribute("href") for one in first.locator("a").all()] == [
            "https://spdx.org/licenses/MIT.html"
        ]
