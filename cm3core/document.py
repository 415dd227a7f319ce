"""Documents: text and image segments, with holes; and their one serialisation into tokens.

Every request to the model is a document with holes (architecture: "`complete` is the one
operation"), and everything it is trained on is a document without. Serialisation follows the
CM3leon paper, figures 8 and 9, and facebookresearch/metaseq (branch scaling_racm3):

    one pair          text <break> image
    a sequence        <eos> T1 <break> I1 <break> ... Tq <break> Iq <eos>      retrieved documents first, query last
    with holes        each hole is <sentinel:i> in place; after the last <eos>: <sentinel:i> content <eoss>, in order

Pictures are passed as codes: an `Image` (pixels by reference) becomes `Codes` once, on input.
Tensor-like fields are numpy arrays, so that nothing here needs torch. Legend: n tokens, c codes =
grid rows * columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeAlias

import numpy as np
import numpy.typing as npt

from cm3core.arguments import Called, Shape

IntArray: TypeAlias = npt.NDArray[np.int32]
PixelArray: TypeAlias = npt.NDArray[np.uint8]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
#: A picture that is given, uint8 [height, width, 3].
Pixels: TypeAlias = Annotated[
    PixelArray, Shape((None, None, 3)), Called("RGB pixels uint8 [height, width, 3]")
]

#: `TokenSequence.cells` of a token that is not an image code.
NO_CELL = -1
#: Hexadecimal digits of a hash in `content_keys`.
KEY_LENGTH = 32


@dataclass(frozen=True)
class Text:
    """A piece of text.

    Args:
        text: the text.
        responses: character ranges [start, stop) that a task asks for; they are no part of what the
            text is: texts that differ only in them are equal.
        starts_turn: whether a turn of a conversation begins with it, see `is_conversation`; no part
            of what it is either.
        ids: those that the text tokenizer gives of it, where they are stored with it; None: it is
            encoded when it is needed.
    """

    text: str
    responses: tuple[tuple[int, int], ...] = field(default=(), compare=False, repr=False)
    starts_turn: bool = field(default=False, compare=False, repr=False)
    ids: tuple[int, ...] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Image:
    """A picture by reference.

    Args:
        key: stable name of the picture: equal keys mean equal pixels. Codes are cached under it.
        load: returns RGB pixels, uint8 [height, width, 3], 0..255.
        response: whether a task asks for this picture.
        starts_turn: see `Text`.
    """

    key: str
    load: Callable[[], PixelArray] = field(compare=False, repr=False)
    response: bool = field(default=False, compare=False, repr=False)
    starts_turn: bool = field(default=False, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Codes:
    """A picture as image codes.

    Args:
        codes: int32 [c], raster order, 0..codebook_size-1.
        grid: (rows, columns) with rows * columns == c.
        missing: bool [c] or None; True where the code is a hole to be filled (inpainting). None:
            nothing is missing.
        response: whether a task asks for this picture; no part of what the picture is.
        starts_turn: see `Text`.
    """

    codes: IntArray
    grid: tuple[int, int]
    missing: BoolArray | None = None
    response: bool = field(default=False, repr=False)
    starts_turn: bool = field(default=False, repr=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes):
            return NotImplemented
        if self.missing is None or other.missing is None:
            same_holes = self.missing is other.missing
        else:
            same_holes = np.array_equal(self.missing, other.missing)
        return same_holes and self.grid == other.grid and np.array_equal(self.codes, other.codes)

    __hash__ = None  # type: ignore[assignment]  # holds arrays


@dataclass(frozen=True)
class TextHole:
    """Text to be generated, ended by <eoss> (or <eos>).

    Args:
        max_tokens: maximum tokens. None: as many as fit in the decoder's context.
        min_tokens: minimum tokens before it may end.
        stop: it also ends with the token that completes one of these strings (which is kept in the
            text).
        or_picture: it also ends where the model begins a picture; only for all the last segment of a
            document, with a layout that begins pictures with a token. `Completion.ends` says what ended
            it. `min_tokens` may be 0 there.
        starts_turn: see `Text`.
    """

    max_tokens: int | None = 64
    min_tokens: int = 1
    stop: tuple[str, ...] = ()
    or_picture: bool = False
    starts_turn: bool = field(default=False, compare=False, repr=False)


@dataclass(frozen=True)
class MaskedText:
    """Text with holes inside it: pieces in order, each a string or a hole."""

    parts: tuple[str | TextHole, ...]


@dataclass(frozen=True)
class ImageHole:
    """A whole picture to be generated: exactly the image tokenizer's grid of codes.

    `starts_turn`: see `Text`.
    """

    starts_turn: bool = field(default=False, compare=False, repr=False)


Segment: TypeAlias = Text | MaskedText | TextHole | Image | Codes | ImageHole
Document: TypeAlias = tuple[Segment, ...]


@dataclass(frozen=True)
class Span:
    """A half-open range [start, stop) of tokens in a sequence, of one modality.

    Args:
        start, stop: index of the first token, and one past the last.
        modality: "text" or "image".
        grid: (rows, columns) of a whole picture's codes, which are in raster order. None for text.
    """

    start: int
    stop: int
    modality: str
    grid: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """A whole sequence before masking: <eos>, retrieved documents, query document, <eos>.

    Args:
        tokens: int32 [n].
        cells: int32 [n]; raster index of an image code in its picture, `NO_CELL` for every other
            token.
        segments: text and image segments in order; specials (<eos>, <break>) are in none of them.
        query_segment: index into `segments` of the first segment of the query document; those
            before are retrieved.
        responses: what the query document's task asks for, in order; each is a part of one segment.
            Empty where no task made the document.
        decided: of a conversation: indices of tokens around its responses that a model decides too,
            what begins a picture and what ends a turn.
    """

    tokens: IntArray
    cells: IntArray
    segments: tuple[Span, ...]
    query_segment: int = 0
    responses: tuple[Span, ...] = ()
    decided: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class MaskedSequence:
    """A sequence after the masking objective: what the packer cuts into inputs and targets.

    Args:
        tokens: int32 [n].
        cells: int32 [n]; they move with their tokens.
        weights: float32 [n]; loss weight of predicting token i from those before it (weights[0] is
            unused).
        part: number of the part of the data set that it is of, see `DocumentSource.parts`.
    """

    tokens: IntArray
    cells: IntArray
    weights: npt.NDArray[np.float32]
    part: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


def text_of(document: Sequence[Segment]) -> str:
    """Return all plain text of a document, joined by newlines (what a text embedder sees)."""
    return "\n".join(segment.text for segment in document if isinstance(segment, Text))


def is_conversation(document: Sequence[Segment]) -> bool:
    """Whether turns of the document are marked: a turn then ends before every segment that starts one,
    and nowhere else. Layouts that have no turns don't look at it.

    >>> is_conversation((Text("hi"),)), is_conversation((Text("hi", starts_turn=True), TextHole()))
    (False, True)
    """
    return any(starts_turn(segment) for segment in document)


def starts_turn(segment: Segment) -> bool:
    """Whether a turn of a conversation begins with a segment."""
    return not isinstance(segment, MaskedText) and segment.starts_turn


def with_turn(segment: Segment, starts: bool = True) -> Segment:
    """The segment, marked as one that starts a turn of a conversation, or not."""
    if isinstance(segment, MaskedText) or segment.starts_turn == starts:
        return segment
    return replace(segment, starts_turn=starts)


def as_codes(picture: Image, codes: Codes) -> Codes:
    """The codes of a picture as its document has it: asked for by a task, or not; a turn's start, or not."""
    return replace(codes, response=picture.response, starts_turn=picture.starts_turn)


def has_holes(document: Sequence[Segment]) -> bool:
    """Whether anything in the document is to be generated."""
    return any(
        isinstance(segment, (TextHole, ImageHole))
        or (
            isinstance(segment, MaskedText)
            and any(isinstance(part, TextHole) for part in segment.parts)
        )
        or (
            isinstance(segment, Codes)
            and segment.missing is not None
            and bool(segment.missing.any())
        )
        for segment in document
    )


def content_keys(document: Sequence[Segment]) -> frozenset[str]:
    """Return names of a document's content.

    Documents that share one are the same document to a retriever, whatever their ids. A document
    with pictures is identified by these alone (captions are reworded, pictures are not):
    "image:KEY" for an `Image`, "codes:" and a hash of grid and codes for `Codes` (holes filled or
    not). One without pictures is identified by its words: "text:" and a hash of them, ignoring case
    and spacing. A document with only holes has no name.

    >>> sorted(content_keys((Text("Red  apple"),))) == sorted(content_keys((Text("red apple"),)))
    True
    """
    pictures = frozenset(
        f"image:{segment.key}" if isinstance(segment, Image) else f"codes:{_hash_of_codes(segment)}"
        for segment in document
        if isinstance(segment, (Image, Codes))
    )
    words = " ".join(text_of(document).casefold().split())
    if pictures or not words:
        return pictures
    return frozenset(
        {f"text:{hashlib.sha256(words.encode('utf-8', 'surrogatepass')).hexdigest()[:KEY_LENGTH]}"}
    )


def _hash_of_codes(picture: Codes) -> str:
    rows, columns = picture.grid
    content = f"{rows} {columns} ".encode() + np.ascontiguousarray(picture.codes, "<i4").tobytes()
    return hashlib.sha256(content).hexdigest()[:KEY_LENGTH]
