"""`emu3`: the layout of Emu3. Light.

Ids: Qwen's table with Emu3's additions, as in its published tokenizer; the order is that of
transformers' `Emu3Processor` and `Emu3Model` (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cm3core.interfaces.layout import Boundary, Layout, LayoutConfig, VocabularyParts
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3core.vocab import GivenVocabulary, Vocabulary
from cm3plugins.layouts.turns import TurnLayout, TurnTokens, text_between


@dataclass(kw_only=True)
class Emu3LayoutConfig(LayoutConfig):
    """Emu3's layout: `<bos> text <boi> H*W <image> {row <eol>} <eof> <eoi> <eos>`, H and W in codes,
    as text.

    Emu3's `.tiktoken` file has no special tokens, so they are given as ids; the defaults are the
    published model's. A guidance stream without text sees `<bos>` and what begins the picture.

    Args:
        begin, padding, end: ids of `<bos>`, `<pad>` and `<eos>`.
        picture_begin, picture_end: ids of `<boi>` and `<eoi>`.
        picture_start: id behind the size.
        row_end, frame_end: ids of `<eol>` and `<eof>`.
        first_code: id of image code 0; the others follow.
        vocab_size: rows of the embedding table.
    """

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

    def num_ids(self, by_sizes: Vocabulary) -> int | None:
        """`vocab_size`."""
        return self.vocab_size

    def picture_length(self, grid: tuple[int, int]) -> int:
        """Codes, row ends, the size as text (a token a digit at most), and five more."""
        digits = len(str(grid[0])) + 1 + len(str(grid[1]))
        return grid[0] * (grid[1] + 1) + digits + 4

    def build(self, parts: VocabularyParts, grid: tuple[int, int]) -> Layout:
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
        vocabulary = GivenVocabulary(self.vocab_size, text_between(most, hidden), codes, special)
        tokens = TurnTokens(
            begin=(self.begin,),
            turn_end=(self.end,),
            opening=(self.picture_begin,),
            closing=(self.frame_end, self.picture_end),
            row_end=(self.row_end,),
        )
        return Emu3Layout(vocabulary, tokens, self.picture_start, parts.text_tokenizer)


class Emu3Layout(TurnLayout):
    """A layout of documents with sizes as text.

    Args:
        vocabulary, tokens: see `TurnLayout`.
        picture_start: id behind the size.
        text_tokenizer: of the size.
    """

    def __init__(
        self,
        vocabulary: GivenVocabulary,
        tokens: TurnTokens,
        picture_start: int,
        text_tokenizer: TextTokenizer,
    ) -> None:
        super().__init__("emu3", vocabulary, tokens)
        self._picture_start, self._text_tokenizer = picture_start, text_tokenizer

    def between(self, boundary: Boundary) -> tuple[int, ...]:
        """Nothing between a text and its picture; what ends a sequence between two texts and between
        documents."""
        both_text = boundary.before == boundary.after == "text" and not boundary.text_hidden
        return self.tokens.turn_end if both_text or boundary.starts_document else ()

    def _sizes(self, grid: tuple[int, int]) -> tuple[int, ...]:
        return (*self._text_tokenizer.encode(f"{grid[0]}*{grid[1]}"), self._picture_start)

    def _size_facts(self) -> list[int]:
        return [self._picture_start]
