"""`max_codes`: pictures of fewer codes than the image tokenizer's limit, for those that are sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cm3core.errors import DocumentError, GenerationError
from cm3run.model import Model
from messages import tells
from toy_model import model_of_sequences, picture


@pytest.fixture(scope="module")
def sequences() -> Model:
    return model_of_sequences()


def test_fewer_codes_take_fewer_tokens(sequences: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = sequences.engine.preparer.inference
    own, forwards = decoder.hidden_states, []

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        forwards.append(1)
        return own(*args, **options)

    monkeypatch.setattr(decoder, "hidden_states", counted)
    taken = []
    for most in (16, None):
        forwards.clear()
        drawn = sequences.generate("red", 4, seed=1, num_retrieved=0, max_codes=most)
        lengths = [sequences.components.serializer.form.length(one.codes.codes) for one in drawn]
        assert max(lengths) <= (most or 61)
        assert all(one.pixels.shape == (8, 8, 3) for one in drawn)
        taken.append(len(forwards))
    assert 0 < taken[0] < taken[1]


def test_progress_counts_to_the_limit(sequences: Model) -> None:
    totals: set[int] = set()
    sequences.generate(
        "red",
        1,
        num_retrieved=0,
        max_codes=16,
        progress=lambda done, total: totals.add(total),
    )
    assert totals == {16}


def test_grids_and_texts_have_no_such_limit(model: Model) -> None:
    with pytest.raises(DocumentError) as grid:
        model.generate("red", 1, max_codes=5)
    assert tells(grid.value, "...at most 5 codes ... a grid of 4 x 4 places")
    with pytest.raises(GenerationError) as text:
        model.caption(picture(), max_codes=5)
    assert tells(text.value, "max_codes: is 5, and no whole picture is generated")
