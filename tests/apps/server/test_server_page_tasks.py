"""The page in a real browser: sets, conversations, boxes and structures, and how results are repeated."""

from __future__ import annotations

import re
import shlex
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3core.cli.main import main
from cm3core.images import open_image
from toy_model import picture, toy_model
from toy_page import CHROMIUM, api, draw, opened, pixels_of, says, upload
from toy_server import Served, choosing, png, served, toy, tuned, tuned_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    models = {
        "toy": toy(),
        "tuned": tuned(),
        "answers": tuned({"answer": "vqa"}),
        "places": tuned({"draw": "t2i", "place": "object_to_image"}),
    }
    with served(models, most_models=4) as running:
        yield running


def use(page: Any, model: str) -> None:
    page.select_option("#model", model)
    says(page, "#draw-status", re.compile("^$"))
    page.wait_for_function("name => window.cm3.facts.model === name", arg=model)


def source_of(page: Any, place: str) -> np.ndarray[Any, Any]:
    return pixels_of(page.locator(f"{place} img").first.get_attribute("src"))


# ---- sets


def test_a_set_is_drawn_and_downloaded(browser, server, tmp_path: Path):
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    with opened(browser, server) as page:
        page.click("#tabs >> text=Set")
        page.click("#draw-set")
        says(page, "#set-status", "Name some things, one a line.")
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
            assert len(archive.namelist()) == 3 * 3 + 1
            assert (open_image(archive.read("green.png")) == own[1].pixels).all()
        page.click("#set-repeat")
        link = page.input_value("#repeat-link")
        assert page.input_value("#repeat-command") == (
            "cm3 generate red green blue --style line --n 1 --model toy --seed 7 --transparent --svg "
            "--zip -o out/"
        )
        lines = page.input_value("#repeat-python")
    assert 'model.generate(["red, line", "green, line", "blue, line"], 1, seed=7)' in lines
    with opened(browser, server, link.removeprefix(server.url + "/")) as page:
        page.click("#draw-set")
        says(page, "#set-status", "3 pictures in")
        assert (source_of(page, "#set-cards") == own[0].pixels).all()


# ---- words


def test_words_that_the_model_never_saw_are_told_and_replaced(browser, server):
    with opened(browser, server) as page:
        use(page, "tuned")
        draw(page, "a bel and <b>zebra</b>", 1)
        says(page, "#draw-words", "The model never saw a, bel (did you mean bell?), and, b, zebra")
        page.click("#draw-words button:has-text('bell')")
        assert page.input_value("#prompt") == "a bell and <b>zebra</b>"
        api.expect(page.locator("#draw-words")).to_be_hidden()
        draw(page, "red bell", 1)
        says(page, "#draw-status", "One picture in")
        api.expect(page.locator("#draw-words")).to_be_hidden()


# ---- boxes and pictures to follow


def drag(page: Any, place: str, *corners: float) -> None:
    page.locator(place).scroll_into_view_if_needed()
    box = page.locator(place).bounding_box()
    x0, y0, x1, y1 = (
        box["xy"[number % 2]] + part * box[("width", "height")[number % 2]]
        for number, part in enumerate(corners)
    )
    page.mouse.move(x0, y0)
    page.mouse.down()
    page.mouse.move(x1, y1, steps=4)
    page.mouse.up()


def repeated(page: Any, cards: str = "#draw-cards") -> dict[str, str]:
    page.locator(f"{cards} button:has-text('Repeat…')").first.click()
    found = {name: page.input_value(f"#repeat-{name}") for name in ("link", "command", "python")}
    page.click("#repeat button:has-text('Close')")
    return found


def run_lines(lines: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the Python lines, run with a toy model in place of the one that they load."""
    monkeypatch.setattr("cm3core.load", lambda name: model)
    names: dict[str, Any] = {}
    exec(lines, names)
    return names


def test_boxes_are_drawn_with_the_mouse_and_followed(browser, server, monkeypatch):
    with opened(browser, server) as page:
        use(page, "tuned")
        page.click("#conditions summary")
        page.select_option("#condition-kind", "boxes")
        draw(page, "a bell", 1)
        says(page, "#draw-status", "Draw a box first, or choose to follow nothing.")
        drag(page, "#pad", 0.1, 0.2, 0.5, 0.9)
        page.click("#draw")
        says(page, "#draw-status", "Say for every box what is there.")
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
    from cm3plugins.conditions.edges import edges_of

    return edges_of(pixels)


def test_the_edges_of_a_picture_are_followed(browser, server, monkeypatch, tmp_path: Path):
    with opened(browser, server) as page:
        use(page, "tuned")
        page.click("#conditions summary")
        page.select_option("#condition-kind", "structure")
        draw(page, "red", 1)
        says(page, "#draw-status", "Choose the picture to follow first")
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
    from cm3plugins.conditions.config import CannyConfig, XDoGConfig

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
        says(page, "#condition-status", "The server draws the structure…")
        draw(page, "red", 1)
        says(page, "#draw-status", "The server still draws the structure. Wait a moment.")
        body = '{"error": {"message": "the queue is <b>full</b>"}}'
        held[0].fulfill(status=429, body=body)
        says(page, "#condition-status", "the queue is <b>full</b>")
        page.click("#draw")
        says(page, "#draw-status", "The structure could not be drawn.")
        # a late answer of a structure that is no longer wanted changes nothing
        page.select_option("#structure-kind", "xdog")
        says(page, "#condition-status", "The server draws the structure…")
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
        says(page, "#condition-missing", "This model draws from words alone")
        api.expect(page.locator("#condition-kind")).to_be_hidden()
        use(page, "places")
        says(
            page, "#condition-missing", "This model was not tuned to follow a picture (structure)."
        )
        assert page.locator("#condition-kind option").all_text_contents() == [
            "nothing", "objects at boxes",
        ]  # fmt: skip
        use(page, "answers")
        says(page, "#draw-missing", "This model was not tuned to draw from words alone.")


# ---- conversations


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
        says(page, "#look-hint", "It reads the whole conversation")
        upload(page, "#look-file", png(picture(8, 8)))
        ask(page, "hue?", 1)
        ask(page, "why?", 2)
        first, second = [one["messages"] for one in asked]
        assert [one["role"] for one in second] == ["user", "assistant", "user"]
        assert second[0] == first[0]
        answer = page.locator("#answers q").first.text_content()
        assert second[1]["content"] == answer
        page.select_option("#answer-with", "image")
        ask(page, "make it blue", 3)
        edited = page.locator("#answers .card img").get_attribute("src")
        page.select_option("#answer-with", "text")
        ask(page, "and now?", 4)
        *before, last = asked[-1]["messages"]
        assert last["content"] == [{"type": "text", "text": "and now?"}]
        pictures = [part for one in before for part in one["content"]
                    if isinstance(part, dict) and part["type"] == "image_url"]  # fmt: skip
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


# ---- repeating


@pytest.fixture
def cm3(monkeypatch, tmp_path: Path) -> Callable[[str], None]:
    """Run a command of the page, in a folder of its own and with the toy model."""

    def run(command: str) -> None:
        words = shlex.split(command)
        assert words[0] == "cm3"
        assert main(words[1:]) == 0

    monkeypatch.setattr("cm3core.model.model.load", lambda *_, **__: choosing(toy_model()))
    monkeypatch.chdir(tmp_path)
    return run


def test_command_and_lines_draw_the_same_picture(browser, server, cm3, monkeypatch, tmp_path):
    prompt = 'it\'s "a b"'
    with opened(browser, server) as page:
        page.click("#more summary")
        page.fill("#guidance", "1.3")
        page.fill("#temperature", "0.8")
        page.fill("#negative", "blue: 'x'")
        page.fill("#retrieved", "1")
        page.select_option("#candidates", "3")
        page.check("#transparent")
        draw(page, prompt, 1, "9007199254740993")
        says(page, "#draw-status", "One picture in")
        again = repeated(page)
        page.uncheck("#transparent")
        page.select_option("#candidates", "1")
        page.click("#draw")
        says(page, "#draw-status", "One picture in")
        shown = source_of(page, "#draw-cards")
        plain = repeated(page)
    names = run_lines(plain["python"], choosing(toy_model()), monkeypatch)
    assert (names["pixels"] == shown).all()
    cm3(plain["command"])
    assert (open_image(tmp_path / "out" / "000.png") == shown).all()
    cm3(again["command"])
    assert (tmp_path / "out" / "000-transparent.png").is_file()
    with opened(browser, server, plain["link"].removeprefix(server.url + "/")) as page:
        assert page.locator("#guidance").is_visible()
        page.click("#draw")
        says(page, "#draw-status", "One picture in")
        assert (source_of(page, "#draw-cards") == shown).all()


def test_a_filled_picture_is_repeated_from_what_was_given(
    browser, server, cm3, monkeypatch, tmp_path
):
    with opened(browser, server) as page:
        page.click("#tabs >> text=Edit")
        upload(page, "#edit-file", png(picture(8, 8)))
        page.fill("#edit-text", "red")
        drag(page, "#canvas", 0.1, 0.8, 0.9, 0.8)
        page.click("#edit")
        says(page, "#edit-status", "One picture in")
        shown = source_of(page, "#edit-cards")
        page.click("#edit-cards button:has-text('Repeat…')")
        for name in ("picture.png", "mask.png"):
            with page.expect_download() as info:
                page.click(f"#repeat-files button:has-text('{name}')")
            info.value.save_as(tmp_path / name)
        command, lines = page.input_value("#repeat-command"), page.input_value("#repeat-python")
        api.expect(page.locator("#repeat-link-part")).to_be_hidden()
    cm3(command)
    assert (open_image(tmp_path / "filled.png") == shown).all()
    names = run_lines(lines, toy_model(), monkeypatch)
    assert (names["pixels"] == shown).all()


def test_documents_are_added_by_hand_and_repeated(browser, server, cm3, monkeypatch, tmp_path):
    with opened(browser, server) as page:
        draw(page, number=1)
        says(page, "#draw-status", "One picture in")
        page.locator("#documents-list input").first.uncheck()
        page.click("#add-document")
        page.click("#document-form .primary")
        says(page, "#document-status", "Say what the picture shows.")
        page.fill("#document-text", "my red")
        page.click("#document-form .primary")
        says(page, "#document-status", "No file was chosen.")
        upload(page, "#document-file", png(picture(8, 8)))
        page.click("#document-form .primary")
        api.expect(page.locator("#documents-list .document")).to_have_count(3)
        page.click("#redraw")
        says(page, "#documents-hint", "Chosen by hand")
        says(page, "#draw-status", "One picture in")
        shown = source_of(page, "#draw-cards")
        again = repeated(page)
        page.click("#draw-cards button:has-text('Repeat…')")
        for place in range(2):
            with page.expect_download() as info:
                page.locator("#repeat-files button").nth(place).click()
            info.value.save_as(tmp_path / info.value.suggested_filename)
        page.click("#repeat button:has-text('Close')")
        page.click("#forget-documents")
        says(page, "#documents-hint", "Retrieved for the prompt")
    cm3(again["command"])
    assert (open_image(tmp_path / "out" / "000.png") == shown).all()
    names = run_lines(again["python"], toy_model(), monkeypatch)
    assert (names["pixels"] == shown).all()
    green = np.full((8, 8, 3), 40, np.uint8)
    context = [(green, "green"), (picture(8, 8), "my red")]
    assert (toy_model().generate("red", 1, seed=7, context=context)[0].pixels == shown).all()


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


def test_everything_is_copied(browser, server):
    with opened(browser, server, permissions=["clipboard-read", "clipboard-write"]) as page:
        draw(page, number=1)
        says(page, "#draw-status", "One picture in")
        page.click("#draw-cards button:has-text('Repeat…')")
        page.click("[data-copy=repeat-command]")
        says(page, "[data-copy=repeat-command]", "Copied")
        assert page.evaluate("navigator.clipboard.readText()").startswith("cm3 generate red --n 1")
