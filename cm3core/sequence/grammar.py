"""Holes: the missing parts of a document. The grammar of their contents: which ids are legal at each position of a
request, and when it is finished.

A request is a list of holes. An image hole (or a run of missing codes) has exactly one code per cell, plus the tokens
that the layout writes at row ends. If the form of pictures has rules (`cm3core.picture_form`), only codes that follow
them are legal, and a sequence is closed by its end code. A text hole has at least one text token, then more tokens or
its end token; it is closed at `max_tokens`. Illegal ids are excluded before the draw; nothing is deleted or changed
afterwards. Forced tokens (the end of a row or of a run of codes, the prefix of the next hole) are fed without being
drawn. Holes and vocabulary determine these ids. Uses numpy only.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import TypeAlias

import numpy as np

from cm3core.document import (
    NO_CELL,
    BoolArray,
    Codes,
    Document,
    ImageHole,
    IntArray,
    MaskedText,
    Segment,
    TextHole,
)
from cm3core.errors import DocumentError, GenerationError
from cm3core.picture_form import Filling, PictureForm
from cm3core.vocab import IdRanges, Vocabulary


@dataclass(frozen=True, eq=False)
class Hole:
    """One part of a prompt to be generated.

    Args:
        segment: index of the hole's segment in the query document.
        kind: "text", "image" (a whole picture) or "codes" (a run of missing codes inside a
            picture).
        prefix: int32; tokens before the content: the hole's sentinel; nothing (causal
            continuation); or the known codes after the previous hole, if both share one
            sentinel (see `cm3core.sequence.prompt_writer`).
        cells: int32; cells to generate, in order, one code each. None for text.
        max_tokens: maximum number of content tokens, without the end token; exactly `len(cells)` for
            grids, at most `len(cells)` for sequences.
        any_length: see `Codes`: the hole's end token may come before it is full.
        ends_with: id of the token after the content. None if a whole picture ends the
            sequence, or if known codes and the next hole follow.
        min_tokens, stop: for text, see `TextHole`.
        prefix_cells: int32; cell of each token of `prefix` that is a known code. None: no
            token is.
        lead: for text: the end of the document's text before the hole, with which the content begins.
        row_end: int32; tokens fed after the last cell of each row.
        columns: cells per row; 0 if rows have no end tokens.
        picture_begin: for text: id of the token that begins a picture and so also ends the text. None: none does.
        given: int32 [c]; codes of the hole's picture, `MISSING` for missing ones. None: the form has no rules, and
            decoders are fed none of its positions.
    """

    segment: int
    kind: str
    prefix: IntArray
    cells: IntArray | None
    max_tokens: int
    ends_with: int | None
    min_tokens: int = 1
    stop: tuple[str, ...] = ()
    prefix_cells: IntArray | None = None
    lead: str = ""
    row_end: IntArray = field(default_factory=lambda: np.zeros(0, np.int32))
    columns: int = 0
    picture_begin: int | None = None
    given: IntArray | None = None
    any_length: bool = False

    def ends_row(self, index: int) -> bool:
        """Whether a row ends after the hole's token `index`."""
        if self.cells is None or not self.columns:
            return False
        return (int(self.cells[index]) + 1) % self.columns == 0


def text_hole(
    segment: int,
    prefix: IntArray,
    hole: TextHole,
    ends_with: int,
    lead: str = "",
    picture_begin: int | None = None,
) -> Hole:
    """Make a text hole. Raises `DocumentError` for impossible lengths, and for `or_picture` if no token begins a
    picture there (`picture_begin`: the layout's token, at the end of a document)."""
    place = f"query document, segment {segment}"
    # if a picture may follow, the text may be empty
    least = 1 if picture_begin is None else 0
    if hole.max_tokens is None or not least <= hole.min_tokens <= hole.max_tokens:
        raise DocumentError(
            place,
            f"is a text hole of {hole.min_tokens} to {hole.max_tokens} tokens",
            f"give a max_tokens of at least 1, and a min_tokens from {least} to max_tokens",
        )
    if hole.or_picture and picture_begin is None:
        raise DocumentError(
            place,
            "may end where a picture begins, but it is not the document's end, or the layout does not mark "
            "the start of a picture",
            "leave out or_picture",
        )
    return Hole(
        segment,
        "text",
        prefix,
        None,
        hole.max_tokens,
        ends_with,
        hole.min_tokens,
        hole.stop,
        lead=lead,
        picture_begin=picture_begin if hole.or_picture else None,
    )


def num_holes(document: Document) -> int:
    """Number of holes of a document; each run of missing codes is one."""
    return sum(
        1
        if isinstance(segment, (TextHole, ImageHole))
        else sum(isinstance(part, TextHole) for part in segment.parts)
        if isinstance(segment, MaskedText)
        else len(runs_of(missing_codes(segment)))
        if isinstance(segment, Codes)
        else 0
        for segment in document
    )


def num_unlimited(document: Document) -> int:
    """Number of text holes of unlimited length (`max_tokens` None)."""
    return sum(
        isinstance(part, TextHole) and part.max_tokens is None
        for segment in document
        for part in (segment.parts if isinstance(segment, MaskedText) else [segment])
    )


def with_limits(document: Document, limit: Callable[[TextHole], int]) -> Document:
    """The document, with `max_tokens` of its unlimited text holes set by `limit`."""

    def limited(hole: TextHole) -> TextHole:
        return hole if hole.max_tokens is not None else replace(hole, max_tokens=limit(hole))

    def changed(segment: Segment) -> Segment:
        if isinstance(segment, MaskedText):
            return MaskedText(
                tuple(
                    limited(part) if isinstance(part, TextHole) else part for part in segment.parts
                )
            )
        return limited(segment) if isinstance(segment, TextHole) else segment

    return tuple(changed(segment) for segment in document)


def missing_codes(codes: Codes) -> BoolArray:
    """The missing codes, bool [c]."""
    return np.zeros(codes.codes.shape, np.bool_) if codes.missing is None else codes.missing


def is_image_hole(segment: object) -> bool:
    """Whether a whole picture is to be generated: an `ImageHole`, or codes that are all missing."""
    return isinstance(segment, ImageHole) or (
        isinstance(segment, Codes) and bool(missing_codes(segment).all())
    )


def ends_missing(segment: object) -> bool:
    """Whether the missing part of a picture is its end, or the whole picture."""
    if not isinstance(segment, Codes):
        return isinstance(segment, ImageHole)
    runs = runs_of(missing_codes(segment))
    return len(runs) == 1 and int(runs[0][-1]) == len(segment.codes) - 1


def runs_of(missing: BoolArray) -> list[IntArray]:
    """Maximal runs of missing cells in raster order.

    >>> runs_of(np.array([True, True, False, True]))
    [array([0, 1], dtype=int32), array([3], dtype=int32)]
    """
    cells = np.flatnonzero(missing).astype(np.int32)
    return list(np.split(cells, np.flatnonzero(np.diff(cells) > 1) + 1)) if len(cells) else []


# Leads: white space and punctuation before a hole in a text belong to the hole if the text tokenizer joins them to
# the following text.
#
# Byte-level BPE writes " red" as one token. A text cut before the word would end in a token that no training text has
# there: a single space. The lead is therefore removed from the text before the hole, and the hole's content begins
# with it: the grammar allows nothing else. In documents the lead stays in its place.


#: Characters of a lead. ASCII only: tokenizers may write any other character as several bytes, and no
#: single id shows whether it begins the lead.
_WHITE_SPACE, _PUNCTUATION = " \t\n\r\f\v", string.punctuation


def without_leads(
    text: MaskedText, is_joined: Callable[[str], bool]
) -> tuple[MaskedText, list[str]]:
    """Remove the leads of a text's holes; return the text and the leads, one per hole.

    Args:
        text: with any number of holes.
        is_joined: whether the tokenizer joins this lead to the text after it.

    >>> without_leads(MaskedText(("a red ", TextHole(4), ", noto")), lambda lead: True)[1]
    [' ']
    """
    parts: list[str | TextHole] = []
    leads: list[str] = []
    for is_text, run in groupby(text.parts, key=lambda part: isinstance(part, str)):
        own = list(run)
        parts += ["".join(map(str, own))] if is_text else own
    for place in range(len(parts)):
        if isinstance(parts[place], str):
            continue
        before = parts[place - 1] if place else ""
        if not isinstance(before, str):
            leads.append("")
            continue
        kept = before.rstrip(_PUNCTUATION).rstrip(_WHITE_SPACE)
        lead = before[len(kept) :]
        if lead and not is_joined(lead):
            kept, lead = before, ""
        if place:
            parts[place - 1] = kept
        leads.append(lead)
    return MaskedText(tuple(part for part in parts if part != "")), leads


def after_lead(lead: str, content: str) -> str:
    """Remove the lead from the beginning of a hole's text, as the document has it.

    >>> after_lead(" ", " apple")
    'apple'
    """
    return content.removeprefix(lead)


def is_joined(lead: str, texts: Sequence[str]) -> bool:
    """Whether one of the tokens' texts begins with the end of the lead and is longer.

    >>> is_joined(" ", ["a", " ", " b"]), is_joined(" ", ["a", " ", "b "])
    (True, False)
    """
    ends = [lead[start:] for start in range(len(lead))]
    return any(len(text) > len(end) and text.startswith(end) for text in texts for end in ends)


def ids_that_begin(lead: str, texts: Sequence[str], first_id: int) -> tuple[range, ...]:
    """Ids of texts that begin with the lead, or that are a beginning of it, as ranges in order.

    >>> ids_that_begin(" ", ["a", " ", " b", "", "b "], 4)
    (range(5, 7),)
    """
    chosen = [
        place
        for place, text in enumerate(texts)
        if text and (text.startswith(lead) or lead.startswith(text))
    ]
    runs = (
        [place for _, place in run]
        for _, run in groupby(enumerate(chosen), key=lambda one: one[1] - one[0])
    )
    return tuple(range(first_id + run[0], first_id + run[-1] + 1) for run in runs)


#: Legal ids at a position.
LegalIds: TypeAlias = IdRanges


class CodeGrammar:
    """The rules of a form of pictures, as ids of a vocabulary; and its positions.

    Args:
        form: with rules, or with axes of positions that are fed.
        vocabulary: has an id for each code.
    """

    def __init__(self, form: PictureForm, vocabulary: Vocabulary) -> None:
        self.form = form
        #: Id of the code that ends a sequence. None: pictures are no sequences.
        self.end: int | None = None
        if form.rules is None:
            return
        if form.rules.codebook_size != vocabulary.num_image:
            raise DocumentError(
                "picture form",
                f"has rules for {form.rules.codebook_size} codes, the vocabulary has {vocabulary.num_image}",
                "give every code of the codebook a class",
            )
        if form.end is not None:
            self.end = int(vocabulary.of_codes(np.array([form.end], np.int32))[0])
        self._first = vocabulary.image.start
        codes = vocabulary.to_codes(np.arange(vocabulary.image.start, vocabulary.image.stop))
        #: Class of each id of the image range.
        self._classes = form.rules.class_of[codes]
        self._ranges: dict[bytes, LegalIds] = {}

    def filling(self, hole: Hole) -> Filling:
        """The picture of a hole, nothing of it filled."""
        assert hole.given is not None
        assert hole.cells is not None
        most = int(hole.cells[-1]) + 1 if hole.kind == "image" else None
        return Filling(self.form, hole.given, most, any_length=hole.any_length)

    def ids(self, allowed_K: BoolArray) -> LegalIds:
        """Ids of the codes of the classes that are allowed."""
        key = allowed_K.tobytes()
        if key not in self._ranges:
            own = np.concatenate([[False], allowed_K[self._classes], [False]]).astype(np.int8)
            starts, stops = (np.flatnonzero(np.diff(own) == step) for step in (1, -1))
            first = self._first
            self._ranges[key] = tuple(
                range(first + start, first + stop)
                for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
            )
        return self._ranges[key]


@dataclass
class HoleGrammar:
    """State machine of one request: a place in its list of holes.

    Args:
        holes: the holes to fill, in order, at least one.
        vocabulary: ranges of ids.
        num_text_ids: number of ids of the text range that the text tokenizer uses.
        text_of: text of ids; needed for holes that stop at a string, or begin with a lead.
        begins_with: ids that can come first in a text that begins with a string; needed for holes
            with a lead.
        codes: the rules and positions of pictures; None: they have none.
    """

    holes: tuple[Hole, ...]
    vocabulary: Vocabulary
    num_text_ids: int
    text_of: Callable[[IntArray], str] | None = None
    begins_with: Callable[[str], LegalIds] | None = None
    codes: CodeGrammar | None = None
    #: Tokens of the holes filled so far, without end tokens (the end code of a picture is included).
    contents: list[IntArray] = field(default_factory=list)
    #: How each of them ended: "end" (its end token), "picture" (a picture begins, see
    #: `TextHole.or_picture`), "stop" (a string), "length"; "full" for pictures.
    ends: list[str] = field(default_factory=list)
    #: Tokens of the current hole so far.
    current: list[int] = field(default_factory=list)
    #: Cells of the tokens that the last `take` recorded, with their positions.
    drawn_cells: IntArray = field(default_factory=lambda: np.zeros(0, np.int32))
    #: The segment whose picture is being filled, and how far it is; only with `codes`.
    _filling: tuple[int, Filling] | None = None

    @property
    def done(self) -> bool:
        """Whether every hole is filled."""
        return len(self.contents) == len(self.holes)

    @property
    def hole(self) -> Hole:
        """The current hole."""
        return self.holes[len(self.contents)]

    @property
    def modality(self) -> str:
        """ "text" or "image": selects the sampler's plan."""
        return "text" if self.hole.kind == "text" else "image"

    @property
    def legal(self) -> LegalIds:
        """Ids that may be drawn next. A text hole begins with its lead and may not stay empty
        (`min_tokens`), because no training span is empty."""
        if self.modality == "image":
            return self._legal_codes() if self._ruled else (self.vocabulary.image,)
        text = self.vocabulary.text_ranges(self.num_text_ids)
        end = self.hole.ends_with
        lead = self.hole.lead
        written = self._text() if lead else ""
        if lead and len(written) < len(lead) and lead.startswith(written):
            assert self.begins_with is not None
            return self.begins_with(lead[len(written) :]) or text
        ends = [] if self.hole.picture_begin is None else [self.hole.picture_begin]
        complete = len(self.current) >= self.hole.min_tokens and not (lead and written == lead)
        if complete and end is not None:
            ends.append(end)
        ranges = (*text, *(range(one, one + 1) for one in ends))
        return tuple(sorted(ranges, key=lambda ids: ids.start)) if ends else text

    @property
    def num_draws(self) -> int:
        """Number of draws for which `legal` stays the same and no forced token comes between: 1 in
        text and in pictures with rules, a run of cells in other pictures."""
        hole, place = self.hole, len(self.current)
        if self.modality == "text" or self._ruled:
            return 1
        if not hole.columns:
            return _room(hole) - place
        stop = place
        while stop + 1 < _room(hole) and not hole.ends_row(stop):
            stop += 1
        return stop + 1 - place

    @property
    def progress(self) -> tuple[int, int]:
        """(index of the next draw in its hole, last possible index); guidance schedules depend on
        it."""
        return len(self.current), _room(self.hole) - 1

    @property
    def _ruled(self) -> bool:
        """Whether codes have rules."""
        return self.codes is not None and self.codes.form.rules is not None

    @property
    def is_placed(self) -> bool:
        """Whether what is fed beside a code depends on the codes before it."""
        return self.codes is not None and bool(self.codes.form.fed_axes)

    def cells(self, num: int) -> IntArray:
        """Raster index of the cell of each of the next `num` draws; `NO_CELL` for
        text."""
        if self.modality == "text":
            return np.full(num, NO_CELL, np.int32)
        assert self.hole.cells is not None
        return self.hole.cells[len(self.current) : len(self.current) + num]

    def fed_cells(self, tokens: IntArray) -> IntArray:
        """What is fed beside the next draws if they are `tokens`, all legal: see `PictureForm.cells`."""
        cells = self.cells(len(tokens))
        if not len(cells) or not self.is_placed or self.modality == "text":
            return cells
        return self._picture().cells(int(cells[0]), self.vocabulary.to_codes(tokens))

    def take(self, tokens: IntArray) -> IntArray:
        """Record `tokens`, the next draws (at most `num_draws`).

        Returns:
            forced tokens to feed after them before the next draw: a forced end token, a row's end
            tokens, the next hole's prefix.

        Raises:
            GenerationError: an id is illegal, which is the sampler's fault.
        """
        assert 0 < len(tokens) <= self.num_draws
        legal = self.legal
        illegal = [one for one in tokens.tolist() if not any(one in ids for ids in legal)]
        if illegal:
            raise GenerationError(
                "sampler",
                f"drew {self.vocabulary.name(illegal[0])} instead of {self.modality}",
                "correct the sampler: only ids that `allowed_nR` permits may be drawn",
            )
        hole = self.hole
        self.drawn_cells = self.cells(len(tokens))
        free = self.modality == "text" or hole.any_length
        if free and int(tokens[0]) in (hole.ends_with, hole.picture_begin):
            self.drawn_cells = np.full(1, NO_CELL, np.int32)
            ended = "end" if int(tokens[0]) == hole.ends_with else "picture"
            return self._close(ended, forced_end=False)
        ends = self.codes is not None and self.modality == "image" and self._put(tokens)
        self.current.extend(tokens.tolist())
        row_end = hole.row_end if hole.ends_row(len(self.current) - 1) else hole.row_end[:0]
        full, stops = ends or len(self.current) >= _room(hole), self._stops()
        if not full and not stops:
            return row_end
        ended = "full" if self.modality == "image" else "stop" if stops else "length"
        behind = self._close(ended, forced_end=True)
        return behind if self.done else np.append(row_end, behind)

    def forced_cells(self, forced: IntArray) -> IntArray:
        """The cells of the tokens that `take` just returned, some of which are known codes."""
        cells = np.full(len(forced), NO_CELL, np.int32)
        if len(forced) and (known := self.hole.prefix_cells) is not None and not self.current:
            if self.is_placed:
                codes = self.vocabulary.to_codes(self.hole.prefix)
                known = self._picture().cells(int(known[0]), codes)
            cells[len(forced) - len(known) :] = known
        return cells

    def _picture(self) -> Filling:
        """The picture of the current hole, with what is drawn of it."""
        assert self.codes is not None
        if self._filling is None or self._filling[0] != self.hole.segment:
            self._filling = self.hole.segment, self.codes.filling(self.hole)
        return self._filling[1]

    def _legal_codes(self) -> LegalIds:
        """Ids of the codes that keep the rules at the next cell."""
        assert self.codes is not None
        assert self.hole.cells is not None
        place, end = int(self.hole.cells[len(self.current)]), self.hole.ends_with
        ids = self.codes.ids(self._picture().allowed(place))
        if end is None or not self._picture().may_close(place):
            return ids
        return tuple(sorted((*ids, range(end, end + 1)), key=lambda one: one.start))

    def _put(self, tokens: IntArray) -> bool:
        """Take in codes that `legal` allowed; returns whether they end their picture."""
        assert self.codes is not None
        picture, codes = self._picture(), self.vocabulary.to_codes(tokens).tolist()
        cells = [picture.put(*one) for one in zip(self.drawn_cells.tolist(), codes, strict=True)]
        self.drawn_cells = np.array(cells, np.int32)
        return int(tokens[-1]) == self.codes.end

    def _stops(self) -> bool:
        """Whether the text now contains one of its stop strings."""
        if not self.hole.stop:
            return False
        text = self._text()
        return any(string in text for string in self.hole.stop)

    def _text(self) -> str:
        """The current hole's text so far."""
        assert self.text_of is not None
        return self.text_of(np.array(self.current, np.int32))

    def _close(self, ended: str, *, forced_end: bool) -> IntArray:
        end = self.hole.ends_with
        self.ends.append(ended)
        self.contents.append(np.array(self.current, np.int32))
        self.current = []
        if self.done:
            return np.zeros(0, np.int32)
        return np.array(
            [*([end] if forced_end and end is not None else []), *self.hole.prefix], np.int32
        )


def num_new_tokens(holes: tuple[Hole, ...]) -> int:
    """Maximum number of tokens added to a prompt before the last draw. All of them must fit the context; the
    last drawn one need not."""
    drawn = sum(_room(hole) for hole in holes)
    between = sum(
        len(after.prefix) + (before.ends_with is not None) for before, after in pairwise(holes)
    )
    row_ends = sum(
        len(hole.row_end) * sum(map(hole.ends_row, range(_room(hole))))
        for hole in holes
        if hole.columns
    )
    # tokens after the last draw are not fed
    last = holes[-1]
    unfed = len(last.row_end) if last.columns and last.ends_row(_room(last) - 1) else 0
    return drawn + between + row_ends - unfed - 1


def num_draws(holes: tuple[Hole, ...]) -> int:
    """Maximum number of draws that holes can need (including end tokens of text)."""
    return sum(_room(hole) for hole in holes)


def _room(hole: Hole) -> int:
    """Maximum number of content tokens of a hole: a text hole's `max_tokens`, exactly the cells of a picture."""
    return hole.max_tokens if hole.cells is None else len(hole.cells)
