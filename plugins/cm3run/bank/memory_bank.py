"""`MemoryBank`: a folder of documents with their vectors, opened without reading them.

`Memory` is the common base of banks and document databases: it records the tools that made its vectors and
codes, and refuses other tools.
Legend: M documents, E numbers of a vector.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cm3core.arguments import checked
from cm3core.document import BoolArray, Document
from cm3core.errors import DataError
from cm3core.files import user_path
from cm3core.interfaces.dataset import DocumentSource, Provenance, SkippedRecord
from cm3run.bank.manifest import MANIFEST, Manifest
from cm3run.bank.shard import HAS_IMAGE, HAS_TEXT, Shard, VectorRows, id_hash
from cm3run.trust import refuse_outside

if TYPE_CHECKING:
    import numpy.typing as npt

    from cm3core.interfaces.embedder import Embedder
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.interfaces.retriever import RetrieverConfig
    from cm3run.bank.manifest import Maker


class Memory(DocumentSource):
    """Documents of `Text` and `Codes` segments with their vectors.

    Args (set by subclasses):
        manifest: the tools that made the vectors and codes.
    """

    manifest: Manifest

    @property
    @abstractmethod
    def place(self) -> str:
        """Where it is, for messages."""

    @checked(DataError)
    def check_embedder(self, embedder: Embedder) -> None:
        """Raise `DataError` unless this embedder made the vectors."""
        maker = self.manifest.embedder
        if maker.fingerprint != embedder.fingerprint:
            raise self._made_with("embedder", maker, embedder.fingerprint)

    @checked(DataError)
    def check_tokenizer(self, image_tokenizer: ImageTokenizer) -> None:
        """Raise `DataError` unless this image tokenizer made the codes."""
        maker = self.manifest.image_tokenizer
        if maker.fingerprint != image_tokenizer.fingerprint:
            raise self._made_with("image_tokenizer", maker, image_tokenizer.fingerprint)

    def _made_with(self, kind: str, maker: Maker, here: str) -> DataError:
        name = kind.replace("_", " ")
        return DataError(
            self.place,
            f"was built with another {name} ({maker.name!r}, fingerprint "
            f"{maker.fingerprint[-12:]}; the current one has {here[-12:]})",
            f"use the {name} that it was built with, or build a bank for the model: cm3 memory build "
            "DATA --model MODEL -o FOLDER (uses the model's tools instead of a recipe's)",
        )


#: Vectors of banks up to this size are checked when the bank is opened; those of larger banks by
#: `cm3 memory stat --verify`.
CHECKED_BYTES = 64 << 20
#: Attempts to open a bank that another process changes at the same time.
_ATTEMPTS = 5


class MemoryBank(Memory):
    """Documents 0..M-1 of `Text` and `Codes` segments, with their vectors. Made by `open`.

    Args:
        folder: its folder.
        manifest: its manifest.
        shards: the usable ones, in order.
        damaged: the unusable ones.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        shards: Sequence[Shard],
        damaged: Sequence[SkippedRecord] = (),
    ) -> None:
        self.folder, self.manifest, self.shards = folder, manifest, tuple(shards)
        self._damaged = list(damaged)
        self._starts = list(accumulate(map(len, shards), initial=0))

    @classmethod
    @checked(DataError)
    def open(cls, folder: str | Path, *, skip_damaged: bool = False) -> MemoryBank:
        """Open a bank. Takes a few milliseconds per shard, whatever its size, because files are
        memory-mapped.

        Args:
            folder: written by `cm3 memory build`.
            skip_damaged: omit damaged shards, and list them in `skipped`.

        Raises:
            DataError: not a bank, an empty one, a newer format, or (without `skip_damaged`) a damaged shard:
                a missing file, or one of another size or shape; in banks with at
                most `CHECKED_BYTES` of vectors also a vector that does not have unit length.
        """
        folder = user_path(folder)
        for _ in range(_ATTEMPTS):
            manifest = Manifest.read(folder)
            shards, errors = _open_shards(folder, manifest)
            if not errors or Manifest.read(folder) == manifest:
                break
        if errors and not skip_damaged:
            first, more = errors[0], len(errors) - 1
            others = (
                f" (and {more} more of its {len(manifest.shards)} shards are damaged)"
                if more
                else ""
            )
            raise DataError(first.place, f"{first.cause}{others}", first.next_step)
        if not shards:
            raise DataError(
                str(folder),
                "is a memory bank without documents" if not errors else "has only damaged shards",
                "rebuild it: cm3 memory build",
            )
        if errors:
            manifest = manifest.with_shards(tuple(shard.info for shard in shards))
        return cls(
            folder,
            manifest,
            shards,
            [SkippedRecord(error.place, error.cause, error.next_step) for error in errors],
        )

    @property
    def place(self) -> str:
        """Its folder."""
        return str(self.folder)

    def __len__(self) -> int:
        return self._starts[-1]

    def _place(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < len(self):
            raise DataError(
                f"document {index}",
                f"the bank {self.folder} has {len(self)}",
                f"use 0..{len(self) - 1}",
            )
        shard = bisect_right(self._starts, index) - 1
        return self.shards[shard], index - self._starts[shard]

    @checked(DataError)
    def id(self, index: int) -> str:
        """The id under which it was added."""
        shard, row = self._place(index)
        return shard.id(row)

    @checked(DataError)
    def content_keys(self, index: int) -> frozenset[str]:
        """Content keys of the source document and of its codes."""
        shard, row = self._place(index)
        return shard.content_keys(row)

    @checked(DataError)
    def provenance(self, index: int) -> Provenance:
        """Licence and source, as stated by the data set it was built from."""
        shard, row = self._place(index)
        return shard.provenance(row)

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        shard, row = self._place(index)
        return shard.document(row)

    @property
    def skipped(self) -> list[SkippedRecord]:
        """The damaged shards that were omitted."""
        return list(self._damaged)

    @property
    def fingerprint(self) -> str:
        """Hash of its entire content: ids, texts, codes, content keys, vectors and their order, and of
        the tools that made them."""
        return self.manifest.fingerprint

    @property
    def content_fingerprint(self) -> str:
        """The same hash, computed without reading the documents."""
        return self.fingerprint

    @cached_property
    def vectors(self) -> VectorRows:
        """The documents' unit vectors, float32 [M, E], memory-mapped."""
        return VectorRows([shard.vectors for shard in self.shards], self.manifest.dimension)

    @cached_property
    def has_text(self) -> BoolArray:
        """Which documents have text, bool [M]."""
        return np.concatenate([(shard.table["parts"] & HAS_TEXT) != 0 for shard in self.shards])

    @cached_property
    def has_image(self) -> BoolArray:
        """Which documents have a picture, bool [M]."""
        return np.concatenate([(shard.table["parts"] & HAS_IMAGE) != 0 for shard in self.shards])

    @cached_property
    def id_hashes(self) -> npt.NDArray[np.uint64]:
        """`shard.id_hash` of each document's id, uint64 [M]."""
        return np.concatenate([np.asarray(shard.table["id_hash"]) for shard in self.shards])

    @checked(DataError)
    def find(self, names: Sequence[str]) -> dict[str, int]:
        """Index of each document with one of these ids; unknown ids are omitted."""
        wanted: dict[int, list[str]] = {}
        for name in names:
            wanted.setdefault(id_hash(name), []).append(name)
        places = np.flatnonzero(np.isin(self.id_hashes, np.array(list(wanted), np.uint64)))
        found = {self.id(index): index for index in places.tolist()}
        return {name: found[name] for name in names if name in found}

    def verify(self) -> list[DataError]:
        """Errors in its shards, omitted ones first: checks every file's hash, every vector
        and every document."""
        found = [DataError(one.place, one.cause, one.next_step) for one in self._damaged]
        for shard in self.shards:
            try:
                shard.verify()
            except DataError as error:
                found.append(error)
        return found


def _open_shards(folder: Path, manifest: Manifest) -> tuple[list[Shard], list[DataError]]:
    shards, errors = [], []
    for info in manifest.shards:
        try:
            shard = Shard(folder, info, manifest)
            if manifest.num_documents * manifest.dimension * 4 <= CHECKED_BYTES:
                shard.check_vectors()
            shards.append(shard)
        except DataError as error:
            errors.append(error)
    return shards, errors


def memory_of(config: RetrieverConfig) -> DocumentSource | None:
    """Open the memory that a retriever's config names: its own, or a bank. None: it names none,
    and searches the data set.

    Raises:
        CM3Error: the memory can't be opened.
    """
    if config.own_memory:
        return config.open_memory()
    if config.bank is None:
        return None
    refuse_outside(config)
    return MemoryBank.open(config.bank)


def is_bank(folder: Path) -> bool:
    """Whether the folder is a bank."""
    return (folder / MANIFEST).is_file()
