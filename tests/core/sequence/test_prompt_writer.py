"""Prompts by hand: plain continuation, and holes anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from cm3core.document import Codes, ImageHole, MaskedText, Text, TextHole
from cm3core.errors import DocumentError
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence.serialize import Serializer
from cm3plugins.text_tokenizers.byte import ByteTokenizer
from messages import tells
from serializer_parts import (
    BREAK,
    CELLS,
    EOS,
    EOSS,
    GRID,
    PAIR,
    QUERY,
    S0,
    SERIALIZER,
    VOCABULARY,
    holes,
    image,
    letters,
    picture,
)


def test_text_to_image_is_plain_continuation() -> None:
    prompt = SERIALIZER.prompt((Text("c"), ImageHole()), [PAIR])
    assert prompt.tokens.tolist() == [
        EOS,
        *letters("ab"),
        BREAK,
        *image(1, 2, 3, 4),
        BREAK,
        *letters("c"),
        BREAK,
    ]
    assert prompt.cells.tolist() == [-1] * 4 + CELLS + [-1] * 3
    assert holes(prompt) == [(1, "image", [], CELLS, 4, None)]


def test_a_prompt_is_how_the_training_sequence_begins() -> None:
    prompt = SERIALIZER.prompt((QUERY[0], ImageHole()), [PAIR])
    assert (
        SERIALIZER.sequence(QUERY, [PAIR]).tokens[: len(prompt)].tolist() == prompt.tokens.tolist()
    )


def test_unconditional_image() -> None:
    assert SERIALIZER.prompt((ImageHole(),)).tokens.tolist() == [EOS]


def test_a_text_at_the_end_is_plain_continuation() -> None:
    prompt = SERIALIZER.prompt((picture(1, 2, 3, 4), TextHole(9)))
    assert prompt.tokens.tolist() == [EOS, *image(1, 2, 3, 4), BREAK]
    assert holes(prompt) == [(1, "text", [], None, 9, EOS)]


def test_captioning_is_infilling() -> None:
    """Spec 2.5: `<eos> <sentinel:0> <break> image <eos> <sentinel:0>`, ended by <eoss>."""
    prompt = SERIALIZER.prompt((TextHole(7), QUERY[1]))
    assert prompt.tokens.tolist() == [EOS, S0, BREAK, *image(5, 6, 7, 8), EOS, S0]
    assert prompt.cells.tolist() == [-1] * 3 + CELLS + [-1] * 2
    assert holes(prompt) == [(0, "text", [S0], None, 7, EOSS)]


def test_in_painting_has_a_hole_for_each_run_of_missing_codes() -> None:
    prompt = SERIALIZER.prompt((Text("c"), picture(5, 0, 0, 8, missing=[1, 2])))
    assert prompt.tokens.tolist() == [EOS, *letters("c"), BREAK, *image(5), S0, *image(8), EOS, S0]
    assert prompt.cells.tolist() == [-1, -1, -1, 0, -1, 3, -1, -1]
    assert holes(prompt) == [(1, "codes", [S0], [1, 2], 2, EOSS)]
    two = SERIALIZER.prompt((picture(0, 6, 0, 8, missing=[0, 2]),))
    assert two.tokens.tolist() == [EOS, S0, *image(6), S0 + 1, *image(8), EOS, S0]
    assert holes(two) == [(0, "codes", [S0], [0], 1, EOSS), (0, "codes", [S0 + 1], [2], 1, EOSS)]


def test_holes_everywhere() -> None:
    document = (MaskedText(("a", TextHole(3), "b", TextHole(4))), ImageHole())
    prompt = SERIALIZER.prompt(document)
    assert prompt.tokens.tolist() == [
        EOS,
        *letters("a"),
        S0,
        *letters("b"),
        S0 + 1,
        BREAK,
        S0 + 2,
        EOS,
        S0,
    ]
    assert holes(prompt) == [
        (0, "text", [S0], None, 3, EOSS),
        (0, "text", [S0 + 1], None, 4, EOSS),
        (1, "image", [S0 + 2], CELLS, 4, EOSS),
    ]
    contents = [
        np.asarray(content, np.int32)
        for content in (letters("X"), letters("YZ"), image(1, 2, 3, 4))
    ]
    assert SERIALIZER.fill(document, contents) == (Text("aXbYZ"), picture(1, 2, 3, 4))


def test_holes_share_a_sentinel_where_training_had_fewer() -> None:
    """The code between them is fed when its turn comes, and the picture keeps it."""
    few = Serializer(VOCABULARY, ByteTokenizer(), GRID, max_spans=2)
    holed = picture(0, 6, 0, 8, missing=[0, 2])
    alone = few.prompt((holed,))
    assert alone.tokens.tolist() == SERIALIZER.prompt((holed,)).tokens.tolist()
    # one sentinel is kept for the stream that hides the text
    for variant, shown in (
        (PromptVariant(), letters("c")),
        (PromptVariant(hide_text="all"), [S0 + 1]),
    ):
        joined = few.prompt((Text("c"), holed), variant=variant)
        assert joined.tokens.tolist() == [EOS, *shown, BREAK, S0, *image(8), EOS, S0]
        assert holes(joined) == [
            (1, "codes", [S0], [0], 1, None),
            (1, "codes", image(6), [2], 1, EOSS),
        ]
        assert joined.holes[1].prefix_cells is not None
        assert joined.holes[1].prefix_cells.tolist() == [1]
    contents = [np.asarray(image(1), np.int32), np.asarray(image(2), np.int32)]
    assert few.fill((holed,), contents) == (picture(1, 6, 2, 8),)


def test_the_shortest_gaps_are_closed_first() -> None:
    wide = Serializer(VOCABULARY, ByteTokenizer(), (2, 5), max_spans=2)
    missing = np.isin(np.arange(10), [0, 3, 5, 9])
    prompt = wide.prompt((Codes(np.arange(10, dtype=np.int32), (2, 5), missing),))
    assert [hole.prefix.tolist() for hole in prompt.holes] == [
        [S0],
        image(1, 2),
        image(4),
        [S0 + 1],
    ]


def test_what_is_hidden_is_left_out_where_no_sentinel_is_left() -> None:
    one = Serializer(VOCABULARY, ByteTokenizer(), GRID, max_spans=1)
    holed = picture(5, 0, 7, 8, missing=[1])
    hidden = one.prompt((Text("c"), holed), variant=PromptVariant(hide_text="all"))
    assert hidden.tokens.tolist() == [EOS, *image(5), S0, *image(7, 8), EOS, S0]


def test_a_model_that_was_trained_without_spans_only_continues() -> None:
    never = Serializer(VOCABULARY, ByteTokenizer(), GRID, max_spans=0)
    document = (Text("c"), ImageHole())
    assert never.prompt(document).tokens.tolist() == SERIALIZER.prompt(document).tokens.tolist()
    hidden = never.prompt(document, variant=PromptVariant(hide_text="all", hide_images=True))
    assert hidden.tokens.tolist() == [EOS]
    with pytest.raises(DocumentError) as error:
        never.prompt((TextHole(3), QUERY[1]))
    assert tells(error.value, "query document: has a hole that is not")


def test_codes_that_are_all_missing_are_a_whole_picture() -> None:
    every = picture(0, 0, 0, 0, missing=CELLS)
    assert (
        SERIALIZER.prompt((Text("c"), every)).tokens.tolist()
        == SERIALIZER.prompt((Text("c"), ImageHole())).tokens.tolist()
    )
    assert SERIALIZER.fill((every,), [np.asarray(image(4, 3, 2, 1), np.int32)]) == (
        picture(4, 3, 2, 1),
    )
