"""The vocabulary: one table of ids for text, image codes and special tokens.

The layout (`cm3core.interfaces.layout`) decides the meaning of ids: it computes them from sizes, or takes them from a
published model. It also decides in which order ids form a sequence. All code that computes with ids uses the methods
here.

Special tokens have names. "pad" is always required; a layout with sentinels also needs "eos" (the end of a
document), "break" (between segments) and "eoss" (the end of a moved span).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cm3core.arguments import checked
from cm3core.errors import DocumentError, TokenizerError, close_match

#: Ids as disjoint ranges in ascending order.
IdRanges: TypeAlias = tuple[range, ...]
#: Ids or codes, of any shape.
Ids: TypeAlias = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class VocabularySizes:
    """Inputs for a layout that assigns its own ids.

    Args:
        num_text_ids: ids of the text tokenizer; 0: unknown.
        num_image: image codes.
        num_text: ids of texts in the recipe's section `vocabulary`; None: as many as needed.
        num_sentinels, num_reserved, multiple_of: see that section.
        control: names of the objective's control tokens, in the order of their ids.
    """

    num_text_ids: int
    num_image: int
    num_text: int | None = None
    num_sentinels: int = 512
    num_reserved: int = 0
    multiple_of: int = 8
    control: tuple[str, ...] = ()


class Vocabulary:
    """The meaning of each id. Immutable; tables with the same contents are equal.

    Args:
        size: rows of the embedding table.
        text: ids available for texts, ascending and disjoint.
        codes: id of each image code; together one range, in any order.
        special: name -> id of the other tokens that a layout writes; must include "pad".
        first_text: id of the text tokenizer's id 0; the others follow.
        sentinels: ids of mask tokens: `<sentinel:i>` stands in place of a span, and before
            the moved span.
        control: name -> id of the objective's control tokens, adjacent and ascending.

    Raises:
        DocumentError: ids outside the table, ids with two meanings, or image codes with gaps.
    """

    def __init__(
        self,
        size: int,
        text: IdRanges,
        codes: Sequence[int] | range,
        special: Mapping[str, int],
        *,
        first_text: int = 0,
        sentinels: range = range(0),
        control: Mapping[str, int] | None = None,
    ) -> None:
        in_order = isinstance(codes, range) and codes.step == 1
        own = np.zeros(0, np.int64) if in_order else np.asarray(codes, np.int64)
        if in_order:
            first, last = codes[0] if len(codes) else 0, codes[-1] if len(codes) else -1
        else:
            first, last = (int(own.min()), int(own.max())) if len(own) else (0, -1)
        control = {} if control is None else dict(control)
        self._size, self._text, self._first_text = size, tuple(text), first_text
        self._special, self._sentinels, self._control = dict(special), sentinels, control
        self._codes = None if in_order else own.astype(np.int32)
        self._image = range(first, last + 1)
        single = {*special.values(), *control.values()}
        used = [*text, self._image, sentinels, *(range(one, one + 1) for one in single)]
        used = sorted((ids for ids in used if len(ids)), key=lambda ids: ids.start)
        overlap = [b for a, b in pairwise(used) if b.start < a.stop]
        problem = (
            "lacks the id of padding"
            if "pad" not in special
            else f"has image codes with gaps: {len(own)} in {first}..{last}"
            if not in_order and not np.array_equal(np.sort(own), np.arange(first, last + 1))
            else f"uses the id {overlap[0].start} twice"
            if overlap
            else f"has ids up to {used[-1].stop - 1} in a table of {size}"
            if used and (used[-1].stop > size or used[0].start < 0)
            else ""
        )
        if problem:
            raise DocumentError(
                "vocabulary", problem, "give the text tokenizer that was published with the model"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return self._size

    # ---- special tokens

    @property
    def special(self) -> Mapping[str, int]:
        """Name -> id of the tokens that a layout writes."""
        return self._special

    @property
    def pad(self) -> int:
        """Padding."""
        return self._special["pad"]

    @property
    def eos(self) -> int:
        """The end of a document. Raises `DocumentError` if the vocabulary has no such token, as do `break_` and
        `end_of_infill`."""
        return self._own("eos")

    @property
    def break_(self) -> int:
        """Between text and image, and between documents of one sequence."""
        return self._own("break")

    @property
    def end_of_infill(self) -> int:
        """Closes each moved span."""
        return self._own("eoss")

    def _own(self, name: str) -> int:
        if name not in self._special or not self._sentinels:
            raise DocumentError(
                "vocabulary",
                f"has no sentinels, and therefore no token {name!r}",
                "use the layout's methods for what begins, separates and ends segments",
            )
        return self._special[name]

    @property
    def num_sentinels(self) -> int:
        """Number of mask tokens: the maximum number of spans that an objective may use in a sequence."""
        return len(self._sentinels)

    @property
    def sentinels(self) -> range:
        """Ids of mask tokens."""
        return self._sentinels

    @checked(TokenizerError)
    def sentinel(self, index: int) -> int:
        """Return the id of `<sentinel:index>`."""
        if not 0 <= index < self.num_sentinels:
            raise DocumentError(
                f"sentinel {index}",
                f"the vocabulary has {self.num_sentinels} sentinels",
                "mask fewer spans, or raise vocabulary.num_sentinels before training",
            )
        return self._sentinels[index]

    @property
    def control(self) -> tuple[str, ...]:
        """Names of the objective's control tokens, in the order of their ids."""
        return tuple(self._control)

    @property
    def control_ids(self) -> tuple[int, ...]:
        """Ids of the objective's control tokens, in the order of `control`."""
        return tuple(self._control.values())

    @checked(TokenizerError)
    def control_id(self, name: str) -> int:
        """Return the id of the objective's control token `name`."""
        if name not in self._control:
            raise DocumentError(
                f"control token {name!r}",
                "is not in the vocabulary",
                close_match(name, self.control)
                if self._control
                else "name it in the objective's `control_tokens`",
            )
        return self._control[name]

    # ---- texts

    @property
    def text(self) -> range:
        """From the first to the last id of texts; `text_ranges` excludes other ids in between."""
        return range(self._text[0].start, self._text[-1].stop) if self._text else range(0)

    @property
    def room_for_text(self) -> int:
        """Maximum number of ids for the text tokenizer."""
        return self._size - self._first_text

    @checked(TokenizerError)
    def text_ranges(self, num_text_ids: int) -> IdRanges:
        """Ids of texts if the text tokenizer has `num_text_ids` ids."""
        stop = self._first_text + num_text_ids
        return tuple(
            range(own.start, min(own.stop, stop)) for own in self._text if own.start < stop
        )

    def is_text(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which ids belong to texts."""
        if len(self._text) == 1:
            return (ids >= self._text[0].start) & (ids < self._text[0].stop)
        found = np.zeros(np.shape(ids), np.bool_)
        for own in self._text:
            found |= (ids >= own.start) & (ids < own.stop)
        return found

    def of_text(self, ids: Ids) -> npt.NDArray[np.int32]:
        """Vocabulary ids of the text tokenizer's ids."""
        return (np.asarray(ids) + np.int32(self._first_text)).astype(np.int32)

    def to_text(self, ids: Ids) -> npt.NDArray[np.int32]:
        """The text tokenizer's ids: the inverse of `of_text`."""
        return (np.asarray(ids) - np.int32(self._first_text)).astype(np.int32)

    # ---- image codes

    @property
    def num_image(self) -> int:
        """Number of image codes."""
        return len(self._image)

    @property
    def image(self) -> range:
        """Ids of image codes."""
        return self._image

    def is_image(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which ids are image codes."""
        return (ids >= self._image.start) & (ids < self._image.stop)

    @cached_property
    def codes_in_order(self) -> bool:
        """Whether image code c has the id `image.start + c`."""
        return self._codes is None or bool((np.diff(self._codes) == 1).all())

    @cached_property
    def _code_of(self) -> npt.NDArray[np.int32]:
        assert self._codes is not None
        return np.argsort(self._codes).astype(np.int32)

    def of_codes(self, codes: Ids) -> npt.NDArray[np.int32]:
        """Ids of image codes 0..num_image-1. The placeholder code of a hole (-1, say) becomes an arbitrary id."""
        if self._codes is None:
            return (np.maximum(codes, 0) + np.int32(self._image.start)).astype(np.int32)
        return self._codes[np.clip(codes, 0, max(len(self._codes) - 1, 0))]

    def to_codes(self, ids: Ids) -> npt.NDArray[np.int32]:
        """Image codes: the inverse of `of_codes`."""
        if self._codes is None:
            return (ids - np.int32(self._image.start)).astype(np.int32)
        return self._code_of[np.asarray(ids) - self._image.start]

    # ---- as a whole

    @checked(TokenizerError)
    def name(self, token: int) -> str:
        """Return a readable name of an id, for messages and for inspecting sequences."""
        names = {number: name for name, number in (self._special | self._control).items()}
        if token in names:
            return f"<{names[token]}>"
        if token in self._image:
            return f"image:{self.to_codes(np.array([token]))[0]}"
        if token in self._sentinels:
            return f"<sentinel:{token - self._sentinels.start}>"
        is_text = any(token in own for own in self._text)
        return f"text:{token - self._first_text}" if is_text else f"<unused:{token}>"

    @checked(TokenizerError)
    def with_control(self, names: Sequence[str]) -> Vocabulary:
        """The same vocabulary with these control tokens after all other ids."""
        values = [*self._special.values(), *(own.stop - 1 for own in self._text)]
        used = 1 + max(*values, self._image.stop - 1, self._sentinels.stop - 1)
        return Vocabulary(
            max(self._size, used + len(names)),
            self._text,
            self._image if self._codes is None else self._codes.tolist(),
            self._special,
            first_text=self._first_text,
            sentinels=self._sentinels,
            control={name: used + place for place, name in enumerate(names)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for checkpoints and memory banks: equal ones for equal tables."""
        values: dict[str, Any] = {
            "size": self._size,
            "text": [[own.start, own.stop] for own in self._text],
            "image": [self._image.start, self._image.stop],
            "special": dict(self._special),
        }
        if not self.codes_in_order:
            assert self._codes is not None
            order = hashlib.sha256(self._codes.astype("<i4").tobytes()).hexdigest()[:16]
            values["codes"] = order
        # keys that only some tables have, so that the fingerprints of others are unchanged
        if self._first_text:
            values["first_text"] = self._first_text
        if self._sentinels:
            values["sentinels"] = [self._sentinels.start, self._sentinels.stop]
        return {**values, "control": dict(self._control)} if self._control else values

    @cached_property
    def fingerprint(self) -> str:
        """Short hash: equal tables, and only they, share it."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
