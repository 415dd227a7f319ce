"""`chameleon` and `lumina`: the layouts of Chameleon, Anole, Lumina-mGPT and Lumina-mGPT 2.0. Light.

Names and roles of tokens: transformers' `ChameleonProcessor` and `ChameleonConfig` (Apache-2.0), and
Lumina-mGPT's published data format (2.0: Alpha-VLLM/Lumina-mGPT-2.0, `item_processor.py`, Apache-2.0). Ids
are looked up by name in the text tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import RecipeError
from cm3core.interfaces.component import check_value
from cm3core.interfaces.layout import Layout, LayoutConfig, VocabularyParts
from cm3core.interfaces.reach import TEXT, Outside

if TYPE_CHECKING:
    from cm3core.vocab import Vocabulary, VocabularySizes

#: Digits in the names of image codes: A to J, or 0 to 9.
_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")
_NEXT = "use the text_tokenizer.json published with the model"


@dataclass(kw_only=True)
class ChameleonLayoutConfig(LayoutConfig):
    """Chameleon's and Anole's layout: `<s> request <reserved08706> answer <reserved08706>`, a picture
    between `<racm3:break>` and `<eoss>`.

    Ids are the text tokenizer's own; image codes are found by their names. There are no sentinels:
    only the end of a document can be generated. A guidance stream without text sees `<s>`, the
    pictures, and the tokens that start the next one.

    Args:
        vocab_size: rows of the embedding table. null: the text tokenizer's number of ids.
        begin, padding, turn_end, picture_begin, picture_end: names of tokens.
        code: regular expression for names of image codes, with one group: the number, in digits or
            letters A to J.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "begin": TEXT,
        "padding": TEXT,
        "turn_end": TEXT,
        "picture_begin": TEXT,
        "picture_end": TEXT,
        "code": TEXT,
    }

    has_sentinels: ClassVar[bool] = False
    has_turns: ClassVar[bool] = True
    needs_named_tokens: ClassVar[bool] = True
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"vocab_size": (1, 2**24)}

    vocab_size: int | None = None
    begin: str = "<s>"
    padding: str = "<pad>"
    turn_end: str = "<reserved08706>"
    picture_begin: str = "<racm3:break>"
    picture_end: str = "<eoss>"
    code: str = "IMGIMG([A-J]+)Z"

    def check(self) -> None:
        """Raise `RecipeError` unless the expression is valid and has exactly one group."""
        super().check()
        try:
            groups = re.compile(self.code).groups
        except re.error:
            groups = 0
        check_value("layout.code", self.code, groups == 1, must_be="an expression with one group")

    def num_ids(self, sizes: VocabularySizes) -> int | None:
        """`vocab_size`."""
        return self.vocab_size

    def build(self, parts: VocabularyParts, grid: tuple[int, int]) -> Layout:
        from cm3published.layouts.turns import TurnLayout, TurnTokens

        special = parts.text_tokenizer.special_ids()
        tokens = TurnTokens(
            begin=(find(special, self.begin),),
            turn_end=(find(special, self.turn_end),),
            opening=(find(special, self.picture_begin),),
            closing=(find(special, self.picture_end),),
        )
        return TurnLayout("chameleon", self._vocabulary(parts, special, {}), tokens)

    def _codes(self, special: Mapping[str, int], number: int) -> Sequence[int]:
        """Return the ids of image codes 0..number-1."""
        return code_ids(special, self.code, number)

    def _vocabulary(
        self, parts: VocabularyParts, special: Mapping[str, int], others: Mapping[str, int]
    ) -> Vocabulary:
        """Return the vocabulary of texts, image codes and the layout's own tokens, including `others`."""
        from cm3core.vocab import Vocabulary
        from cm3published.layouts.turns import text_between

        names = (self.begin, self.turn_end, self.picture_begin, self.picture_end)
        own = {name.strip("<>"): find(special, name) for name in names}
        codes = self._codes(special, parts.codebook_size)
        size = parts.text_tokenizer.vocab_size if self.vocab_size is None else self.vocab_size
        hidden = {*special.values(), *codes}
        text = text_between(parts.text_tokenizer.vocab_size, hidden)
        return Vocabulary(size, text, codes, {"pad": find(special, self.padding), **own, **others})


@dataclass(kw_only=True)
class LuminaLayoutConfig(ChameleonLayoutConfig):
    """Lumina-mGPT's layout, of both versions: Chameleon's, with a picture's height and width before its codes and a
    token after each row.

    A guidance stream without text sees only the tokens that start the next picture, as in its training.

    Args:
        row_end: name of the token after each row.
        size: name of the size tokens; `{:05d}` stands for `first_size` plus the height or width in
            32 pixels.
        first_size: see `size`.
        codes_per_size: codes of 32 pixels: 2, in Lumina-mGPT 2.0 4.
        first_code: id of image code 0; the others follow. null: they have names (`code`).
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "row_end": TEXT,
        "size": TEXT,
    }

    row_end: str = "<reserved08799>"
    size: str = "<reserved{:05d}>"
    first_size: int = 8800
    codes_per_size: int = 2
    first_code: int | None = None
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "first_size": (0, 99_999),
        "codes_per_size": (1, 2**10),
        "first_code": (0, 2**24),
    }

    def check(self) -> None:
        """Raise `RecipeError` for an invalid `size` pattern."""
        super().check()
        try:
            is_pattern = self.size.format(1) != self.size
        except (ValueError, LookupError):
            is_pattern = False
        check_value("layout.size", self.size, is_pattern, must_be="a name with {:05d}")

    def picture_length(self, grid: tuple[int, int]) -> int:
        """Return the number of codes, row ends, two sizes, and the delimiters of a picture."""
        return grid[0] * (grid[1] + 1) + 4

    def build(self, parts: VocabularyParts, grid: tuple[int, int]) -> Layout:
        from cm3published.layouts.turns import LuminaLayout, TurnTokens

        special = parts.text_tokenizer.special_ids()
        row_end = find(special, self.row_end)
        tokens = TurnTokens(
            begin=(find(special, self.begin),),
            turn_end=(find(special, self.turn_end),),
            opening=(find(special, self.picture_begin),),
            closing=(find(special, self.picture_end),),
            row_end=(row_end,),
            hides_all=True,
        )
        sizes = {
            number: special[name]
            for number in range(1, 1000)
            if (name := self.size.format(self.first_size + number)) in special
        }
        vocabulary = self._vocabulary(parts, special, {})
        layout = LuminaLayout("lumina", vocabulary, tokens, sizes, self.codes_per_size)
        layout.frame(grid)
        return layout

    def _codes(self, special: Mapping[str, int], number: int) -> Sequence[int]:
        """Return the ids of image codes 0..number-1."""
        if self.first_code is None:
            return super()._codes(special, number)
        return range(self.first_code, self.first_code + number)


def find(special: Mapping[str, int], name: str) -> int:
    """Return a token's id by name; raises `RecipeError` if the text tokenizer lacks it."""
    if name not in special:
        raise RecipeError(
            "layout", f"needs the token {name!r}, but the text tokenizer lacks it", _NEXT
        )
    return special[name]


def code_ids(special: Mapping[str, int], pattern: str, number: int) -> list[int]:
    """Return the ids of image codes 0..number-1, by the numbers in their names; raises `RecipeError` if any is missing.

    >>> code_ids({"IMGIMGAZ": 4, "IMGIMGBZ": 6, "<s>": 0}, "IMGIMG([A-J]+)Z", 2)
    [4, 6]
    """
    found: dict[int, int] = {}
    for name, token in special.items():
        if match := re.fullmatch(pattern, name):
            digits = match[1].translate(_DIGITS)
            if digits.isdecimal():
                found[int(digits)] = token
    if sorted(found) != list(range(number)):
        missing = next((one for one in range(number) if one not in found), None)
        raise RecipeError(
            "layout",
            f"needs {number} image codes for the image tokenizer, but the text tokenizer names "
            f"{len(found)}" + ("" if missing is None else f", not {missing}"),
            "use the text tokenizer and the image tokenizer of the same model",
        )
    return [found[code] for code in range(number)]
