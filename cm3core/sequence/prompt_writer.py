"""Documents with holes -> prompts: what is fed before the first hole's content, and the holes.

A document whose only hole is all its end is plain continuation; any other has a sentinel in place
of each hole, as in `cm3core.sequence.infill`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cm3core.document import (
    Codes,
    Document,
    IntArray,
    MaskedText,
    Segment,
    TextHole,
)
from cm3core.errors import DocumentError
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence.holes import (
    Hole,
    ends_missing,
    is_image_hole,
    missing_codes,
    num_holes,
    runs_of,
    text_hole,
)
from cm3core.sequence.joined import Joined, joined_runs
from cm3core.sequence.prompt_variants import Hidden, Pieces, apply_variant, without_hidden
from cm3core.sequence.segments import SegmentCodec, TokenWriter

_NO_TOKENS = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Prompt:
    """Tokens to feed, up to where the first hole's content starts (its prefix included); and the
    holes, in order.

    Args:
        tokens: int32 [n].
        cells: int32 [n]; raster cell of an image code, `NO_CELL` for every other token.
        holes: at least one. The prefix of a later hole is fed after the end token of the hole
            before it.
    """

    tokens: IntArray
    cells: IntArray
    holes: tuple[Hole, ...]

    def __len__(self) -> int:
        return len(self.tokens)


def write_prompt(
    codec: SegmentCodec,
    query: Document,
    retrieved: Sequence[Document],
    variant: PromptVariant,
    max_text_tokens: int | None,
    before: Callable[[bool], list[int]],
) -> Prompt:
    """See `Serializer.prompt`; `before`: control tokens, by whether it is a continuation."""
    joined = joined_runs(query, codec.max_spans)
    causal = _is_causal(codec, query, joined.num_spans)
    writer = _PromptWriter(codec, max_text_tokens, joined)
    writer.writer.add(before(causal))
    for number, document in enumerate(() if variant.drop_retrieved else retrieved):
        writer.prepend(document, f"retrieved document {number}")
    leads: list[str] = []
    bare: list[Segment] = []
    for segment in query:
        own = [""] if isinstance(segment, TextHole) else []
        if isinstance(segment, MaskedText):
            segment, own = codec.without_leads(segment)
        bare.append(segment)
        leads += own
    segments = apply_variant(tuple(bare), variant)
    num_hidden = sum(content == [Hidden()] for _, content in segments)
    if num_hidden + (0 if causal else joined.num_spans) > codec.max_spans:
        segments = without_hidden(segments)
    if causal:
        return writer.continuation(segments[:-1], len(query) - 1, query[-1])
    return writer.infilling(segments, leads, joined.num_spans)


def _is_causal(codec: SegmentCodec, query: Document, num_spans: int) -> bool:
    """Check the query, whose holes take `num_spans` sentinels; return whether its only hole is all
    the end of it, so that plain continuation fills it."""
    if not query:
        raise DocumentError("query document", "is empty", "give it a text, a picture or a hole")
    number = num_holes(query)
    for index, segment in enumerate(query):
        if isinstance(segment, Codes):
            codec.code_tokens(segment, f"query document, segment {index}")
    if number == 0:
        raise DocumentError(
            "query document",
            "has no hole",
            "put a TextHole or an ImageHole where something is missing",
        )
    if number == 1 and (isinstance(query[-1], TextHole) or ends_missing(query[-1])):
        return True
    if codec.max_spans == 0:
        raise DocumentError(
            "query document",
            "has a hole that is not its end, and the model was trained without masked spans",
            "only continue documents, or train with an objective that masks spans (objective=cm3)",
        )
    if num_spans > codec.max_spans:
        raise DocumentError(
            "query document",
            f"{num_spans} separate holes, the model was trained on at most {codec.max_spans} in a "
            "sequence",
            "fill fewer at once; only the holes of one picture can be joined",
        )
    return False


class _PromptWriter:
    """Writes one prompt.

    Args:
        codec: of segments.
        max_text_tokens: each text is cut to its first `max_text_tokens` tokens. None: never.
        joined: the runs of missing codes that have no sentinel of their own.
    """

    def __init__(self, codec: SegmentCodec, max_text_tokens: int | None, joined: Joined) -> None:
        self.codec, self.vocabulary = codec, codec.vocabulary
        self.max_text_tokens, self.joined = max_text_tokens, joined
        self.writer = TokenWriter()
        self.writer.add([self.vocabulary.eos])
        self.holes: list[Hole] = []
        #: Numbers of the sentinels of the next hole, and of what is hidden next.
        self.next_hole = self.next_hidden = 0
        #: Leads of the text holes to come.
        self.leads: Iterator[str] = iter(())

    def prepend(self, document: Document, name: str) -> None:
        """Write a retrieved document, which has no holes."""
        if not document:
            raise DocumentError(name, "is empty", "give it a text or a picture")
        for index, segment in enumerate(document):
            self._write(segment, f"{name}, segment {index}")
            self.writer.add([self.vocabulary.break_])

    def continuation(
        self, before: list[tuple[int, Pieces | Segment]], index: int, last: Segment
    ) -> Prompt:
        """The prompt of a query whose only hole is all the end of it, `last`, its segment `index`;
        `before`: what is seen of the other segments."""
        self._write_query(before)
        if before:
            self.writer.add([self.vocabulary.break_])
        if isinstance(last, TextHole):
            hole = text_hole(index, _NO_TOKENS, last, self.vocabulary.eos)
        elif isinstance(last, Codes) and not is_image_hole(last):
            [run] = runs_of(missing_codes(last))
            tokens = self.codec.code_tokens(last, _place(index))
            self.writer.add(tokens[: run[0]], self.codec.raster[: run[0]])
            hole = Hole(index, "codes", _NO_TOKENS, run, len(run), None)
        else:
            raster = self.codec.raster
            hole = Hole(index, "image", _NO_TOKENS, raster, len(raster), None)
        return Prompt(*self.writer.joined(), (hole,))

    def infilling(
        self, segments: list[tuple[int, Pieces | Segment]], leads: Sequence[str], num_spans: int
    ) -> Prompt:
        """The prompt of a query with any other holes, which take `num_spans` sentinels: one in
        place of each, contents behind the query; `leads`: of the text holes in order."""
        self.leads, self.next_hidden = iter(leads), num_spans
        self._write_query(segments)
        self.writer.add([self.vocabulary.eos])
        self.writer.add(self.holes[0].prefix)
        return Prompt(*self.writer.joined(), tuple(self.holes))

    def _write_query(self, segments: list[tuple[int, Pieces | Segment]]) -> None:
        """Write the query's segments, a sentinel in place of each hole (appended to `holes`) and of
        what is hidden."""
        for place, (index, segment) in enumerate(segments):
            if place:
                self.writer.add([self.vocabulary.break_])
            if isinstance(segment, list):
                self._write_pieces(segment, index)
            elif is_image_hole(segment):
                sentinel = self._write_sentinel()
                self.holes.append(self._code_hole(index, "image", self.codec.raster, sentinel))
            elif isinstance(segment, Codes) and missing_codes(segment).any():
                self._write_partial(segment, index)
            else:
                self._write(segment, _place(index))

    def _write_pieces(self, pieces: Pieces, index: int) -> None:
        """Write what is seen of a text."""
        for piece in pieces:
            if isinstance(piece, TextHole):
                end = self.vocabulary.end_of_infill
                sentinel = self._write_sentinel()
                self.holes.append(text_hole(index, sentinel, piece, end, next(self.leads)))
            elif isinstance(piece, Hidden):
                self.writer.add([self.vocabulary.sentinel(self.next_hidden)])
                self.next_hidden += 1
            else:
                self.writer.add(self.codec.text_tokens(piece, self.max_text_tokens))

    def _write_partial(self, segment: Codes, index: int) -> None:
        """Write a picture with missing codes: its runs of codes as they are, one sentinel in place
        of each span of missing runs."""
        tokens = self.codec.code_tokens(segment, _place(index))
        raster = self.codec.raster
        end = 0
        for place, run in enumerate(runs_of(missing_codes(segment))):
            known = slice(end, int(run[0]))
            end = int(run[-1]) + 1
            if (index, place) in self.joined.runs:
                self.holes[-1] = replace(self.holes[-1], ends_with=None)
                hole = self._code_hole(index, "codes", run, tokens[known])
                self.holes.append(replace(hole, prefix_cells=raster[known]))
                continue
            self.writer.add(tokens[known], raster[known])
            self.holes.append(self._code_hole(index, "codes", run, self._write_sentinel()))
        self.writer.add(tokens[end:], raster[end:])

    def _code_hole(self, index: int, kind: str, cells: IntArray, prefix: IntArray) -> Hole:
        return Hole(index, kind, prefix, cells, len(cells), self.vocabulary.end_of_infill)

    def _write(self, segment: Segment, place: str) -> None:
        self.codec.write_segment(self.writer, segment, place, self.max_text_tokens)

    def _write_sentinel(self) -> IntArray:
        """Write the sentinel of the next hole, and return it."""
        sentinel = np.asarray([self.vocabulary.sentinel(self.next_hole)], np.int32)
        self.writer.add(sentinel)
        self.next_hole += 1
        return sentinel


def _place(index: int) -> str:
    return f"query document, segment {index}"
