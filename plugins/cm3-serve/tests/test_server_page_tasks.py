"""The page in a real browser: sets, words, conversations, and new flows by keyboard and on a phone."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from cm3core.images import open_image
from toy_model import picture, toy_model
from toy_page import (
    CHROMIUM,
    api,
    draw,
    opened,
    pixels_of,
    says,
    source_of,
    upload,
    use,
)
from toy_server import png

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium"),
]


def test_a_set_is_drawn_and_downloaded(browser, server, tmp_path: Path):
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    with opened(browser, server) as page:
        page.click("#tabs >> text=Set")
        page.click("#draw-set")
        says(page, "#set-status", "Enter things to draw, one per line.")
        page.fill("#things", "red\ngreen; blue")
        page.fill("#set-style", "line")
        page.fill("#set-seed", "7")
        page.check("#set-transparent")
        page.check("#set-svg")
        page.keyboard.press("Tab")
        page.click("#draw-set")
        says(page, "#set-status", "3 pictures in")
        says(page, "#set-whole", "3 pictures, line")
        prompts = ["red, line", "green, line", "blue, line"]
        own = toy_model().generate(prompts, 1, seed=7)
        shown = [one.get_attribute("src") for one in page.locator("#set-cards img").all()]
        for source, expected in zip(shown, own, strict=True):
            assert (pixels_of(source) == expected.pixels).all()
        with page.expect_download() as info:
            page.click("#set-zip")
        assert info.value.suggested_filename == "line.zip"
        info.value.save_as(tmp_path / "line.zip")
        with zipfile.ZipFile(tmp_path / "line.zip") as archive:
            assert len(archive.namelist()) == 3 * 3 + 2  # the grid, and the licences
            assert (open_image(archive.read("green.png")) == own[1].pixels).all()
        page.click("#set-repeat")
        link = page.input_value("#repeat-link")
        assert page.input_value("#repeat-command") == (
            "cm3 generate --style line --n 1 --model toy --seed 7 --transparent --svg --zip -o out/ "
            "-- red green blue"
        )
        lines = page.input_value("#repeat-python")
    assert 'model.generate(["red, line", "green, line", "blue, line"], 1, seed=7)' in lines
    with opened(browser, server, link.removeprefix(server.url + "/")) as page:
        page.click("#draw-set")
        says(page, "#set-status", "3 pictures in")
        assert (source_of(page, "#set-cards") == own[0].pixels).all()


def test_words_that_the_model_never_saw_are_told_and_replaced(browser, server):
    with opened(browser, server) as page:
        use(page, "tuned")
        draw(page, "a bel and <b>zebra</b>", 1)
        says(
            page,
            "#draw-words",
            "'a', 'bel', 'and', 'b' and 'zebra' are not in the training captions, so the model has not learnt what they "
            "mean. Did you mean bell?",
        )
        page.click("#draw-words button:has-text('bell')")
        assert page.input_value("#prompt") == "a bell and <b>zebra</b>"
        api.expect(page.locator("#draw-words")).to_be_hidden()
        draw(page, "red bell", 1)
        says(page, "#draw-status", "One picture in")
        api.expect(page.locator("#draw-words")).to_be_hidden()


def ask(page: Any, question: str, count: int) -> None:
    page.fill("#question", question)
    page.click("#look")
    api.expect(page.locator("#answers li")).to_have_count(count, timeout=60_000)
    api.expect(page.locator("#look")).to_be_enabled(timeout=60_000)
    assert page.locator("#look-status").text_content() == ""


def test_a_conversation_keeps_its_turns_and_pictures(browser, server):
    with opened(browser, server) as page:
        use(page, "tuned")
        asked: list[Any] = []
        page.on("request", lambda one: asked.append(one.post_data_json) if one.post_data else None)
        page.click("#tabs >> text=Look")
        says(page, "#look-hint", "The model reads as much of the conversation as fits")
        upload(page, "#look-file", png(picture(8, 8)))
        ask(page, "hue?", 1)
        ask(page, "why?", 2)
        first, second = [one["messages"] for one in asked]
        assert [one["role"] for one in second] == ["user", "assistant", "user"]
        assert second[0] == first[0]
        answer = page.locator("#answers q").first.text_content()
        assert second[1]["content"].strip() == answer.strip()  # none is shown at the end
        page.select_option("#answer-with", "image")
        ask(page, "make it blue", 3)
        edited = page.locator("#answers .card img").get_attribute("src")
        page.select_option("#answer-with", "text")
        ask(page, "and now?", 4)
        *before, last = asked[-1]["messages"]
        assert last["content"] == [{"type": "text", "text": "and now?"}]
        pictures = [
            part
            for one in before
            for part in one["content"]
            if isinstance(part, dict) and part["type"] == "image_url"
        ]
        assert pictures == [{"type": "image_url", "image_url": {"url": edited}}]
        page.click("#look-new")
        api.expect(page.locator("#answers li")).to_have_count(0)
        ask(page, "hue?", 1)
        assert len(asked[-1]["messages"]) == 1
        page.click("#tabs >> text=History")
        api.expect(page.locator("#history-cards .card")).to_have_count(1)


def test_a_model_without_conversations_says_so(browser, server):
    with opened(browser, server) as page:
        page.click("#tabs >> text=Look")
        says(page, "#look-hint", "It was not tuned to answer questions.")
        api.expect(page.locator("#question")).to_be_hidden()
        use(page, "answers")
        says(page, "#look-hint", "This model answers single questions")
        upload(page, "#look-file", png(picture(8, 8)))
        ask(page, "<i>hue?</i>", 1)
        says(page, "#answers", "<i>hue?</i>")


def test_sets_and_questions_with_the_keyboard_alone(browser, server):
    with opened(browser, server) as page:
        use(page, "tuned")
        page.focus("#tabs [data-view=set]")
        page.keyboard.press("Enter")
        page.focus("#things")
        page.keyboard.type("red bell")
        page.keyboard.press("Control+Enter")
        says(page, "#set-status", "One picture in")
        for _ in range(60):
            if page.evaluate("document.activeElement.textContent") == "Describe":
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        api.expect(page.locator("#answers li")).to_have_count(1, timeout=20_000)
        page.focus("#question")
        page.keyboard.type("hue?")
        # an answer that comes does not take away what is typed meanwhile
        api.expect(page.locator("#look")).to_be_enabled(timeout=20_000)
        api.expect(page.locator("#question")).to_have_value("hue?")
        page.keyboard.press("Enter")
        api.expect(page.locator("#answers li")).to_have_count(2, timeout=20_000)


def test_new_flows_fit_a_phone(browser, server):
    with opened(browser, server, viewport={"width": 390, "height": 844}) as page:
        use(page, "tuned")
        page.click("#conditions summary")
        for kind in ("boxes", "structure"):
            page.select_option("#condition-kind", kind)
            assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.click("#tabs >> text=Set")
        page.fill("#things", "red\nblue")
        page.click("#draw-set")
        says(page, "#set-status", "2 pictures in")
        # what comes is scrolled to
        assert page.locator("#set-status").bounding_box()["y"] < 844
        page.click("#set-repeat")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.click("#repeat button:has-text('Close')")
        page.click("#tabs >> text=Look")
        page.select_option("#answer-with", "image")
        ask(page, "red bell", 1)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        answers, form = (page.locator(one).bounding_box() for one in ("#answers", "#look-form"))
        assert answers["y"] < form["y"]
