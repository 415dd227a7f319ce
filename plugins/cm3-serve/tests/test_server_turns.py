"""Conversations of a model that has them in its layout's turns: pictures on both sides, texts as they come."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import cm3core
from cm3core.images import open_image
from cm3run.model import AsyncModel, Model, ReplyReady, Turn
from tiny_chameleon import write_cm3
from toy_model import picture
from toy_server import CHAT, Served, png, served, tuned

URL = "data:image/png;base64," + base64.b64encode(png(picture(8, 8))).decode()
SHOWN = {"type": "image_url", "image_url": {"url": URL}}
GREEDY = {"text_temperature": 0.0, "temperature": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cm3(tmp_path_factory.mktemp("chameleon"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return cm3core.load(folder)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with served({"own": lambda: cm3core.load(folder)}) as running:
        yield running


def test_all_turns_and_pictures_are_read(server: Served, model: Model) -> None:
    """In the order of the message: the text before its picture."""
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "see"}, SHOWN]},
        {"role": "assistant", "content": "a bell"},
        {"role": "user", "content": "and now?"},
    ]
    asked = {"messages": messages, "modalities": ["text"], "max_tokens": 6, "sampling": GREEDY}
    answer = server.post(CHAT, **asked).json()
    turns = [
        Turn("user", ("see", picture(8, 8))),
        Turn("assistant", ("a bell",)),
        Turn("user", ("and now?",)),
    ]
    reply = model.chat(turns, answer="text", max_tokens=6, **GREEDY)
    [choice] = answer["choices"]
    assert choice["message"]["content"] == reply.text
    assert choice["finish_reason"] == reply.finish
    assert (choice["message"]["turns_read"], choice["message"]["turns_left_out"]) == (2, 0)
    assert answer["usage"]["prompt_tokens"] > 16


def test_a_picture_is_a_part(server: Served, model: Model) -> None:
    asked = {
        "messages": [{"role": "user", "content": "a red apple"}],
        "modalities": ["image"],
        "seed": 3,
    }
    [choice] = server.post(CHAT, **asked).json()["choices"]
    [part] = choice["message"]["content"]
    pixels = open_image(base64.b64decode(part["image_url"]["url"].split(",")[1]))
    assert np.array_equal(
        pixels, model.chat("a red apple", answer="image", seed=3).pictures[0].pixels
    )


def test_texts_come_as_they_are_written(server: Served, model: Model) -> None:
    asked = {"messages": [{"role": "user", "content": "a red apple"}], "seed": 1, "max_tokens": 12}
    reply = model.chat("a red apple", seed=1, max_tokens=12)
    with httpx.stream("POST", server.url + CHAT, json=asked | {"stream": True}, timeout=60) as got:
        lines = [line[6:] for line in got.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert chunks[0]["delta"]["role"] == "assistant"
    pieces = [one["delta"].get("content") for one in chunks]
    texts = [piece for piece in pieces if isinstance(piece, str)]
    assert "".join(texts) == "".join(part for part in reply.parts if isinstance(part, str))
    assert len(texts) > 1
    assert chunks[-1]["finish_reason"] == reply.finish


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"candidates": 2}, "candidates: a reply of this model has none"),
        ({"modalities": ["song"]}, "modalities: must be"),
        ({"modalities": []}, "modalities: must be"),
    ],
)
def test_what_can_not_be(server: Served, more: dict[str, Any], words: str) -> None:
    asked = {"messages": [{"role": "user", "content": "a"}], **more}
    answer = server.post(CHAT, **asked)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_coroutines_get_what_calls_get(folder: Path, model: Model) -> None:
    """Two at once, in one batch."""

    async def both() -> list[Any]:
        async with AsyncModel(cm3core.load(folder)) as own:
            asked = [own.chat("a red apple", max_tokens=8, seed=seed) for seed in (1, 2)]
            replies = await asyncio.gather(*asked)
            events = [one async for one in own.chat_events("a", max_tokens=2)]
            assert isinstance(events[-1], ReplyReady)
            return replies

    for seed, reply in zip((1, 2), asyncio.run(both()), strict=True):
        assert reply.text == model.chat("a red apple", max_tokens=8, seed=seed).text


def streamed(server: Served, **asked: Any) -> list[Any]:
    """The first choices of a streamed answer's chunks."""
    body = asked | {"stream": True}
    with httpx.stream("POST", server.url + CHAT, json=body, timeout=60) as got:
        lines = [line[6:] for line in got.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line)["choices"][0] for line in lines[:-1]]


def test_pictures_grow_if_asked(server: Served, model: Model) -> None:
    asked = {
        "messages": [{"role": "user", "content": "a red apple"}],
        "modalities": ["image"],
        "seed": 3,
    }
    chunks = streamed(server, **asked, partial_images=3)
    partial = [one["delta"]["partial_image"] for one in chunks if one["delta"].get("partial_image")]
    assert [(one["rows"], one["all_rows"]) for one in partial] == [(1, 4), (2, 4), (3, 4)]
    assert chunks[0]["delta"]["role"] == "assistant"
    first = open_image(base64.b64decode(partial[0]["image_url"]["url"].split(",")[1]))
    assert first.shape == (8, 8, 3)
    [content] = [one["delta"]["content"] for one in chunks if one["delta"].get("content")]
    pixels = open_image(base64.b64decode(content[0]["image_url"]["url"].split(",")[1]))
    expected = model.chat("a red apple", answer="image", seed=3).pictures[0].pixels
    assert np.array_equal(pixels, expected)
    assert not any("partial_image" in one["delta"] for one in streamed(server, **asked))


def test_a_drawn_picture_is_read_with_its_codes(server: Served, model: Model) -> None:
    """What the client sends back is the picture that the model drew: later turns read its codes."""
    request = {"role": "user", "content": "a red apple"}
    [choice] = server.post(CHAT, messages=[request], modalities=["image"], seed=5).json()["choices"]
    drawn = model.chat("a red apple", answer="image", seed=5)
    pixels = drawn.pictures[0].pixels
    assert model.encode([pixels])[0] != drawn.pictures[0].codes, "the test needs one that differs"
    question = {"role": "user", "content": "what is it?"}
    asked = {"modalities": ["text"], "max_tokens": 6, "sampling": GREEDY}
    messages = [request, choice["message"], question]
    found = server.post(CHAT, messages=messages, **asked).json()["choices"][0]["message"]
    turns = [Turn("user", ("a red apple",)), drawn.turn, Turn("user", ("what is it?",))]
    reply = model.chat(turns, answer="text", max_tokens=6, **GREEDY)
    assert found["content"] == reply.text
    known = server.workshop.drawn.find("own", pixels)
    assert known.codes == drawn.pictures[0].codes  # type: ignore[union-attr]  # it is one
    assert server.workshop.drawn.find("other", pixels) is pixels


def test_answers_of_the_task_chat_come_as_they_are_written() -> None:
    """The same words as in one piece, and the same facts."""
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "hue?"}, SHOWN]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "why?"},
    ]
    with served({"tuned": tuned({"talk": "chat"})}) as running:
        asked = {"messages": talk, "modalities": ["text"], "seed": 7, "max_tokens": 9}
        whole = running.post(CHAT, **asked).json()["choices"][0]
        chunks = streamed(running, **asked)
        texts = [one["delta"]["content"] for one in chunks if "content" in one["delta"]]
        assert len(texts) > 1
        assert "".join(texts).strip() == whole["message"]["content"]
        assert chunks[-1]["finish_reason"] in ("stop", "length")
        last = chunks[-1]["delta"]
        assert [last[key] for key in ("seed", "turns_read", "turns_left_out")] == [7, 2, 0]
        # several answers come in one piece each
        pieces = [one["delta"].get("content") for one in streamed(running, **asked, n=2)]
        assert pieces[0] == whole["message"]["content"]


def test_few_partial_pictures(server: Served) -> None:
    answer = server.post(CHAT, messages=[{"role": "user", "content": "a"}], partial_images=4)
    assert answer.status_code == 400
    expected = "partial_images: is 4, must be a whole number from 0 to 3"
    assert expected in answer.json()["error"]["message"]
