"""The best of several candidates, by a reranker."""

from __future__ import annotations

import numpy as np
import pytest

from cm3core.errors import GenerationError
from messages import tells
from toy_model import picture


def test_the_best_of_all_candidates_is_shown_with_all_scores(ranked):
    pictures = ranked.generate("red", 2, seed=3, num_candidates=3)
    alone = ranked.generate("red", 6, seed=3)
    for place, shown in enumerate(pictures):
        own = alone[3 * place : 3 * place + 3]
        assert shown.choice.scores == tuple(float(one.pixels.mean()) for one in own)
        assert shown.choice.score == max(shown.choice.scores)
        assert shown.choice.measure == "brightness"
        best = own[shown.choice.index]
        assert np.array_equal(shown.pixels, best.pixels)
        assert shown.seed == best.seed
    assert all(one.choice is None for one in alone)
    [text] = ranked.captions(
        [picture(8, 8)], seed=1, num_candidates=3, text_temperature=2.0, num_retrieved=0
    )
    assert text.choice.score == len(text.text)


def test_candidates_need_a_reranker(model):
    with pytest.raises(GenerationError) as error:
        model.generate("red", num_candidates=2)
    assert tells(error.value, "reranker: the model's recipe 'toy'")
    with pytest.raises(GenerationError, match="num_candidates: is 0\n  next: use 1 or more"):
        model.generate("red", num_candidates=0)
