"""Documents <-> tokens: the paper's forms by hand, every document comes back, wrong input says what
is wrong.

Legend of the small vocabulary: text 4..259 (bytes), image 260..275 (16 codes), <break> 276, <eoss>
277, <sentinel:i> 278 + i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cm3core.document import (
    Codes,
    Document,
    Image,
    ImageHole,
    MaskedText,
    Span,
    Text,
    TextHole,
    has_holes,
)
from cm3core.errors import DocumentError
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence.prompt_writer import Prompt
from cm3core.sequence.serialize import Serializer
from cm3core.vocab import Vocabulary
from cm3plugins.text_tokenizers.byte import ByteTokenizer

EOS, BREAK, EOSS, S0 = 2, 276, 277, 278
GRID = (2, 2)
CELLS = [0, 1, 2, 3]
VOCABULARY = Vocabulary(num_text=260, num_image=16, num_sentinels=8)
SERIALIZER = Serializer(VOCABULARY, ByteTokenizer(), GRID)
ROOMY = Serializer(Vocabulary(num_text=260, num_image=16), ByteTokenizer(), GRID)


def picture(*codes: int, missing: Sequence[int] = ()) -> Codes:
    flags = np.isin(np.arange(len(codes)), missing) if missing else None
    return Codes(np.asarray(codes, np.int32), GRID, flags)


def letters(text: str) -> list[int]:
    return [4 + byte for byte in text.encode()]


def image(*codes: int) -> list[int]:
    return [260 + code for code in codes]


PAIR: Document = (Text("ab"), picture(1, 2, 3, 4))
QUERY: Document = (Text("c"), picture(5, 6, 7, 8))


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


texts = st.builds(Text, st.text(max_size=8))
pictures = st.builds(
    lambda codes: picture(*codes), st.lists(st.integers(0, 15), min_size=4, max_size=4)
)
pairs = st.tuples(texts, pictures)


@given(
    query=st.lists(texts | pictures, min_size=1, max_size=5).map(tuple),
    retrieved=st.lists(pairs, max_size=3),
)
def test_every_document_comes_back(query: Document, retrieved: list[Document]) -> None:
    assert SERIALIZER.documents(SERIALIZER.sequence(query, retrieved)) == [*retrieved, query]


@given(query=pairs, retrieved=st.lists(pairs, max_size=3))
def test_pairs_come_back_from_bare_tokens(query: Document, retrieved: list[Document]) -> None:
    assert SERIALIZER.documents(SERIALIZER.sequence(query, retrieved).tokens) == [*retrieved, query]


# ---- prompts


def holes(prompt: Prompt) -> list[tuple[int, str, list[int], list[int] | None, int, int | None]]:
    return [
        (
            hole.segment,
            hole.kind,
            hole.prefix.tolist(),
            None if hole.cells is None else hole.cells.tolist(),
            hole.max_tokens,
            hole.ends_with,
        )
        for hole in prompt.holes
    ]


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


def test_codes_that_are_all_missing_are_a_whole_picture() -> None:
    every = picture(0, 0, 0, 0, missing=CELLS)
    assert (
        SERIALIZER.prompt((Text("c"), every)).tokens.tolist()
        == SERIALIZER.prompt((Text("c"), ImageHole())).tokens.tolist()
    )
    assert SERIALIZER.fill((every,), [np.asarray(image(4, 3, 2, 1), np.int32)]) == (
        picture(4, 3, 2, 1),
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
    """Holes are sentinels 0 and 1; what is hidden beside them comes after, one for each side."""
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
        S0 + 3,
        S0,
        S0 + 4,
        BREAK,
        S0 + 5,
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
    # whose pieces stand in one segment with its holes
    if not any(isinstance(segment, MaskedText) for segment in document):
        assert "HbH" not in kinds


# ---- wrong input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: SERIALIZER.sequence((Text("a"), ImageHole())),
            "query document, segment 1: has a hole\n  next: only the query document of a prompt "
            "may have holes",
        ),
        (
            lambda: SERIALIZER.sequence((Image("k", lambda: np.zeros((1, 1, 3), np.uint8)),)),
            "query document, segment 0: is a picture as pixels\n  next: encode it with the image "
            "tokenizer; sequences hold codes",
        ),
        (
            lambda: SERIALIZER.sequence((Codes(np.zeros(9, np.int32), (3, 3)),)),
            "query document, segment 0: codes [9] of a 3 x 3 grid, pictures here are 2 x 2\n"
            "  next: encode pictures with this recipe's image tokenizer",
        ),
        (
            lambda: SERIALIZER.sequence((picture(0, 1, 2, 99),)),
            "query document, segment 0: codes 0..99, the vocabulary has 16\n  next: encode "
            "pictures with this recipe's image tokenizer",
        ),
        (
            lambda: SERIALIZER.sequence((Text("a"),), [()]),
            "retrieved document 0: is empty\n  next: give it a text or a picture",
        ),
        (
            lambda: SERIALIZER.prompt((Text("a"),)),
            "query document: has no hole\n  next: put a TextHole or an ImageHole where something "
            "is missing",
        ),
        (
            lambda: SERIALIZER.prompt((MaskedText((TextHole(),) * 9),)),
            "query document: 9 holes, the vocabulary has 8 sentinels\n"
            "  next: fill fewer at once; a box of missing codes has a hole in each of its rows",
        ),
        (
            lambda: SERIALIZER.documents(np.asarray([EOS, 260, EOS], np.int32)),
            "image segment: 1 codes, a picture has 4\n  next: decode whole pictures",
        ),
        (
            lambda: SERIALIZER.documents(np.asarray([EOS, *letters("a"), S0, EOS], np.int32)),
            "text segment: holds <sentinel:0>\n  next: decode only text ids",
        ),
        (
            lambda: Serializer(Vocabulary(num_text=100, num_image=16), ByteTokenizer(), GRID),
            "vocabulary.num_text: room for 96 text ids, the text tokenizer has 256\n"
            "  next: leave vocabulary.num_text out, or use a smaller text tokenizer",
        ),
    ],
)
def test_wrong_input_is_explained(call: Callable[[], object], message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        call()
    assert str(caught.value) == message
