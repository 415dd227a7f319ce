"""What guidance streams see of the query, by hand and for every document with holes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cm3core.document import Codes, Document, ImageHole, MaskedText, Text, TextHole, has_holes
from cm3core.interfaces.sampler import PromptVariant
from serializer_parts import (
    BREAK,
    CELLS,
    EOS,
    GRID,
    PAIR,
    QUERY,
    ROOMY,
    S0,
    SERIALIZER,
    holes,
    image,
    letters,
    picture,
    pictures,
    texts,
)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (
            PromptVariant(hide_text="all"),
            [*letters("ab"), BREAK, *image(1, 2, 3, 4), BREAK, S0, BREAK],
        ),
        (PromptVariant(hide_text="all", drop_retrieved=True), [S0, BREAK]),
        (PromptVariant(hide_text="all", drop_text=True, drop_retrieved=True), []),
        (PromptVariant(replace_text="z", drop_retrieved=True), [*letters("z"), BREAK]),
    ],
)
def test_variants_of_text_to_image(variant: PromptVariant, expected: list[int]) -> None:
    assert SERIALIZER.prompt((Text("c"), ImageHole()), [PAIR], variant).tokens.tolist() == [
        EOS,
        *expected,
    ]


def test_a_hidden_text_is_numbered_after_the_holes() -> None:
    document = (Text("c"), picture(5, 0, 7, 8, missing=[1]))
    hidden = SERIALIZER.prompt(document, variant=PromptVariant(hide_text="all"))
    assert hidden.tokens.tolist() == [EOS, S0 + 1, BREAK, *image(5), S0, *image(7, 8), EOS, S0]


def test_editing_hides_all_texts_or_the_last() -> None:
    document = (Text("a"), QUERY[1], Text("b"), ImageHole())
    between = [BREAK, *image(5, 6, 7, 8), BREAK]
    for hide, first, last in (
        ("none", letters("a"), letters("b")),
        ("last", letters("a"), [S0]),
        ("all", [S0], [S0 + 1]),
    ):
        prompt = SERIALIZER.prompt(document, variant=PromptVariant(hide_text=hide))
        assert prompt.tokens.tolist() == [EOS, *first, *between, *last, BREAK]


EDIT: Document = (Text("a"), QUERY[1], Text("b"), ImageHole())


@pytest.mark.parametrize(
    ("document", "variant", "expected"),
    [
        # The reference's unconditional stream of editing: all that is hidden side by side is one
        # sentinel.
        (EDIT, PromptVariant(hide_text="all", hide_images=True), [S0, BREAK]),
        (
            EDIT,
            PromptVariant(hide_images=True),
            [*letters("a"), BREAK, S0, BREAK, *letters("b"), BREAK],
        ),
        (
            EDIT,
            PromptVariant(hide_text="last", hide_images=True),
            [*letters("a"), BREAK, S0, BREAK],
        ),
        (
            EDIT,
            PromptVariant(replace_text="z", hide_images=True),
            [*letters("z"), BREAK, S0, BREAK, *letters("z"), BREAK],
        ),
        (EDIT, PromptVariant(hide_text="all", drop_text=True, hide_images=True), [S0, BREAK]),
        (
            (QUERY[1], PAIR[1], Text("b"), ImageHole()),
            PromptVariant(hide_images=True),
            [S0, BREAK, *letters("b"), BREAK],
        ),
        ((QUERY[1], ImageHole()), PromptVariant(hide_text="all", hide_images=True), [S0, BREAK]),
        ((ImageHole(),), PromptVariant(hide_text="all", hide_images=True), []),
    ],
)
def test_hidden_pictures_of_a_continuation(
    document: Document, variant: PromptVariant, expected: list[int]
) -> None:
    assert SERIALIZER.prompt(document, variant=variant).tokens.tolist() == [EOS, *expected]


def test_hidden_pictures_stop_at_holes() -> None:
    """Holes are sentinels 0 and 1; what is hidden comes after, but for text beside a hole, which
    the hole's sentinel hides: three sentinels in a row are in no training sequence."""
    document = (
        Text("a"),
        MaskedText(("b", TextHole(3), "c", "d")),
        QUERY[1],
        picture(5, 0, 7, 8, missing=[1]),
    )
    hidden = SERIALIZER.prompt(document, variant=PromptVariant(hide_text="all", hide_images=True))
    assert hidden.tokens.tolist() == [
        EOS,
        S0 + 2,
        BREAK,
        S0,
        BREAK,
        S0 + 3,
        BREAK,
        *image(5),
        S0 + 1,
        *image(7, 8),
        EOS,
        S0,
    ]


def test_only_the_query_is_hidden_and_only_its_whole_pictures() -> None:
    document = (Text("c"), picture(0, 0, 0, 0, missing=CELLS))
    hidden = SERIALIZER.prompt(document, [PAIR], PromptVariant(hide_images=True))
    assert hidden.tokens.tolist() == SERIALIZER.prompt(document, [PAIR]).tokens.tolist()
    nothing_missing = Codes(QUERY[1].codes, GRID, np.zeros(4, np.bool_))
    hidden = SERIALIZER.prompt(
        (nothing_missing, TextHole()), variant=PromptVariant(hide_images=True)
    )
    assert hidden.tokens.tolist() == [EOS, S0, BREAK]


partly = st.builds(
    lambda codes, missing: Codes(np.asarray(codes, np.int32), GRID, np.asarray(missing)),
    st.lists(st.integers(0, 15), min_size=4, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
segments = (
    texts
    | pictures
    | partly
    | st.builds(TextHole)
    | st.builds(ImageHole)
    | st.builds(
        MaskedText, st.lists(st.text(max_size=3) | st.builds(TextHole), max_size=4).map(tuple)
    )
)
variants = st.builds(
    PromptVariant,
    st.sampled_from(["none", "all", "last"]),
    st.booleans(),
    st.booleans(),
    st.none() | st.text(max_size=3),
    st.booleans(),
)


@given(document=st.lists(segments, min_size=1, max_size=3).map(tuple), variant=variants)
def test_every_document_with_holes_is_prompted_and_filled(
    document: Document, variant: PromptVariant
) -> None:
    assume(has_holes(document))
    prompt = ROOMY.prompt(document)
    other = ROOMY.prompt(document, [PAIR], variant)
    assert holes(prompt) == holes(other)  # the streams stay in step
    contents = [
        np.asarray(letters("x") if hole.cells is None else [260] * len(hole.cells), np.int32)
        for hole in prompt.holes
    ]
    filled = ROOMY.fill(document, contents)
    assert len(filled) == len(document)
    assert ROOMY.documents(ROOMY.sequence(filled))[-1] == filled
    for before, after in zip(document, filled, strict=True):
        if isinstance(before, Codes) and isinstance(after, Codes) and before.missing is not None:
            assert np.array_equal(after.codes[~before.missing], before.codes[~before.missing])
            assert not after.codes[before.missing].any() or not before.missing.any()


@given(document=st.lists(segments, min_size=1, max_size=4).map(tuple), dropped=st.booleans())
def test_the_stream_that_sees_nothing_of_the_query_sees_its_holes_only(
    document: Document, dropped: bool
) -> None:
    """Neither a letter nor a code of a whole picture is left, and no two sentinels of what is
    hidden are neighbours."""
    assume(has_holes(document))
    prompt = ROOMY.prompt(
        document, variant=PromptVariant(hide_text="all", drop_text=dropped, hide_images=True)
    )
    body = prompt.tokens[1:].tolist()
    seen = [cell for cell in prompt.cells.tolist() if cell != -1]
    assert not [token for token in body if 4 <= token < 260]
    assert len(seen) == sum(
        int((~segment.missing).sum())
        for segment in document
        if isinstance(segment, Codes) and segment.missing is not None and segment.missing.any()
    )
    first_hidden = S0 + (0 if prompt.holes[0].ends_with in (None, EOS) else len(prompt.holes))
    kinds = "".join(
        "H" if token >= first_hidden else "b" if token == BREAK else "." for token in body
    )
    assert "HH" not in kinds
    assert "HbH" not in kinds
