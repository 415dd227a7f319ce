"""The strategies draw what they promise, and the odd cases too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from cm3core.document import (
    Codes,
    Document,
    Image,
    ImageHole,
    MaskedText,
    Text,
    TextHole,
    content_keys,
    has_holes,
    text_of,
)
from cm3core.vocab import Vocabulary
from cm3kits import strategies as our
from cm3kits.samples import SPECIAL_SPELLINGS
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary

LOOKING = settings(
    max_examples=3000, derandomize=True, database=None, phases=[Phase.generate], deadline=None
)
VOCABULARY = CM3LeonVocabulary(num_text=20, num_image=9, num_sentinels=4)


def has(kind: type, *, missing: bool = False) -> Callable[[Document], bool]:
    """Whether a document has a segment of this kind."""
    return lambda document: any(
        isinstance(part, kind) and (not missing or part.missing is not None) for part in document
    )


def is_blank_square(picture: np.ndarray) -> bool:
    return picture.shape[0] == picture.shape[1] > 1 and bool((picture == picture[0, 0]).all())


def is_black_and_white(picture: np.ndarray) -> bool:
    return set(np.unique(picture)) == {0, 255}


def ties(logits: torch.Tensor) -> bool:
    return len(set(logits[0].tolist())) < logits.shape[1] and len(set(logits[0].tolist())) > 1


@pytest.mark.parametrize(
    ("strategy", "odd"),
    [
        (our.texts(), lambda text: not text),
        (our.texts(), lambda text: len(text) > 0 and text.isspace()),
        (our.texts(), lambda text: "\0" in text),
        (our.texts(), lambda text: "\r\n" in text),
        (our.texts(), lambda text: any(ord(letter) > 0xFFFF for letter in text)),
        (our.texts(), lambda text: "\u200d" in text),
        (our.texts(), lambda text: any(spelling in text for spelling in SPECIAL_SPELLINGS)),
        (our.vocabularies(), lambda one: len(one.text) == 1),
        (our.vocabularies(), lambda one: one.num_image == 1),
        (our.vocabularies(), lambda one: one.image.start == 0),
        (our.vocabularies(), lambda one: one.text.start > one.sentinels.start),
        (our.vocabularies(), lambda one: one.size > one.sentinels.stop),
        (our.vocabularies(), lambda one: one.size == one.sentinels.stop),
        (our.pictures(), lambda picture: picture.shape[:2] == (1, 1)),
        (our.pictures(), lambda picture: picture.shape[0] > picture.shape[1]),
        (our.pictures(), lambda picture: picture.shape[0] < picture.shape[1]),
        (our.pictures(), is_blank_square),
        (our.pictures(), is_black_and_white),
        (our.images(), lambda pixels: len(pixels) == 1),
        (our.images(), lambda pixels: len(pixels) == 3),
        (our.images(), lambda pixels: len(pixels) > 1 and not np.array_equal(pixels[0], pixels[1])),
        (our.codes(), lambda picture: int(picture.codes.max()) == 15),
        (our.codes(missing=True), lambda picture: bool(picture.missing.all())),
        (our.codes(missing=True), lambda picture: int(picture.missing.sum()) == 1),
        (our.documents(), lambda document: has(Text)(document) and has(Image)(document)),
        (our.documents(), lambda document: len(document) == 3),
        (our.documents(), lambda document: not text_of(document)),
        (our.documents(coded=True), lambda document: has(Codes)(document) and has(Image)(document)),
        (our.documents(holes=True), has(TextHole)),
        (our.documents(holes=True), has(MaskedText)),
        (our.documents(holes=True), has(ImageHole)),
        (our.documents(holes=True), has(Codes, missing=True)),
        (our.memories(), lambda memory: len(memory) == 2),
        (our.memories(), lambda memory: len(memory) > 5),
        (our.memories(), lambda memory: memory.document(0) == memory.document(len(memory) - 1)),
        (our.banks(), lambda memory: has(Codes)(memory.document(0))),
        (our.token_sequences(VOCABULARY), lambda sequence: sequence.query_segment > 0),
        (
            our.token_sequences(VOCABULARY),
            lambda sequence: any(len(span) == 0 for span in sequence.segments),
        ),
        (
            our.token_sequences(VOCABULARY),
            lambda sequence: any(span.grid == (2, 2) for span in sequence.segments),
        ),
        (our.logits(1, 6), lambda logits: len(set(logits[0].tolist())) == 1),
        (our.logits(1, 6), ties),
        (our.logits(1, 6), lambda logits: bool(logits.abs().max() > 1e4)),
        (our.logits(1, 6), lambda logits: bool(logits[0].softmax(0).max() == 1)),
        (our.logits(1, 6, infinite=True), lambda logits: bool((logits == -torch.inf).any())),
        (our.logits(1, 6, infinite=True), lambda logits: int((logits > -torch.inf).sum()) == 1),
    ],
)
def test_odd_cases_are_drawn(strategy: st.SearchStrategy[Any], odd: Callable[[Any], bool]) -> None:
    find(strategy, odd, settings=LOOKING)  # raises NoSuchExample


@given(st.data())
def test_texts(data: st.DataObject) -> None:
    least = data.draw(st.integers(0, 5))
    text = data.draw(our.texts(min_size=least, max_size=9, blank=False))
    text.encode("utf-8")
    assert least <= len(text) <= 9
    assert text.strip()


@given(our.vocabularies(max_text=20, max_image=7, max_sentinels=3))
def test_vocabularies(vocabulary: Vocabulary) -> None:
    assert 1 <= len(vocabulary.text) <= 20
    assert 1 <= vocabulary.num_image <= 7
    assert 1 <= vocabulary.num_sentinels <= 3
    names = [vocabulary.name(token) for token in range(vocabulary.size)]
    assert len(set(names)) == vocabulary.size


@given(st.data())
def test_images(data: st.DataObject) -> None:
    size = data.draw(st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)))
    num, writable = data.draw(st.none() | st.integers(0, 4)), data.draw(st.booleans())
    pixels = data.draw(our.images(num=num, size=size, max_num=2, max_side=5, writable=writable))
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 4
    assert pixels.shape[3] == 3
    assert len(pixels) == num if num is not None else 1 <= len(pixels) <= 2
    assert pixels.shape[1:3] == size if size is not None else max(pixels.shape[1:3]) <= 5
    assert pixels.flags.writeable == writable


@given(our.pictures(max_side=4))
def test_pictures(picture: np.ndarray) -> None:
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert 1 <= min(picture.shape[:2]) <= max(picture.shape[:2]) <= 4
    picture[:] = 0  # may be written to


@given(st.data())
def test_codes(data: st.DataObject) -> None:
    missing = data.draw(st.booleans())
    picture = data.draw(our.codes(codebook_size=5, grid=(3, 4), missing=missing))
    assert picture.codes.dtype == np.int32
    assert picture.codes.shape == (12,)
    assert 0 <= picture.codes.min() <= picture.codes.max() < 5
    assert picture.grid == (3, 4)
    assert not picture.codes.flags.writeable
    assert (
        picture.missing is not None and picture.missing.dtype == np.bool_ and picture.missing.any()
    ) == missing


@given(st.data())
def test_documents(data: st.DataObject) -> None:
    pixels, coded, holes = (
        data.draw(st.booleans(), label=name) for name in ("pixels", "coded", "holes")
    )
    document = data.draw(
        our.documents(
            pixels=pixels,
            coded=coded and our.codes(codebook_size=7),
            holes=holes,
            max_side=3,
        )
    )
    assert isinstance(document, tuple)
    assert 1 <= len(document) <= 3
    assert has_holes(document) == holes
    assert pixels or not has(Image)(document)
    assert coded or holes or not has(Codes)(document)
    for part in document:
        if isinstance(part, Text):
            assert part.text.strip()
        elif isinstance(part, Image):
            assert part.load().shape[2] == 3
            part.load()[:] = 0  # a copy each time
            assert max(part.load().shape[:2]) <= 3
        elif isinstance(part, Codes):
            # a hole may be in codes of the strategy's own size
            assert part.codes.max() < (16 if holes else 7)


@given(our.documents(max_side=2), our.documents(max_side=2))
def test_equal_keys_are_equal_pictures(first: Document, second: Document) -> None:
    pictures = [part for part in first + second if isinstance(part, Image)]
    for one in pictures:
        for other in pictures:
            assert (one.key == other.key) == np.array_equal(one.load(), other.load())


@given(our.memories(min_size=1, max_size=4))
def test_memories(memory: Any) -> None:
    assert 1 <= len(memory) <= 4
    assert [memory.id(index) for index in range(len(memory))] == [
        f"d{index}" for index in range(len(memory))
    ]
    assert all(content_keys(memory.document(index)) for index in range(len(memory)))


@given(our.banks(codebook_size=6, grid=(1, 5), max_size=3))
def test_banks(bank: Any) -> None:
    parts = [part for index in range(len(bank)) for part in bank.document(index)]
    assert all(isinstance(part, (Text, Codes)) for part in parts)
    assert all(
        part.grid == (1, 5) and part.codes.max() < 6 for part in parts if isinstance(part, Codes)
    )


@given(our.vocabularies().flatmap(lambda one: st.tuples(st.just(one), our.token_sequences(one))))
def test_token_sequences(drawn: Any) -> None:
    vocabulary, sequence = drawn
    assert sequence.tokens.dtype == sequence.cells.dtype == np.int32
    assert sequence.tokens[0] == sequence.tokens[-1] == vocabulary.eos
    for span in sequence.segments:
        ids = vocabulary.text if span.modality == "text" else vocabulary.image
        assert all(token in ids for token in sequence.tokens[span.start : span.stop])
    assert (sequence.tokens == vocabulary.break_).sum() == len(sequence.segments) - 1
    assert 0 <= sequence.query_segment < len(sequence.segments)


@given(st.data())
def test_logits(data: st.DataObject) -> None:
    rows, ids, infinite = (
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(1, 6)),
        data.draw(st.booleans()),
    )
    logits = data.draw(our.logits(rows, ids, infinite=infinite))
    assert logits.dtype == torch.float32
    assert logits.shape == (rows, ids)
    assert not logits.isnan().any()
    assert not (logits == torch.inf).any()
    assert infinite or logits.isfinite().all()
    assert logits.isfinite().any(dim=1).all()
