"""Vectors that lie in several arrays one behind another, as the shards of a memory bank do, often
memory-mapped.

Legend: M rows, E numbers a row, n rows asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from cm3core.arguments import checked
from cm3core.errors import DataError

FloatArray = npt.NDArray[np.float32]


class VectorRows:
    """Rows 0..M-1 of several arrays, none of which is copied.

    Args:
        parts: float32 [m, E] each, in order; any may be empty.
        dimension: E, needed where there is no part.

    Raises:
        DataError: a part of another shape or type, or none and no dimension.
    """

    @checked(DataError)
    def __init__(self, parts: Sequence[FloatArray], dimension: int | None = None) -> None:
        if dimension is None:
            if len(parts) == 0:
                raise DataError("parts", "there is none", "give the dimension")
            dimension = parts[0].shape[-1]
        for place, part in enumerate(parts):
            if part.dtype != np.float32 or part.ndim != 2 or part.shape[1] != dimension:
                raise DataError(
                    f"parts[{place}]",
                    f"is {part.dtype} {list(part.shape)}, not float32 [m, {dimension}]",
                    "give rows of one length",
                )
        self.parts: Sequence[FloatArray] = tuple(parts)
        self.dimension = dimension
        self._starts = list(accumulate((len(part) for part in parts), initial=0))

    @classmethod
    @checked(DataError)
    def of(cls, rows: FloatArray) -> VectorRows:
        """The rows of one array."""
        return cls([rows])

    @property
    def shape(self) -> tuple[int, int]:
        """(M, E)."""
        return self._starts[-1], self.dimension

    def __len__(self) -> int:
        return self._starts[-1]

    def take(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> FloatArray:
        """A copy of some rows.

        Args:
            indices: [n], 0..M-1, in any order, also twice.

        Returns:
            float32 [n, E].

        Raises:
            IndexError: an index is outside.
        """
        rows = np.asarray(indices, np.int64).reshape(-1)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            wrong = rows[(rows < 0) | (rows >= len(self))][0]
            raise IndexError(f"row {wrong}: there are {len(self)}")
        taken_nE = np.empty((rows.size, self.dimension), np.float32)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(owner):
            mine = owner == part
            taken_nE[mine] = self.parts[part][rows[mine] - self._starts[part]]
        return taken_nE

    def blocks(self, max_rows: int) -> Iterator[tuple[int, FloatArray]]:
        """All rows in order, `max_rows` or fewer at a time: (place of the first, view of them). A
        block lies in one part."""
        if max_rows < 1:
            raise ValueError(f"max_rows: is {max_rows}, not 1 or more")
        for start, part in zip(self._starts, self.parts, strict=False):  # one more start than parts
            for first in range(0, len(part), max_rows):
                yield start + first, part[first : first + max_rows]

    def row(self, index: int) -> FloatArray:
        """A view of one row, float32 [E]."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index}: there are {len(self)}")
        part = bisect_right(self._starts, index) - 1
        row: FloatArray = self.parts[part][index - self._starts[part]]
        return row
