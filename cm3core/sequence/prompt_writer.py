"""Documents with holes -> prompts: the tokens before the first hole's content, and the holes.

A document whose only hole is its entire end is a plain continuation. Any other document gets a sentinel in place
of each hole, as in `cm3core.sequence.infill`, if the layout has sentinels. A guidance stream may see less of the query
(`PromptVariant`): texts hidden, omitted or replaced, pictures hidden; holes are untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from cm3core.document import (
    Codes,
    Document,
    ImageHole,
    IntArray,
    MaskedText,
    Segment,
    Text,
    TextHole,
    has_holes,
)
from cm3core.errors import DocumentError
from cm3core.interfaces.layout import Boundary
from cm3core.interfaces.sampler import PromptVariant
from cm3core.picture_form import MISSING, Filling
from cm3core.sequence.grammar import (
    Hole,
    ends_missing,
    is_image_hole,
    missing_codes,
    num_holes,
    runs_of,
    text_hole,
)
from cm3core.sequence.segments import SegmentCodec, TokenWriter, modality_of, turn_ends


@dataclass(frozen=True)
class Hidden:
    """Text or a picture hidden from a guidance stream: one sentinel, numbered after those of
    the holes."""


#: A query's segment after a `PromptVariant`: pieces of text that are visible, hidden or holes; or a
#: picture.
Pieces: TypeAlias = list[str | TextHole | Hidden]


def apply_variant(query: Document, variant: PromptVariant) -> list[tuple[int, Pieces | Segment]]:
    """(index, content) of the query's segments as a stream sees them; text as pieces, holes
    untouched.

    `replace_text` replaces all texts: each `Text`, and the parts of a `MaskedText` between its holes. With
    `hide_images`, pictures without missing codes are hidden. Adjacent hidden segments become one (with the first's
    index), so that their number is not revealed. Text hidden beside a hole of its own segment is dropped, leaving only
    the hole: in training, one span hardly ever ends where the next begins.

    >>> edit = (Text("a cat"), Codes(np.zeros(4, np.int32), (2, 2)), Text("now a dog"), ImageHole())
    >>> apply_variant(edit, PromptVariant(hide_text="all", hide_images=True))
    [(0, [Hidden()]), (3, ImageHole())]
    """
    hidden = _hidden_texts(query, variant)
    result: list[tuple[int, Pieces | Segment]] = []
    for index, segment in enumerate(query):
        if not isinstance(segment, (Text, MaskedText, TextHole)):
            is_hidden = variant.hide_images and _is_whole_picture(segment)
            result.append((index, [Hidden()] if is_hidden else segment))
            continue
        pieces: Pieces = list(_parts_of(segment))
        if index in hidden:
            if variant.replace_text is not None:
                pieces = [
                    part if isinstance(part, TextHole) else variant.replace_text
                    for part in _parts_of(segment)
                    if isinstance(part, TextHole) or part or isinstance(segment, Text)
                ]
            else:
                pieces = [part for part in pieces if isinstance(part, TextHole)]
                if not (pieces or variant.drop_text):
                    pieces = [Hidden()]
        if pieces or index not in hidden:  # otherwise omitted, including its <break>
            result.append((index, pieces))
    return _merged(result) if variant.hide_images else result


def _hidden_texts(query: Document, variant: PromptVariant) -> list[int]:
    """Indices of the query's texts that a stream does not see unchanged."""
    assert variant.hide_text in ("none", "all", "last"), variant.hide_text
    with_text = [
        index
        for index, segment in enumerate(query)
        if isinstance(segment, Text)
        or (
            isinstance(segment, MaskedText)
            and any(isinstance(part, str) and part for part in segment.parts)
        )
    ]
    if variant.hide_text == "last":
        return with_text[-1:]
    return with_text if variant.hide_text == "all" or variant.replace_text is not None else []


def _parts_of(segment: Text | MaskedText | TextHole) -> Sequence[str | TextHole]:
    """Texts and holes of a text segment."""
    if isinstance(segment, Text):
        return [segment.text]
    return [segment] if isinstance(segment, TextHole) else segment.parts


def _merged(segments: list[tuple[int, Pieces | Segment]]) -> list[tuple[int, Pieces | Segment]]:
    """Merge adjacent hidden segments into one sentinel."""
    result: list[tuple[int, Pieces | Segment]] = []
    for index, content in segments:
        if not (result and content == [Hidden()] and result[-1][1] == [Hidden()]):
            result.append((index, content))
    return result


def without_hidden(
    segments: list[tuple[int, Pieces | Segment]],
) -> list[tuple[int, Pieces | Segment]]:
    """The segments without the hidden ones and their <break>."""
    return [(index, content) for index, content in segments if content != [Hidden()]]


def _is_whole_picture(segment: Segment) -> bool:
    """Whether the segment is codes with nothing missing. Pixels are left for the serializer to refuse."""
    return isinstance(segment, Codes) and (segment.missing is None or not segment.missing.any())


# Runs of missing codes that share a sentinel: a model knows only as many sentinels as it was trained with.
#
# A box of r rows is r runs. If there are more runs than trained sentinels, neighbouring runs are joined into one span
# that includes the known codes between them. These are fed, not drawn, when their turn comes, so the picture keeps
# them; the only loss is that codes drawn earlier don't see them. The shortest gaps are closed first, and the earliest
# among equals, because later draws have seen the known codes by then.


#: (segment, index of the run in it).
Run = tuple[int, int]


@dataclass(frozen=True)
class Joined:
    """The runs of missing codes that continue the span of the previous run.

    Args:
        runs: these runs.
        num_spans: number of spans, one sentinel each, for all holes of the document.
    """

    runs: frozenset[Run]
    num_spans: int


def joined_runs(query: Document, max_spans: int) -> Joined:
    """Join the holes of a query so that they and everything that a guidance stream may hide
    take at most `max_spans` sentinels, if possible.

    The result is the same for every guidance stream, since all of them generate the same holes.
    """
    number = num_holes(query)
    gaps = sorted(
        (int(after[0]) - int(before[-1]), index, place + 1)
        for index, segment in enumerate(query)
        if isinstance(segment, Codes)
        for place, (before, after) in enumerate(pairwise(runs_of(missing_codes(segment))))
    )
    most = max(1, max_spans - _num_hideable(query))
    chosen = gaps[: max(0, number - most)]
    return Joined(frozenset((index, run) for _, index, run in chosen), number - len(chosen))


def _num_hideable(query: Document) -> int:
    """Number of segments without holes: the maximum number of sentinels that a guidance stream needs for
    hidden segments (text beside a hole shares the hole's)."""
    return sum(
        isinstance(segment, (Text, MaskedText, Codes)) and not has_holes([segment])
        for segment in query
    )


_NO_TOKENS = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Prompt:
    """Tokens to feed, up to the start of the first hole's content (including its prefix), and the
    holes, in order.

    Args:
        tokens: int32 [n].
        cells: int32 [n]; raster cell of an image code, `NO_CELL` for every other token.
        holes: at least one. The prefix of a later hole is fed after the end token of the previous
            hole.
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
    """See `Serializer.prompt`; `before`: returns the control tokens, depending on whether it is a continuation."""
    hides = variant.hide_text in ("all", "last") and variant.replace_text is None
    if codec.layout.blank is not None and hides and query and modality_of(query[-1]) == "image":
        shown = PromptVariant(
            drop_retrieved=variant.drop_retrieved, hide_images=variant.hide_images
        )
        whole = write_prompt(codec, query, retrieved, shown, max_text_tokens, before)
        return _blanked(whole, codec.layout.blank, codec.frame.opening)
    joined = joined_runs(query, codec.max_spans)
    causal = _is_causal(codec, query, joined.num_spans)
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
    text_hidden = _has_text(enumerate(query)) and not _has_text(segments)
    alone = text_hidden and codec.layout.hides_all and modality_of(query[-1]) == "image"
    if alone and causal:
        segments, retrieved = segments[-1:], ()
    writer = _PromptWriter(codec, max_text_tokens, joined, turn_ends(query), text_hidden)
    retrieved = () if variant.drop_retrieved else retrieved
    if not (alone and causal):
        first = retrieved[0][0] if retrieved and retrieved[0] else segments[0][1]
        writer.writer.add(codec.layout.begin_before(modality_of(first)))
    writer.writer.add(before(causal))
    for number, document in enumerate(retrieved):
        writer.prepend(document, f"retrieved document {number}")
    if causal:
        return writer.continuation(segments[:-1], segments[-1], query[-1], leads)
    return writer.infilling(segments, leads, joined.num_spans)


def _blanked(prompt: Prompt, blank: int, opening: Sequence[int]) -> Prompt:
    """The prompt with `blank` in place of every token except the first, the start of the picture and its
    codes."""
    tokens = prompt.tokens.copy()
    first_code = int(np.argmax(np.append(prompt.cells, 0) >= 0))
    tokens[1 : max(1, first_code - len(opening))] = blank
    return Prompt(tokens, prompt.cells, prompt.holes)


def _has_text(segments: Iterable[tuple[int, Pieces | Segment]]) -> bool:
    """Whether there is any text other than holes."""
    return any(
        any(isinstance(piece, str) and piece for piece in content)
        if isinstance(content, list)
        else isinstance(content, Text)
        or (
            isinstance(content, MaskedText)
            and any(isinstance(part, str) and part for part in content.parts)
        )
        for _, content in segments
    )


def _is_causal(codec: SegmentCodec, query: Document, num_spans: int) -> bool:
    """Check a query whose holes take `num_spans` sentinels; return whether its only hole is its
    entire end, so that plain continuation fills it."""
    if not query:
        raise DocumentError("query document", "is empty", "give it a text, a picture or a hole")
    number = num_holes(query)
    for index, segment in enumerate(query):
        if isinstance(segment, Codes):
            codec.code_tokens(segment, f"query document, segment {index}")
        parts = segment.parts if isinstance(segment, MaskedText) else (segment,)
        if not codec.layout.writes_text and any(isinstance(part, TextHole) for part in parts):
            raise DocumentError(
                f"query document, segment {index}",
                f"is a text to be generated, but the layout {codec.layout.name!r} can't "
                "generate text",
                "give the text: models with this layout only draw",
            )
    if number == 0:
        raise DocumentError(
            "query document",
            "has no hole",
            "put a TextHole or an ImageHole where something should be generated",
        )
    last = query[-1]
    if number == 1 and (isinstance(last, TextHole) or ends_missing(last)):
        return True
    if not codec.layout.has_sentinels:
        if number == 1 and isinstance(last, MaskedText) and isinstance(last.parts[-1], TextHole):
            return True
        raise DocumentError(
            "query document",
            f"has a hole that is not its end, but the layout {codec.layout.name!r} has no sentinels",
            "put what is to be generated last: models with this layout only continue documents",
        )
    if codec.max_spans == 0:
        raise DocumentError(
            "query document",
            "has a hole that is not its end, but the model was trained without masked spans",
            "only continue documents, or train with an objective that masks spans (objective=cm3)",
        )
    if num_spans > codec.max_spans:
        raise DocumentError(
            "query document",
            f"{num_spans} separate holes, but the model was trained on at most {codec.max_spans} in a "
            "sequence",
            "fill fewer at once; only the holes of one picture can be joined",
        )
    return False


class _PromptWriter:
    """Writes one prompt.

    Args:
        codec: of segments.
        max_text_tokens: each text is cut to its first `max_text_tokens` tokens. None: never.
        joined: the runs of missing codes without a sentinel of their own.
        turns: for each of the query's segments, whether a turn ends before it, see `turn_ends`.
        text_hidden: whether the stream hides all texts of the query.
    """

    def __init__(
        self,
        codec: SegmentCodec,
        max_text_tokens: int | None,
        joined: Joined,
        turns: Sequence[bool | None],
        text_hidden: bool,
    ) -> None:
        self.codec, self.layout = codec, codec.layout
        self.max_text_tokens, self.joined = max_text_tokens, joined
        self.turns, self.last, self.text_hidden = turns, len(turns) - 1, text_hidden
        self.writer = TokenWriter()
        #: Kind of the last segment; None before the first.
        self.before: str | None = None
        self.holes: list[Hole] = []
        #: Numbers of the sentinels of the next hole and of the next hidden segment.
        self.next_hole = self.next_hidden = 0
        #: Leads of the remaining text holes.
        self.leads: Iterator[str] = iter(())

    def prepend(self, document: Document, name: str) -> None:
        """Write a retrieved document, which has no holes."""
        if not document:
            raise DocumentError(name, "is empty", "give it a text or a picture")
        turns = turn_ends(document)
        for index, segment in enumerate(document):
            last = index == len(document) - 1
            self._separate(modality_of(segment), index == 0, last, False, turns[index])
            self._write(segment, f"{name}, segment {index}")

    def continuation(
        self,
        before: list[tuple[int, Pieces | Segment]],
        seen: tuple[int, Pieces | Segment],
        last: Segment,
        leads: Sequence[str],
    ) -> Prompt:
        """The prompt of a query whose only hole is the entire end of its last segment, `last`.

        `before`: the visible content of the other segments; `seen`: of the last; `leads`: of text holes."""
        self._write_query(before)
        hidden = self.text_hidden
        self._separate(modality_of(last), not before, True, hidden, self.turns[self.last])
        index, pieces = seen
        if modality_of(last) == "text":
            assert isinstance(pieces, list)
            hole = next(piece for piece in pieces if isinstance(piece, TextHole))
            self._write_pieces([piece for piece in pieces if piece is not hole], index)
            end = self.layout.end[0]
            [lead] = leads
            opening = self.codec.frame.opening
            begin = opening[0] if opening and isinstance(last, TextHole) else None
            return self._prompt(text_hole(index, _NO_TOKENS, hole, end, lead, begin))
        kind, run, known = "image", self._cells(last, index), _NO_TOKENS
        if isinstance(last, Codes) and not is_image_hole(last):
            kind, [run] = "codes", runs_of(missing_codes(last))
            known = self.codec.code_tokens(last, _place(index))[: run[0]]
        self.writer.add(*self.codec.in_frame(known, closed=False))
        return self._prompt(self._code_hole(last, (index, kind, run, _NO_TOKENS), None))

    def _prompt(self, *holes: Hole) -> Prompt:
        if self.writer.length == 0:
            raise DocumentError(
                "query document",
                f"has nothing before its first hole, and the layout {self.layout.name!r} adds nothing",
                "give it a text that is not empty, or leave the text out",
            )
        return Prompt(*self.writer.joined(), holes)

    def infilling(
        self, segments: list[tuple[int, Pieces | Segment]], leads: Sequence[str], num_spans: int
    ) -> Prompt:
        """The prompt of a query with any other holes, which take `num_spans` sentinels: one in
        place of each, with contents after the query; `leads`: of the text holes in order."""
        self.leads, self.next_hidden = iter(leads), num_spans
        self._write_query(segments)
        self.writer.add(self.layout.end)
        self.writer.add(self.holes[0].prefix)
        return self._prompt(*self.holes)

    def _write_query(self, segments: list[tuple[int, Pieces | Segment]]) -> None:
        """Write the query's segments, with a sentinel in place of each hole (appended to `holes`) and of each
        hidden segment."""
        for place, (index, segment) in enumerate(segments):
            facts = place == 0, index == self.last, self.text_hidden, self.turns[index]
            self._separate(modality_of(segment), *facts)
            if isinstance(segment, list):
                self._write_pieces(segment, index)
            elif is_image_hole(segment):
                self.writer.add(self.codec.frame.opening)
                sentinel = self._write_sentinel()
                cells = self._cells(segment, index)
                self._add_code_hole(segment, (index, "image", cells, sentinel))
                self.writer.add(self.codec.frame.closing)
            elif isinstance(segment, Codes) and missing_codes(segment).any():
                self._write_partial(segment, index)
            else:
                self._write(segment, _place(index))

    def _write_pieces(self, pieces: Pieces, index: int) -> None:
        """Write the visible pieces of a text."""
        for piece in pieces:
            if isinstance(piece, TextHole):
                end = self.codec.vocabulary.end_of_infill
                sentinel = self._write_sentinel()
                self.holes.append(text_hole(index, sentinel, piece, end, next(self.leads)))
            elif isinstance(piece, Hidden):
                self.writer.add([self.codec.vocabulary.sentinel(self.next_hidden)])
                self.next_hidden += 1
            else:
                self.writer.add(self.codec.text_tokens(piece, self.max_text_tokens))

    def _write_partial(self, segment: Codes, index: int) -> None:
        """Write a picture with missing codes: its known runs unchanged, one sentinel in place
        of each span of missing runs."""
        tokens = self.codec.code_tokens(segment, _place(index))
        raster = self.codec.raster[: len(tokens)]
        # positions as far as they are known before the missing codes are
        cells = self.codec.cells(
            np.where(missing_codes(segment), MISSING, segment.codes)[: len(tokens)]
        )
        self.writer.add(self.codec.frame.opening)
        end = 0
        for place, run in enumerate(runs_of(missing_codes(segment))):
            known = slice(end, int(run[0]))
            end = int(run[-1]) + 1
            if (index, place) in self.joined.runs:
                self.holes[-1] = replace(self.holes[-1], ends_with=None)
                self._add_code_hole(segment, (index, "codes", run, tokens[known]))
                self.holes[-1] = replace(self.holes[-1], prefix_cells=raster[known])
                continue
            self.writer.add(tokens[known], cells[known])
            self._add_code_hole(segment, (index, "codes", run, self._write_sentinel()))
        self.writer.add(tokens[end:], cells[end:])
        self.writer.add(self.codec.frame.closing)

    def _add_code_hole(self, segment: Segment, run: tuple[int, str, IntArray, IntArray]) -> None:
        end = self.codec.vocabulary.end_of_infill
        self.holes.append(self._code_hole(segment, run, end))

    def _code_hole(
        self, segment: Segment, run: tuple[int, str, IntArray, IntArray], end: int | None
    ) -> Hole:
        """A run of missing codes of a picture: its segment's index, its kind, its cells and its prefix."""
        row_end = np.asarray(self.codec.frame.row_end, np.int32)
        columns = self.codec.grid[1] if len(row_end) else 0
        index, kind, cells, prefix = run
        given = self._given(segment, index, cells)
        hole = Hole(index, kind, prefix, cells, len(cells), end, given=given)
        if isinstance(segment, Codes) and segment.any_length:
            return replace(hole, any_length=True)
        return replace(hole, row_end=row_end, columns=columns) if columns else hole

    def _given(self, segment: Segment, index: int, cells: IntArray) -> IntArray | None:
        """What is known of a picture that has a grammar; raises `DocumentError` where nothing could be generated."""
        if self.codec.code_grammar is None:
            return None
        given = np.full(self.codec.num_codes, MISSING, np.int32)
        if isinstance(segment, Codes):
            given = np.where(missing_codes(segment), MISSING, segment.codes).astype(np.int32)
        most = int(cells[-1]) + 1 if is_image_hole(segment) else None
        free = isinstance(segment, Codes) and segment.any_length
        if not Filling(self.codec.form, given, most, any_length=free).can_be_filled:
            raise DocumentError(
                _place(index),
                f"has no codes that keep the rules of {self.codec.form.name}"
                + (
                    f" and are at most {most}" if most is not None else " with those that are known"
                ),
                "allow more codes, or leave out more of the picture",
            )
        return given

    def _cells(self, segment: Segment, index: int) -> IntArray:
        """The cells of a picture of which all is missing; raises `DocumentError` for a limit that it can't have."""
        raster = self.codec.raster
        most = segment.most_codes if isinstance(segment, ImageHole) else None
        if most is None:
            return raster
        form = self.codec.form
        if not form.is_sequence or not 2 <= most <= form.num_codes:
            limits = f"2 to {form.num_codes}" if form.is_sequence else f"{form.num_codes}"
            raise DocumentError(
                _place(index),
                f"is a picture of at most {most} codes, and pictures here are {form.name}",
                f"leave the maximum out, or use {limits}",
            )
        return raster[:most]

    def _separate(
        self, after: str, starts: bool, is_last: bool, text_hidden: bool, turn_ends: bool | None
    ) -> None:
        """Write the tokens between the last segment and the next, see `Boundary`."""
        if self.before is not None:
            boundary = Boundary(self.before, after, starts, is_last, text_hidden, turn_ends)
            self.writer.add(self.layout.between(boundary))
        self.before = after

    def _write(self, segment: Segment, place: str) -> None:
        self.codec.write_segment(self.writer, segment, place, self.max_text_tokens)

    def _write_sentinel(self) -> IntArray:
        """Write the sentinel of the next hole and return it."""
        sentinel = np.asarray([self.codec.vocabulary.sentinel(self.next_hole)], np.int32)
        self.writer.add(sentinel)
        self.next_hole += 1
        return sentinel


def _place(index: int) -> str:
    return f"query document, segment {index}"
