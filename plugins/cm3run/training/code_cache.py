"""Arrays computed once for a data set and cached on disk, one row per item, such as pictures' codes.

They are computed in shards, each written atomically, so that a killed process loses at most one
shard; the next run resumes after the last one. Folders are named by fingerprints of everything that
determines the rows, so stale data is never read. Legend: N documents, c codes of a picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cm3core.document import BoolArray, Codes, Document, Image, IntArray, as_codes
from cm3core.errors import DataError, FileError
from cm3core.files import atomic_path, cache_folder, write_text
from cm3core.interfaces.dataset import DocumentSource, SkippedRecord
from cm3run.built_once import built_once
from cm3run.npy import load_array, save_array
from cm3run.progress import make_bar
from cm3run.token_shards.writing import encoded_pictures

if TYPE_CHECKING:
    from cm3core.interfaces.image_tokenizer import ImageTokenizer

#: Value for the row of an unreadable picture, and for a rank without a neighbour.
NOTHING = -1


def sharded_rows(
    folder: Path,
    shape: tuple[int, int],
    dtype: npt.DTypeLike,
    compute: Callable[[int, int], npt.NDArray[Any]],
    *,
    shard_size: int,
    bar: Callable[..., Any],
    what: str = "computing rows",
) -> npt.NDArray[Any]:
    """Rows [num_rows, width], memory-mapped from `folder`; missing rows are computed, see `built_once`.

    Args:
        folder: for this array alone; holds `rows.npy` when complete, shards before that.
        shape: (num_rows, width).
        compute: (start, stop) -> rows [stop - start, width].
        shard_size: number of rows computed and written at once.
        bar: `make_bar`; called with the `total` number of rows.
        what: what is computed.
    """
    num_rows, width = shape

    def read(whole: Path) -> npt.NDArray[Any] | None:
        if not whole.exists():
            return None
        rows = _read(whole, memory_map=True)
        if rows.shape != shape:
            raise DataError(
                str(whole),
                f"has shape {list(rows.shape)}, expected {list(shape)}",
                f"delete the folder {whole.parent}; it will be recomputed",
            )
        return rows

    def build(whole: Path) -> None:
        starts = range(0, num_rows, shard_size)
        shards: list[Path] = []
        with bar(total=num_rows) as shown:
            for start in starts:
                stop, name = min(start + shard_size, num_rows), f"shard-{start:09d}.npy"
                # where nothing can be written any more, earlier shards can still be read
                found = [one for one in (folder / name, whole.parent / name) if one.exists()]
                if not found:
                    computed = np.asarray(compute(start, stop), dtype)
                    assert computed.shape == (stop - start, width)
                    _write(whole.parent / name, computed)
                shards.append(found[0] if found else whole.parent / name)
                shown.update(stop - start)
        _write(whole, np.concatenate([*map(_read, shards), np.zeros((0, width), dtype)]))
        for shard in shards:
            if shard.parent == whole.parent:
                shard.unlink()

    return built_once(folder / "rows.npy", what, read, build)


def _write(path: Path, rows: npt.NDArray[Any]) -> None:
    with atomic_path(path) as temporary:
        save_array(temporary, rows)


def _read(path: Path, memory_map: bool = False) -> npt.NDArray[Any]:
    try:
        return load_array(path, memory_map=memory_map)
    except (OSError, ValueError) as error:
        raise DataError(
            str(path),
            f"is damaged ({error})",
            f"delete the folder {path.parent}; it will be recomputed",
        ) from error


class CodeCache:
    """Codes of every picture of a source, each key once.

    Args:
        source: documents whose `Image` segments are encoded.
        image_tokenizer: encodes them, resized by `images.fit`.
        cache_dir: where caches are kept; None: `files.cache_directory()`.
        progress: show a bar while encoding.
        shard_size: maximum number of pictures lost when the process is killed.
        only: documents whose pictures are encoded, the others count as not usable; None: all.

    Raises:
        DataError: there are pictures, but none can be read.
    """

    def __init__(
        self,
        source: DocumentSource,
        image_tokenizer: ImageTokenizer,
        cache_dir: Path | None = None,
        *,
        progress: bool = True,
        shard_size: int = 256,
        only: Sequence[int] | None = None,
    ) -> None:
        chosen = range(len(source)) if only is None else only
        self.grid = image_tokenizer.grid
        self._rows: dict[str, int] = {}
        self._reasons: dict[str, dict[str, str]] = {}
        queue: list[Image] = []
        owners: list[int] = []  # the document of each picture segment, and the row of its codes
        owned: list[int] = []
        for index in () if source.is_encoded else chosen:
            for segment in source.document(index):
                if isinstance(segment, Image):
                    row = self._rows.setdefault(segment.key, len(queue))
                    if row == len(queue):
                        queue.append(segment)
                    owners.append(index)
                    owned.append(row)
        keys = hashlib.sha256(json.dumps(list(self._rows)).encode()).hexdigest()
        name = hashlib.sha256(
            f"{source.fingerprint} {image_tokenizer.fingerprint} {keys}".encode()
        ).hexdigest()[:24]
        self.folder = cache_folder("codes", name, root=cache_dir)

        def encode(start: int, stop: int) -> IntArray:
            return self._encode(queue[start:stop], image_tokenizer)

        dtype = np.int16 if image_tokenizer.codebook_size <= np.iinfo(np.int16).max else np.int32
        self._codes = sharded_rows(
            self.folder,
            (len(queue), self.grid[0] * self.grid[1]),
            dtype,
            encode,
            shard_size=shard_size,
            bar=partial(make_bar, desc="image codes", unit="picture", disable=not progress),
            what=f"encoding {len(queue):,} pictures",
        )
        bad = np.flatnonzero(self._codes[:, 0] == NOTHING)
        #: Unreadable pictures, with reasons.
        self.skipped = [SkippedRecord(**self._why_unreadable(queue[row].key)) for row in bad]
        self._unreadable = {queue[row].key for row in bad}
        #: Whether each document is among those chosen, and all its pictures are readable, bool [N].
        self.usable_N: BoolArray = np.zeros(len(source), bool)
        self.usable_N[np.asarray(chosen, np.int64)] = True
        self.usable_N[np.asarray(owners, np.int64)[np.isin(owned, bad)]] = False
        if queue and len(bad) == len(queue):
            first = self.skipped[0]
            raise DataError(
                first.place,
                f"{first.cause}; none of the {len(queue)} pictures can be read",
                first.next_step,
            )

    def _encode(self, pictures: list[Image], image_tokenizer: ImageTokenizer) -> IntArray:
        """Codes int32 [len(pictures), c]; `NOTHING` in the rows of unreadable pictures.

        The reasons are written to disk first.
        """
        rows = np.full((len(pictures), self.grid[0] * self.grid[1]), NOTHING, np.int32)
        for row, (picture, result) in enumerate(encoded_pictures(pictures, image_tokenizer)):
            if isinstance(result, DataError):
                reason = {
                    "place": result.place,
                    "cause": result.cause,
                    "next_step": result.next_step,
                }
                self._reasons[picture.key] = reason
                with suppress(FileError):  # where nothing can be written, for this process alone
                    write_text(self._reason(picture.key), json.dumps(reason))
            else:
                rows[row] = result
        return rows

    def _why_unreadable(self, key: str) -> dict[str, str]:
        """Place, cause and next step."""
        found = self._reasons.get(key)
        return found or json.loads(self._reason(key).read_text("utf-8"))

    def _reason(self, key: str) -> Path:
        """The file that records why a picture can't be read."""
        return self.folder / "unreadable" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows and key not in self._unreadable

    def codes(self, key: str) -> Codes:
        """Codes of the picture `key`.

        Raises `DataError` if the source has no such picture, or it can't be read.
        """
        if key not in self:
            raise DataError(
                f"picture {key}", "has no codes", "use the source whose pictures were encoded"
            )
        return Codes(self._codes[self._rows[key]].astype(np.int32), self.grid)

    def usable(self, document: Document) -> bool:
        """Whether all pictures of a document are readable."""
        return all(segment.key in self for segment in document if isinstance(segment, Image))

    def encoded(self, document: Document) -> Document:
        """The document with its pictures as codes."""
        return tuple(
            as_codes(segment, self.codes(segment.key)) if isinstance(segment, Image) else segment
            for segment in document
        )
