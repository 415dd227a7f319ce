"""Choose an index by the options, build it or find it next to its bank, and open it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cm3core.errors import FileError
from cm3plugins.retrievers.index.base import VectorIndex
from cm3plugins.retrievers.index.options import IndexOptions

if TYPE_CHECKING:
    from cm3plugins.retrievers.index.approximate import Engine
    from cm3run.bank import VectorRows

#: "auto" is flat up to this many numbers (documents x dimension): about 5 ms a query on one core of
#: an AMD EPYC (measured).
FLAT_NUMBERS = 32_000_000


def chosen_index(options: IndexOptions, shape: tuple[int, int]) -> str:
    """The index type that the options select for M rows of E numbers.

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
    """Open the index that `options` choose over `vectors`.

    Args:
        vectors: M rows, which are not copied and must not move.
        options: checked.
        folder: where approximate indexes are stored, each type in its own folder; None: they are
            built in memory each time.
        fingerprint: of the vectors (the bank's), by which a stored index recognises them. None:
            they are hashed, which reads them all.
        progress: show a progress bar while building.

    Raises:
        RecipeError: too few documents for the type.
        DataError: a vector holds NaN, or the folder holds something else.
    """
    from cm3plugins.retrievers.index.flat import FlatIndex

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
    """Open an engine's index, read from its folder if it is stored there, else built.

    Args:
        engine: over M rows.
        setting: of its searches; None: as measured when it was built.
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
                f"note: the index can't be kept and is built each time: {error.place} "
                f"{error.cause}",
                file=sys.stderr,
            )
    return opened(*build())


def hash_of(vectors: VectorRows) -> str:
    """SHA-256 of all vectors, independent of how they are split into parts."""
    digest = hashlib.sha256(f"{vectors.shape}".encode())
    for _, block in vectors.blocks(65536):
        digest.update(block.tobytes())
    return digest.hexdigest()
