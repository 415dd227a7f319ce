"""Documents of token shards, and the order in which training reads them.

A split is the list of its shards' documents. An epoch shuffles the shards; each of V virtual loaders gets an
equal part of the documents in that order, shuffled within a few shards at a time. The order depends only on
seed, epoch, the loader's number and V, so any number of processes reads the same. The next shards are fetched
while training computes. Legend: N documents.
"""

from __future__ import annotations

import json
import mmap
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from cm3core.document import Document
from cm3core.errors import CM3Error, DataError, TokenizerError, close_match
from cm3core.interfaces.dataset import DocumentSource, Provenance
from cm3plugins.datasets.tokens.storage import FolderStorage, Storage
from cm3run.token_shards import (
    MANIFEST,
    Entry,
    Manifest,
    StoredDocument,
    entries_of,
    stored_document,
)

if TYPE_CHECKING:
    from cm3core.interfaces.task import Record
    from cm3core.interfaces.text_tokenizer import TextTokenizerConfig

_NUM_THREADS = 4


class Ahead:
    """Fetches shards in the background.

    Args:
        fetch: fetches a shard by number; may be slow and fail: the reader then tries again, and reports.
        distance: number of shards to fetch ahead.
    """

    def __init__(self, fetch: Callable[[int], None], distance: int) -> None:
        self._fetch, self._distance = fetch, distance
        self._next: dict[int, list[int]] = {}
        self._wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._asked: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._stopped = False

    def stop(self) -> None:
        """Stop fetching: all shards are local."""
        self._stopped = True

    def follow(self, shards: Sequence[int]) -> None:
        """Set the approximate order in which shards will be read."""
        if self._stopped:
            return
        for place, number in enumerate(shards):
            self._next[number] = list(shards[place + 1 : place + 1 + 2 * self._distance])

    def reached(self, number: int) -> None:
        """A shard is being read: fetch the next ones."""
        self._asked.discard(number)
        for following in self._next.get(number, ()):
            if following not in self._asked:
                self._asked.add(following)
                self._wanted.put(following)
                if len(self._threads) < _NUM_THREADS:
                    # a daemon: the end of training does not wait for unneeded shards
                    thread = threading.Thread(target=self._work, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _work(self) -> None:
        while True:
            number = self._wanted.get()
            try:
                self._fetch(number)
            except (CM3Error, OSError):
                # the reader will get the same error
                self._asked.discard(number)


#: Number of shards open at a time.
_MAX_OPEN = 256
#: Separates the random streams of the shards' orders from all others.
_SHARD_ORDER, _DOCUMENT_ORDER = 8, 9
_TEXT_TOKENIZER = "text_tokenizer"


class _OpenShard(NamedTuple):
    """A mapped shard, and the `Entry` of each document, int64 [documents, 4]."""

    content: mmap.mmap
    entries: npt.NDArray[np.int64]


class TokensSource(DocumentSource):
    """The documents of a split.

    Args:
        storage: storage of the shards.
        split: name of the split.
        shuffle_shards: see `TokensSourceConfig`.

    Raises:
        DataError: there are no token shards, or the split does not exist.
    """

    def __init__(self, storage: Storage, split: str, shuffle_shards: int) -> None:
        self.storage, self.split, self.shuffle_shards = storage, split, shuffle_shards
        place = self.storage.place(MANIFEST)
        self.manifest = Manifest.parse(self.storage.read(MANIFEST), place)
        if split not in self.manifest.splits:
            known = list(self.manifest.splits)
            raise DataError(place, f"has no split {split!r}", close_match(split, known))
        self.shards = self.manifest.splits[split].shards
        #: Index of the first document of each shard, and N.
        self._starts = np.cumsum([0, *(shard.num_documents for shard in self.shards)])
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._ahead = Ahead(lambda number: self.storage.fetch(*self._file(number)), shuffle_shards)
        if isinstance(self.storage, FolderStorage):
            self._ahead.stop()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _file(self, number: int) -> tuple[str, int, str]:
        shard = self.shards[number]
        return shard.name, shard.num_bytes, shard.sha256

    def _shard(self, number: int) -> _OpenShard:
        """Return a shard, checked when this process first opens it."""
        found = self._open.get(number)
        if found is not None:
            self._open.move_to_end(number)
            return found
        self._ahead.reached(number)
        place = self.storage.place(self.shards[number].name)
        path = self.storage.checked(*self._file(number))
        try:
            with path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DataError(place, f"can't be mapped ({error})", "start again") from error
        entries = entries_of(memoryview(content), place)
        if len(entries) != self.shards[number].num_documents:
            raise DataError(
                place,
                f"has {len(entries)} documents, but the manifest states {self.shards[number].num_documents}",
                "encode the data set again",
            )
        self._open[number] = opened = _OpenShard(content, np.array(entries, np.int64))
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)
        return opened

    def stored(self, index: int) -> StoredDocument:
        """Return the document as stored in its shard."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        content, entries = self._shard(number)
        row = index - int(self._starts[number])
        text, size, codes, length = Entry(*entries[row].tolist())
        return stored_document(
            content[text : text + size],
            content[codes : codes + length],
            self.manifest.grid,
            f"{self.shards[number].name}, document {row}",
        )

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return self.stored(index).document(rng)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        """Return caption and picture; raises `DataError` if a task already turned the record into a document."""
        if self.manifest.task:
            raise DataError(
                f"document {self.id(index)}",
                f"was already turned into a document by the task {self.manifest.task!r} when it was encoded",
                "leave out the section task: task=null",
            )
        return super().record(index, rng)

    def id(self, index: int) -> str:
        return self.stored(index).id

    def group(self, index: int) -> str:
        return self.stored(index).group

    def provenance(self, index: int) -> Provenance:
        return self.stored(index).provenance

    def provenances(self) -> Mapping[Provenance, int]:
        """Provenances from the manifest, without reading shards."""
        return dict(self.manifest.splits[self.split].provenance)

    def content_keys(self, index: int) -> frozenset[str]:
        """Content keys of the encoded document and of its codes."""
        return self.stored(index).content_keys | super().content_keys(index)

    def texts(self) -> Iterator[str]:
        """Yield all texts, including alternatives; reads all shards."""
        for index in range(len(self)):
            yield from self.stored(index).texts

    @property
    def fingerprint(self) -> str:
        """Hash of the shards' hashes."""
        return self.manifest.fingerprint(self.split)

    @property
    def content_fingerprint(self) -> str:
        return self.fingerprint

    @property
    def is_encoded(self) -> bool:
        return True

    @property
    def is_far(self) -> bool:
        return not isinstance(self.storage, FolderStorage)

    def check_tokenizers(self, text: str, image: str) -> None:
        """See `DocumentSource.check_tokenizers`."""
        own = self.manifest
        kinds = (
            ("text_tokenizer", own.text_tokenizer, text),
            ("image_tokenizer", own.image_tokenizer, image),
        )
        for kind, info, fingerprint in kinds:
            if info.fingerprint != fingerprint:
                raise TokenizerError(
                    self.storage.place(MANIFEST),
                    f"the shards were encoded with another {kind}: {info.name} {info.fingerprint[:16]}, but the "
                    f"recipe's is {fingerprint[:16]}",
                    f"use the {kind} stated in the manifest, or encode the data set again",
                )

    def text_tokenizer_folder(self, name: str, config: TextTokenizerConfig) -> Path | None:
        """Return the folder next to the shards; a store's files are fetched."""
        info = self.manifest.text_tokenizer
        same_name = name.rpartition("/")[2] == info.name.rpartition("/")[2]
        same_values = json.loads(json.dumps(asdict(config), default=str)) == info.config
        if not (info.files and same_name and same_values):
            return None
        return self.storage.folder_of(_TEXT_TOKENIZER, info.files)

    def stream_order(
        self, seed: int, epoch: int, place: int, num_streams: int
    ) -> npt.NDArray[np.int64] | None:
        """Return a virtual loader's documents, int64 [N // V], shuffled within `shuffle_shards` shards at a time.

        None if one loader has all shards at once; the order is then as in any other data set.
        """
        if num_streams == 1 and len(self.shards) <= self.shuffle_shards:
            self._ahead.follow(range(len(self.shards)))
            return None
        shards = _rng(seed, epoch, _SHARD_ORDER).permutation(len(self.shards))
        size = len(self) // num_streams
        order, followers = stream_part(
            shards, self._starts, place * size, (place + 1) * size, self.shuffle_shards
        )
        rng = _rng(seed, epoch, _DOCUMENT_ORDER, place)
        for block in order:
            rng.shuffle(block)
        self._ahead.follow(followers)
        return np.concatenate([np.empty(0, np.int64), *order])


def stream_part(
    shards: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    first: int,
    stop: int,
    num_together: int,
) -> tuple[list[npt.NDArray[np.int64]], list[int]]:
    """Return the documents `first` to `stop` of the shards in an order, in blocks of `num_together` shards, and the
    shards that contain them.

    Args:
        shards: their order.
        starts: index of the first document of each shard, and the total.
    """
    sizes = np.diff(starts)[shards]
    ends = np.cumsum(sizes)
    begin, end = (int(np.searchsorted(ends, place, side="right")) for place in (first, stop - 1))
    runs: list[npt.NDArray[np.int64]] = []
    for row in range(begin, end + 1) if stop > first else ():
        before = int(ends[row] - sizes[row])
        low, high = max(first - before, 0), min(stop - before, int(sizes[row]))
        runs.append(np.arange(low, high, dtype=np.int64) + starts[shards[row]])
    blocks = [
        np.concatenate(runs[start : start + num_together])
        for start in range(0, len(runs), num_together)
    ]
    return blocks, shards[begin : end + 1].tolist()


def _rng(*values: int) -> np.random.Generator:
    seed, epoch, *key = values
    return np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=tuple(key)))
