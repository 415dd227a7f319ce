"""`emu3_5`: the layout of Emu3.5. Light.

Ids and order: BAAI's `tokenization_emu3.py`, `input_utils.py`, `logits_processor.py` and example configs
(baaivision/Emu3.5, Apache-2.0).
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

#: Distance of the special ids from the first, `<|endoftext|>`: `<|extra_0|>` is the third after it.
EXTRA, PICTURE_START = 3, 208


@dataclass(kw_only=True)
class Emu35LayoutConfig(LayoutConfig):
    """Emu3.5's layout: `<bos> request ASSISTANT: <bss> answer <ess> <eos>`, a picture is
    `<boi> H*W <image> row <eol> row ... <eoi>`, H and W in codes, as text.

    A picture has no `<eol>` after its last row. What precedes the answer is the request: texts and pictures. The words
    before the request, which name a task, are part of its first text (`emu3_5_draw`, `emu3_5_edit`). The order of the
    two last ids is inferred: upstream removes both from what the model writes.

    Args:
        first_special: id of `<|endoftext|>`, which pads; the other special ids and the image codes follow in
            BAAI's order. Its tokenizer's file has none of them.
        vocab_size: rows of the embedding table.
        answer: text between a request and its answer, before `<bss>`.
    """

    outside: ClassVar[Mapping[str, Outside]] = {"answer": TEXT}
    has_sentinels: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "first_special": (0, 2**24),
        "vocab_size": (1, 2**24),
    }

    first_special: int = 151_643
    vocab_size: int = 282_926
    answer: str = " ASSISTANT: "

    @property
    def first_code(self) -> int:
        """Id of image code 0."""
        return self.first_special + PICTURE_START + 3

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
        """Return the number of codes, row ends, the size as text (at most one token per digit), and three more."""
        digits = len(str(grid[0])) + 1 + len(str(grid[1]))
        return grid[0] * (grid[1] + 1) - 1 + digits + 3

    def special_ids(self) -> dict[str, int]:
        """Return the special ids, by role."""
        extra = self.first_special + EXTRA
        start = self.first_special + PICTURE_START
        return {
            "pad": self.first_special,
            "bos": extra + 203,
            "eos": extra + 204,
            "bss": extra + 100,
            "ess": extra + 101,
            "image": start,
            "boi": start + 1,
            "eoi": start + 2,
            "eol": extra + 200,
        }

    def build(self, parts: VocabularyParts, grid: tuple[int, int]) -> Layout:
        from cm3core.vocab import Vocabulary
        from cm3published.layouts.turns import Emu35Layout, TurnTokens, text_between

        own = self.special_ids()
        between = range(self.first_special, self.first_code)
        hidden = {*between, *parts.text_tokenizer.special_ids().values()}
        most = min(parts.text_tokenizer.vocab_size, self.first_code)
        codes = range(self.first_code, self.first_code + parts.codebook_size)
        vocabulary = Vocabulary(self.vocab_size, text_between(most, hidden), codes, own)
        tokens = TurnTokens(
            begin=(own["bos"],),
            turn_end=(own["ess"], own["eos"]),
            opening=(own["boi"],),
            closing=(own["eoi"],),
            row_end=(own["eol"],),
        )
        answer = (*parts.text_tokenizer.encode(self.answer), own["bss"])
        return Emu35Layout(vocabulary, tokens, own["image"], parts.text_tokenizer, answer)
