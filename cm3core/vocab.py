"""The vocabulary: one table of ids, in typed ranges, for text, image codes and special tokens.

The layout is CM3leon's (paper section 2.1; ids as asserted in facebookresearch/metaseq, branch
scaling_racm3):

    0..3                   control tokens <s> <pad> </s> <unk>; `</s>` is the paper's <eos>, the end of a document
    4..num_text-1          text tokens (byte-level BPE)
    then num_image         image codes
    then num_reserved      reserved
    then                   <break>, <eoss> (end of infill), <sentinel:0> ... <sentinel:num_sentinels-1>
    then                   control tokens of an objective's own, if it asks for some (UL2's modes)
    then                   padding up to a multiple of 8 (never produced)

With 56,320 text, 8,192 image and 1,024 reserved ids the first part is exactly 2**16, and <break> is
65,536.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from cm3core.errors import DocumentError, close_match

NUM_CONTROL = 4
#: A control token's name; it is shown as `<NAME>`.
_CONTROL_NAME = re.compile(r"[A-Za-z][\w.-]{0,39}")
_RESERVED_NAMES = ("s", "pad", "eos", "unk", "break", "eoss")


@dataclass(frozen=True)
class Vocabulary:
    """Sizes of the ranges; every id is derived from them and never written as a literal.

    Args:
        num_text: size of the text range, the 4 control tokens included (paper: 56,320).
        num_image: size of the image tokenizer's codebook (paper: 8,192).
        num_sentinels: mask tokens; the maximum number of spans that an objective may use in a
            sequence (metaseq: 512).
        num_reserved: unused ids between image codes and specials (paper: 1,024).
        multiple_of: the table is padded to a multiple of this (metaseq: 8).
        control: names of control tokens of the objective's own, in the order of their ids.
    """

    num_text: int
    num_image: int
    num_sentinels: int = 512
    num_reserved: int = 0
    multiple_of: int = 8
    control: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low in (
            ("num_text", NUM_CONTROL + 1),
            ("num_image", 0),
            ("num_sentinels", 1),
            ("num_reserved", 0),
            ("multiple_of", 1),
        ):
            if getattr(self, name) < low:
                raise DocumentError(
                    f"vocabulary.{name}",
                    f"is {getattr(self, name)}, must be at least {low}",
                    "correct the recipe's section 'vocabulary'",
                )
        for place, name in enumerate(self.control):
            taken = name in self.control[:place] or name in _RESERVED_NAMES
            if taken or not _CONTROL_NAME.fullmatch(name):
                raise DocumentError(
                    f"control token {name!r}",
                    "the name is taken" if taken else "is not a plain name",
                    "correct the objective's `control_tokens`: letters, digits, '_', '-' and '.', "
                    "each name once",
                )

    bos = 0
    pad = 1
    eos = 2
    unk = 3

    @cached_property
    def text(self) -> range:
        """Ids of text tokens, without control tokens."""
        return range(NUM_CONTROL, self.num_text)

    @cached_property
    def image(self) -> range:
        """Ids of image codes."""
        return range(self.num_text, self.num_text + self.num_image)

    @property
    def break_(self) -> int:
        """`<break>`: between text and image, and between documents of one sequence."""
        return self.num_text + self.num_image + self.num_reserved

    @property
    def end_of_infill(self) -> int:
        """`<eoss>`: closes each moved span."""
        return self.break_ + 1

    @cached_property
    def sentinels(self) -> range:
        """`<sentinel:i>`: the mask token in place of a span, and at the head of the moved span."""
        return range(self.break_ + 2, self.break_ + 2 + self.num_sentinels)

    def sentinel(self, index: int) -> int:
        """Return the id of `<sentinel:index>`."""
        if not 0 <= index < self.num_sentinels:
            raise DocumentError(
                f"sentinel {index}",
                f"the vocabulary has {self.num_sentinels} sentinels",
                "mask fewer spans, or raise vocabulary.num_sentinels before training",
            )
        return self.sentinels[index]

    @cached_property
    def control_ids(self) -> range:
        """Ids of the objective's own control tokens, in the order of `control`."""
        return range(self.sentinels.stop, self.sentinels.stop + len(self.control))

    def control_id(self, name: str) -> int:
        """Return the id of the objective's control token `name`."""
        if name not in self.control:
            raise DocumentError(
                f"control token {name!r}",
                "is not in the vocabulary",
                close_match(name, self.control)
                if self.control
                else "name it in the objective's `control_tokens`",
            )
        return self.control_ids[self.control.index(name)]

    @cached_property
    def size(self) -> int:
        """Rows of the embedding table: all ids, padded to a multiple of `multiple_of`."""
        used = self.control_ids.stop
        return -(-used // self.multiple_of) * self.multiple_of

    def name(self, token: int) -> str:
        """Return a readable name of an id, for messages and for inspecting sequences."""
        if token in self.text:
            return f"text:{token - self.text.start}"
        if token in self.image:
            return f"image:{token - self.image.start}"
        if token in self.sentinels:
            return f"<sentinel:{token - self.sentinels.start}>"
        if token in self.control_ids:
            return f"<{self.control[token - self.control_ids.start]}>"
        fixed = {
            0: "<s>",
            1: "<pad>",
            2: "<eos>",
            3: "<unk>",
            self.break_: "<break>",
            self.end_of_infill: "<eoss>",
        }
        return fixed.get(token, f"<unused:{token}>")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for checkpoints and memory banks."""
        values = asdict(self)
        control = list(values.pop("control"))  # without one, as before there were any
        return {**values, "control": control} if control else values

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of the sizes: equal layouts, and only they, share it."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
