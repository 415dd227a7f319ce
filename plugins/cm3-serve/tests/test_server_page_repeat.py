"""The page in a real browser: links, commands and lines of Python that repeat its results."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cm3apps.cli.main import main
from cm3core.images import open_image
from toy_model import picture, toy_model
from toy_page import (
    CHROMIUM,
    api,
    drag,
    draw,
    opened,
    repeated,
    run_lines,
    says,
    source_of,
    upload,
)
from toy_server import choosing, png

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium"),
]


@pytest.fixture
def cm3(monkeypatch, tmp_path: Path) -> Callable[[str], None]:
    """Run a command of the page, in a folder of its own and with the toy model."""

    def run(command: str) -> None:
        words = shlex.split(command)
        assert words[0] == "cm3"
        assert main(words[1:]) == 0

    monkeypatch.setattr("cm3run.model.model.load", lambda *_, **__: choosing(toy_model()))
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
        says(page, "#document-status", "Enter a caption for the picture.")
        page.fill("#document-text", "my red")
        page.click("#document-form .primary")
        says(page, "#document-status", "No file was chosen.")
        upload(page, "#document-file", png(picture(8, 8)))
        page.click("#document-form .primary")
        api.expect(page.locator("#documents-list .document")).to_have_count(3)
        page.click("#redraw")
        says(page, "#documents-hint", "Your selection")
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


#: Prompts that a shell or the command line could read as something else.
AWKWARD = [
    "-cat",
    "--help",
    "--",
    "-",
    "it's",
    "$(id) `id`",
    'a "b" \\',
    "# x",
    "*",
    "-o out; ls",
    "~",
    "\u00e9 | &",
]


def test_awkward_texts_reach_the_command_as_they_are(browser, server, monkeypatch):
    """Through a shell's rules and the real parser; prompts, negative prompts, models, styles and messages."""
    monkeypatch.setattr("cm3apps.cli.generate.run", lambda args: found.append(args) or 0)
    monkeypatch.setattr("cm3apps.cli.edit.run", lambda args: found.append(args) or 0)
    monkeypatch.setattr("cm3apps.cli.infill.run", lambda args: found.append(args) or 0)
    found = []
    with opened(browser, server) as page:
        commands = """async (texts) => {
            const { commandOf } = await import('/repeat.js');
            return texts.flatMap((text) => ['draw', 'edit', 'fill'].map((sort) => commandOf({ sort, seed: '7',
              request: { prompt: text, model: text === '--' ? 'm' : text, negative_prompt: text } })));
        }"""
        lines = page.evaluate(commands, AWKWARD)
    for number, line in enumerate(lines):
        text, sort = AWKWARD[number // 3], ("draw", "edit", "fill")[number % 3]
        if text == "--" and sort != "draw":  # argparse loses it
            assert line == ""
            continue
        words = shlex.split(line)
        assert main(words[1:]) == 0, line
        args = found.pop()
        said = {"draw": "prompt", "edit": "instruction", "fill": "text"}[sort]
        assert getattr(args, said) == ([text] if sort == "draw" else text)
        assert (args.model, args.seed) == ("m" if text == "--" else text, 7)
        assert args.settings == [f"sampler.negative_prompt={json.dumps(text, ensure_ascii=False)}"]


def test_everything_is_copied(browser, server):
    with opened(browser, server, permissions=["clipboard-read", "clipboard-write"]) as page:
        draw(page, number=1)
        says(page, "#draw-status", "One picture in")
        page.click("#draw-cards button:has-text('Repeat…')")
        page.click("[data-copy=repeat-command]")
        says(page, "[data-copy=repeat-command]", "Copied")
        assert page.evaluate("navigator.clipboard.readText()").startswith("cm3 generate --n 1")
