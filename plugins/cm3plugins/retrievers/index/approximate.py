"""Base of the approximate engines: exact re-ranking, and the choice of the search setting.

An engine scores compressed vectors. Re-ranking some extra candidates by the full vectors makes scores
exact, so thresholds mean the same with every index, and corrects most compression errors, mainly for
queries unlike the documents, such as texts compared with averages of text and picture.

Legend: Q queries, W results per query, C candidates per query, M rows, E dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cm3core.errors import DataError
from cm3plugins.indexes.threads import faiss_calls
from cm3plugins.retrievers.index.base import (
    NO_ROW,
    FlatIndex,
    FloatArray,
    RowArray,
    VectorIndex,
    best,
)

if TYPE_CHECKING:
    from cm3run.bank import VectorRows

#: Bytes of vectors added per block.
BLOCK_BYTES = 64 << 20
#: A search uses twice the smallest setting that finds `WANTED` of the `NEAREST` neighbours of
#: `NUM_MEASURED` documents of the bank. It is doubled because queries of one modality are farther from
#: the documents than these are from each other.
WANTED, NEAREST, NUM_MEASURED, MARGIN = 0.99, 4, 256, 2
#: The largest setting tried; a recall this close to the best counts as the best; scores this close
#: count as equal (a bank may hold copies of a document, and any of them will do).
MOST_TRIED, LEAST_GAIN, TIE = 1024, 0.002, 1e-6


class Engine(ABC):
    """Builds, writes, reads and searches an approximate index over rows.

    The index itself is an object of the engine's library ("native").

    Args:
        vectors: M rows, M >= 1.
    """

    #: Name of the type, and of the folder of its file.
    name: ClassVar[str]
    #: The recipe's key for the search setting: higher values find more and take longer.
    setting_key: ClassVar[str]
    #: The smallest setting worth trying.
    least_setting: ClassVar[int] = 1

    def __init__(self, vectors: VectorRows) -> None:
        self.vectors = vectors

    @property
    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """Everything that determines the native index except the vectors, as JSON types."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Approximate size on disk, and in memory while it is built."""

    @property
    @abstractmethod
    def most_setting(self) -> int:
        """The setting above which nothing more is found."""

    @abstractmethod
    def build(self, progress: bool) -> Any:
        """Build the native index over all rows in order, reading them in blocks.

        Raises:
            RecipeError: too few rows for this type.
            DataError: a vector holds NaN or infinity.
        """

    @abstractmethod
    def candidates(
        self, native: Any, setting: int, queries_QE: FloatArray, number: int
    ) -> RowArray:
        """Return the best rows [Q, number] by the engine's scores, unsorted, without duplicates per query.

        Missing results are -1.
        """

    @abstractmethod
    def write(self, native: Any, path: Path) -> None:
        """Write the native index to a file."""

    @abstractmethod
    def read(self, path: Path) -> Any:
        """Map the native index of a file into memory.

        Raises:
            RuntimeError, ValueError: the file is damaged or holds another type.
        """

    def measured_setting(self, native: Any, num_candidates: int) -> int:
        """Measure the search setting, see `WANTED`."""
        if len(self.vectors) < 2:
            return self.least_setting
        queries_QE = self.vectors.take(
            np.unique(np.linspace(0, len(self.vectors) - 1, NUM_MEASURED).astype(np.int64))
        )
        # the document itself, or a copy, is one of them
        width = min(NEAREST + 1, len(self.vectors))
        least_Q1 = FlatIndex(self.vectors).search(queries_QE, width)[0][:, -1:] - TIE
        recalls: dict[int, float] = {}
        setting = min(self.least_setting, self.most_setting)
        while True:
            found_QW = ApproximateIndex(self, native, setting, num_candidates).search(
                queries_QE, width
            )[0]
            recalls[setting] = 1 - float((found_QW < least_Q1).mean()) * width / (width - 1)
            if recalls[setting] >= WANTED or setting >= min(self.most_setting, MOST_TRIED):
                break
            setting = min(2 * setting, self.most_setting)
        # Compressed vectors may miss the target at every setting. Then take the smallest setting
        # that comes close to the best.
        enough = min(WANTED, max(recalls.values()) - LEAST_GAIN)
        return min(
            self.most_setting,
            MARGIN * min(setting for setting, recall in recalls.items() if recall >= enough),
        )


class ApproximateIndex(VectorIndex):
    """Ranks an engine's candidates by exact scores.

    Args:
        engine: finds the candidates.
        native: the engine's index.
        setting: search setting.
        num_candidates: minimum of C. C is the same for all widths up to half of it, so the first
            results don't depend on the width.
    """

    def __init__(self, engine: Engine, native: Any, setting: int, num_candidates: int) -> None:
        super().__init__(engine.vectors)
        self.engine, self.native, self.num_candidates = engine, native, num_candidates
        self.setting = min(setting, engine.most_setting)

    @property
    def exact(self) -> bool:
        """False: it may miss results."""
        return False

    @property
    def description(self) -> str:
        """Type, sizes and setting."""
        sizes = ", ".join(f"{name} {value}" for name, value in self.engine.sizes.items())
        return f"{self.engine.name} ({sizes}), {self.engine.setting_key} {self.setting}, num_candidates {self.num_candidates}"

    def _search(self, queries_QE: FloatArray, width: int) -> tuple[FloatArray, RowArray]:
        number = min(max(self.num_candidates, 2 * width), self.num_rows)
        rows_QC = self.engine.candidates(self.native, self.setting, queries_QE, number)
        scores_QC, of_part_QC = np.empty((2, *rows_QC.shape), np.float32)
        start = 0
        with faiss_calls(queries_QE.shape[1]) as faiss:
            # faiss reads the rows in place; rows below 0 belong to another part
            for part_mE in self.vectors.parts:
                own_QC = np.where(
                    (rows_QC >= start) & (rows_QC < start + len(part_mE)), rows_QC - start, NO_ROW
                )
                faiss.fvec_inner_products_by_idx(
                    *map(faiss.swig_ptr, (of_part_QC, queries_QE, np.asarray(part_mE), own_QC)),
                    queries_QE.shape[1],
                    *rows_QC.shape,
                )
                np.copyto(scores_QC, of_part_QC, where=own_QC != NO_ROW)
                start += len(part_mE)
        return best(scores_QC, rows_QC, width)


def check_finite(vectors_nE: FloatArray, rows_n: RowArray) -> None:
    """Raise `DataError` for the first row that holds NaN or infinity."""
    finite_n = np.isfinite(vectors_nE).all(1)
    if not finite_n.all():
        raise DataError(
            f"document {rows_n[np.argmin(finite_n)]} of the memory",
            "its vector holds NaN or infinity",
            "remove it (cm3 memory remove), or build the bank again",
        )
