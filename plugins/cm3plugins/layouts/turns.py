"""Layouts of conversations: a request, the end of a turn, an answer, the end of a turn.

    begin  request ...  turn_end  answer  turn_end

The last segment of a document is the answer, what is before it the request; a document of one segment
is a text or a picture without a request. Two texts side by side are two turns.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import pairwise

from cm3core.errors import DocumentError
from cm3core.interfaces.layout import Boundary, Frame, Layout
from cm3core.vocab import GivenVocabulary, IdRanges


@dataclass(frozen=True)
class TurnTokens:
    """Ids that a conversation's layout writes.

    Args:
        begin: of a sequence.
        turn_end: behind each turn.
        opening, closing: before and behind a picture; sizes are not among them.
        row_end: behind each row of codes.
        hides_all: see `Layout`.
    """

    begin: tuple[int, ...]
    turn_end: tuple[int, ...]
    opening: tuple[int, ...]
    closing: tuple[int, ...]
    row_end: tuple[int, ...] = ()
    hides_all: bool = False


class TurnLayout(Layout):
    """A layout of turns.

    Args:
        name: in messages.
        vocabulary: its ids.
        tokens: what is written around segments.
    """

    def __init__(self, name: str, vocabulary: GivenVocabulary, tokens: TurnTokens) -> None:
        self._name, self._vocabulary, self.tokens = name, vocabulary, tokens

    @property
    def name(self) -> str:
        return self._name

    @property
    def vocabulary(self) -> GivenVocabulary:
        return self._vocabulary

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens and of what sizes are written with."""
        facts = json.dumps([self._name, asdict(self.tokens), self._size_facts()])
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    @property
    def begin(self) -> tuple[int, ...]:
        return self.tokens.begin

    @property
    def end(self) -> tuple[int, ...]:
        return self.tokens.turn_end

    @property
    def hides_all(self) -> bool:
        return self.tokens.hides_all

    def between(self, boundary: Boundary) -> tuple[int, ...]:
        """The end of a turn, where one ends; none within a request whose texts are hidden."""
        both_text = boundary.before == boundary.after == "text"
        ends = not boundary.text_hidden and (boundary.is_last or both_text)
        return self.tokens.turn_end if ends or boundary.starts_document else ()

    def frame(self, grid: tuple[int, int]) -> Frame:
        opening = (*self.tokens.opening, *self._sizes(grid))
        return Frame(opening, self.tokens.row_end, self.tokens.closing)

    def _sizes(self, grid: tuple[int, int]) -> tuple[int, ...]:
        """Ids behind the token that begins a picture; raises `DocumentError` for a grid that can't
        be written."""
        return ()

    def _size_facts(self) -> list[int]:
        """What decides `_sizes`."""
        return []


def text_between(size: int, special: set[int]) -> IdRanges:
    """Ids 0..size-1 that are not special, as ranges.

    >>> text_between(6, {0, 1, 3})
    (range(2, 3), range(4, 6))
    """
    cuts = [-1, *sorted(one for one in special if one < size), size]
    return tuple(range(a + 1, b) for a, b in pairwise(cuts) if b > a + 1)


def no_such_grid(name: str, grid: tuple[int, int], cause: str, next_step: str) -> DocumentError:
    """The error of a grid that a layout can't write."""
    return DocumentError(
        f"layout {name}", f"a picture of {grid[0]} x {grid[1]} codes {cause}", next_step
    )
