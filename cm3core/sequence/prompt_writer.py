"""Documents with holes -> prompts: what is fed before the first hole's content, and the holes.

A document whose only hole is all its end is plain continuation; any other has a sentinel in place
of each hole, as in `cm3core.sequence.infill`, if the layout has sentinels. A guidance stream may see less of the query
(`PromptVariant`): texts hidden, left out or replaced, pictures hidden; holes are untouched.
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
    """What a guidance stream doesn't see, text or picture: one sentinel, numbered after those of
    the holes."""


#: A query's segment after a `PromptVariant`: pieces of text that are seen, hidden or holes; or a
#: picture.
Pieces: TypeAlias = list[str | TextHole | Hidden]


def apply_variant(query: Document, variant: PromptVariant) -> list[tuple[int, Pieces | Segment]]:
    """(index, content) of the query's segments as a stream sees them; text as pieces, holes
    untouched.

    A text is what a `Text`, or a `MaskedText` between its holes, says. `replace_text` alone
    replaces all of them. With `hide_images` a picture without missing codes is hidden, and segments
    that are hidden side by side are one (with the first's index), so that nothing shows how many
    there were. Text that is hidden beside a hole of its segment leaves nothing but the hole: no
    span of training ends where the next begins but by chance.

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
        if pieces or index not in hidden:  # else left out altogether, its <break> too
            result.append((index, pieces))
    return _merged(result) if variant.hide_images else result


def _hidden_texts(query: Document, variant: PromptVariant) -> list[int]:
    """Indices of the query's texts that a stream does not see as they are."""
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
    """Texts and holes of a segment of text."""
    if isinstance(segment, Text):
        return [segment.text]
    return [segment] if isinstance(segment, TextHole) else segment.parts


def _merged(segments: list[tuple[int, Pieces | Segment]]) -> list[tuple[int, Pieces | Segment]]:
    """One sentinel for all that is hidden side by side."""
    result: list[tuple[int, Pieces | Segment]] = []
    for index, content in segments:
        if not (result and content == [Hidden()] and result[-1][1] == [Hidden()]):
            result.append((index, content))
    return result


def without_hidden(
    segments: list[tuple[int, Pieces | Segment]],
) -> list[tuple[int, Pieces | Segment]]:
    """The segments without those that are hidden, their <break> too."""
    return [(index, content) for index, content in segments if content != [Hidden()]]


def _is_whole_picture(segment: Segment) -> bool:
    """Codes of which nothing is missing. Pixels are left for the serializer to refuse."""
    return isinstance(segment, Codes) and (segment.missing is None or not segment.missing.any())


# Which runs of missing codes share a sentinel: a model knows only as many as it was trained with.
#
# A box of r rows is r runs. Where there are more than sentinels that were trained, neighbouring runs
# become one span that holds the known codes between them too. These are fed, not drawn, when their
# turn comes, so the picture keeps them: what is lost is only that codes drawn before don't see them.
# The shortest gaps are closed, the first ones among equals: what comes after has seen them by then.


#: (segment, number of the run in it).
Run = tuple[int, int]


@dataclass(frozen=True)
class Joined:
    """The runs of missing codes that continue the span of the run before them.

    Args:
        runs: these runs.
        num_spans: spans that the document's holes take, one sentinel each.
    """

    runs: frozenset[Run]
    num_spans: int


def joined_runs(query: Document, max_spans: int) -> Joined:
    """How the holes of a query are joined, so that they and all that a guidance stream may hide
    take at most `max_spans` sentinels; more than that if they can't.

    The same for every guidance stream, which all generate the same holes.
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
    """Segments without holes: as many sentinels a guidance stream needs at most for what it
    hides (text beside a hole is hidden by the hole's)."""
    return sum(
        isinstance(segment, (Text, MaskedText, Codes)) and not has_holes([segment])
        for segment in query
    )


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
    """The prompt with `blank` in place of every token but the first, what begins the picture, and its
    codes."""
    tokens = prompt.tokens.copy()
    first_code = int(np.argmax(np.append(prompt.cells, 0) >= 0))
    tokens[1 : max(1, first_code - len(opening))] = blank
    return Prompt(tokens, prompt.cells, prompt.holes)


def _has_text(segments: Iterable[tuple[int, Pieces | Segment]]) -> bool:
    """Whether there is any text but holes."""
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
    """Check the query, whose holes take `num_spans` sentinels; return whether its only hole is all
    the end of it, so that plain continuation fills it."""
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
                f"is a text to be written, and the layout {codec.layout.name!r} has nothing that could "
                "predict one",
                "give the text: models with this layout only draw",
            )
    if number == 0:
        raise DocumentError(
            "query document",
            "has no hole",
            "put a TextHole or an ImageHole where something is missing",
        )
    last = query[-1]
    if number == 1 and (isinstance(last, TextHole) or ends_missing(last)):
        return True
    if not codec.layout.has_sentinels:
        if number == 1 and isinstance(last, MaskedText) and isinstance(last.parts[-1], TextHole):
            return True
        raise DocumentError(
            "query document",
            f"has a hole that is not its end, and the layout {codec.layout.name!r} has no sentinels",
            "put what is to be generated last: models with this layout only continue documents",
        )
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
        turns: whether a turn ends before each of the query's segments, see `turn_ends`.
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
        #: What the last segment was; None before the first.
        self.before: str | None = None
        self.holes: list[Hole] = []
        #: Numbers of the sentinels of the next hole, and of what is hidden next.
        self.next_hole = self.next_hidden = 0
        #: Leads of the text holes to come.
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
        """The prompt of a query whose only hole is all the end of it, the end of `last`.

        `before`: what is seen of the other segments; `seen`: of the last; `leads`: of text holes."""
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
        kind, run, tokens = "image", self.codec.raster, self.codec.raster
        if isinstance(last, Codes):
            tokens = self.codec.code_tokens(last, _place(index))
            if not is_image_hole(last):
                kind, [run] = "codes", runs_of(missing_codes(last))
        tokens, cells = self.codec.in_frame(tokens)
        known = slice(int(np.flatnonzero(cells == run[0])[0]))
        self.writer.add(tokens[known], cells[known])
        return self._prompt(self._code_hole(index, kind, run, _NO_TOKENS, None))

    def _prompt(self, *holes: Hole) -> Prompt:
        if self.writer.length == 0:
            raise DocumentError(
                "query document",
                f"has nothing before its first hole, and neither has the layout {self.layout.name!r}",
                "give it a text that is not empty, or leave the text out",
            )
        return Prompt(*self.writer.joined(), holes)

    def infilling(
        self, segments: list[tuple[int, Pieces | Segment]], leads: Sequence[str], num_spans: int
    ) -> Prompt:
        """The prompt of a query with any other holes, which take `num_spans` sentinels: one in
        place of each, contents behind the query; `leads`: of the text holes in order."""
        self.leads, self.next_hidden = iter(leads), num_spans
        self._write_query(segments)
        self.writer.add(self.layout.end)
        self.writer.add(self.holes[0].prefix)
        return self._prompt(*self.holes)

    def _write_query(self, segments: list[tuple[int, Pieces | Segment]]) -> None:
        """Write the query's segments, a sentinel in place of each hole (appended to `holes`) and of
        what is hidden."""
        for place, (index, segment) in enumerate(segments):
            facts = place == 0, index == self.last, self.text_hidden, self.turns[index]
            self._separate(modality_of(segment), *facts)
            if isinstance(segment, list):
                self._write_pieces(segment, index)
            elif is_image_hole(segment):
                self.writer.add(self.codec.frame.opening)
                sentinel = self._write_sentinel()
                self._add_code_hole(index, "image", self.codec.raster, sentinel)
                self.writer.add(self.codec.frame.closing)
            elif isinstance(segment, Codes) and missing_codes(segment).any():
                self._write_partial(segment, index)
            else:
                self._write(segment, _place(index))

    def _write_pieces(self, pieces: Pieces, index: int) -> None:
        """Write what is seen of a text."""
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
        """Write a picture with missing codes: its runs of codes as they are, one sentinel in place
        of each span of missing runs."""
        tokens = self.codec.code_tokens(segment, _place(index))
        raster = self.codec.raster
        self.writer.add(self.codec.frame.opening)
        end = 0
        for place, run in enumerate(runs_of(missing_codes(segment))):
            known = slice(end, int(run[0]))
            end = int(run[-1]) + 1
            if (index, place) in self.joined.runs:
                self.holes[-1] = replace(self.holes[-1], ends_with=None)
                self._add_code_hole(index, "codes", run, tokens[known])
                self.holes[-1] = replace(self.holes[-1], prefix_cells=raster[known])
                continue
            self.writer.add(tokens[known], raster[known])
            self._add_code_hole(index, "codes", run, self._write_sentinel())
        self.writer.add(tokens[end:], raster[end:])
        self.writer.add(self.codec.frame.closing)

    def _add_code_hole(self, index: int, kind: str, cells: IntArray, prefix: IntArray) -> None:
        end = self.codec.vocabulary.end_of_infill
        self.holes.append(self._code_hole(index, kind, cells, prefix, end))

    def _code_hole(
        self, index: int, kind: str, cells: IntArray, prefix: IntArray, end: int | None
    ) -> Hole:
        row_end = np.asarray(self.codec.frame.row_end, np.int32)
        columns = self.codec.grid[1] if len(row_end) else 0
        hole = Hole(index, kind, prefix, cells, len(cells), end)
        return replace(hole, row_end=row_end, columns=columns) if columns else hole

    def _separate(
        self, after: str, starts: bool, is_last: bool, text_hidden: bool, turn_ends: bool | None
    ) -> None:
        """Write what is between the last segment and the next, see `Boundary`."""
        if self.before is not None:
            boundary = Boundary(self.before, after, starts, is_last, text_hidden, turn_ends)
            self.writer.add(self.layout.between(boundary))
        self.before = after

    def _write(self, segment: Segment, place: str) -> None:
        self.codec.write_segment(self.writer, segment, place, self.max_text_tokens)

    def _write_sentinel(self) -> IntArray:
        """Write the sentinel of the next hole, and return it."""
        sentinel = np.asarray([self.codec.vocabulary.sentinel(self.next_hole)], np.int32)
        self.writer.add(sentinel)
        self.next_hole += 1
        return sentinel


def _place(index: int) -> str:
    return f"query document, segment {index}"
