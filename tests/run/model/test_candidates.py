"""The best of several candidates, by a reranker."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import GenerationError
from cm3run.model import candidates
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


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6))
def test_near_copies_come_last(drawn):
    scores, copies = zip(*drawn, strict=True)
    choice = candidates.best_of(scores, "points", copies)
    fair = [place for place in range(len(scores)) if not copies[place]] or range(len(scores))
    assert choice.index in fair
    assert choice.score == max(scores[place] for place in fair)
    assert choice.index == min(place for place in fair if scores[place] == choice.score)


def test_a_near_copy_of_a_prepended_document_is_passed_over(ranked, monkeypatch):
    context = [(picture(8, 8), "green")]
    [free] = ranked.generate("red", 1, seed=3, num_candidates=3, context=context)
    assert free.choice.copies == (False,) * 3
    monkeypatch.setattr(
        candidates, "nearness", lambda drawn, _: float(np.array_equal(drawn, free.pixels))
    )
    [other] = ranked.generate("red", 1, seed=3, num_candidates=3, context=context)
    assert other.choice.scores == free.choice.scores
    assert [place for place, copy in enumerate(other.choice.copies) if copy] == [free.choice.index]
    ranks = sorted(range(3), key=lambda place: -free.choice.scores[place])
    assert other.choice.index == ranks[1]
    [alone] = ranked.generate("red", 1, seed=3, num_candidates=3)
    assert alone.choice.copies == (False,) * 3


def test_an_inpainted_picture_is_no_copy(ranked, monkeypatch):
    monkeypatch.setattr(candidates, "nearness", lambda drawn, document: 1.0)
    asked = {"num_candidates": 2, "context": [(picture(8, 8), "green")]}
    filled = ranked.infill(picture(8, 8), (0, 0, 4, 4), "red", **asked)
    assert filled.choice.copies == (False, False)
    assert ranked.generate("red", 1, **asked)[0].choice.copies == (True, True)


def test_candidates_need_a_reranker(model):
    with pytest.raises(GenerationError) as error:
        model.generate("red", num_candidates=2)
    assert tells(error.value, "reranker: the model's recipe 'toy'")
    with pytest.raises(GenerationError, match="num_candidates: is 0\n  next: use 1 or more"):
        model.generate("red", num_candidates=0)
