"""The page in a real browser: conversations of a model whose layout has turns, pictures on both sides."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cm3core
from cm3apps.cli.main import main
from cm3core.images import open_image
from cm3run.model import Model, Turn
from tiny_chameleon import write_cm3
from toy_model import picture
from toy_page import CHROMIUM, api, opened, pixels_of, says, upload
from toy_server import CHAT, Served, png, served, slowed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium"),
]


GROWING = """() => {
  window.shares = [];
  new MutationObserver(() => {
    const bar = document.querySelector("#answers .card img:not([hidden]) ~ .bar i");
    if (bar && window.shares.at(-1) !== parseFloat(bar.style.width)) window.shares.push(parseFloat(bar.style.width));
  }).observe(document.querySelector("#answers"), {subtree: true, childList: true, attributes: true});
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cm3(tmp_path_factory.mktemp("chameleon"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return brief(folder)


def brief(folder: Path) -> Model:
    """The model, whose texts are short: what random weights write is long once it is read again."""
    model = cm3core.load(folder)
    model.recipe.generate.max_text_tokens = 4
    return model


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    name = str(folder)
    with served({name: lambda: slowed(brief(folder), 0.02)}) as running:
        yield running


@pytest.fixture
def look(browser: Any, server: Served) -> Iterator[tuple[Any, list[Any]]]:
    """The view, and the bodies that it sends from now on."""
    with opened(browser, server, "#look") as page:
        says(page, "#look-hint", "The model reads all turns and pictures that fit")
        asked: list[Any] = []
        page.on("request", lambda one: asked.append(one.post_data_json) if one.post_data else None)
        yield page, asked


def ask(page: Any, text: str, wanted: str, count: int) -> list[str]:
    """Say it; the reply's parts as shown: texts, and the sources of pictures."""
    page.select_option("#answer-with", wanted)
    page.fill("#question", text)
    page.click("#look")
    api.expect(page.locator("#answers li")).to_have_count(count, timeout=30_000)
    api.expect(page.locator("#look")).to_be_enabled(timeout=60_000)
    assert page.locator("#look-status").text_content() == ""
    parts = page.locator("#answers li").nth(count - 1).locator(".answer > *")
    kinds: list[str] = parts.evaluate_all(
        "all => all.map(one => one.matches('figure') ? one.querySelector('img').src : one.textContent)"
    )
    return kinds


def test_a_conversation_is_that_of_the_model(look, server, model):
    """Pictures in and out, three turns, each read with all before it."""
    page, asked = look
    [drawn] = ask(page, "a red apple", "image", 1)
    upload(page, "#look-file", png(picture(8, 8)))
    ask(page, "what is it?", "text", 2)
    ask(page, "and now?", "any", 3)
    first, second, third = (one["messages"] for one in asked)
    assert [one["modalities"] for one in asked] == [["image"], ["text"], ["text", "image"]]
    assert [one["role"] for one in third] == ["user", "assistant"] * 2 + ["user"]
    assert second[:1] == first
    assert third[:3] == second
    assert second[1]["content"] == [{"type": "image_url", "image_url": {"url": drawn}}]
    assert [part["type"] for part in second[2]["content"]] == ["text", "image_url"]
    # the same conversation in Python; the drawn picture is read with the codes it was drawn with
    shown = page.locator("#answers .card .facts").first.text_content()
    reply = model.chat("a red apple", answer="image", seed=int(shown.split()[1]))
    assert np.array_equal(pixels_of(drawn), reply.pictures[0].pixels)
    turns = [
        Turn("user", ("a red apple",)),
        reply.turn,
        Turn("user", ("what is it?", pixels_of(second[2]["content"][1]["image_url"]["url"]))),
    ]
    greedy = {"text_temperature": 0.0}
    answer = server.post(CHAT, messages=second, modalities=["text"], sampling=greedy).json()
    told = model.chat(turns, answer="text", **greedy)
    assert answer["choices"][0]["message"]["content"] == told.text
    page.click("#look-new")
    api.expect(page.locator("#answers li")).to_have_count(0)
    page.click("#tabs >> text=History")
    api.expect(page.locator("#history-cards .card").last).to_be_visible()


def test_a_picture_grows_and_is_repeated_by_its_command(look, tmp_path, monkeypatch):
    page, _ = look
    page.select_option("#answer-with", "image")
    page.fill("#question", "it's a bell")
    # watched within the page: on a busy machine the picture may be finished before a look from here
    page.evaluate(GROWING)
    page.click("#look")
    api.expect(page.locator("#answers .card .buttons")).to_have_count(1, timeout=30_000)
    api.expect(page.locator("#answers .card .bar")).to_have_count(0)
    shares = page.evaluate("window.shares")
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert 0 < shares[0] < 100
    drawn = page.locator("#answers .card img").get_attribute("src")
    page.click("#answers .card >> text=Repeat")
    says(page, "#repeat-note", "To repeat it, begin a conversation with the same message.")
    command, lines = page.input_value("#repeat-command"), page.input_value("#repeat-python")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    assert words[0] == "cm3"
    assert main(words[1:]) == 0
    written = open_image((tmp_path / "out" / "chat-000.png").read_bytes())
    assert np.array_equal(written, pixels_of(drawn))
    found: dict[str, Any] = {}
    exec(lines, found)
    assert np.array_equal(found["pixels"], written)


def test_what_is_missing_or_stopped_is_said(look):
    page, asked = look
    page.click("#look")
    says(page, "#look-status", "Enter a message or choose a picture.")
    assert asked == []
    page.route("**/v1/chat/completions", lambda route: None)
    page.fill("#question", "a red apple")
    page.click("#look")
    page.click("#look-stop")
    says(page, "#look-status", "Stopped.")
    api.expect(page.locator("#answers li")).to_have_count(0)
    assert page.input_value("#question") == "a red apple"
    page.unroute("**/v1/chat/completions")
    ask(page, "a red apple", "image", 1)
    assert len(asked[-1]["messages"]) == 1
