"""Documents <-> tokens: the paper's forms by hand, every document comes back, wrong input says what
is wrong. `serializer_parts` has the legend of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Codes, Document, Image, ImageHole, MaskedText, Span, Text, TextHole
from cm3core.errors import DocumentError
from cm3core.sequence.serialize import Serializer
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.text_tokenizers.byte import ByteTokenizer
from cm3run.training.sequences import sequence_length
from messages import tells
from serializer_parts import (
    BREAK,
    CELLS,
    EOS,
    GRID,
    PAIR,
    QUERY,
    S0,
    SERIALIZER,
    image,
    letters,
    pairs,
    picture,
    pictures,
    texts,
)


def test_sequence_by_hand() -> None:
    sequence = SERIALIZER.sequence(QUERY, [PAIR])
    assert sequence.tokens.tolist() == [
        EOS,
        *letters("ab"),
        BREAK,
        *image(1, 2, 3, 4),
        BREAK,
        *letters("c"),
        BREAK,
        *image(5, 6, 7, 8),
        EOS,
    ]
    assert sequence.cells.tolist() == [-1] * 4 + CELLS + [-1] * 3 + CELLS + [-1]
    assert sequence.segments == (
        Span(1, 3, "text"),
        Span(4, 8, "image", (2, 2)),
        Span(9, 10, "text"),
        Span(11, 15, "image", (2, 2)),
    )
    assert sequence.query_segment == 2


def test_texts_are_cut_to_max_text_tokens() -> None:
    assert SERIALIZER.sequence((Text("abcdef"),), max_text_tokens=2).tokens.tolist() == [
        EOS,
        *letters("ab"),
        EOS,
    ]


def test_text_that_spells_a_special_stays_text() -> None:
    sequence = SERIALIZER.sequence((Text("<break><eos>"),))
    assert BREAK not in sequence.tokens
    assert sequence.tokens.tolist().count(EOS) == 2


@given(
    query=st.lists(texts | pictures, min_size=1, max_size=5).map(tuple),
    retrieved=st.lists(pairs, max_size=3),
)
def test_every_document_comes_back(query: Document, retrieved: list[Document]) -> None:
    assert SERIALIZER.documents(SERIALIZER.sequence(query, retrieved)) == [*retrieved, query]


@given(
    query=st.lists(texts | pictures, min_size=1, max_size=5).map(tuple),
    most=st.none() | st.integers(1, 4),
)
def test_a_length_is_known_before_pictures_are_encoded(query: Document, most: int | None) -> None:
    length = sequence_length(query, SERIALIZER.text_tokenizer, GRID, most)
    assert length == len(SERIALIZER.sequence(query, max_text_tokens=most))


@given(query=pairs, retrieved=st.lists(pairs, max_size=3))
def test_pairs_come_back_from_bare_tokens(query: Document, retrieved: list[Document]) -> None:
    assert SERIALIZER.documents(SERIALIZER.sequence(query, retrieved).tokens) == [*retrieved, query]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: SERIALIZER.sequence((Text("a"), ImageHole())),
            "query document, segment 1: has a hole",
        ),
        (
            lambda: SERIALIZER.sequence((Image("k", lambda: np.zeros((1, 1, 3), np.uint8)),)),
            "query document, segment 0: is a picture as pixels",
        ),
        (
            lambda: SERIALIZER.sequence((Codes(np.zeros(9, np.int32), (3, 3)),)),
            "query document, segment 0: codes [9] of a 3 x 3 ... are 2",
        ),
        (
            lambda: SERIALIZER.sequence((picture(0, 1, 2, 99),)),
            "query document, segment 0: codes 0..99, but the ... has 16",
        ),
        (
            lambda: SERIALIZER.sequence((Text("a"),), [()]),
            "retrieved document 0: is empty",
        ),
        (
            lambda: SERIALIZER.prompt((Text("a"),)),
            "query document: has no hole ... TextHole ... ImageHole",
        ),
        (
            lambda: SERIALIZER.prompt((MaskedText((TextHole(),) * 9),)),
            "query document: 9 separate holes ... most 8",
        ),
        (
            lambda: SERIALIZER.documents(np.asarray([EOS, 260, EOS], np.int32)),
            "image segment: 1 codes, but a ... has 4",
        ),
        (
            lambda: SERIALIZER.documents(np.asarray([EOS, *letters("a"), S0, EOS], np.int32)),
            "text segment: holds <sentinel:0>",
        ),
        (
            lambda: Serializer(
                CM3LeonVocabulary(num_text=100, num_image=16), ByteTokenizer(), GRID
            ),
            "vocabulary.num_text: room for 96 ... has 256",
        ),
    ],
)
def test_wrong_input_is_explained(call: Callable[[], object], message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        call()
    assert tells(caught.value, message)
