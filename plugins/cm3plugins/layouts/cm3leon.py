"""`cm3leon`: the paper's layout and its ids. Light.

The ids follow from sizes (paper section 2.1; as asserted in facebookresearch/metaseq, branch scaling_racm3):

    0..3                   control tokens <s> <pad> </s> <unk>; `</s>` is the paper's <eos>, the end of a document
    4..num_text-1          text tokens (byte-level BPE)
    then num_image         image codes
    then num_reserved      reserved
    then                   <break>, <eoss> (end of infill), <sentinel:0> ... <sentinel:num_sentinels-1>
    then                   control tokens of the objective, if it requests any (UL2's modes)
    then                   padding up to a multiple of 8 (never produced)

With 56,320 text, 8,192 image and 1,024 reserved ids, <break> is id 2**16 =
65,536.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cm3core.arguments import checked
from cm3core.errors import DocumentError, RecipeError, TokenizerError
from cm3core.interfaces.layout import Layout, LayoutConfig, VocabularyParts
from cm3core.vocab import Vocabulary, VocabularySizes

#: `<s> <pad> </s> <unk>`, before all text ids.
NUM_CONTROL = 4
_FIRST = ("s", "pad", "eos", "unk")
#: A control token's name; it is shown as `<NAME>`.
_CONTROL_NAME = re.compile(r"[A-Za-z][\w.-]{0,39}")


class CM3LeonVocabulary(Vocabulary):
    """A vocabulary whose ids follow from sizes, see the module docstring.

    Args:
        num_text: size of the text range, the 4 control tokens included (paper: 56,320).
        num_image: size of the image tokenizer's codebook (paper: 8,192).
        num_sentinels: mask tokens; the maximum number of spans that an objective may use in a
            sequence (metaseq: 512).
        num_reserved: unused ids between image codes and specials (paper: 1,024).
        multiple_of: the table is padded to a multiple of this (metaseq: 8).
        control: names of the objective's control tokens, in the order of their ids.

    Raises:
        DocumentError: a size is out of range, or a name is taken or not plain.
    """

    def __init__(
        self,
        num_text: int,
        num_image: int,
        num_sentinels: int = 512,
        num_reserved: int = 0,
        multiple_of: int = 8,
        control: Sequence[str] = (),
    ) -> None:
        self._sizes: dict[str, Any] = {
            "num_text": num_text,
            "num_image": num_image,
            "num_sentinels": num_sentinels,
            "num_reserved": num_reserved,
            "multiple_of": multiple_of,
        }
        least = {"num_text": NUM_CONTROL + 1, "num_sentinels": 1, "multiple_of": 1}
        for name, value in self._sizes.items():
            if value < least.get(name, 0):
                raise DocumentError(
                    f"vocabulary.{name}",
                    f"is {value}, must be at least {least.get(name, 0)}",
                    "correct the recipe's section 'vocabulary'",
                )
        for place, name in enumerate(control):
            taken = name in control[:place] or name in (*_FIRST, "break", "eoss")
            if taken or not _CONTROL_NAME.fullmatch(name):
                raise DocumentError(
                    f"control token {name!r}",
                    "the name is taken" if taken else "is not a plain name",
                    "correct the objective's `control_tokens`: letters, digits, '_', '-' and '.', "
                    "with unique names",
                )
        codes = range(num_text, num_text + num_image)
        first = codes.stop + num_reserved
        sentinels = range(first + 2, first + 2 + num_sentinels)
        used = sentinels.stop + len(control)
        super().__init__(
            -(-used // multiple_of) * multiple_of,
            (range(NUM_CONTROL, num_text),),
            codes,
            {
                **{name: place for place, name in enumerate(_FIRST)},
                "break": first,
                "eoss": first + 1,
            },
            first_text=NUM_CONTROL,
            sentinels=sentinels,
            control={name: sentinels.stop + place for place, name in enumerate(control)},
        )

    @property
    def room_for_text(self) -> int:
        """Size of the text range, after which image codes start."""
        return len(self.text)

    @checked(TokenizerError)
    def with_control(self, names: Sequence[str]) -> CM3LeonVocabulary:
        """Return a vocabulary of the same sizes with these control tokens."""
        return CM3LeonVocabulary(**self._sizes, control=tuple(names))

    def to_dict(self) -> dict[str, Any]:
        """The sizes, which determine all ids."""
        control = {"control": list(self.control)} if self.control else {}
        return {**self._sizes, **control}


@dataclass(kw_only=True)
class CM3LeonLayoutConfig(LayoutConfig):
    """`<eos> T1 <break> I1 <break> ... Tq <break> Iq <eos>`, and sentinels (paper section 2.2).

    Ids follow from the recipe's section `vocabulary`: four control tokens, texts, image codes, reserved
    ids, `<break>`, `<eoss>`, sentinels. This is the default layout of recipes.
    """

    is_default: ClassVar[bool] = True
    writes_sequences: ClassVar[bool] = True

    def num_ids(self, sizes: VocabularySizes) -> int | None:
        """Compute the number of ids from the sizes."""
        needed = max(sizes.num_text_ids, 1) + NUM_CONTROL
        return self._vocabulary(sizes, needed if sizes.num_text is None else sizes.num_text).size

    def build(self, parts: VocabularyParts, grid: tuple[int, int]) -> Layout:
        from cm3core.sequence import SentinelLayout

        sizes = parts.sizes
        needed = sizes.num_text_ids + NUM_CONTROL
        num_text = needed if sizes.num_text is None else sizes.num_text
        if num_text < needed:
            raise RecipeError(
                "vocabulary.num_text",
                f"is {num_text}, but the text tokenizer has {sizes.num_text_ids} ids and "
                f"there are {NUM_CONTROL} control tokens",
                f"use {needed} or more, or null for exactly that",
            )
        return SentinelLayout(self._vocabulary(sizes, num_text), "cm3leon")

    def _vocabulary(self, sizes: VocabularySizes, num_text: int) -> CM3LeonVocabulary:
        return CM3LeonVocabulary(
            num_text,
            sizes.num_image,
            sizes.num_sentinels,
            sizes.num_reserved,
            sizes.multiple_of,
            sizes.control,
        )
