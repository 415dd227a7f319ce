"""Emu3-Chat's, Emu3.5's and Lumina-mGPT 2.0's tasks: the kit's laws, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from cm3core.document import Codes, ImageHole, TextHole
from cm3core.errors import RecipeError
from cm3kits.task import TaskContract
from cm3published.tasks import (
    Emu3CaptionConfig,
    Emu3QuestionConfig,
    Emu35DrawConfig,
    Emu35EditConfig,
    LuminaDrawConfig,
)


class TestEmu3Caption(TaskContract):
    config = Emu3CaptionConfig()
    max_examples = 6


class TestEmu3Question(TaskContract):
    config = Emu3QuestionConfig()
    max_examples = 6


class TestEmu35Draw(TaskContract):
    config = Emu35DrawConfig()
    max_examples = 6


class TestEmu35Edit(TaskContract):
    config = Emu35EditConfig()
    max_examples = 6


class TestLuminaDraw(TaskContract):
    config = LuminaDrawConfig()
    max_examples = 6


def test_luminas_prompts_state_the_size() -> None:
    [request, hole] = LuminaDrawConfig(width=1024).build().prompt({"caption": "a bell"})
    words = "Generate an image of 1024x768 according to the following prompt:"
    assert getattr(request, "text", "") == words + "\na bell"
    assert isinstance(hole, ImageHole)


def test_a_request_is_asked_for() -> None:
    picture = Codes(np.zeros(4, np.int32), (2, 2))
    [system, shown, request, hole] = (
        Emu3CaptionConfig(request="Name it").build().prompt({"image": picture})
    )
    assert getattr(system, "text", "") == "You are a helpful assistant. USER: "
    assert shown is picture
    assert getattr(request, "text", "") == "Name it."
    assert isinstance(hole, TextHole)


@pytest.mark.parametrize("request_text", ["Name {it}", "  "])
def test_a_request_must_be_words(request_text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Emu3CaptionConfig(request=request_text).check()
    assert str(caught.value) == (
        f"task.request: is {request_text!r}\n  next: use words without braces"
    )
