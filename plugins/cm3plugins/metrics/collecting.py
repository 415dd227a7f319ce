"""Collectors for most metrics: they keep a row of numbers, or any value, for each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cm3core.errors import DataError
from cm3core.interfaces.metric import Group, Metric, Score

Rows = npt.NDArray[np.float32]


class FeatureMetric(Metric):
    """Keeps the features of all samples: 8 KB per picture with 2,048 features."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[list[int], Rows]]] = {}

    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        for name in group:
            rows = np.array(columns[name], np.float32)  # a copy
            known = self._parts.setdefault(name, [])
            if known and known[0][1].shape[1:] != rows.shape[1:]:
                raise DataError(
                    f"column {name!r}",
                    f"has {rows.shape[1]} features per sample, but earlier ones have {known[0][1].shape[1]}",
                    "use one extractor",
                )
            known.append((list(indices), rows))

    def _merge(self, other: FeatureMetric) -> None:
        for name, parts in other._parts.items():
            self._parts.setdefault(name, []).extend(parts)

    def rows(self, name: str) -> Rows:
        """Return the features of all samples of a column, in the order of their numbers, float32 [N, D]."""
        return self.numbered(name)[1]

    def numbered(self, name: str) -> tuple[list[int], Rows]:
        """Return the sample numbers, and their features."""
        parts = self._parts[name]
        indices = np.concatenate([own for own, _ in parts])
        order = np.argsort(indices)
        rows = np.concatenate([own for _, own in parts])[order]
        return [int(index) for index in indices[order]], rows


class ValueMetric(Metric):
    """Keeps a value for each sample; `_value` computes it."""

    def __init__(self) -> None:
        self._values: dict[int, Any] = {}

    def _value(self, sample: Mapping[str, Any]) -> Any:
        """Compute the value of a sample from its columns."""
        raise NotImplementedError

    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        for place, index in enumerate(indices):
            self._values[index] = self._value({name: columns[name][place] for name in group})

    def _merge(self, other: ValueMetric) -> None:
        self._values |= other._values

    @property
    def values(self) -> dict[int, Any]:
        """Return number -> value in the order of the numbers, since sums depend on the order."""
        return {index: self._values[index] for index in sorted(self._values)}


def mean_score(name: str, values: Mapping[int, float], *, higher_is_better: bool) -> Score:
    """Return the mean of the samples' values as a score; its spread is the standard error."""
    numbers = np.array(list(values.values()), np.float64)
    spread = numbers.std(ddof=1) / np.sqrt(len(numbers)) if len(numbers) > 1 else None
    return Score(
        name,
        float(numbers.mean()),
        len(numbers),
        higher_is_better,
        None if spread is None else float(spread),
        {index: float(value) for index, value in values.items()},
    )
