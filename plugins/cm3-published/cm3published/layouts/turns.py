"""Layouts of conversations: request, end of turn, answer, end of turn; and of a single request and answer, for models
that generate pictures but can't read them.

    begin  request ...  turn_end  answer  turn_end

A conversation marks where its turns start (`cm3core.document.is_conversation`). In any other document the last
segment is the answer and the rest is the request; a document with one segment is a text or a
picture without a request. Two adjacent texts are two turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import ClassVar

from cm3core.document import IntArray
from cm3core.errors import DocumentError
from cm3core.interfaces.layout import Boundary, Frame, Layout
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3core.vocab import IdRanges, Vocabulary


@dataclass(frozen=True)
class TurnTokens:
    """The token ids of a conversation layout.

    Args:
        begin: ids at the start of a sequence.
        turn_end: ids after each turn.
        opening, closing: ids before and after a picture, without size tokens.
        row_end: ids after each row of codes.
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
        name: name in messages.
        vocabulary: its ids.
        tokens: delimiters of segments.
    """

    def __init__(self, name: str, vocabulary: Vocabulary, tokens: TurnTokens) -> None:
        self._name, self._vocabulary, self.tokens = name, vocabulary, tokens

    @property
    def name(self) -> str:
        return self._name

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens and the encoding of sizes."""
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

    @property
    def has_turns(self) -> bool:
        return True

    def between(self, boundary: Boundary) -> tuple[int, ...]:
        """Return the end of a turn, if one ends here; nothing within a request with hidden texts."""
        ends = boundary.turn_ends
        if ends is None:
            ends = boundary.is_last or boundary.before == boundary.after == "text"
        shown = ends and not boundary.text_hidden
        return self.tokens.turn_end if shown or boundary.starts_document else ()

    def frame(self, grid: tuple[int, int]) -> Frame:
        opening = (*self.tokens.opening, *self._sizes(grid))
        return Frame(opening, self.tokens.row_end, self.tokens.closing)

    def _sizes(self, grid: tuple[int, int]) -> tuple[int, ...]:
        """Return size ids after the token that starts a picture; raises `DocumentError` for a grid that can't be
        encoded."""
        return ()

    def _size_facts(self) -> list[int]:
        """Return everything that `_sizes` depends on."""
        return []


class LuminaLayout(TurnLayout):
    """A layout of turns with size tokens; `sizes`: id of each height or width in 32 pixels, which are `unit` codes."""

    def __init__(
        self,
        name: str,
        vocabulary: Vocabulary,
        tokens: TurnTokens,
        sizes: Mapping[int, int],
        unit: int = 2,
    ) -> None:
        super().__init__(name, vocabulary, tokens)
        self.sizes, self.unit = dict(sizes), unit

    def _sizes(self, grid: tuple[int, int]) -> tuple[int, ...]:
        counts = [side // self.unit for side in grid]
        if any(side % self.unit for side in grid) or not set(counts) <= self.sizes.keys():
            raise no_such_grid(
                self.name,
                grid,
                f"has no tokens for its size, which must be a multiple of {self.unit} codes (32 pixels)",
                "choose sides that are multiples of 32 pixels (image_tokenizer.resolution, "
                "image_tokenizer.width)",
            )
        return tuple(self.sizes[count] for count in counts)

    def _size_facts(self) -> list[int]:
        unit = [] if self.unit == 2 else [self.unit]  # not in fingerprints of models that exist
        return [*unit, *(one for pair in sorted(self.sizes.items()) for one in pair)]


class Emu3Layout(TurnLayout):
    """A layout of documents with sizes as text.

    Args:
        vocabulary, tokens: see `TurnLayout`.
        picture_start: id after the size.
        text_tokenizer: encodes the size.
        answer: ids between a request and a text answer; (): the ids that end a sequence.
    """

    own_name: ClassVar[str] = "emu3"

    def __init__(
        self,
        vocabulary: Vocabulary,
        tokens: TurnTokens,
        picture_start: int,
        text_tokenizer: TextTokenizer,
        answer: tuple[int, ...] = (),
    ) -> None:
        super().__init__(self.own_name, vocabulary, tokens)
        self._picture_start, self._text_tokenizer = picture_start, text_tokenizer
        self._answer = answer

    @property
    def has_turns(self) -> bool:
        """Always False: there is a single request."""
        return False

    def between(self, boundary: Boundary) -> tuple[int, ...]:
        """Nothing between a text and its picture; the end of a sequence between documents, and between
        two texts if the layout has no ids before an answer."""
        if boundary.starts_document:
            return self.tokens.turn_end
        both_text = boundary.before == boundary.after == "text" and not boundary.text_hidden
        return (self._answer or self.tokens.turn_end) if both_text else ()

    def segments(self, tokens: IntArray, grid: tuple[int, int]) -> list[tuple[str, IntArray]]:
        """As in other layouts; the ids before an answer include text ids."""
        parts = split_at(tokens, self._answer)
        return [one for part in parts for one in super(Emu3Layout, self).segments(part, grid)]

    def _sizes(self, grid: tuple[int, int]) -> tuple[int, ...]:
        return (*self._text_tokenizer.encode(f"{grid[0]}*{grid[1]}"), self._picture_start)

    def _size_facts(self) -> list[int]:
        return [self._picture_start, *self._answer]


class Emu35Layout(Emu3Layout):
    """A layout of requests and answers: the ids `answer` are before the last segment of a document, whatever it is, and
    the last row of a picture has no end."""

    own_name: ClassVar[str] = "emu3_5"

    def between(self, boundary: Boundary) -> tuple[int, ...]:
        """The ids before an answer, and between two texts; the end of a sequence between documents."""
        if boundary.starts_document:
            return self.tokens.turn_end
        both_text = boundary.before == boundary.after == "text"
        return self._answer if boundary.is_last or both_text else ()

    def frame(self, grid: tuple[int, int]) -> Frame:
        return replace(super().frame(grid), ends_last_row=False)


def split_at(tokens: IntArray, separator: tuple[int, ...]) -> list[IntArray]:
    """Split a sequence [n] at a separator; (): return all of it.

    >>> import numpy as np
    >>> [part.tolist() for part in split_at(np.array([1, 8, 9, 2, 9], np.int32), (8, 9))]
    [[1], [2, 9]]
    """
    parts: list[IntArray] = []
    start = place = 0
    while separator and place + len(separator) <= len(tokens):
        if tuple(tokens[place : place + len(separator)].tolist()) == separator:
            parts.append(tokens[start:place])
            start = place = place + len(separator)
        else:
            place += 1
    return [*parts, tokens[start:]]


def text_between(size: int, special: set[int]) -> IdRanges:
    """The ids 0..size-1 that are not special, as ranges.

    >>> text_between(6, {0, 1, 3})
    (range(2, 3), range(4, 6))
    """
    cuts = [-1, *sorted(one for one in special if one < size), size]
    return tuple(range(a + 1, b) for a, b in pairwise(cuts) if b > a + 1)


def no_such_grid(name: str, grid: tuple[int, int], cause: str, next_step: str) -> DocumentError:
    """Return the error for a grid that a layout can't encode."""
    return DocumentError(
        f"layout {name}", f"a picture of {grid[0]} x {grid[1]} codes {cause}", next_step
    )


@dataclass(frozen=True)
class RequestTokens:
    """The token ids of a request layout.

    Args:
        begin: ids from the start of a sequence to the request.
        answer: ids between a request and its answer.
        end: ids after an answer.
        opening, closing: ids before and after a picture.
        blank: see `Layout.blank`.
        text_prefix: see `Layout.text_prefix`.
    """

    begin: tuple[int, ...]
    answer: tuple[int, ...]
    end: tuple[int, ...]
    opening: tuple[int, ...]
    closing: tuple[int, ...]
    blank: int
    text_prefix: str


class RequestLayout(Layout):
    """A layout of documents whose last segment is the answer.

    Args:
        name: for messages.
        vocabulary: its ids.
        tokens: ids around segments.
    """

    def __init__(self, name: str, vocabulary: Vocabulary, tokens: RequestTokens) -> None:
        self._name, self._vocabulary, self.tokens = name, vocabulary, tokens

    @property
    def name(self) -> str:
        return self._name

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens."""
        facts = json.dumps([self._name, asdict(self.tokens)])
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    @property
    def begin(self) -> tuple[int, ...]:
        return self.tokens.begin

    @property
    def end(self) -> tuple[int, ...]:
        return self.tokens.end

    @property
    def reads_pictures(self) -> bool:
        """Always False; see `between`."""
        return False

    @property
    def blank(self) -> int | None:
        return self.tokens.blank

    @property
    def text_prefix(self) -> str:
        return self.tokens.text_prefix

    def between(self, boundary: Boundary) -> tuple[int, ...]:
        """The ids before an answer.

        Raises:
            DocumentError: something follows a picture, or another document.
        """
        if boundary.before == "image":
            raise DocumentError(
                f"layout {self.name}",
                "has content after a picture, but this model can only generate pictures, not "
                "read them: its network for reading pictures is not supported",
                "put the picture last, or use a model that reads pictures",
            )
        if boundary.starts_document:
            raise DocumentError(
                f"layout {self.name}",
                "supports one request and one answer, but no retrieved documents",
                "turn off retrieval (generate.retrieve=false)",
            )
        return self.tokens.answer

    def frame(self, grid: tuple[int, int]) -> Frame:
        return Frame(self.tokens.opening, (), self.tokens.closing)

    def segments(self, tokens: IntArray, grid: tuple[int, int]) -> list[tuple[str, IntArray]]:
        """As in other layouts; the ids before an answer include text ids."""
        parts = split_at(tokens, self.tokens.answer)
        return [one for part in parts for one in super(RequestLayout, self).segments(part, grid)]
