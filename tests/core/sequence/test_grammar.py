"""The grammar of a completion, by hand and for random walks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import GenerationError
from cm3core.sequence.grammar import Hole, HoleGrammar, num_draws, num_new_tokens
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from messages import tells

#: text 4..9, image 10..17, <break> 18, <eoss> 19, sentinels 20..23
VOCABULARY = CM3LeonVocabulary(num_text=10, num_image=8, num_sentinels=4)
NOTHING = np.zeros(0, np.int32)


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def text_hole(
    prefix: np.ndarray = NOTHING, max_tokens: int = 3, ends_with: int | None = 19
) -> Hole:
    return Hole(0, "text", prefix, None, max_tokens, ends_with)


def code_hole(prefix: np.ndarray, cells: np.ndarray) -> Hole:
    return Hole(1, "codes", prefix, cells, len(cells), 19)


def test_a_text_hole_is_never_empty_and_closed_at_its_length():
    grammar = HoleGrammar((text_hole(), text_hole(ids(21))), VOCABULARY, 6)
    assert grammar.legal == (range(4, 10),)
    assert grammar.take(ids(7)).tolist() == []
    assert grammar.legal == (range(4, 10), range(19, 20))
    grammar.take(ids(8))
    # full: the end token is fed, not drawn, and the next sentinel
    assert grammar.take(ids(4)).tolist() == [19, 21]
    assert not grammar.done
    grammar.take(ids(5))
    assert grammar.take(ids(19)).tolist() == []
    assert grammar.done
    assert [content.tolist() for content in grammar.contents] == [[7, 8, 4], [5]]


def test_text_that_ends_with_eos_and_ids_without_a_text():
    grammar = HoleGrammar((text_hole(ends_with=VOCABULARY.eos),), VOCABULARY, 4)
    grammar.take(ids(4))
    assert grammar.legal == (range(2, 3), range(4, 8))


def test_runs_of_codes_are_exactly_their_cells():
    grammar = HoleGrammar(
        (code_hole(NOTHING, ids(2, 3, 4)), code_hole(ids(21), ids(7))), VOCABULARY, 6
    )
    assert grammar.legal == (VOCABULARY.image,)
    assert grammar.num_draws == 3
    assert grammar.cells(2).tolist() == [2, 3]
    assert grammar.take(ids(10, 11)).tolist() == []
    assert (grammar.num_draws, grammar.cells(1).tolist()) == (1, [4])
    assert grammar.take(ids(17)).tolist() == [19, 21]
    assert grammar.take(ids(12)).tolist() == []
    assert grammar.done


def test_lengths_by_hand():
    holes = (text_hole(), code_hole(ids(20), ids(0, 1)))
    # 3 text tokens, <eoss>, <sentinel>, 2 codes of which the last needn't be read
    assert (num_new_tokens(holes), num_draws(holes)) == (6, 5)


def test_an_illegal_id_is_the_samplers_fault():
    with pytest.raises(GenerationError) as error:
        HoleGrammar((text_hole(),), VOCABULARY, 6).take(ids(19))
    assert tells(error.value, "sampler: drew <eoss> instead of text ... `allowed_nR`")


@given(data=st.data())
def test_any_legal_walk_ends_within_its_bounds(data):
    kinds = data.draw(st.lists(st.booleans(), min_size=1, max_size=4))
    holes = tuple(
        text_hole(ids(20 + place) if place else NOTHING, data.draw(st.integers(1, 4)))
        if text
        else code_hole(
            ids(20 + place) if place else NOTHING,
            np.arange(data.draw(st.integers(1, 5)), dtype=np.int32),
        )
        for place, text in enumerate(kinds)
    )
    grammar, drawn, fed = HoleGrammar(holes, VOCABULARY, 6), 0, 0
    while not grammar.done:
        num = data.draw(st.integers(1, grammar.num_draws))
        legal = [token for span in grammar.legal for token in span]
        fed += num + len(
            grammar.take(ids(*(data.draw(st.sampled_from(legal)) for _ in range(num))))
        )
        drawn += num
    assert drawn <= num_draws(holes)
    assert fed - 1 <= num_new_tokens(holes)
    for hole, content in zip(holes, grammar.contents, strict=True):
        assert (
            len(content) == len(hole.cells)
            if hole.cells is not None
            else 1 <= len(content) <= hole.max_tokens
        )
