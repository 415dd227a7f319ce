"""The vocabulary: one table of ids for text, image codes and special tokens.

A `Vocabulary` follows from sizes; a `GivenVocabulary` has ids that were given out elsewhere. Which one
a model has, and in which order its ids make a sequence, is its layout's affair
(`cm3core.interfaces.layout`). Nobody computes with ids but by the methods here.

Ids by sizes are CM3leon's (paper section 2.1; as asserted in facebookresearch/metaseq, branch
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cm3core.errors import DocumentError, close_match

#: Ids as disjoint ranges in ascending order.
IdRanges: TypeAlias = tuple[range, ...]
#: Ids or codes, of any shape.
Ids: TypeAlias = npt.NDArray[np.integer[Any]]

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

    def text_ranges(self, num_text_ids: int) -> IdRanges:
        """Ids of texts where the text tokenizer has `num_text_ids` ids of its own."""
        return (range(self.text.start, self.text.start + num_text_ids),)

    def is_text(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which ids are of texts."""
        return (ids >= self.text.start) & (ids < self.text.stop)

    def is_image(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which ids are image codes."""
        return (ids >= self.image.start) & (ids < self.image.stop)

    def of_text(self, ids: Ids) -> npt.NDArray[np.int32]:
        """Ids of the text tokenizer's ids."""
        return (ids + np.int32(self.text.start)).astype(np.int32)

    def to_text(self, ids: Ids) -> npt.NDArray[np.int32]:
        """The text tokenizer's ids: the inverse of `of_text`."""
        return (ids - np.int32(self.text.start)).astype(np.int32)

    @property
    def room_for_text(self) -> int:
        """Most ids that a text tokenizer may have."""
        return len(self.text)

    @property
    def codes_in_order(self) -> bool:
        """Whether image code c has the id `image.start + c`."""
        return True

    def of_codes(self, codes: Ids) -> npt.NDArray[np.int32]:
        """Ids of image codes 0..num_image-1."""
        return (codes + np.int32(self.image.start)).astype(np.int32)

    def to_codes(self, ids: Ids) -> npt.NDArray[np.int32]:
        """Image codes: the inverse of `of_codes`."""
        return (ids - np.int32(self.image.start)).astype(np.int32)

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


class GivenVocabulary(Vocabulary):
    """A vocabulary whose ids were given out elsewhere: a published model's.

    Texts keep the ids of their tokenizer; image codes have ids of one range, in any order. There are
    no sentinels and no control tokens of objectives.

    Args:
        size: rows of the embedding table.
        text: ids that texts may have, ascending and disjoint.
        codes: id of each image code.
        special: name -> id of the other tokens that a layout writes; "pad" must be among them.

    Raises:
        DocumentError: ids out of the table, of two things at once, or image codes with gaps.
    """

    special: Mapping[str, int]

    def __init__(
        self, size: int, text: IdRanges, codes: Sequence[int] | range, special: Mapping[str, int]
    ) -> None:
        own = np.asarray(codes, np.int64)
        first, last = (int(own.min()), int(own.max())) if len(own) else (0, -1)
        values: dict[str, Any] = {
            "num_text": sum(map(len, text)),
            "num_image": len(own),
            "num_sentinels": 0,
            "num_reserved": 0,
            "multiple_of": 1,
            "control": (),
            "special": dict(special),
            "_size": size,
            "_text": tuple(text),
            "_codes": own.astype(np.int32),
            "_image": range(first, last + 1),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        used = [*text, self._image, *(range(one, one + 1) for one in set(special.values()))]
        used = sorted((ids for ids in used if len(ids)), key=lambda ids: ids.start)
        overlap = [b for a, b in pairwise(used) if b.start < a.stop]
        problem = (
            "lacks the id of padding"
            if "pad" not in special
            else f"has image codes with gaps: {len(own)} in {first}..{last}"
            if not np.array_equal(np.sort(own), np.arange(first, last + 1))
            else f"gives the id {overlap[0].start} to two things"
            if overlap
            else f"has ids up to {used[-1].stop - 1} in a table of {size}"
            if used and (used[-1].stop > size or used[0].start < 0)
            else ""
        )
        if problem:
            raise DocumentError(
                "vocabulary", problem, "give the text tokenizer that was published with the model"
            )

    _size: int
    _text: IdRanges
    _codes: npt.NDArray[np.int32]
    _image: range

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GivenVocabulary) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return self._size

    @property
    def pad(self) -> int:  # type: ignore[override]  # a constant in the base
        """Padding."""
        return self.special["pad"]

    @property
    def text(self) -> range:
        """From the first to the last id of texts; `text_ranges` leaves out what is between."""
        return range(self._text[0].start, self._text[-1].stop) if self._text else range(0)

    @property
    def image(self) -> range:
        """Ids of image codes."""
        return self._image

    @property
    def sentinels(self) -> range:
        """None."""
        return range(0)

    @property
    def control_ids(self) -> range:
        """None."""
        return range(0)

    @property
    def bos(self) -> int:  # type: ignore[override]  # a constant in the base
        """Raises `DocumentError`, as do `eos`, `unk`, `break_` and `end_of_infill`."""
        raise DocumentError(
            "vocabulary",
            "has ids that a published model gave out, none of the framework's own tokens",
            "ask the layout for what begins, separates and ends segments",
        )

    eos = unk = break_ = end_of_infill = bos

    @property
    def room_for_text(self) -> int:
        """As many ids as the table has: the tokenizer's own are the model's."""
        return self._size

    def text_ranges(self, num_text_ids: int) -> IdRanges:
        """Ids that texts may have."""
        return self._text

    def is_text(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which ids are of texts."""
        found = np.zeros(np.shape(ids), np.bool_)
        for own in self._text:
            found |= (ids >= own.start) & (ids < own.stop)
        return found

    def of_text(self, ids: Ids) -> npt.NDArray[np.int32]:
        """The same ids."""
        return np.asarray(ids, np.int32)

    def to_text(self, ids: Ids) -> npt.NDArray[np.int32]:
        """The same ids."""
        return np.asarray(ids, np.int32)

    @cached_property
    def codes_in_order(self) -> bool:
        """Whether image code c has the id `image.start + c`."""
        return bool((np.diff(self._codes) == 1).all())

    @cached_property
    def _code_of(self) -> npt.NDArray[np.int32]:
        return np.argsort(self._codes).astype(np.int32)

    def of_codes(self, codes: Ids) -> npt.NDArray[np.int32]:
        """Ids of image codes. A code that a hole has (-1, say) becomes any id."""
        return self._codes[np.clip(codes, 0, max(len(self._codes) - 1, 0))]

    def to_codes(self, ids: Ids) -> npt.NDArray[np.int32]:
        """Image codes: the inverse of `of_codes`."""
        return self._code_of[np.asarray(ids) - self._image.start]

    def name(self, token: int) -> str:
        """Return a readable name of an id."""
        names = {number: name for name, number in self.special.items()}
        if token in names:
            return f"<{names[token]}>"
        if token in self._image:
            return f"image:{self._code_of[token - self._image.start]}"
        return f"text:{token}" if any(token in own for own in self._text) else f"<unused:{token}>"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for checkpoints."""
        order = hashlib.sha256(self._codes.astype("<i4").tobytes()).hexdigest()[:16]
        return {
            "size": self._size,
            "text": [[own.start, own.stop] for own in self._text],
            "image": [self._image.start, self._image.stop],
            "special": dict(self.special),
            **({} if self.codes_in_order else {"codes": order}),
        }
