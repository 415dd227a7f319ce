"""The page in a real browser: whether a picture was found, restyled or composed, and the original of what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3run.attribution import facts_in
from toy_finder import finder
from toy_page import CHROMIUM, api, draw, opened, says
from toy_server import served, toy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium"),
]


def test_cards_say_what_they_are_and_offer_the_original(browser):
    with served({"finder": finder, "toy": toy()}) as server, opened(browser, server) as page:
        draw(page, "bell, lucide", 2, "3")
        says(page, "#draw-status", "2 pictures in")
        cards = page.locator("#draw-cards .card")
        api.expect(cards.nth(0).locator(".told")).to_contain_text("Found: lucide/bell (ISC) is")
        api.expect(cards.nth(1).locator(".told")).to_contain_text("Restyled: the index has")
        api.expect(cards.nth(0).locator(".sources")).to_contain_text("Original")
        with page.expect_download() as found:
            cards.nth(0).get_by_role("button", name="Original SVG").click()
        content = Path(found.value.path()).read_bytes()
        assert facts_in(content, "original").texts["original"] == "lucide/bell"
        # a drawn picture is repeated by drawing
        cards.nth(1).get_by_role("button", name="Repeat").click()
        assert "--draw" in page.input_value("#repeat-command")
        assert "draw=True" in page.input_value("#repeat-python")
        page.keyboard.press("Escape")
        page.check("#always-draw")
        page.click("#draw")
        says(page, "#draw-status", "2 pictures in")
        api.expect(page.locator("#draw-cards .told").first).to_contain_text("Restyled")
        page.select_option("#model", "toy")
        api.expect(page.locator("#always-draw-field")).to_be_hidden()
