"""The infill form by hand, and what is not of the form."""

from __future__ import annotations

import numpy as np
import pytest

from cm3core.document import MaskedSequence, TokenSequence
from cm3core.errors import DocumentError
from cm3core.sequence import loss_weights, move_spans, unmask
from cm3kits.objective import make_sequence
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from messages import tells

VOCABULARY = CM3LeonVocabulary(num_text=10, num_image=4, num_sentinels=4)
EOS, BREAK, EOSS, S0, S1 = 2, 14, 15, 16, 17


def sequence() -> TokenSequence:
    """<eos> 4 5 6 <break> 10 11 <break> 7 <break> 12 13 <eos>: one retrieved pair, one query
    pair."""
    made = make_sequence(VOCABULARY, [[("text", 3), ("image", 2)], [("text", 1), ("image", 2)]])
    tokens = np.asarray([EOS, 4, 5, 6, BREAK, 10, 11, BREAK, 7, BREAK, 12, 13, EOS], np.int32)
    return TokenSequence(tokens, made.cells, made.segments, made.query_segment)


def test_by_hand() -> None:
    masked = move_spans(
        sequence(), [(2, 4), (11, 12)], loss_weights(sequence(), VOCABULARY, 0.5), VOCABULARY
    )
    assert masked.tokens.tolist() == [
        EOS,
        4,
        S0,
        BREAK,
        10,
        11,
        BREAK,
        7,
        BREAK,
        12,
        S1,
        EOS,
        S0,
        5,
        6,
        EOSS,
        S1,
        13,
        EOSS,
    ]
    assert masked.cells.tolist() == [
        -1,
        -1,
        -1,
        -1,
        0,
        1,
        -1,
        -1,
        -1,
        0,
        -1,
        -1,
        -1,
        -1,
        -1,
        -1,
        -1,
        1,
        -1,
    ]
    assert masked.weights.tolist() == [0.5] * 7 + [1] * 5 + [0.5] * 4 + [1] * 3
    assert unmask(masked, VOCABULARY).tolist() == sequence().tokens.tolist()


def test_sentinels_may_count_nothing() -> None:
    masked = move_spans(
        sequence(), [(8, 9)], loss_weights(sequence(), VOCABULARY), VOCABULARY, sentinel_loss=False
    )
    assert masked.weights[masked.tokens == S0].tolist() == [0, 0]
    assert masked.weights.sum() == len(masked) - 2


def test_text_may_count_more() -> None:
    """Captions 4 and 4 * 0.5, codes and specials as ever; a moved caption takes its weight along,
    for its specials too."""
    weights = loss_weights(sequence(), VOCABULARY, retrieved_loss_weight=0.5, text_loss_weight=4.0)
    assert weights.tolist() == [0.5, 2, 2, 2, 0.5, 0.5, 0.5, 0.5, 4, 1, 1, 1, 1]
    masked = move_spans(sequence(), [(8, 9)], weights, VOCABULARY)
    assert masked.weights.tolist()[-3:] == [4, 4, 4]


@pytest.mark.parametrize(
    "tokens",
    [
        [EOS, 4, S0, EOS],  # no span for the sentinel
        [EOS, 4, EOS, S0, 5, EOSS],  # no sentinel for the span
        [EOS, S0, EOS, S0, 5],  # the end token is cut away (metaseq main)
        [EOS, S0, S1, EOS, S1, 5, EOSS, S0, 5, EOSS],  # not in order
        [EOS, S0, EOS, 4, S0, 5, EOSS],  # something before the first span
        [EOS, 4, EOS, 5],
    ],
)
def test_what_is_not_of_the_form_is_refused(tokens: list[int]) -> None:
    row = np.asarray(tokens, np.int32)
    with pytest.raises(DocumentError, match="pass a whole sequence of the infill form"):
        unmask(MaskedSequence(row, row, row.astype(np.float32)), VOCABULARY)


def test_without_ends_it_is_refused() -> None:
    row = np.asarray([EOS, 4], np.int32)
    with pytest.raises(DocumentError) as caught:
        unmask(MaskedSequence(row, row, row.astype(np.float32)), VOCABULARY)
    assert tells(caught.value, "masked sequence: is not of the form <eos> ... <eos>")
