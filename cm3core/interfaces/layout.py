"""Kind `layout`: the sequence protocol by which documents become ids.

A layout defines the ids, and the tokens around segments: those that begin and end a sequence, separate two segments,
frame a picture and end its rows, mark a hole, and remain of a prompt when a guidance stream hides its text. Training
sequences, prompts, the grammar of completions and the inverse are all derived from these
definitions (`cm3core.sequence`), so that they agree.

A picture is one id a code, in the order of its form (`cm3core.picture_form`): the codes of a place side by
side, rows one after the other. `grid` is (rows, codes of a row).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cm3core.document import IntArray
from cm3core.errors import DocumentError
from cm3core.interfaces.component import ComponentConfig
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3core.vocab import Vocabulary, VocabularySizes


@dataclass(frozen=True)
class VocabularyParts:
    """Inputs for a layout's vocabulary.

    Args:
        text_tokenizer: the model's.
        codebook_size: of the image tokenizer.
        sizes: from the recipe's section `vocabulary`, both tokenizers and the objective, for a layout
            that assigns its own ids.
    """

    text_tokenizer: TextTokenizer
    codebook_size: int
    sizes: VocabularySizes


@dataclass(kw_only=True)
class LayoutConfig(ComponentConfig):
    """Base of layouts' configs."""

    kind: ClassVar[str] = "layout"
    #: Whether holes anywhere in a document can be filled, see `Layout.has_sentinels`.
    has_sentinels: ClassVar[bool] = True
    #: Whether pictures may have different numbers of codes, see `Layout.writes_sequences`.
    writes_sequences: ClassVar[bool] = False
    #: Whether recipes without a section `layout` use this one; exactly one installed layout sets it.
    is_default: ClassVar[bool] = False

    #: Whether texts can be generated, see `Layout.writes_text`.
    writes_text: ClassVar[bool] = True
    #: Whether anything may follow a picture, see `Layout.reads_pictures`.
    reads_pictures: ClassVar[bool] = True
    #: Whether it writes the turns of conversations, see `Layout.has_turns`.
    has_turns: ClassVar[bool] = False
    #: Whether ids are found by the names of the text tokenizer's tokens (`TextTokenizer.special_ids`).
    needs_named_tokens: ClassVar[bool] = False

    def offers(self) -> Mapping[str, bool]:
        """What its sequences allow."""
        rules_out = {} if self.has_sentinels else {"holes": False}
        return rules_out | {
            "text": self.writes_text,
            "prefix": self.reads_pictures,
            "turns": self.has_turns,
        }

    def requires(self) -> tuple[str, ...]:
        """Named tokens, if it `needs_named_tokens`."""
        return ("named_tokens",) if self.needs_named_tokens else ()

    def check_pictures(self, grid: tuple[int, int], codebook_size: int) -> None:
        """Raise `RecipeError` if the layout can't write such pictures. By default it can write all.

        Light, and called before anything is built.

        Args:
            grid: the image tokenizer's (rows, codes of a row).
            codebook_size: its number of codes.
        """

    def build(self, parts: VocabularyParts, grid: tuple[int, int]) -> Layout:
        """Return the layout for documents whose pictures have `grid` (rows, columns) codes.

        Raises:
            RecipeError: the tokenizer lacks a token that the layout needs, or the layout can't write
                such a grid.
        """
        raise NotImplementedError

    def num_ids(self, sizes: VocabularySizes) -> int | None:
        """Rows of the embedding table, available before building; None: unknown."""
        return None

    def picture_length(self, grid: tuple[int, int]) -> int:
        """Number of tokens of a picture including its frame, available before building; by default one
        token before and one after its codes."""
        return grid[0] * grid[1] + 2


@dataclass(frozen=True)
class Boundary:
    """A place between two segments of a sequence.

    Args:
        before, after: the segments' modalities, "text" or "image".
        starts_document: whether a document begins after it.
        is_last: whether the segment after it is the last of its document.
        text_hidden: whether the segment after it belongs to a query document whose texts are all hidden
            from a guidance stream.
        turn_ends: whether a turn of a conversation ends there; None: the document is not a conversation, see
            `cm3core.document.is_conversation`.
    """

    before: str
    after: str
    starts_document: bool = False
    is_last: bool = False
    text_hidden: bool = False
    turn_ends: bool | None = None


@dataclass(frozen=True)
class Frame:
    """The ids around the codes of a picture.

    Args:
        opening: before its first code.
        row_end: after the last code of each row.
        closing: after all rows.
        ends_last_row: whether the last row has a `row_end`, too; if not, `closing` has a token.
    """

    opening: tuple[int, ...] = ()
    row_end: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()
    ends_last_row: bool = True

    def num_tokens(self, grid: tuple[int, int]) -> int:
        """Number of tokens of a picture with its frame."""
        ends = (grid[0] - (not self.ends_last_row)) * len(self.row_end)
        return grid[0] * grid[1] + len(self.opening) + ends + len(self.closing)


class Layout(ABC):
    """The id table and the delimiters around segments.

    Properties are constant. A layout may be used by several threads.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in messages."""

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """The table of ids."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything besides the vocabulary that determines its sequences, stored with checkpoints; "" if
        there is nothing else."""

    @property
    @abstractmethod
    def begin(self) -> tuple[int, ...]:
        """Ids before the first document; see `begin_before` for when there are none."""

    @property
    @abstractmethod
    def end(self) -> tuple[int, ...]:
        """Ids after the last document; at least one. The first of them ends a text at the end of its
        document."""

    def begin_before(self, modality: str) -> tuple[int, ...]:
        """Ids before the first document, whose first visible segment is "text" or "image":
        by default `begin`, which must have at least one id, because something must predict the first token.

        A layout whose texts are not predicted (a class) has none before them. `begin` is then empty.
        """
        return self.begin

    @property
    def writes_text(self) -> bool:
        """Whether texts can be generated, which requires a token before them that predicts them."""
        return bool(self.begin_before("text"))

    @property
    def reads_pictures(self) -> bool:
        """Whether anything may follow a picture. If not, the model generates pictures but can't read them."""
        return True

    @property
    def hides_all(self) -> bool:
        """Whether a guidance stream without texts starts with the tokens that begin the picture to generate:
        nothing before it, no other picture and no `begin`."""
        return False

    @property
    def blank(self) -> int | None:
        """The id with which a guidance stream without texts replaces every token of a picture's prompt,
        except the first and those that begin the picture; the prompt keeps its length.
        None: texts are hidden in another way."""
        return None

    @property
    def text_prefix(self) -> str:
        """Text encoded before each text, as a part of it, and removed again on decoding: a space, if the
        tokenizer is to encode the first word like any other."""
        return ""

    @property
    def has_turns(self) -> bool:
        """Whether `between` writes the ends of a conversation's turns (`Boundary.turn_ends`), and `end`
        ends the last one."""
        return False

    @abstractmethod
    def between(self, boundary: Boundary) -> tuple[int, ...]:
        """Ids between two segments."""

    @abstractmethod
    def frame(self, grid: tuple[int, int]) -> Frame:
        """The tokens around a picture of (rows, columns) codes.

        Raises:
            DocumentError: the layout can't write such a grid.
        """

    @property
    def has_sentinels(self) -> bool:
        """Whether holes anywhere can be filled: a sentinel takes the place of each, and its
        content follows after the sequence. Otherwise only a document's end can be generated."""
        return self.vocabulary.num_sentinels > 0

    @property
    def writes_sequences(self) -> bool:
        """Whether pictures may have different numbers of codes (`PictureForm.is_sequence`). The default:
        not, because `segments` knows where a picture ends by its grid."""
        return False

    def check(self, grid: tuple[int, int]) -> Frame:
        """The frame of a grid; raises `DocumentError` for layouts that can't form sequences."""
        frame = self.frame(grid)
        if self.has_sentinels and frame.row_end:
            raise DocumentError(
                f"layout {self.name}",
                "has both sentinels and tokens at the ends of rows",
                "remove one of them: a moved span has no rows",
            )
        if not self.begin_before("image") or not self.end or (self.hides_all and not frame.opening):
            raise DocumentError(
                f"layout {self.name}",
                "begins or ends sequences without a token",
                "give at least one id: something must predict the first token",
            )
        return frame

    # ---- reading sequences

    def segments(self, tokens: IntArray, grid: tuple[int, int]) -> list[tuple[str, IntArray]]:
        """Split a sequence into texts and pictures, in order: the ids int32 of each, without delimiters.

        Args:
            tokens: int32 [n], without `begin` and `end`.
            grid: of every picture.

        Raises:
            DocumentError: a token is out of place.
        """
        frame = self.frame(grid)
        found: list[tuple[str, IntArray]] = []
        image, text = self.vocabulary.is_image(tokens), self.vocabulary.is_text(tokens)
        place = 0
        while place < len(tokens):
            if (frame.opening and _starts(tokens, place, frame.opening)) or image[place]:
                start = place + len(frame.opening)
                stop = start + frame.num_tokens(grid) - len(frame.opening)
                inside = slice(start, stop - len(frame.closing))
                codes = tokens[inside][image[inside]]
                whole = picture_tokens(codes, frame, grid[1])
                if len(tokens) < stop or whole.tolist() != tokens[place:stop].tolist():
                    raise self._out_of_place(tokens[min(start, len(tokens) - 1)], "a picture")
                found.append(("image", codes))
                place = stop
            elif text[place]:
                rest = np.flatnonzero(~text[place:])
                stop = place + int(rest[0]) if len(rest) else len(tokens)
                found.append(("text", tokens[place:stop]))
                place = stop
            else:
                place += 1
        return found

    def _out_of_place(self, token: int, what: str) -> DocumentError:
        return DocumentError(
            f"layout {self.name}",
            f"{what} is not whole, at {self.vocabulary.name(int(token))}",
            "pass a whole sequence without masks",
        )


def picture_tokens(codes: IntArray, frame: Frame, columns: int) -> IntArray:
    """Ids int32 of a picture in its frame, from the ids int32 [c] of its codes; `columns`: codes of a row.

    >>> picture_tokens(np.array([5, 6, 7, 8], np.int32), Frame((1,), (2,), (3,)), 2).tolist()
    [1, 5, 6, 2, 7, 8, 2, 3]
    """
    rows = codes
    if frame.row_end:
        ends = np.tile(np.asarray(frame.row_end, np.int32), (len(codes) // columns, 1))
        whole = codes[: len(ends) * columns].reshape(len(ends), columns)
        rows = np.append(np.concatenate([whole, ends], axis=1), codes[len(ends) * columns :])
        if frame.closing and not frame.ends_last_row:
            rows = rows[: -len(frame.row_end)]
    return np.concatenate([frame.opening, rows, frame.closing]).astype(np.int32)


def _starts(tokens: IntArray, place: int, opening: tuple[int, ...]) -> bool:
    return tuple(tokens[place : place + len(opening)].tolist()) == opening
