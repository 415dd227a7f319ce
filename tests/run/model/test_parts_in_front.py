"""A question about a picture of several things has the texts of what is like each of them in front."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest

from cm3core.document import Image, PixelArray
from cm3core.errors import GenerationError
from cm3run.model import Model
from few_icons import model_over_few_icons

#: How a document that was found for a part of the picture begins.
PART = re.compile(r"at \((\d+), (\d+)\) -> \((\d+), (\d+)\), ")


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with model_over_few_icons() as loaded:
        yield loaded


def scene(model: Model, *places: tuple[int, int, int]) -> tuple[PixelArray, list[str]]:
    """Icons of the memory on white, 64 pixels a side each, at (x, y) of 128; their ids."""
    source = model.components.memory
    pixels, names = np.full((160, 160, 3), 255, np.uint8), []
    for index, x, y in places:
        picture = next(part for part in source.document(index) if isinstance(part, Image))
        pixels[y : y + 64, x : x + 64] = picture.load()
        names.append(source.id(index))
    return pixels, names


@pytest.mark.slow
def test_each_thing_is_looked_up_and_told_with_its_box(model: Model) -> None:
    source = model.components.memory
    first, second = len(source) // 3, 2 * len(source) // 3
    pixels, names = scene(model, (first, 8, 8), (second, 84, 88))
    made = model.ask(pixels, "How many things are there?", max_tokens=2)
    assert [one.id for one in made.retrieved] == names
    found = [PART.match(one.text) for one in made.retrieved]
    # the icons' ink is inside their frames, in 255ths of the picture of 160 pixels
    for part, (x, y) in zip(found, ((8, 8), (84, 88)), strict=True):
        assert part is not None
        x0, y0, x1, y1 = map(int, part.groups())
        assert round(255 * x / 160) - 3 <= x0 < x1 <= round(255 * (x + 64) / 160) + 3
        assert round(255 * y / 160) - 3 <= y0 < y1 <= round(255 * (y + 64) / 160) + 3
    # of one thing the nearest pictures, as ever
    alone, [own] = scene(model, (first, 48, 48))
    made = model.ask(alone, "What is it?", max_tokens=2)
    assert own in [one.id for one in made.retrieved]
    assert not any(PART.match(one.text) for one in made.retrieved)


def test_what_is_excluded_is_not_in_front(model: Model) -> None:
    pixels, names = scene(model, (5, 8, 8), (len(model.components.memory) - 5, 84, 88))
    made = model.ask(pixels, "How many things are there?", max_tokens=2, exclude=names)
    assert made.retrieved
    assert not set(names) & {one.id for one in made.retrieved}
    with pytest.raises(GenerationError) as caught:
        model.ask(pixels, "What is it?", exclude="lucide/bell")
    message = (
        "exclude: is 'lucide/bell', must be a list of documents' ids\n  next: correct the value"
    )
    assert str(caught.value) == message
