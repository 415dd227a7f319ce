"""Hypothesis strategies for tests of components, used by the conformance kits.

    from hypothesis import given
    from cm3kits.strategies import documents, texts

    @given(texts())
    def test_my_tokenizer_keeps_length(text): ...

| strategy | draws |
| --- | --- |
| `texts` | valid Unicode strings, including spelled special tokens and odd spaces |
| `vocabularies` | id tables, including the smallest |
| `pictures`, `images` | one uint8 picture [H, W, 3], a batch of one size [N, H, W, 3]: noise, blocks, flat, black and white |
| `codes` | a picture as image codes, complete or with missing cells |
| `documents` | texts and pictures (pixels by reference, or codes), and holes if requested |
| `memories`, `banks` | a `DocumentSource` in memory; a bank's documents have codes instead of pixels |
| `token_sequences` | serialised documents, the input of masking objectives |
| `logits` | float32 tensors [rows, ids]: flat, power law in the rank, few likely ids, large, tied, -inf if requested |

All draws are functions of a few numbers, so that Hypothesis shrinks them quickly: arrays are generated
from a drawn seed. Only `logits` imports torch, when it is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from cm3core.document import (
    NO_CELL,
    Codes,
    Document,
    Image,
    ImageHole,
    MaskedText,
    PixelArray,
    Segment,
    Span,
    Text,
    TextHole,
    TokenSequence,
)
from cm3core.interfaces.dataset import DocumentSource
from cm3core.vocab import Vocabulary
from cm3kits.samples import PARTS, SAMPLE_TEXTS, SPECIAL_SPELLINGS, ListSource, make_vocabulary

if TYPE_CHECKING:
    from torch import Generator, Tensor

_SPACES = (" ", "  ", "\n", "\r\n", "\t", "\0")
_SEEDS = st.integers(0, 2**32 - 1)
#: Kinds of pictures; see `_paint`.
_LOOKS = ("noise", "blocks", "flat", "black and white", "tinted")


def texts(
    *, min_size: int = 0, max_size: int | None = None, blank: bool = True
) -> st.SearchStrategy[str]:
    """Valid Unicode strings: any characters, or sequences of captions, special tokens and odd spaces.

    Args:
        min_size, max_size: number of characters.
        blank: whether a text may be only white space (texts of documents may not).
    """
    pieces = st.lists(st.sampled_from(SAMPLE_TEXTS + SPECIAL_SPELLINGS + _SPACES), max_size=6).map(
        "".join
    )
    if max_size is not None:
        pieces = pieces.map(lambda text: text[:max_size])
    either = st.text(min_size=min_size, max_size=max_size) | pieces.filter(
        lambda text: len(text) >= min_size
    )
    return either if blank else either.filter(lambda text: bool(text.strip()))


def vocabularies(
    *, max_text: int = 64, max_image: int = 32, max_sentinels: int = 32
) -> st.SearchStrategy[Vocabulary]:
    """Tables of ids with at least one text id, image code and sentinel, in any order.

    They may have unused ids.
    """
    return st.builds(
        make_vocabulary,
        st.integers(1, max_text),
        st.integers(1, max_image),
        st.integers(1, max_sentinels),
        num_unused=st.integers(0, 9),
        order=st.permutations(PARTS),
    )


@st.composite
def images(
    draw: st.DrawFn,
    *,
    num: int | None = None,
    size: tuple[int, int] | None = None,
    max_num: int = 3,
    max_side: int = 24,
    writable: bool = True,
) -> PixelArray:
    """Pictures of the same size, uint8 [N, height, width, 3].

    They are noise, blocks, one colour, black and white, or one tint with noise.

    Args:
        num: N. None: 1..max_num.
        size: (height, width) in pixels. None: 1..max_side each, square or not.
        max_num, max_side: see `num` and `size`.
        writable: whether the array is writable.
    """
    count = draw(st.integers(1, max_num), label="pictures") if num is None else num
    height, width = (
        draw(st.tuples(*[st.integers(1, max_side)] * 2), label="height, width")
        if size is None
        else size
    )
    seeds = draw(st.lists(_SEEDS, min_size=count, max_size=count), label="seeds")
    looks = draw(st.lists(st.sampled_from(_LOOKS), min_size=count, max_size=count), label="looks")
    pixels = np.zeros((count, height, width, 3), np.uint8)
    for place, (look, seed) in enumerate(zip(looks, seeds, strict=True)):
        pixels[place] = _paint(look, height, width, seed)
    pixels.setflags(write=writable)
    return pixels


def pictures(
    *, size: tuple[int, int] | None = None, max_side: int = 24, writable: bool = True
) -> st.SearchStrategy[PixelArray]:
    """One picture, uint8 [height, width, 3]; see `images`."""
    return images(num=1, size=size, max_side=max_side, writable=writable).map(
        lambda pixels: np.asarray(pixels[0])
    )


def _paint(look: str, height: int, width: int, seed: int) -> PixelArray:
    """Return pixels uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    if look == "noise":
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    if look == "flat":
        return np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (height, width, 3))
    if look == "tinted":
        noise = rng.integers(-40, 41, (height, width, 3))
        return np.asarray(np.clip(rng.integers(0, 256, 3) + noise, 0, 255), np.uint8)
    blocks = rng.integers(0, 256, (4, 4, 3), np.uint8)
    if look == "black and white":
        blocks = np.where(blocks[:, :, :1] < 128, 0, 255).astype(np.uint8).repeat(3, axis=2)
    return blocks[np.arange(height) * 4 // height][:, np.arange(width) * 4 // width]


@st.composite
def codes(
    draw: st.DrawFn,
    *,
    codebook_size: int = 16,
    grid: tuple[int, int] = (2, 3),
    missing: bool = False,
    writable: bool = False,
) -> Codes:
    """A picture as codes, int32 in raster order; with `missing`, at least one cell is missing."""
    count = grid[0] * grid[1]
    values = np.array(
        draw(st.lists(st.integers(0, codebook_size - 1), min_size=count, max_size=count)), np.int32
    )
    values.setflags(write=writable)
    if not missing:
        return Codes(values, grid)
    holes = draw(st.sets(st.integers(0, count - 1), min_size=1))
    return Codes(values, grid, np.isin(np.arange(count), list(holes)))


@st.composite
def _image_segments(draw: st.DrawFn, max_side: int) -> Image:
    """A picture by reference, keyed by its pixels: equal keys mean equal pixels."""
    pixels = draw(pictures(max_side=max_side))
    content = np.array(pixels)
    key = f"{content.shape[0]}x{content.shape[1]}-{content.tobytes().hex()}"
    return Image(key, partial(np.copy, content))


@st.composite
def documents(
    draw: st.DrawFn,
    *,
    text: st.SearchStrategy[str] | None = None,
    pixels: bool = True,
    coded: bool | st.SearchStrategy[Codes] = False,
    holes: bool = False,
    max_side: int = 8,
) -> Document:
    """A document: one to three segments, texts and pictures in any order.

    Args:
        text: strategy of its texts, which must not be only white space. None: `texts` of at most
            40 characters.
        pixels: pictures may be `Image`s.
        coded: pictures may be `Codes`, from `codes()` or your own strategy.
        holes: at least one segment is a hole: `TextHole`, `MaskedText`, `ImageHole` or
            `Codes` with missing cells.
        max_side: maximum pixels per side of an `Image`.
    """
    words = texts(max_size=40, blank=False) if text is None else text
    whole: list[st.SearchStrategy[Segment]] = [words.map(Text)]
    whole += [_image_segments(max_side)] if pixels else []
    whole += [] if coded is False else [codes() if coded is True else coded]
    segments = draw(st.lists(st.one_of(whole), min_size=1, max_size=3))
    if holes:
        hole = st.builds(TextHole, st.integers(1, 64))
        open_ones: list[st.SearchStrategy[Segment]] = [
            hole,
            st.just(ImageHole()),
            codes(missing=True),
            st.builds(
                lambda before, hole, after: MaskedText((before, hole, after)), words, hole, words
            ),
        ]
        segments[draw(st.integers(0, len(segments) - 1))] = draw(st.one_of(open_ones))
    return tuple(segments)


@st.composite
def memories(
    draw: st.DrawFn,
    *,
    document: st.SearchStrategy[Document] | None = None,
    min_size: int = 2,
    max_size: int = 12,
) -> DocumentSource:
    """A data set in memory (`ListSource`), with ids "d0", "d1", ...; some contain a document twice.

    Args:
        document: strategy of its documents. None: `documents()`.
        min_size, max_size: number of documents.
    """
    held: list[Document] = draw(
        st.lists(
            documents() if document is None else document, min_size=min_size, max_size=max_size
        )
    )
    if len(held) > 1 and draw(st.booleans(), label="a document twice"):
        held[-1] = held[0]
    return ListSource(held)


def banks(
    *,
    codebook_size: int = 16,
    grid: tuple[int, int] = (2, 3),
    min_size: int = 2,
    max_size: int = 12,
) -> st.SearchStrategy[DocumentSource]:
    """Documents as in a memory bank: texts, and pictures as `Codes`."""
    document = documents(pixels=False, coded=codes(codebook_size=codebook_size, grid=grid))
    return memories(document=document, min_size=min_size, max_size=max_size)


def make_sequence(
    vocabulary: Vocabulary, documents: Sequence[Sequence[tuple[str, int]]], seed: int = 0
) -> TokenSequence:
    """Return a sequence of random tokens; each document is a list of segments (modality, number of tokens).

    The last document is the query.
    """
    rng = np.random.default_rng(seed)
    tokens: list[int] = [vocabulary.eos]
    cells: list[int] = [NO_CELL]
    segments: list[Span] = []
    query_segment = 0
    for document in documents:
        query_segment = len(segments)
        for modality, length in document:
            if segments:
                tokens.append(vocabulary.break_)
                cells.append(NO_CELL)
            ids = vocabulary.text if modality == "text" else vocabulary.image
            side = math.isqrt(length) if modality == "image" else 0
            grid = (side, length // side) if side and length % side == 0 else None
            segments.append(Span(len(tokens), len(tokens) + length, modality, grid))
            tokens += rng.integers(ids.start, ids.stop, length).tolist()
            cells += range(length) if modality == "image" else [NO_CELL] * length
    tokens.append(vocabulary.eos)
    cells.append(NO_CELL)
    return TokenSequence(
        np.asarray(tokens, np.int32), np.asarray(cells, np.int32), tuple(segments), query_segment
    )


def token_sequences(vocabulary: Vocabulary) -> st.SearchStrategy[TokenSequence]:
    """Serialised sequences of one to four documents of one to three segments.

    A text may be empty, a picture has 1..16 codes.
    """
    segment = st.tuples(st.just("text"), st.integers(0, 8)) | st.tuples(
        st.just("image"), st.integers(1, 16)
    )
    document = st.lists(segment, min_size=1, max_size=3)
    return st.builds(
        make_sequence, st.just(vocabulary), st.lists(document, min_size=1, max_size=4), _SEEDS
    )


@st.composite
def logits(draw: st.DrawFn, num_rows: int, num_ids: int, *, infinite: bool = False) -> Tensor:
    """Logits float32 [num_rows, num_ids], each row of a random type.

    Types: those of `shaped`, all equal, ordinary, peaked, very large, few values (ties), or one id far above
    the rest.

    Args:
        num_rows, num_ids: the shape.
        infinite: some ids, but never all of a row, may be -inf.
    """
    import torch

    generator = torch.Generator().manual_seed(draw(_SEEDS, label="seed"))
    sorts = draw(
        st.lists(
            st.sampled_from(
                ["equal", "ordinary", "peaked", "large", "ties", "one above", "power", "few"]
            ),
            min_size=num_rows,
            max_size=num_rows,
        ),
        label="sorts",
    )
    rows_SR = torch.randn(num_rows, num_ids, generator=generator)
    for row_R, sort in zip(rows_SR, sorts, strict=True):
        if sort == "equal":
            row_R.fill_(float(row_R[0]))
        elif sort == "ties":
            row_R.copy_(row_R.round().clamp(-1, 1))
        elif sort == "one above":
            row_R[int(torch.randint(num_ids, (), generator=generator))] += 1e3
        elif sort in ("power", "few"):
            row_R.copy_(shaped(sort, num_ids, generator))
        else:
            row_R.mul_({"ordinary": 1.0, "peaked": 5.0, "large": 1e4}[sort])
    if infinite and draw(st.booleans(), label="-inf"):
        gone_SR = torch.rand(num_rows, num_ids, generator=generator) < 0.4
        gone_SR[
            torch.arange(num_rows), torch.randint(num_ids, (num_rows,), generator=generator)
        ] = False
        rows_SR.masked_fill_(gone_SR, -torch.inf)
    return rows_SR


def shaped(shape: str, num_ids: int, generator: Generator) -> Tensor:
    """Return logits float32 [num_ids] of a distribution typical of models, in a random order of ids.

    Args:
        shape: "flat", with the highest entropy; "power", decreasing as a power of the rank, steeply or not; "few",
            2 or more ids nearly equally likely, all others very unlikely; "sure", one id.
        num_ids: number of ids.
        generator: source of randomness.
    """
    import torch

    order_R = torch.randperm(num_ids, generator=generator)
    noise_R = 0.1 * torch.randn(num_ids, generator=generator)
    if shape == "flat":
        return noise_R
    share = float(torch.rand((), generator=generator))
    if shape == "power":
        return noise_R - (0.5 + 2 * share) * (order_R + 1.0).log()
    assert shape in ("few", "sure"), shape
    few = round(2 * (num_ids / 2) ** share) if shape == "few" else 1
    return noise_R - 30.0 * (order_R >= few)
