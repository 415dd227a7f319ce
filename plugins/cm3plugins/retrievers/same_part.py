"""Compare a query's text with the memory's texts, and its picture with the memory's pictures.

Documents are usually embedded whole, with text and picture averaged (CM3leon section 2.1). That suits
embedders that put text and picture of the same object near each other, such as CLIP. With others, the second part
only adds noise.

Parts of a picture that may show separate objects are found by recursive cuts along empty rows and columns: the X-Y
cut of G. Nagy, S. Seth, "Hierarchical representation of optically scanned documents" (1984).

Legend: Q searches, W results of each, M documents of the memory, P documents with a part, E dimension, N nodes of a
picture's tree; in cuts, H and W of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cm3core.boxes import MAX_COORDINATE
from cm3core.document import Document, Image, PixelArray
from cm3core.images import fit
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.retriever import Region, Retrieved
from cm3plugins.retrievers.memory_vectors import (
    embed_part,
    memory_vectors,
    open_kept,
    vectors_file,
)
from cm3plugins.retrievers.rules import FloatArray, RuleConfig, RuleRetriever, query_parts
from cm3run.bank import VectorRows

if TYPE_CHECKING:
    from cm3plugins.retrievers.index import VectorIndex

#: Pictures are resized to this side before cutting.
SIDE = 128
#: A pixel that differs from the background by at least this much (of 255) is ink.
_INK = 48
#: A part smaller than this share of the side is not an object.
_SMALLEST = 0.12
#: Margin around a part's ink, in pixels at `SIDE`.
_MARGIN_PIXELS = 4
#: If the nearest document is more similar than this, the picture counts as a single object.
KNOWN = 0.8
#: The parts must match this much better than the whole, so that an object of several strokes is not cut.
MARGIN = 0.02

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a picture.

    Args:
        box: box around its ink, (x0, y0, x1, y1) in pixels at `SIDE`, half open.
        children: the two parts on either side of its widest gap; none if there is no gap.
    """

    box: Box
    children: tuple[Part, ...] = ()

    @property
    def area(self) -> int:
        """Pixels of the box."""
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)

    @property
    def region(self) -> Region:
        """The box in coordinates of the picture as the model sees it (`cm3core.boxes`)."""
        x0, y0, x1, y1 = (round(MAX_COORDINATE * value / SIDE) for value in self.box)
        return x0, y0, x1, y1

    def nodes(self) -> list[Part]:
        """The part itself and all parts below it."""
        return [self, *(node for child in self.children for node in child.nodes())]


def seen(pixels: PixelArray) -> PixelArray:
    """Return the picture to cut: its largest centred square, as the model sees it, resized to `SIDE`."""
    return fit(pixels, (SIDE, SIDE))


def parts_of(square: PixelArray, most: int) -> Part | None:
    """Return the tree of a picture's parts; None for a picture without ink.

    Args:
        square: uint8 [SIDE, SIDE, 3].
        most: maximum number of parts, which limits the depth.
    """
    far = np.abs(square.astype(np.float32) - _background(square)) > _INK
    ink = (
        far[..., 0] | far[..., 1] | far[..., 2]
    )  # four times as fast as any() along so short an axis
    return _cut(ink, (0, 0, square.shape[1], square.shape[0]), (most - 1).bit_length())


def cropped(square: PixelArray, part: Part) -> Document:
    """Return a document with a part's pixels, centred on a square of background.

    An embedder crops to the largest centred square, which would cut off the ends of a long part, and takes the border as
    background, which fails if ink touches it.
    """
    x0, y0, x1, y1 = part.box
    width, height = x1 - x0, y1 - y0
    side = max(width, height) + 2 * _MARGIN_PIXELS
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[:] = _background(square).astype(np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    pixels[top : top + height, left : left + width] = square[y0:y1, x0:x1]
    return (Image(f"part {part.box}", lambda: pixels),)


def explained(whole: Part, scores: Sequence[float], most: int) -> list[int]:
    """Choose the parts that match the memory best; returns their indices in `whole.nodes()`, left to right.

    A part is cut if its two parts, weighted by area, match more than `MARGIN` better than the part itself.

    Args:
        whole: a picture's tree.
        scores: similarity of each node's nearest document.
        most: maximum number of parts; a picture with more is left whole.
    """
    nodes = whole.nodes()
    number = {id(node): place for place, node in enumerate(nodes)}

    def best(node: Part) -> tuple[float, list[Part]]:
        own = scores[number[id(node)]]
        if not node.children:
            return own, [node]
        found = [best(child) for child in node.children]
        weights = [child.area for child in node.children]
        cut = float(np.average([value for value, _ in found], weights=weights))
        if cut <= own + MARGIN:
            return own, [node]
        return cut, [part for _, parts in found for part in parts]

    chosen = best(whole)[1]
    if len(chosen) > most:
        return [0]
    return [number[id(part)] for part in sorted(chosen, key=lambda part: part.box)]


def _background(square: PixelArray) -> npt.NDArray[np.float32]:
    """Return the border's median colour, [3]."""
    border = np.concatenate([square[0], square[-1], square[:, 0], square[:, -1]])
    median: npt.NDArray[np.float32] = np.median(border, axis=0).astype(np.float32)
    return median


def _cut(ink_HW: npt.NDArray[np.bool_], within: Box, depth: int) -> Part | None:
    x0, y0, x1, y1 = within
    own = ink_HW[y0:y1, x0:x1]
    columns, rows = np.flatnonzero(own.any(0)), np.flatnonzero(own.any(1))
    if not len(columns):
        return None
    box = (
        x0 + int(columns[0]),
        y0 + int(rows[0]),
        x0 + int(columns[-1]) + 1,
        y0 + int(rows[-1]) + 1,
    )
    if depth == 0:
        return Part(box)
    width, at, across = max(
        (*_widest(lines), across) for across, lines in ((0, columns), (1, rows))
    )
    if width == 0:
        return Part(box)
    x, y = x0 + at, y0 + at
    halves = (
        [(box[0], box[1], x, box[3]), (x, box[1], box[2], box[3])]
        if across == 0
        else [(box[0], box[1], box[2], y), (box[0], y, box[2], box[3])]
    )
    children = [_cut(ink_HW, half, depth - 1) for half in halves]
    whole = [child for child in children if child is not None]
    least = _SMALLEST * SIDE
    if any(max(c.box[2] - c.box[0], c.box[3] - c.box[1]) < least for c in whole):
        return Part(box)
    return Part(box, tuple(whole))


def _widest(lines: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Return the width of the widest gap between lines with ink, and where it starts; (0, 0) without a gap.

    >>> _widest(np.array([1, 2, 6, 7, 9]))
    (3, 3)
    """
    gaps = np.diff(lines) - 1
    if not len(gaps) or not gaps.max():
        return 0, 0
    place = int(gaps.argmax())
    return int(gaps[place]), int(lines[place]) + 1


_PARTS = ("text", "image")
#: Number of queries whose parts are searched together.
_QUERIES = 256


@dataclass(frozen=True)
class _Part:
    """An index over one part of the documents, and the rows of these documents in the memory, int64 [P], ascending."""

    index: VectorIndex
    rows_P: npt.NDArray[np.int64]

    def vector(self, row: int) -> FloatArray | None:
        """Return the unit vector of a document's part, float32 [E]; None if it has no such part."""
        place = int(np.searchsorted(self.rows_P, row))
        there = place < len(self.rows_P) and self.rows_P[place] == row
        return self.index.vectors.row(place) if there else None


@dataclass(eq=False)
class _CutQuery:
    """A query whose picture can be cut.

    Args:
        square: the picture, see `regions.seen`.
        nodes: its tree's nodes, the whole picture first.
        exclude: documents that must not be found.
        nearest: the nearest document of each node searched so far, in order.
    """

    square: PixelArray
    nodes: list[Part]
    exclude: Collection[str]
    nearest: list[Retrieved | None] = field(default_factory=list)

    def scores(self) -> list[float]:
        """Similarity of each node's nearest document."""
        return [-1.0 if found is None else found.score for found in self.nearest]


class SamePartRetriever(RuleRetriever):
    """Applies the rules to two indexes, one of texts and one of pictures. Each is opened by the first query that needs
    it: a memory that is only asked by texts needs no picture of its documents.

    Args:
        config: the rules.
        memory: M documents.
        embedder: embedder of documents and queries.
        open_index: see `VectorRetrieverConfig.open_index`.
    """

    def __init__(
        self,
        config: RuleConfig,
        memory: DocumentSource,
        embedder: Embedder,
        open_index: Callable[[VectorRows, Path | None, str | None], VectorIndex],
    ) -> None:
        super().__init__(config, memory, embedder)
        self._open_index = open_index
        self._opened: dict[str, _Part] = {}

    def _part(self, name: str) -> _Part:
        """Return the index over a part of the documents, "text" or "image"."""
        if name not in self._opened:
            embedder, cache = self._embedder, self._config.cache
            path = vectors_file(self._memory, embedder, name) if cache else None
            vectors_ME = memory_vectors(self._memory, embedder, part=name, cache=cache, path=path)
            rows_P = _rows_with_a_vector(vectors_ME)
            if len(rows_P) < len(vectors_ME):  # else they stay mapped from their file
                vectors_ME = np.ascontiguousarray(vectors_ME[rows_P])
            index = open_kept(self._open_index, VectorRows.of(vectors_ME), path)
            self._opened[name] = _Part(index, rows_P)
        return self._opened[name]

    @property
    def max_parts(self) -> int:
        """See `RuleConfig.parts`."""
        return self._config.parts

    def _retrieve_parts(
        self, queries: Sequence[Document], exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        found: list[list[Retrieved]] = []
        for start in range(0, len(queries), _QUERIES):
            some = slice(start, start + _QUERIES)
            found += self._of_parts(queries[some], exclude[some])
        return found

    def _of_parts(
        self, queries: Sequence[Document], exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        """Like `_retrieve_parts`, for few queries, whose crops are searched together."""
        cut: dict[int, _CutQuery] = {}
        for place, (query, own) in enumerate(zip(queries, exclude, strict=True)):
            square = self._square(query)
            tree = None if square is None else parts_of(square, self._config.parts)
            if square is not None and tree is not None and tree.children:
                cut[place] = _CutQuery(square, tree.nodes(), own)
        self._search_nodes(list(cut.values()), slice(1))
        # most pictures of a single object match as a whole and need no more searches
        unknown = {place: one for place, one in cut.items() if one.scores()[0] < KNOWN}
        self._search_nodes(list(unknown.values()), slice(1, None))
        results: list[list[Retrieved]] = [[] for _ in queries]
        for place, one in unknown.items():
            chosen = explained(one.nodes[0], one.scores(), self._config.parts)
            if len(chosen) > 1:
                results[place] = [
                    replace(found, region=one.nodes[number].region)
                    for number in chosen
                    # only the text is prepended
                    if (found := one.nearest[number]) is not None
                    and self._is_preferred(found.index)
                ]
        return results

    def _search_nodes(self, queries: Sequence[_CutQuery], which: slice) -> None:
        """Find the nearest document of each of the chosen nodes."""
        asked = [(query, node) for query in queries for node in query.nodes[which]]
        if asked:
            crops = [cropped(query.square, node) for query, node in asked]
            results = self._retrieve(crops, 1, [query.exclude for query, _ in asked])
            for (query, _), found in zip(asked, results, strict=True):
                query.nearest.append(found[0] if found else None)

    def _square(self, query: Document) -> PixelArray | None:
        """Return a query's picture, ready to cut; None if the query is searched by text."""
        [(found_by, asked)] = query_parts(query, self._config.query)[:1]
        pictures = [part for part in asked if isinstance(part, Image)]
        return seen(pictures[0].load()) if found_by == "image" and len(pictures) == 1 else None

    def _embed(self, documents: Sequence[Document], parts: Sequence[str]) -> FloatArray:
        vectors_NE = np.empty((len(documents), self._embedder.dimension), np.float32)
        for name in _PARTS:
            asked = [place for place, of in enumerate(parts) if of == name]
            if asked:
                own = [documents[place] for place in asked]
                vectors_NE[asked] = embed_part(self._embedder, name, own)
        return vectors_NE

    def _search(
        self, vectors_QE: FloatArray, width: int, parts_Q: Sequence[str]
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        scores_QW = np.full((len(vectors_QE), width), -np.inf, np.float32)
        rows_QW = np.full((len(vectors_QE), width), -1, np.int64)
        for name in _PARTS:
            asked = [place for place, of in enumerate(parts_Q) if of == name]
            if not asked:
                continue
            part = self._part(name)
            scores, places = part.index.search(vectors_QE[asked], width)
            scores_QW[asked] = scores
            rows_QW[asked] = _rows_at(part.rows_P, places)
        return scores_QW, rows_QW

    def _vector(self, index: int) -> FloatArray:
        for name in ("image", "text"):
            vector_E = self._part(name).vector(index)
            if vector_E is not None:
                return vector_E
        raise AssertionError("every document found has a part")

    def _is_preferred(self, index: int) -> bool:
        return all(self._part(name).vector(index) is not None for name in _PARTS)


def _rows_with_a_vector(vectors_ME: FloatArray) -> npt.NDArray[np.int64]:
    """Return the rows that are not all zeros, int64 [P], ascending; reads a whole row only if it starts with zero.

    >>> _rows_with_a_vector(np.array([[0, 1], [0, 0], [1, 0]], np.float32)).tolist()
    [0, 2]
    """
    has_vector_M = vectors_ME[:, 0] != 0
    begins_with_zero = np.flatnonzero(~has_vector_M)
    has_vector_M[begins_with_zero] = vectors_ME[begins_with_zero].any(1)
    return np.flatnonzero(has_vector_M).astype(np.int64)


def _rows_at(rows_P: npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Translate a part's places to rows of the memory; places below 0 stay.

    >>> _rows_at(np.array([3, 5]), np.array([[1, 0, -1]])).tolist()
    [[5, 3, -1]]
    """
    if not len(rows_P):
        return places
    return np.where(places < 0, places, rows_P[np.maximum(places, 0)])
