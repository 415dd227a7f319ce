"""The page in a real browser: pictures that follow boxes and structures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3core.images import open_image
from toy_model import picture
from toy_page import (
    CHROMIUM,
    api,
    drag,
    draw,
    opened,
    pixels_of,
    repeated,
    run_lines,
    says,
    source_of,
    upload,
    use,
)
from toy_server import png, tuned_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium"),
]


def test_boxes_are_drawn_with_the_mouse_and_followed(browser, server, monkeypatch):
    with opened(browser, server) as page:
        use(page, "tuned")
        page.click("#conditions summary")
        page.select_option("#condition-kind", "boxes")
        draw(page, "a bell", 1)
        says(page, "#draw-status", "Draw a box first, or choose “nothing”.")
        drag(page, "#pad", 0.1, 0.2, 0.5, 0.9)
        page.click("#draw")
        says(page, "#draw-status", "Name the object in every box.")
        page.fill("#boxes input", "bell")
        drag(page, "#pad", 0.6, 0.6, 0.8, 0.7)
        page.locator("#boxes button").last.click()
        page.click("#draw")
        says(page, "#draw-status", "One picture in")
        shown = source_of(page, "#draw-cards")
        again = repeated(page)
    names = run_lines(again["python"], tuned_model(), monkeypatch)
    assert (names["pixels"] == shown).all()
    read = re.fullmatch(r"bell at \((\d+), (\d+)\) -> \((\d+), (\d+)\)", names["record"]["objects"])
    assert read is not None
    assert np.abs(np.array(read.groups(), float) / 255 - [0.1, 0.2, 0.5, 0.9]).max() < 0.02
    assert again["command"] == ""
    with opened(browser, server, again["link"].removeprefix(server.url + "/")) as page:
        page.click("#draw")
        says(page, "#draw-status", "One picture in")
        assert (source_of(page, "#draw-cards") == shown).all()


def test_boxes_are_made_with_the_keyboard(browser, server):
    with opened(browser, server) as page:
        use(page, "tuned")
        page.click("#conditions summary")
        page.select_option("#condition-kind", "boxes")
        page.focus("#add-box")
        page.keyboard.press("Enter")
        page.keyboard.type("bell")
        page.focus("#pad")
        for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowRight"):
            page.keyboard.press(key)
        asked = []
        page.on("request", lambda one: asked.append(one.post_data_json) if one.post_data else None)
        draw(page, "a bell", 1)
        says(page, "#draw-status", "One picture in")
        assert asked[0]["boxes"] == [{"label": "bell", "box": [0.22, 0.22, 0.75, 0.72]}]
        page.focus("#pad")
        page.keyboard.press("Delete")
        api.expect(page.locator("#boxes li")).to_have_count(0)


def edges(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    from cm3plugins.conditions.plain import edges_of

    return edges_of(pixels)


def test_the_edges_of_a_picture_are_followed(browser, server, monkeypatch, tmp_path: Path):
    with opened(browser, server) as page:
        use(page, "tuned")
        page.click("#conditions summary")
        page.select_option("#condition-kind", "structure")
        draw(page, "red", 1)
        says(page, "#draw-status", "Choose a picture to follow first")
        upload(page, "#structure-file", b"no picture")
        says(page, "#condition-status", "can't be read as a picture")
        upload(page, "#structure-file", png(picture(8, 8)))
        api.expect(page.locator("#structure-preview")).to_be_visible()
        page.click("#draw")
        says(page, "#draw-status", "One picture in")
        shown = source_of(page, "#draw-cards")
        again = repeated(page)
        page.locator("#draw-cards button:has-text('Repeat…')").click()
        with page.expect_download() as info:
            page.click("#repeat-files button")
        info.value.save_as(tmp_path / info.value.suggested_filename)
    assert (open_image(tmp_path / "condition.png") == edges(picture(8, 8))).all()
    monkeypatch.chdir(tmp_path)
    names = run_lines(again["python"], tuned_model(), monkeypatch)
    assert names["record"] == {"caption": "red", "feature": "edges", "condition": "condition.png"}
    assert (names["pixels"] == shown).all()
    assert (again["link"], again["command"]) == ("", "")


def test_a_structure_that_the_server_draws_is_followed(
    browser, server, monkeypatch, tmp_path: Path
):
    pytest.importorskip("cv2", reason="the package opencv-python-headless is not installed")
    from cm3core.images import fit
    from cm3plugins.conditions import CannyConfig, XDoGConfig

    photo = np.full((40, 60, 3), 255, np.uint8)
    photo[8:32, 20:40] = (200, 30, 30)
    seen = photo[:, 10:50]  # what the model sees of it
    with opened(browser, server) as page:
        use(page, "tuned")
        page.click("#conditions summary")
        page.select_option("#condition-kind", "structure")
        ways = page.locator("#structure-kind option").all_text_contents()
        assert "its canny edge features (canny)" in ways
        assert "its line segments (lsd)" in ways
        assert not [one for one in ways if "as_is" in one or "hed" in one or "boxes" in one]
        page.select_option("#structure-kind", "canny")
        assert page.input_value("#feature") == "canny edge features"
        api.expect(page.locator("#structure-preview")).to_be_hidden()
        upload(page, "#structure-file", png(photo))
        api.expect(page.locator("#structure-preview")).to_be_visible()
        drawn = page.locator("#structure-preview").evaluate("one => one.toDataURL()")
        size = (8, 8)
        assert (pixels_of(drawn) == fit(CannyConfig().build().draw(seen), size)).all()
        # another one is drawn of the same picture
        page.select_option("#structure-kind", "xdog")
        page.wait_for_function(
            "before => document.getElementById('structure-preview').toDataURL() !== before "
            "&& !document.getElementById('structure-preview').hidden",
            arg=drawn,
        )
        lines = fit(XDoGConfig().build().draw(seen), size)
        drawn = page.locator("#structure-preview").evaluate("one => one.toDataURL()")
        assert (pixels_of(drawn) == lines).all()
        draw(page, "red", 1)
        says(page, "#draw-status", "One picture in")
        shown = source_of(page, "#draw-cards")
        again = repeated(page)
        page.locator("#draw-cards button:has-text('Repeat…')").click()
        with page.expect_download() as info:
            page.click("#repeat-files button")
        info.value.save_as(tmp_path / info.value.suggested_filename)
    assert (open_image(tmp_path / "condition.png") == lines).all()
    monkeypatch.chdir(tmp_path)
    names = run_lines(again["python"], tuned_model(), monkeypatch)
    assert names["record"] == {
        "caption": "red",
        "feature": "scribble",
        "condition": "condition.png",
    }
    assert (names["pixels"] == shown).all()


def test_a_structure_that_fails_is_said_where_one_looks(browser, server):
    pytest.importorskip("cv2", reason="the package opencv-python-headless is not installed")
    with opened(browser, server) as page:
        use(page, "tuned")
        page.click("#conditions summary")
        page.select_option("#condition-kind", "structure")
        page.select_option("#structure-kind", "canny")
        held: list[Any] = []
        page.route("**/v1/conditions", lambda route: held.append(route))
        upload(page, "#structure-file", png(picture(8, 8)))
        says(page, "#condition-status", "The server is drawing the structure…")
        draw(page, "red", 1)
        says(page, "#draw-status", "The server is still drawing the structure. Wait a moment.")
        body = '{"error": {"message": "the queue is <b>full</b>"}}'
        held[0].fulfill(status=429, body=body)
        says(page, "#condition-status", "the queue is <b>full</b>")
        page.click("#draw")
        says(page, "#draw-status", "The structure could not be drawn.")
        # a late answer of a structure that is no longer wanted changes nothing
        page.select_option("#structure-kind", "xdog")
        says(page, "#condition-status", "The server is drawing the structure…")
        page.select_option("#structure-kind", "itself")
        api.expect(page.locator("#structure-preview")).to_be_visible()
        assert page.input_value("#feature") == "an outline"
        says(page, "#condition-status", re.compile("^$"))
        page.unroute("**/v1/conditions")
        page.click("#draw")
        says(page, "#draw-status", "One picture in")


def test_what_a_model_can_not_follow_is_said(browser, server):
    with opened(browser, server) as page:
        page.click("#conditions summary")
        says(page, "#condition-missing", "This model draws from prompts only")
        api.expect(page.locator("#condition-kind")).to_be_hidden()
        use(page, "places")
        says(
            page, "#condition-missing", "This model was not tuned to follow a picture (structure)."
        )
        assert page.locator("#condition-kind option").all_text_contents() == [
            "nothing",
            "boxes",
        ]
        use(page, "answers")
        says(page, "#draw-missing", "This model was not tuned to draw from a prompt alone.")
