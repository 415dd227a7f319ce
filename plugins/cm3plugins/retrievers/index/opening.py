"""Recipe keys of the index; finding an index next to its bank or building it, and
opening it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tqdm import tqdm

from cm3core.errors import FileError, RecipeError, close_match
from cm3core.interfaces.reach import TEXT, Outside
from cm3plugins.retrievers.index.base import VectorIndex

if TYPE_CHECKING:
    from cm3plugins.retrievers.index.approximate import Engine
    from cm3run.bank import VectorRows

INDEX_TYPES = ("auto", "flat", "ivf", "pq", "hnsw")


@dataclass(kw_only=True)
class IndexOptions:
    """Keys that choose and configure the vector index.

    Scores of results are exact with every index; approximate ones may miss results.

    Args:
        index: "flat" compares every vector (exact); "ivf" searches the nearest of about 2 sqrt(M) lists of
            8-bit vectors; "hnsw" walks a graph over 8-bit vectors (fast to search, slow to build); "pq" is
            "ivf" with an eighth of the bytes. "auto" is flat if a search then takes a few milliseconds,
            otherwise ivf.
        nprobe: number of lists visited by a search, for ivf and pq. None: measured when the index is built.
        ef_search: size of the candidate list of a search, for hnsw. None: measured when the index
            is built.
        num_candidates: number of best results by approximate score that are re-ranked by exact
            score.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "index": TEXT,
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "nprobe": (1, 2**31 - 1),
        "ef_search": (1, 2**31 - 1),
        "num_candidates": (1, 2**31 - 1),
    }

    index: str = "auto"
    nprobe: int | None = None
    ef_search: int | None = None
    num_candidates: int = 128

    def check_index(self) -> None:
        """Reject an unknown index, numbers below 1, and keys that the chosen index doesn't use."""
        if self.index not in INDEX_TYPES:
            raise RecipeError(
                "retriever.index",
                f"is {self.index!r}; {close_match(self.index, INDEX_TYPES)}",
                "use one of them",
            )
        for name, value, readers in (
            ("nprobe", self.nprobe, ("ivf", "pq")),
            ("ef_search", self.ef_search, ("hnsw",)),
            ("num_candidates", self.num_candidates, INDEX_TYPES),
        ):
            if value is None:
                continue
            if self.index not in ("auto", *readers):
                raise RecipeError(
                    f"retriever.{name}",
                    f"is set, but the index {self.index!r} doesn't use it",
                    f"leave it out, or use index={readers[0]}",
                )


#: "auto" is flat up to this many numbers (documents x dimension): about 5 ms per query on one core of
#: an AMD EPYC (measured).
FLAT_NUMBERS = 32_000_000


def chosen_index(options: IndexOptions, shape: tuple[int, int]) -> str:
    """Return the index type that the options select for M rows of E numbers.

    >>> chosen_index(IndexOptions(), (1000, 512)), chosen_index(IndexOptions(), (1_000_000, 512))
    ('flat', 'ivf')
    """
    num_rows, dimension = shape
    if num_rows == 0:
        return "flat"  # too small to approximate
    if options.index == "auto":
        return "flat" if num_rows * dimension <= FLAT_NUMBERS else "ivf"
    return options.index


def open_index(
    vectors: VectorRows,
    options: IndexOptions,
    folder: Path | None = None,
    fingerprint: str | None = None,
    *,
    progress: bool = True,
) -> VectorIndex:
    """Open the index chosen by `options` over `vectors`.

    Args:
        vectors: M rows, which are not copied and must not move.
        options: checked options.
        folder: where approximate indexes are stored, each type in its own folder; None: build them in
            memory each time.
        fingerprint: fingerprint of the vectors (the bank's), which a stored index is matched by. None:
            hash the vectors, which reads them all.
        progress: show a progress bar while building.

    Raises:
        RecipeError: too few documents for the type.
        DataError: a vector holds NaN, or the folder holds something else.
    """
    from cm3plugins.retrievers.index.base import FlatIndex

    name = chosen_index(options, vectors.shape)
    if name == "flat":
        return FlatIndex(vectors)
    from cm3plugins.retrievers.index.faiss_engines import ENGINES

    engine = ENGINES[name](vectors)
    setting = options.ef_search if engine.setting_key == "ef_search" else options.nprobe
    return open_engine(
        engine, setting, options.num_candidates, folder, fingerprint, progress=progress
    )


def open_engine(
    engine: Engine,
    setting: int | None,
    num_candidates: int,
    folder: Path | None = None,
    fingerprint: str | None = None,
    *,
    progress: bool = True,
) -> VectorIndex:
    """Open an engine's index: read it from its folder if stored there, otherwise build it.

    Args:
        engine: engine over M rows.
        setting: search setting; None: as measured when the index was built.
        num_candidates: see `IndexOptions`.
        folder, fingerprint, progress: see `open_index`.
    """
    from cm3plugins.indexes.kept import kept_index
    from cm3plugins.retrievers.index.approximate import ApproximateIndex

    def build() -> tuple[Any, dict[str, int]]:
        size = f"{len(engine.vectors):,} documents, {engine.num_bytes / 1e6:,.0f} MB"
        tqdm.write(f"note: building an index {engine.name!r} of {size}", file=sys.stderr)
        native = engine.build(progress)
        return native, {"setting": engine.measured_setting(native, num_candidates)}

    def build_file(path: Path) -> Mapping[str, Any]:
        native, measured = build()
        engine.write(native, path)
        return measured

    def opened(native: Any, measured: Mapping[str, Any]) -> VectorIndex:
        return ApproximateIndex(
            engine, native, int(measured["setting"]) if setting is None else setting, num_candidates
        )

    if folder is not None:
        num_rows, dimension = engine.vectors.shape
        built = {
            "engine": engine.name,
            "num_rows": num_rows,
            "dimension": dimension,
            "sizes": engine.sizes,
        }
        known = fingerprint or hash_of(engine.vectors)
        try:
            return kept_index(
                folder / engine.name,
                known,
                built,
                build_file,
                lambda path, measured: opened(engine.read(path), measured),
            )
        except FileError as error:
            tqdm.write(
                f"note: the index can't be stored and will be rebuilt each time: {error.place} "
                f"{error.cause}",
                file=sys.stderr,
            )
    return opened(*build())


def hash_of(vectors: VectorRows) -> str:
    """Return the SHA-256 of all vectors, independent of how they are split into parts."""
    digest = hashlib.sha256(f"{vectors.shape}".encode())
    for _, block in vectors.blocks(65536):
        digest.update(block.tobytes())
    return digest.hexdigest()
