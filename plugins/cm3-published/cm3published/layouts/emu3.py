"""`emu3`: the layout of Emu3. Light.

Ids: Qwen's table with Emu3's additions, as in BAAI's `configuration_emu3.py`; the order follows its
`processing_emu3.py` (baaivision/Emu3) and transformers' `Emu3Processor` and `Emu3Model`, all Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import RecipeError
from cm3core.interfaces.layout import Layout, LayoutConfig, VocabularyParts
from cm3core.interfaces.reach import TEXT, Outside

if TYPE_CHECKING:
    from cm3core.vocab import VocabularySizes


@dataclass(kw_only=True)
class Emu3LayoutConfig(LayoutConfig):
    """Emu3's layout: `<bos> text <boi> H*W <image> {row <eol>} <eof> <eoi> <eos>`, H and W in codes,
    as text. Emu3-Chat's is `<bos> text picture text answer <eos>`, with a text before the answer.

    Emu3's `.tiktoken` file has no special tokens, so they are given as ids; the defaults are the
    published model's. A guidance stream without text sees `<bos>` and the tokens that start the picture.

    Args:
        begin, padding, end: ids of `<bos>`, `<pad>` and `<eos>`.
        picture_begin, picture_end: ids of `<boi>` and `<eoi>`.
        picture_start: id after the size.
        row_end, frame_end: ids of `<eol>` and `<eof>`.
        first_code: id of image code 0; the others follow.
        vocab_size: rows of the embedding table.
        answer: text between a request and a text answer: " ASSISTANT:" for Emu3-Chat. "": the
            end of a sequence.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "answer": TEXT,
    }

    has_sentinels: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "begin": (0, 2**24),
        "padding": (0, 2**24),
        "end": (0, 2**24),
        "picture_begin": (0, 2**24),
        "picture_end": (0, 2**24),
        "picture_start": (0, 2**24),
        "row_end": (0, 2**24),
        "frame_end": (0, 2**24),
        "first_code": (0, 2**24),
        "vocab_size": (1, 2**24),
    }

    begin: int = 151_849
    padding: int = 151_643
    end: int = 151_850
    picture_begin: int = 151_852
    picture_end: int = 151_853
    picture_start: int = 151_851
    row_end: int = 151_846
    frame_end: int = 151_847
    first_code: int = 151_854
    vocab_size: int = 184_622
    answer: str = ""

    def check_pictures(self, grid: tuple[int, int], codebook_size: int) -> None:
        """Raise `RecipeError` if the embedding table has not enough rows for all codes."""
        needed = self.first_code + codebook_size
        if needed > self.vocab_size:
            raise RecipeError(
                "layout.vocab_size",
                f"is {self.vocab_size:,}, but the image tokenizer's {codebook_size:,} codes end at id {needed:,}",
                f"use {needed} or more, or an image tokenizer with fewer codes",
            )

    def num_ids(self, sizes: VocabularySizes) -> int | None:
        """`vocab_size`."""
        return self.vocab_size

    def picture_length(self, grid: tuple[int, int]) -> int:
        """Return the number of codes, row ends, the size as text (at most one token per digit), and five more."""
        digits = len(str(grid[0])) + 1 + len(str(grid[1]))
        return grid[0] * (grid[1] + 1) + digits + 4

    def build(self, parts: VocabularyParts, grid: tuple[int, int]) -> Layout:
        from cm3core.vocab import Vocabulary
        from cm3published.layouts.turns import Emu3Layout, TurnTokens, text_between

        special = {
            "pad": self.padding,
            "bos": self.begin,
            "eos": self.end,
            "boi": self.picture_begin,
            "eoi": self.picture_end,
            "image": self.picture_start,
            "eol": self.row_end,
            "eof": self.frame_end,
        }
        hidden = {*special.values(), *parts.text_tokenizer.special_ids().values()}
        most = min(parts.text_tokenizer.vocab_size, self.first_code)
        codes = range(self.first_code, self.first_code + parts.codebook_size)
        vocabulary = Vocabulary(self.vocab_size, text_between(most, hidden), codes, special)
        tokens = TurnTokens(
            begin=(self.begin,),
            turn_end=(self.end,),
            opening=(self.picture_begin,),
            closing=(self.frame_end, self.picture_end),
            row_end=(self.row_end,),
        )
        answer = tuple(parts.text_tokenizer.encode(self.answer)) if self.answer else ()
        return Emu3Layout(vocabulary, tokens, self.picture_start, parts.text_tokenizer, answer)
