"""The page in a real browser: what people do on it, and what goes wrong while they do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from cm3serve.app import FILES
from cm3serve.settings import Limits
from toy_model import picture, toy_model
from toy_page import CHROMIUM, api, draw, opened, pixels_of, ready, says, upload
from toy_server import Served, png, rewriting, served, toy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(
        {"toy": toy(0.02), "other": toy(0.02)}, limits=Limits(body_bytes=1 << 20)
    ) as running:
        yield running


def test_what_was_looked_for_is_told(browser):
    with served({"toy": rewriting}) as server, opened(browser, server) as page:
        draw(page, "pink")
        says(page, "#documents-hint", "Retrieved for “red” and prepended to it.")
        draw(page, "red")
        says(page, "#documents-hint", "Retrieved for the prompt and prepended to it.")


def test_drawing_shows_the_pictures_of_the_python_api(browser, server):
    with opened(browser, server) as page:
        draw(page)
        says(page, "#draw-status", "2 pictures in")
        shown = [one.get_attribute("src") for one in page.locator("#draw-cards img").all()]
        for source, own in zip(shown, toy_model().generate("red", 2, seed=7), strict=True):
            assert (pixels_of(source) == own.pixels).all()
        # retrieved documents are shown; taking one out changes the picture
        assert page.locator("#documents-list .document").count() == 2
        page.locator("#documents-list input").first.uncheck()
        page.click("#redraw")
        says(page, "#draw-status", "2 pictures in")
        green = np.full((8, 8, 3), 40, np.uint8)
        expected = toy_model().generate("red", 2, seed=7, context=[(green, "green")])
        source = page.locator("#draw-cards img").first.get_attribute("src")
        assert (pixels_of(source) == expected[0].pixels).all()


def test_pictures_grow_row_by_row_and_can_be_stopped(browser):
    with served({"toy": toy(0.4)}) as server, opened(browser, server) as page:
        draw(page)
        api.expect(page.locator("#draw-cards img").first).to_be_visible(timeout=20_000)
        grown = pixels_of(page.locator("#draw-cards img").first.get_attribute("src"))
        assert (grown[-2:] == 208).all()
        page.click("#stop")
        says(page, "#draw-status", "Stopped.")
        server.until(lambda: server.workshop.queue.in_flight == 0)


def test_a_link_draws_the_same_picture_again(browser, server):
    with opened(browser, server) as page:
        draw(page)
        says(page, "#draw-status", "2 pictures in")
        page.locator("#draw-cards button:has-text('Repeat…')").nth(1).click()
        link = page.input_value("#repeat-link")
        second = toy_model().generate("red", 2, seed=7)[1]
        assert page.input_value("#repeat-command") == (
            f"cm3 generate --n 1 --model toy --seed {second.seed} --candidates 1 -o out/ -- red"
        )
        python = page.input_value("#repeat-python")
    assert f'model.generate("red", 1, seed={second.seed}, num_candidates=1)[0]' in python
    with opened(browser, server, link.removeprefix(server.url + "/")) as page:
        page.click("#draw")
        says(page, "#draw-status", "One picture in")
        source = page.locator("#draw-cards img").get_attribute("src")
        assert (pixels_of(source) == second.pixels).all()


def test_python_lines_run(browser, server):
    with opened(browser, server) as page:
        page.fill("#prompt", 'a "b"')
        draw(page, 'a "b"', 1)
        says(page, "#draw-status", "One picture in")
        page.click("text=Repeat…")
        call = page.input_value("#repeat-python").split("picture = ")[1].splitlines()[0]
        source = page.locator("#draw-cards img").get_attribute("src")
    own = eval(call, {"model": toy_model()})
    assert (own.pixels == pixels_of(source)).all()


def test_a_mask_is_painted_and_filled(browser, server):
    with opened(browser, server) as page:
        page.click("#tabs >> text=Edit")
        upload(page, "#edit-file", png(picture(8, 8)))
        page.fill("#edit-text", "red")
        page.fill("#edit-seed", "5")
        page.click("#edit")
        says(page, "#edit-status", "Paint over the part to change.")
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.8 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.8 * box["height"], steps=6)
        page.mouse.up()
        page.click("#edit")
        says(page, "#edit-status", "One picture in")
        filled = pixels_of(page.locator("#edit-cards img").get_attribute("src"))
        assert (filled[:4] == picture(8, 8)[:4]).all()
        assert (filled != picture(8, 8)).any()


def test_everything_works_with_the_keyboard_alone(browser, server):
    with opened(browser, server) as page:
        page.focus("#prompt")
        page.keyboard.type("red")
        page.keyboard.press("Control+Enter")
        says(page, "#draw-status", "4 pictures in")
        for _ in range(200):
            if page.evaluate("document.activeElement.textContent") == "Edit" and page.evaluate(
                "!!document.activeElement.closest('.card')"
            ):
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        api.expect(page.locator("#painting")).to_be_visible()
        page.focus("#canvas")
        for key in ("ArrowDown", "ArrowRight", "Space"):
            page.keyboard.press(key)
        page.focus("#edit-text")
        page.keyboard.press("Control+A")
        page.keyboard.type("blue")
        page.focus("#edit")
        page.keyboard.press("Enter")
        says(page, "#edit-status", "One picture in")


def test_every_control_has_a_name_and_text_has_contrast(browser, server):
    with opened(browser, server) as page:
        for view in ("Draw", "Set", "Edit", "Look", "History"):
            page.click(f"#tabs >> text={view}")
            nameless = page.evaluate(
                """() => [...document.querySelectorAll('button, input, select, textarea')].filter((one) =>
                   one.offsetParent && !one.textContent.trim() && !one.ariaLabel && !one.labels?.length)
                   .map((one) => one.outerHTML)"""
            )
            assert nameless == []
        for _ in range(2):  # light, dark
            page.click("#tabs >> text=Draw")
            colours = page.evaluate(
                """() => [['.hint', '.panel'], ['label', '.panel'], ['.primary', '.primary']].map(([ink, ground]) =>
                   [getComputedStyle(document.querySelector(ink)).color,
                    getComputedStyle(document.querySelector(ground)).backgroundColor])"""
            )
            assert all(contrast(*pair) >= 4.5 for pair in colours), colours
            page.click("#theme")


def contrast(ink: str, ground: str) -> float:
    """The contrast of two CSS colours by WCAG 2: black on white has 21."""

    def light(colour: str) -> float:
        values = [int(one) / 255 for one in re.findall(r"\d+", colour)[:3]]
        linear = [
            one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in values
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted([light(ink), light(ground)], reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_a_picture_is_described(browser, server):
    with opened(browser, server) as page:
        page.click("#tabs >> text=Look")
        page.click("#look")
        says(page, "#look-status", "Choose a picture first.")
        upload(page, "#look-file", png(picture(8, 8)))
        page.click("#look")
        api.expect(page.locator("#answers li")).to_have_count(1, timeout=20_000)
        assert page.locator("#question-field").is_hidden()  # the model answers no questions


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a picture", "can't be read as a picture"),
        (b"x" * (2 << 20), "This file is too large: 2 MiB, at most 1 MiB"),
    ],
)
def test_broken_and_huge_files(browser, server, data, message):
    with opened(browser, server) as page:
        for view, field, status in (
            ("Edit", "#edit-file", "#edit-status"),
            ("Look", "#look-file", "#look-status"),
        ):
            page.click(f"#tabs >> text={view}")
            upload(page, field, data)
            says(page, status, message)


def test_a_large_picture_is_made_small_before_it_is_sent(browser, server):
    with opened(browser, server) as page:
        page.click("#tabs >> text=Look")
        upload(page, "#look-file", png(np.zeros((2000, 3000, 3), np.uint8)))
        page.click("#look")
        api.expect(page.locator("#answers li")).to_have_count(1, timeout=20_000)


def test_reload_in_the_middle_frees_the_rows_and_keeps_the_history(browser):
    with served({"toy": toy(0.3)}) as server, opened(browser, server) as page:
        draw(page, number=1)
        says(page, "#draw-status", "One picture in")
        draw(page, number=4)
        server.until(lambda: server.workshop.queue.in_flight == 4)
        page.reload()
        ready(page)
        server.until(lambda: server.workshop.queue.in_flight == 0)
        page.click("#tabs >> text=History")
        api.expect(page.locator("#history-cards .card")).to_have_count(1)
        page.once("dialog", lambda asked: asked.accept())
        page.click("#forget")
        says(page, "#history-cards", "Nothing has been drawn")


def test_two_tabs_draw_side_by_side(browser, server):
    with opened(browser, server) as first:
        second = first.context.new_page()
        second.goto(server.url)
        ready(second)
        draw(first, "red", 1)
        draw(second, "blue", 1)
        for page, prompt in ((first, "red"), (second, "blue")):
            says(page, "#draw-status", "One picture in")
            source = page.locator("#draw-cards img").get_attribute("src")
            own = toy_model().generate(prompt, 1, seed=7)[0]
            assert (pixels_of(source) == own.pixels).all()


def test_errors_are_shown_in_words(browser, server):
    with opened(browser, server) as page:
        draw(page, "a prompt that is too long")
        says(page, "#draw-status", "prompt: is 25 tokens long; the model was trained on texts of")
        page.context.set_offline(True)
        draw(page, "red")
        says(page, "#draw-status", "The server can't be reached.")
        page.context.set_offline(False)
        draw(page, "red")
        says(page, "#draw-status", "2 pictures in")


def test_a_server_that_ends_in_the_middle(browser):
    with served({"toy": toy(0.5)}, drain_seconds=1.0) as server, opened(browser, server) as page:
        draw(page)
        server.until(lambda: server.workshop.queue.in_flight == 2)
        tasks = server.workshop.pool._loaded["toy"].model.engine
        for worker in tasks._workers:  # the engine ends
            server.loop.call_soon_threadsafe(worker.orders.put, None)
        says(page, "#draw-status", "the server failed on this request")


def test_what_models_and_people_write_is_text(browser):
    evil = "<img src=x onerror=alert(1)>"
    with served({"toy": toy(0.0, 60)}) as server, opened(browser, server) as page:
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        draw(page, evil, 1)
        says(page, "#draw-status", "One picture in")
        says(page, "#draw-cards", evil)
        page.click("#tabs >> text=History")
        says(page, "#history-cards", evil)


def test_another_model_is_chosen(browser, server):
    with opened(browser, server) as page:
        page.select_option("#model", "other")
        draw(page, number=1)
        says(page, "#draw-status", "One picture in")
        page.click("text=Repeat…")
        assert "--model other" in page.input_value("#repeat-command")


def test_downloads_carry_their_metadata(browser, server, tmp_path: Path):
    from cm3core.images import read_png_metadata

    with opened(browser, server) as page:
        draw(page, number=1)
        says(page, "#draw-status", "One picture in")
        with page.expect_download() as info:
            page.click("#draw-cards >> text=Download")
        info.value.save_as(tmp_path / "a.png")
        assert info.value.suggested_filename == "red-7.png"
    assert read_png_metadata(tmp_path / "a.png")["seed"] == "7"


def test_a_phone_shows_all_of_it(browser, server):
    with opened(browser, server, viewport={"width": 390, "height": 844}) as page:
        for view in ("Draw", "Set", "Edit", "Look", "History"):
            page.click(f"#tabs >> text={view}")
            assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.click("#tabs >> text=Draw")
        draw(page)
        says(page, "#draw-status", "2 pictures in")
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_token_is_asked_for(browser):
    with served(token="a-long-enough-token") as server:
        server.load()
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        api.expect(page.locator("#token-refused")).to_be_hidden()
        for given in ("wrong", "wrong", "a-long-enough-token"):
            page.fill("#token", given)
            page.click("#login button")
            if given == "wrong":
                says(page, "#token-refused", "That token was not accepted.")
                api.expect(page.locator("#token-refused")).to_be_visible()
        ready(page)
        draw(page, number=1)
        says(page, "#draw-status", "One picture in")
        context.close()


def test_the_page_asks_for_nothing_from_elsewhere(server):
    for path in FILES:
        text = httpx.get(server.url + path).text
        assert (
            re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text.replace("http://www.w3.org", "")) == []
        )
        assert "innerHTML" not in text
    assert server.post("/studio/facts").json()["tasks"] == [
        "draw",
        "fill",
        "caption",
    ]
