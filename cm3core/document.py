"""Documents: text and image segments, possibly with holes; and their serialisation into tokens.

Every request to the model is a document with holes (architecture: "`complete` is the one
operation"); every training example is a document without holes. Serialisation follows the
CM3leon paper, figures 8 and 9, and facebookresearch/metaseq (branch scaling_racm3):

    one pair          text <break> image
    a sequence        <eos> T1 <break> I1 <break> ... Tq <break> Iq <eos>      retrieved documents first, query last
    with holes        each hole is <sentinel:i> in place; after the last <eos>: <sentinel:i> content <eoss>, in order

The model reads pictures as codes: an `Image` (pixels by reference) is converted to `Codes` once, on input.
Tensor-like fields are numpy arrays, so that this module does not need torch. Legend: n tokens, c codes in
a picture's array.
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
#: A picture, uint8 [height, width, 3].
Pixels: TypeAlias = Annotated[
    PixelArray, Shape((None, None, 3)), Called("RGB pixels uint8 [height, width, 3]")
]

#: Value of `TokenSequence.cells` for tokens that are not image codes.
NO_CELL = -1
#: Number of hexadecimal digits of a hash in `content_keys`.
KEY_LENGTH = 32


@dataclass(frozen=True)
class Text:
    """A piece of text.

    Args:
        text: the text.
        responses: character ranges [start, stop) of a task's response. Ignored when texts are compared.
        starts_turn: whether a conversation turn begins with this text, see `is_conversation`. Ignored when
            texts are compared.
        ids: the text tokenizer's ids, if stored with the text; None: it is encoded when needed.
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
        response: whether the picture is a task's response.
        starts_turn: see `Text`.
        drawing: returns the SVG document that was rendered, if there is one.
    """

    key: str
    load: Callable[[], PixelArray] = field(compare=False, repr=False)
    response: bool = field(default=False, compare=False, repr=False)
    starts_turn: bool = field(default=False, compare=False, repr=False)
    drawing: Callable[[], str] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Codes:
    """A picture as image codes.

    Args:
        codes: int32 [c], 0..codebook_size-1, in the order of their form (`cm3core.picture_form`): raster order on a
            grid; a sequence is padded with its end code.
        grid: (rows, codes per row) with rows * codes per row == c.
        missing: bool [c] or None; True for codes to be filled in (inpainting). None:
            nothing is missing.
        any_length: whether the missing codes, one run inside a sequence, may be filled with fewer.
        response: whether the picture is a task's response. Ignored when pictures are compared.
        starts_turn: see `Text`.
    """

    codes: IntArray
    grid: tuple[int, int]
    missing: BoolArray | None = None
    any_length: bool = False
    response: bool = field(default=False, repr=False)
    starts_turn: bool = field(default=False, repr=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes):
            return NotImplemented
        if self.missing is None or other.missing is None:
            same_holes = self.missing is other.missing
        else:
            same_holes = np.array_equal(self.missing, other.missing)
        same_holes = same_holes and self.any_length == other.any_length
        return same_holes and self.grid == other.grid and np.array_equal(self.codes, other.codes)

    __hash__ = None  # type: ignore[assignment]  # holds arrays


@dataclass(frozen=True)
class TextHole:
    """A text to be generated, ended by <eoss> (or <eos>).

    Args:
        max_tokens: maximum tokens. None: as many as fit in the decoder's context.
        min_tokens: minimum tokens before it may end.
        stop: the text also ends when a token completes one of these strings (which is kept in the
            text).
        or_picture: the text also ends where the model begins a picture. Only for the last segment of a
            document, and for layouts that mark the start of a picture with a token. `Completion.ends`
            says how the text ended. `min_tokens` may then be 0.
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
    """A whole picture to be generated: a grid of codes, or a sequence with its end.

    Args:
        starts_turn: see `Text`.
        most_codes: maximum number of codes in a sequence, including its end code. None: the image tokenizer's limit.
            Must be None for grids, which have a fixed number of codes.
    """

    starts_turn: bool = field(default=False, compare=False, repr=False)
    most_codes: int | None = None


Segment: TypeAlias = Text | MaskedText | TextHole | Image | Codes | ImageHole
Document: TypeAlias = tuple[Segment, ...]


@dataclass(frozen=True)
class Span:
    """A half-open range [start, stop) of tokens in a sequence, of one modality.

    Args:
        start, stop: index of the first token, and one past the last.
        modality: "text" or "image".
        grid: (rows, codes of a row) of a whole picture's codes, which are in raster order. None for text, and for a
            picture whose codes are a sequence.
        depth: codes of each place of a picture, side by side in its row.
    """

    start: int
    stop: int
    modality: str
    grid: tuple[int, int] | None = None
    depth: int = 1

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """A whole sequence before masking: <eos>, retrieved documents, query document, <eos>.

    Args:
        tokens: int32 [n].
        cells: int32 [n]; raster index of an image code in its picture, `NO_CELL` for every other
            token. With positions see `PictureForm.cells`.
        segments: text and image segments in order; specials (<eos>, <break>) are in none of them.
        query_segment: index into `segments` of the first segment of the query document; earlier segments
            are retrieved.
        responses: the response spans of the query document's task, in order; each lies within one segment.
            Empty if no task made the document.
        decided: for conversations: indices of other tokens that the model must predict, those that begin a
            picture or end a turn.
        cells_of: computes the cells of a picture's codes, some of which may be missing. None: they are raster indices.
    """

    tokens: IntArray
    cells: IntArray
    segments: tuple[Span, ...]
    query_segment: int = 0
    responses: tuple[Span, ...] = ()
    decided: tuple[int, ...] = ()
    cells_of: Callable[[IntArray], IntArray] | None = None

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class MaskedSequence:
    """A sequence after the masking objective; the packer cuts it into inputs and targets.

    Args:
        tokens: int32 [n].
        cells: int32 [n]; moved together with their tokens.
        weights: float32 [n]; loss weight of predicting token i from the tokens before it (weights[0] is
            unused).
        part: number of the data set's part it comes from, see `DocumentSource.parts`.
    """

    tokens: IntArray
    cells: IntArray
    weights: npt.NDArray[np.float32]
    part: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


def text_of(document: Sequence[Segment]) -> str:
    """Return the plain text of a document, joined by newlines (the input of text embedders)."""
    return "\n".join(segment.text for segment in document if isinstance(segment, Text))


def is_conversation(document: Sequence[Segment]) -> bool:
    """Whether the document's turns are marked. A turn then ends before every segment that starts one,
    and nowhere else. Layouts without turns ignore this.

    >>> is_conversation((Text("hi"),)), is_conversation((Text("hi", starts_turn=True), TextHole()))
    (False, True)
    """
    return any(starts_turn(segment) for segment in document)


def starts_turn(segment: Segment) -> bool:
    """Whether a segment starts a turn of a conversation."""
    return not isinstance(segment, MaskedText) and segment.starts_turn


def with_turn(segment: Segment, starts: bool = True) -> Segment:
    """The segment, marked as starting a turn of a conversation or not."""
    if isinstance(segment, MaskedText) or segment.starts_turn == starts:
        return segment
    return replace(segment, starts_turn=starts)


def as_codes(picture: Image, codes: Codes) -> Codes:
    """The codes of a picture, with its `response` and `starts_turn` flags."""
    return replace(codes, response=picture.response, starts_turn=picture.starts_turn)


def has_holes(document: Sequence[Segment]) -> bool:
    """Whether any part of the document is to be generated."""
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

    Documents that share a name are the same document to a retriever, whatever their ids. A document
    with pictures is identified by its pictures alone (captions are reworded, pictures are not):
    "image:KEY" for an `Image`, "codes:" and a hash of grid and codes for `Codes` (holes filled or
    not). A document without pictures is identified by its words: "text:" and a hash of them, ignoring case
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
