"""A document that shows a request's own picture is never prepended, whatever the memory calls it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from cm3core.document import Codes, Image, text_of
from cm3run.model import Model
from cm3run.model.prepending import _pictures, _shows
from few_icons import model_over_few_icons


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with model_over_few_icons() as loaded:
        yield loaded


@pytest.mark.parametrize("split", ["comp", "train"])
def test_a_picture_of_the_memory_is_described_after_others(model: Model, split: str) -> None:
    """The memory is of all splits, so that what is nearest to each is itself."""
    source = model.components.memory_of_split(split)
    indices = [len(source) // 7, len(source) // 2]
    shown = [
        next(part for part in source.document(index) if isinstance(part, Image)).load()
        for index in indices
    ]
    retriever = model.components.retriever
    assert retriever is not None
    for index, pixels, made in zip(indices, shown, model.captions(shown), strict=True):
        [nearest] = retriever.retrieve([(Image("here", lambda pixels=pixels: pixels),)], 1)[0]
        assert nearest.id == source.id(index), "else this test tests nothing"
        assert len(made.retrieved) == model.recipe.retriever.num_retrieved
        assert source.id(index) not in [one.id for one in made.retrieved]


def test_what_the_memory_has_is_the_answer_of_the_default_model(model: Model) -> None:
    source = model.components.memory
    text = text_of(source.document(len(source) // 3))
    first, *_ = model.generate(text)
    assert first.answer is not None
    assert first.answer.kind == "found"
    assert first.original is not None
    assert first.original.content.startswith(b"<svg")
    assert first.retrieved[0].text == text
    assert first.retrieved[0].provenance.licence


def test_which_pictures_are_recognised() -> None:
    """Those of which at least half is known, by what is known."""
    whole = Codes(np.arange(4, dtype=np.int32), (2, 2))
    half = replace(whole, missing=np.array([True, True, False, False]))
    little = replace(whole, missing=np.array([True, True, True, False]))
    assert _pictures((whole, half, little)) == [whole, half]
    other = replace(whole, codes=np.array([9, 9, 2, 3], np.int32))
    assert _shows((other,), half)
    assert not _shows((other,), whole)
    assert not _shows((replace(other, grid=(1, 4)),), half)
