"""The grammar of a completion: which ids are legal at each position of a request, and when it is
finished.

A request is a list of holes. An image hole (or a missing run of codes) is exactly its cells, image
codes only, with what the layout writes at the ends of rows; a text hole is at least one text token,
then more or its end token, and at `max_tokens` it is closed. Ids are made legal or illegal before the
draw; nothing is ever deleted or changed afterwards. What leaves no choice (the end of a row or of a run
of codes, the prefix of the next hole) isn't drawn: it is fed. Which ids these are, holes and vocabulary
say. Numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from cm3core.document import NO_CELL, IntArray
from cm3core.errors import GenerationError
from cm3core.vocab import IdRanges, Vocabulary

if TYPE_CHECKING:
    from cm3core.sequence.holes import Hole

#: Legal ids at a position.
LegalIds: TypeAlias = IdRanges


@dataclass
class HoleGrammar:
    """State machine of one request: a place in its list of holes.

    Args:
        holes: what is to be filled, in order, at least one.
        vocabulary: ranges of ids.
        num_text_ids: ids of the text range that the text tokenizer really has.
        text_of: text of ids; needed for holes that stop at a string, or begin with a lead.
        begins_with: ids that may come first in a text that begins with a string; needed for holes
            with a lead.
    """

    holes: tuple[Hole, ...]
    vocabulary: Vocabulary
    num_text_ids: int
    text_of: Callable[[IntArray], str] | None = None
    begins_with: Callable[[str], LegalIds] | None = None
    #: Tokens of the holes filled so far, end tokens not included.
    contents: list[IntArray] = field(default_factory=list)
    #: What ended each of them: "end" (its end token), "picture" (what begins one, see
    #: `TextHole.or_picture`), "stop" (a string), "length"; "full" for pictures.
    ends: list[str] = field(default_factory=list)
    #: Tokens of the present hole so far.
    current: list[int] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether every hole is filled."""
        return len(self.contents) == len(self.holes)

    @property
    def hole(self) -> Hole:
        """The hole being filled."""
        return self.holes[len(self.contents)]

    @property
    def modality(self) -> str:
        """ "text" or "image": which of the sampler's plans holds now."""
        return "text" if self.hole.kind == "text" else "image"

    @property
    def legal(self) -> LegalIds:
        """Ids that may be drawn next. A text hole begins with its lead, and may not stay empty
        (`min_tokens`): no span that was trained on was."""
        if self.modality == "image":
            return (self.vocabulary.image,)
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
        """Draws to come for which `legal` stays as it is and nothing else is fed between: 1 in
        text, a run of cells in images."""
        hole, place = self.hole, len(self.current)
        if self.modality == "text":
            return 1
        if not hole.columns:
            return _room(hole) - place
        stop = place
        while stop + 1 < _room(hole) and not hole.ends_row(stop):
            stop += 1
        return stop + 1 - place

    @property
    def progress(self) -> tuple[int, int]:
        """(place of the next draw in its hole, place of the last one that there can be): what
        guidance schedules go by."""
        return len(self.current), _room(self.hole) - 1

    def cells(self, num: int) -> IntArray:
        """Raster index of the picture's cell of each of the next `num` draws; `NO_CELL` for
        text."""
        if self.modality == "text":
            return np.full(num, NO_CELL, np.int32)
        assert self.hole.cells is not None
        return self.hole.cells[len(self.current) : len(self.current) + num]

    def take(self, tokens: IntArray) -> IntArray:
        """Record `tokens`, the next draws (at most `num_draws`).

        Returns:
            tokens to be fed after them before the next draw: an end token without a choice, that of
            a row, the next hole's prefix.

        Raises:
            GenerationError: an id that isn't legal; the sampler is at fault.
        """
        assert 0 < len(tokens) <= self.num_draws
        legal = self.legal
        illegal = [one for one in tokens.tolist() if not any(one in ids for ids in legal)]
        if illegal:
            raise GenerationError(
                "sampler",
                f"drew {self.vocabulary.name(illegal[0])} where {self.modality} was due",
                "correct the sampler: only ids that `allowed_nR` permits may be drawn",
            )
        hole = self.hole
        if self.modality == "text" and int(tokens[0]) in (hole.ends_with, hole.picture_begin):
            ended = "end" if int(tokens[0]) == hole.ends_with else "picture"
            return self._close(ended, forced_end=False)
        self.current.extend(tokens.tolist())
        row_end = hole.row_end if hole.ends_row(len(self.current) - 1) else hole.row_end[:0]
        full, stops = len(self.current) >= _room(hole), self._stops()
        if not full and not stops:
            return row_end
        ended = "full" if self.modality == "image" else "stop" if stops else "length"
        behind = self._close(ended, forced_end=True)
        return behind if self.done else np.append(row_end, behind)

    def forced_cells(self, forced: IntArray) -> IntArray:
        """Cell of each of the tokens that `take` just returned: some are known codes."""
        cells = np.full(len(forced), NO_CELL, np.int32)
        if len(forced) and self.hole.prefix_cells is not None and not self.current:
            cells[len(forced) - len(self.hole.prefix_cells) :] = self.hole.prefix_cells
        return cells

    def _stops(self) -> bool:
        """Whether the text has come to one of the strings that it stops at."""
        if not self.hole.stop:
            return False
        text = self._text()
        return any(string in text for string in self.hole.stop)

    def _text(self) -> str:
        """The present hole's text so far."""
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
    """Most tokens that are added to a prompt before the last draw: each must fit the context, the
    last drawn one needn't."""
    drawn = sum(_room(hole) for hole in holes)
    between = sum(
        len(after.prefix) + (before.ends_with is not None) for before, after in pairwise(holes)
    )
    row_ends = sum(
        len(hole.row_end) * sum(map(hole.ends_row, range(_room(hole))))
        for hole in holes
        if hole.columns
    )
    # what follows the last draw is not fed
    last = holes[-1]
    unfed = len(last.row_end) if last.columns and last.ends_row(_room(last) - 1) else 0
    return drawn + between + row_ends - unfed - 1


def num_draws(holes: tuple[Hole, ...]) -> int:
    """Most draws that holes can need (end tokens of text included)."""
    return sum(_room(hole) for hole in holes)


def _room(hole: Hole) -> int:
    """Most content tokens of a hole: a text hole's `max_tokens`, exactly the cells of a picture."""
    return hole.max_tokens if hole.cells is None else len(hole.cells)
