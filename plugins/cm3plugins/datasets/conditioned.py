"""Data set `conditioned`: records of another data set, each with a picture of its structure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cm3core.document import Document, Image, PixelArray, Text
from cm3core.errors import DataError
from cm3core.interfaces.condition import Condition, ConditionConfig
from cm3core.interfaces.dataset import (
    DocumentSource,
    DocumentSourceConfig,
    Original,
    Provenance,
    SkippedRecord,
)

if TYPE_CHECKING:
    from cm3core.interfaces.task import Record

#: Digits of a fingerprint in a picture's key.
_DIGITS = 16


@dataclass(kw_only=True)
class ConditionedConfig(DocumentSourceConfig):
    """Captioned pictures, each with a structure drawn from it, for the task `structure`. Fields:
    feature, condition, caption, image.

    Args:
        split: split of the data set inside; "train" uses the split set there.
        source: the data set; a condition drawn from text reads its field `objects`, other conditions its
            field `image`.
        condition: draws the structure.
        vary: draw the condition's settings anew for each picture, so that a model does not learn a single
            one; false: always use the condition's own settings.
        seed: seed of the varied settings.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"seed": (0, 2**63 - 1)}
    source: DocumentSourceConfig
    condition: ConditionConfig
    vary: bool = True
    seed: int = 0

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]  # those of the data set inside
        return self.source.splits

    def structures(self) -> list[str]:
        return [self.condition.feature]

    def build(self) -> ConditionedSource:
        """Return the data set.

        Raises:
            MissingPackageError: the condition's package is not installed.
            DataError: the data set inside can't be read.
        """
        self.check()
        inner = self.source if self.split == "train" else replace(self.source, split=self.split)
        inner.check()
        seed = self.seed if self.vary else None
        return ConditionedSource(
            inner.build(), self.condition.build(), self.condition.feature, seed
        )


class ConditionedSource(DocumentSource):
    """Records of another source with a condition. A picture's condition depends on the picture, the condition
    config and the seed, and has its own key, so its codes are computed once.

    Args:
        source: records with a picture or, for conditions drawn from text, `objects`.
        condition: draws the structure.
        feature: name of the structure.
        seed: seed of the varied settings; None: don't vary them.
    """

    def __init__(
        self, source: DocumentSource, condition: Condition, feature: str, seed: int | None
    ) -> None:
        self.source, self.condition, self.feature, self.seed = source, condition, feature, seed
        given = f"{condition.fingerprint}\0{seed}"
        self._mark = hashlib.sha256(given.encode()).hexdigest()[:_DIGITS]

    def __len__(self) -> int:
        return len(self.source)

    def id(self, index: int) -> str:
        return self.source.id(index)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        """Return the record's fields, and `feature` and `condition`.

        Raises:
            DataError: it lacks the field that the condition is drawn from.
        """
        record = self.source.record(index, rng)
        return {"feature": self.feature, "condition": self._condition(index, record), **record}

    def _condition(self, index: int, record: Record) -> Image:
        name = "objects" if self.condition.draws_from == "text" else "image"
        value = record.get(name)
        if name == "objects":
            text = getattr(value, "text", value)  # `Boxes` or their text
            if not isinstance(text, str) or not text.strip():
                raise self._lacks(index, name)
            key = f"text-{hashlib.sha256(text.encode()).hexdigest()}"
            return self._drawn(key, lambda: text)
        if not isinstance(value, Image):
            raise self._lacks(index, name)
        picture = value
        return self._drawn(picture.key, lambda: picture.load())

    def _lacks(self, index: int, name: str) -> DataError:
        return DataError(
            f"record {self.id(index)}",
            f"has no field {name!r}, which its condition is drawn from",
            "choose another dataset.condition or dataset.source",
        )

    def _drawn(self, key: str, source: Any) -> Image:
        """Draw the condition from what `source()` returns."""

        def load() -> PixelArray:
            rng = None
            if self.seed is not None:
                digest = hashlib.sha256(f"{self.seed}\0{key}".encode()).digest()
                rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
            return self.condition.draw(source(), rng)

        return Image(f"{key}#{self._mark}", load)

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        record = self.record(index, rng)
        names = ("feature", "condition", "caption", "image")
        values = [record[name] for name in names if name in record]
        return tuple(Text(value) if isinstance(value, str) else value for value in values)

    def group(self, index: int) -> str:
        return self.source.group(index)

    def truth(self, index: int) -> Mapping[str, object]:
        return self.source.truth(index)

    def provenance(self, index: int) -> Provenance:
        return self.source.provenance(index)

    def original(self, index: int) -> Original | None:
        return self.source.original(index)

    @property
    def skipped(self) -> list[SkippedRecord]:
        return self.source.skipped

    @property
    def fingerprint(self) -> str:
        own = f"conditioned {self._mark} {self.source.fingerprint}"
        return hashlib.sha256(own.encode()).hexdigest()
