"""Documents <-> tokens: training sequences, prompts with holes, and the way back.

    a sequence        <eos> T1 <break> I1 <break> ... Tq <break> Iq <eos>     retrieved documents first, the query last
    text to image     <eos> ... Tq <break>                                    exactly a grid of codes follows
    continuation      <eos> ... Tq <break> the first codes                    the picture's other codes follow
    to text, causal   <eos> ... Iq <break>                                    text follows, ended by <eos>
    any other holes   <eos> ... q with <sentinel:i> in place of hole i ... <eos> <sentinel:0> content <eoss> <sentinel:1> ...

Sources: CM3leon paper section 2.2, figures 8 and 9; facebookresearch/metaseq, branch scaling_racm3
(`_tokenize_ra_json`). Any number of text and picture segments makes a document; `<break>` stands
between segments and between documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cm3core.document import (
    NO_CELL,
    BoolArray,
    Codes,
    Document,
    Image,
    ImageHole,
    IntArray,
    MaskedText,
    Segment,
    Span,
    Text,
    TextHole,
    TokenSequence,
    has_holes,
)
from cm3core.errors import DocumentError
from cm3core.interfaces.sampler import PromptVariant
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3core.sequence.prompt_variants import Hidden, Pieces, apply_variant
from cm3core.vocab import Vocabulary

_NO_TOKENS = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Hole:
    """What is to be generated at one place of a prompt.

    Args:
        segment: index of the hole's segment in the query document.
        kind: "text", "image" (a whole picture) or "codes" (a run of missing codes inside a
            picture).
        prefix: int32; tokens that stand before the content: the hole's sentinel, or nothing (causal
            continuation).
        cells: int32; raster cells to be generated, in order, one code each. None for text.
        max_tokens: most content tokens, the end token not counted; exactly `len(cells)` for
            pictures.
        ends_with: id of the token after the content. None when a whole picture closes the sequence.
        min_tokens, stop: of text, see `TextHole`.
    """

    segment: int
    kind: str
    prefix: IntArray
    cells: IntArray | None
    max_tokens: int
    ends_with: int | None
    min_tokens: int = 1
    stop: tuple[str, ...] = ()


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


@dataclass
class _TokenWriter:
    """Collects runs of tokens with their cells."""

    tokens: list[IntArray] = field(default_factory=list)
    cells: list[IntArray] = field(default_factory=list)
    length: int = 0

    def add(self, tokens: IntArray | Sequence[int], cells: IntArray | None = None) -> None:
        run = np.asarray(tokens, np.int32)
        self.tokens.append(run)
        self.cells.append(np.full(len(run), NO_CELL, np.int32) if cells is None else cells)
        self.length += len(run)

    def joined(self) -> tuple[IntArray, IntArray]:
        return np.concatenate(self.tokens), np.concatenate(self.cells)


class Serializer:
    """Documents <-> tokens for one vocabulary, text tokenizer and grid of codes.

    Args:
        vocabulary: the table of ids.
        text_tokenizer: its ids are placed at `vocabulary.text`; it must fit there.
        grid: (rows, columns) of codes of every picture.
    """

    def __init__(
        self, vocabulary: Vocabulary, text_tokenizer: TextTokenizer, grid: tuple[int, int]
    ) -> None:
        if text_tokenizer.vocab_size > len(vocabulary.text):
            raise DocumentError(
                "vocabulary.num_text",
                f"room for {len(vocabulary.text)} text ids, the text tokenizer has "
                f"{text_tokenizer.vocab_size}",
                "leave vocabulary.num_text out, or use a smaller text tokenizer",
            )
        self.vocabulary, self.text_tokenizer, self.grid = vocabulary, text_tokenizer, grid
        self.num_codes = grid[0] * grid[1]
        self._raster = np.arange(self.num_codes, dtype=np.int32)

    # ---- pieces

    def text_tokens(self, text: str, max_text_tokens: int | None = None) -> IntArray:
        """Ids int32 of a text in the vocabulary; at most the first `max_text_tokens`."""
        ids = np.asarray(self.text_tokenizer.encode(text), np.int32)[:max_text_tokens]
        return ids + np.int32(self.vocabulary.text.start)

    def text(self, tokens: IntArray) -> str:
        """Text of ids of the vocabulary's text range; raises `DocumentError` for any other id."""
        known = self.vocabulary.text.start + self.text_tokenizer.vocab_size
        strange = tokens[(tokens < self.vocabulary.text.start) | (tokens >= known)]
        if len(strange):
            raise DocumentError(
                "text segment",
                f"holds {self.vocabulary.name(int(strange[0]))}",
                "decode only text ids",
            )
        return self.text_tokenizer.decode((tokens - self.vocabulary.text.start).tolist())

    def code_tokens(self, codes: Codes, place: str) -> IntArray:
        """Ids int32 of a picture's codes, holes included (whatever stands there); raises
        `DocumentError` on another grid."""
        if codes.grid != self.grid or codes.codes.shape != (self.num_codes,):
            raise DocumentError(
                place,
                f"codes {list(codes.codes.shape)} of a {codes.grid[0]} x {codes.grid[1]} grid, "
                "pictures "
                f"here are {self.grid[0]} x {self.grid[1]}",
                "encode pictures with this recipe's image tokenizer",
            )
        if codes.missing is not None and codes.missing.shape != codes.codes.shape:
            raise DocumentError(
                place,
                f"missing {list(codes.missing.shape)} for codes {list(codes.codes.shape)}",
                "give one flag for each code",
            )
        seen = codes.codes if codes.missing is None else codes.codes[~codes.missing]
        if len(seen) and (seen.min() < 0 or seen.max() >= self.vocabulary.num_image):
            raise DocumentError(
                place,
                f"codes {seen.min()}..{seen.max()}, the vocabulary has {self.vocabulary.num_image}",
                "encode pictures with this recipe's image tokenizer",
            )
        return (codes.codes + self.vocabulary.image.start).astype(np.int32)

    def codes(self, tokens: IntArray) -> Codes:
        """The picture of image tokens; raises `DocumentError` unless they are exactly a grid of
        codes."""
        image = self.vocabulary.image
        strange = tokens[(tokens < image.start) | (tokens >= image.stop)]
        if len(strange):
            raise DocumentError(
                "image segment",
                f"holds {self.vocabulary.name(int(strange[0]))}",
                "decode only image codes",
            )
        if len(tokens) != self.num_codes:
            raise DocumentError(
                "image segment",
                f"{len(tokens)} codes, a picture has {self.num_codes}",
                "decode whole pictures",
            )
        return Codes((tokens - image.start).astype(np.int32), self.grid)

    # ---- training sequences and back

    def sequence(
        self,
        query: Document,
        retrieved: Sequence[Document] = (),
        max_text_tokens: int | None = None,
    ) -> TokenSequence:
        """The training sequence of a query document behind its retrieved documents.

        Args:
            query: `Text` and `Codes` segments, nothing missing; at least one.
            retrieved: the same, in the order in which they stand in front.
            max_text_tokens: each text is cut to its first so many tokens.

        Raises:
            DocumentError: holes, pixels, an empty document, codes of another grid.
        """
        writer, query_segment = _TokenWriter(), 0
        spans: list[Span] = []
        writer.add([self.vocabulary.eos])
        for number, document in enumerate([*retrieved, query]):
            name = "query document" if number == len(retrieved) else f"retrieved document {number}"
            if not document:
                raise DocumentError(name, "is empty", "give it a text or a picture")
            query_segment = len(spans)
            for index, segment in enumerate(document):
                if spans:
                    writer.add([self.vocabulary.break_])
                spans.append(
                    self._write_segment(
                        writer, segment, f"{name}, segment {index}", max_text_tokens
                    )
                )
        writer.add([self.vocabulary.eos])
        tokens, cells = writer.joined()
        return TokenSequence(tokens, cells, tuple(spans), query_segment)

    def documents(self, sequence: TokenSequence | IntArray) -> list[Document]:
        """The documents of a sequence without masks, query last: the inverse of `sequence`.

        Tokens do not say where one document ends and the next begins (`<break>` is both), so: a
        text behind a picture begins a document. A `TokenSequence` knows its query document, which
        is kept whole whatever it holds.
        """
        tokens = (
            sequence.tokens
            if isinstance(sequence, TokenSequence)
            else np.asarray(sequence, np.int32)
        )
        if len(tokens) < 2 or tokens[0] != self.vocabulary.eos or tokens[-1] != self.vocabulary.eos:
            raise DocumentError(
                "sequence",
                "does not start and end with <eos>",
                "pass a whole sequence without masks",
            )
        inner = tokens[1:-1]
        runs = np.split(inner, np.flatnonzero(inner == self.vocabulary.break_))
        # each later run starts with its <break>
        runs = [run if index == 0 else run[1:] for index, run in enumerate(runs)]
        query_segment = sequence.query_segment if isinstance(sequence, TokenSequence) else len(runs)
        documents: list[list[Segment]] = []
        for index, run in enumerate(runs):
            segment = (
                self.codes(run)
                if len(run) and int(run[0]) in self.vocabulary.image
                else Text(self.text(run))
            )
            after_image = bool(documents) and isinstance(documents[-1][-1], Codes)
            starts = index == query_segment or (
                index < query_segment and after_image and isinstance(segment, Text)
            )
            if starts or not documents:
                documents.append([])
            documents[-1].append(segment)
        return [tuple(document) for document in documents]

    def _write_segment(
        self, writer: _TokenWriter, segment: Segment, place: str, max_text_tokens: int | None
    ) -> Span:
        """Write one segment without holes and return where it stands."""
        start = writer.length
        if isinstance(segment, (Text, MaskedText)) and not has_holes([segment]):
            text = (
                segment.text
                if isinstance(segment, Text)
                else "".join(str(part) for part in segment.parts)
            )
            writer.add(self.text_tokens(text, max_text_tokens))
            return Span(start, writer.length, "text")
        if isinstance(segment, Codes) and not _missing(segment).any():
            writer.add(self.code_tokens(segment, place), self._raster)
            return Span(start, writer.length, "image", self.grid)
        if isinstance(segment, Image):
            raise DocumentError(
                place,
                "is a picture as pixels",
                "encode it with the image tokenizer; sequences hold codes",
            )
        raise DocumentError(
            place, "has a hole", "only the query document of a prompt may have holes"
        )

    # ---- prompts and back

    def prompt(
        self,
        query: Document,
        retrieved: Sequence[Document] = (),
        variant: PromptVariant | None = None,
        *,
        max_text_tokens: int | None = None,
    ) -> Prompt:
        """The prompt whose holes a model fills.

        Args:
            query: the document to complete; at least one hole.
            retrieved: documents without holes in front of it.
            variant: what a guidance stream sees. The holes and their prefixes are the same for
                every variant, so streams stay in step: the sentinel of what is hidden is numbered
                after those of the holes.
            max_text_tokens: each text is cut to its first so many tokens, as in training.

        Raises:
            DocumentError: no hole, pixels, an empty document, more holes than sentinels, codes of
                another grid.
        """
        variant = variant or PromptVariant()
        writer = _TokenWriter()
        writer.add([self.vocabulary.eos])
        for number, document in enumerate(() if variant.drop_retrieved else retrieved):
            if not document:
                raise DocumentError(
                    f"retrieved document {number}", "is empty", "give it a text or a picture"
                )
            for index, segment in enumerate(document):
                self._write_segment(
                    writer,
                    segment,
                    f"retrieved document {number}, segment {index}",
                    max_text_tokens,
                )
                writer.add([self.vocabulary.break_])
        causal = self._is_causal(query)
        segments = apply_variant(query, variant)
        last = len(query) - 1
        if causal:
            self._write_query(writer, segments[:-1], [], 0, max_text_tokens)
            if len(segments) > 1:
                writer.add([self.vocabulary.break_])
            hole = query[last]
            if isinstance(hole, TextHole):
                return Prompt(
                    *writer.joined(), (_text_hole(last, _NO_TOKENS, hole, self.vocabulary.eos),)
                )
            if isinstance(hole, Codes) and not _is_image_hole(hole):
                [run] = _runs(_missing(hole))
                writer.add(
                    self.code_tokens(hole, f"query document, segment {last}")[: run[0]],
                    self._raster[: run[0]],
                )
                return Prompt(
                    *writer.joined(), (Hole(last, "codes", _NO_TOKENS, run, len(run), None),)
                )
            return Prompt(
                *writer.joined(),
                (Hole(last, "image", _NO_TOKENS, self._raster, self.num_codes, None),),
            )
        holes: list[Hole] = []
        self._write_query(writer, segments, holes, self._num_holes(query), max_text_tokens)
        writer.add([self.vocabulary.eos])
        writer.add(holes[0].prefix)
        return Prompt(*writer.joined(), tuple(holes))

    def fill(self, query: Document, contents: Sequence[IntArray]) -> Document:
        """The query document with its holes filled.

        Args:
            query: the document of `prompt`.
            contents: for each hole of the prompt, in order, its content int32 [m] as ids of the
                vocabulary, without end token.
        """
        if len(contents) != self._num_holes(query):
            raise DocumentError(
                "contents",
                f"{len(contents)} for {self._num_holes(query)} holes",
                "pass one for each, in order",
            )
        queue = iter(contents)
        return tuple(self._fill_segment(segment, queue.__next__) for segment in query)

    def _fill_segment(self, segment: Segment, following: Callable[[], IntArray]) -> Segment:
        if isinstance(segment, TextHole):
            return Text(self.text(following()))
        if isinstance(segment, MaskedText):
            return Text(
                "".join(
                    part if isinstance(part, str) else self.text(following())
                    for part in segment.parts
                )
            )
        if isinstance(segment, ImageHole):
            return self.codes(following())
        if isinstance(segment, Codes) and _missing(segment).any():
            tokens = self.code_tokens(segment, "query document")
            for run in _runs(_missing(segment)):
                content = following()
                if len(content) != len(run):
                    raise DocumentError(
                        "contents",
                        f"{len(content)} codes for {len(run)} cells",
                        "generate every missing cell",
                    )
                tokens[run] = content
            return self.codes(tokens)
        return Codes(segment.codes, segment.grid) if isinstance(segment, Codes) else segment

    def _is_causal(self, query: Document) -> bool:
        """Check the query; return whether its only hole is all the end of it, so that plain
        continuation fills it."""
        if not query:
            raise DocumentError("query document", "is empty", "give it a text, a picture or a hole")
        num_holes = self._num_holes(query)
        for index, segment in enumerate(query):
            if isinstance(segment, Codes):
                self.code_tokens(segment, f"query document, segment {index}")
        if num_holes == 0:
            raise DocumentError(
                "query document",
                "has no hole",
                "put a TextHole or an ImageHole where something is missing",
            )
        if num_holes > self.vocabulary.num_sentinels:
            raise DocumentError(
                "query document",
                f"{num_holes} holes, the vocabulary has {self.vocabulary.num_sentinels} sentinels",
                "fill fewer at once; a box of missing codes has a hole in each of its rows",
            )
        return num_holes == 1 and (isinstance(query[-1], TextHole) or _ends_missing(query[-1]))

    @staticmethod
    def _num_holes(query: Document) -> int:
        """Number of holes of a document."""
        return sum(
            1
            if isinstance(segment, (TextHole, ImageHole))
            else sum(isinstance(part, TextHole) for part in segment.parts)
            if isinstance(segment, MaskedText)
            else len(_runs(_missing(segment)))
            if isinstance(segment, Codes)
            else 0
            for segment in query
        )

    def _write_query(
        self,
        writer: _TokenWriter,
        segments: list[tuple[int, Pieces | Segment]],
        holes: list[Hole],
        next_sentinel: int,
        max_text_tokens: int | None,
    ) -> None:
        """Write the query's segments, a sentinel in place of each hole (appended to `holes`) and of
        what is hidden."""
        for place, (index, segment) in enumerate(segments):
            if place:
                writer.add([self.vocabulary.break_])
            if isinstance(segment, list):
                for piece in segment:
                    if isinstance(piece, TextHole):
                        sentinel = np.asarray([self.vocabulary.sentinel(len(holes))], np.int32)
                        holes.append(
                            _text_hole(index, sentinel, piece, self.vocabulary.end_of_infill)
                        )
                        writer.add(sentinel)
                    elif isinstance(piece, Hidden):
                        writer.add([self.vocabulary.sentinel(next_sentinel)])
                        next_sentinel += 1
                    else:
                        writer.add(self.text_tokens(piece, max_text_tokens))
            elif _is_image_hole(segment):
                writer.add(self._open_hole(holes, index, "image", self._raster))
            elif isinstance(segment, Codes) and _missing(segment).any():
                self._write_partial(writer, segment, holes, index)
            else:
                self._write_segment(
                    writer, segment, f"query document, segment {index}", max_text_tokens
                )

    def _write_partial(
        self, writer: _TokenWriter, segment: Codes, holes: list[Hole], index: int
    ) -> None:
        """Write a picture with missing codes: its runs of codes as they are, one sentinel in place
        of each missing run."""
        tokens = self.code_tokens(segment, f"query document, segment {index}")
        end = 0
        for run in _runs(_missing(segment)):
            writer.add(tokens[end : run[0]], self._raster[end : run[0]])
            writer.add(self._open_hole(holes, index, "codes", run))
            end = int(run[-1]) + 1
        writer.add(tokens[end:], self._raster[end:])

    def _open_hole(self, holes: list[Hole], segment: int, kind: str, cells: IntArray) -> IntArray:
        """Append the next hole, of codes, and return its sentinel."""
        sentinel = np.asarray([self.vocabulary.sentinel(len(holes))], np.int32)
        holes.append(
            Hole(segment, kind, sentinel, cells, len(cells), self.vocabulary.end_of_infill)
        )
        return sentinel


def _text_hole(segment: int, prefix: IntArray, hole: TextHole, ends_with: int) -> Hole:
    """A hole of text; raises `DocumentError` for lengths that can't be."""
    if hole.max_tokens is None or not 1 <= hole.min_tokens <= hole.max_tokens:
        raise DocumentError(
            f"query document, segment {segment}",
            f"is a text hole of {hole.min_tokens} to {hole.max_tokens} tokens",
            "give a max_tokens of at least 1, and a min_tokens from 1 to that",
        )
    return Hole(
        segment, "text", prefix, None, hole.max_tokens, ends_with, hole.min_tokens, hole.stop
    )


def _missing(codes: Codes) -> BoolArray:
    """Which codes are missing, bool [c]."""
    return np.zeros(codes.codes.shape, np.bool_) if codes.missing is None else codes.missing


def _is_image_hole(segment: object) -> bool:
    """Whether a whole picture is to be generated: an `ImageHole`, or codes that are all missing."""
    return isinstance(segment, ImageHole) or (
        isinstance(segment, Codes) and bool(_missing(segment).all())
    )


def _ends_missing(segment: object) -> bool:
    """Whether a picture's last codes are all that is missing of it, or it is missing as a whole."""
    if not isinstance(segment, Codes):
        return isinstance(segment, ImageHole)
    runs = _runs(_missing(segment))
    return len(runs) == 1 and int(runs[0][-1]) == len(segment.codes) - 1


def _runs(missing: BoolArray) -> list[IntArray]:
    """Maximal runs of missing cells in raster order.

    >>> _runs(np.array([True, True, False, True]))
    [array([0, 1], dtype=int32), array([3], dtype=int32)]
    """
    cells = np.flatnonzero(missing).astype(np.int32)
    return list(np.split(cells, np.flatnonzero(np.diff(cells) > 1) + 1)) if len(cells) else []
