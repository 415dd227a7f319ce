"""Shards of a bank, made by one process or several: documents read, embedded, their pictures as codes, and written.

One process at a time changes a bank, and clears away what killed ones left. Several may help to build it: each finished
shard has a note in the bank's folder `WORK`, and what is noted is not made again, whoever made it. A note is written
when its shard is whole, so that processes need nothing else to share work. Legend: E numbers of a vector.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from tqdm import tqdm

from cm3core import images
from cm3core.document import Codes, Document, Image, PixelArray, Text, content_keys
from cm3core.errors import CM3Error, DataError, FileError
from cm3core.files import (
    FREE_SPACE,
    check_links,
    check_writable,
    locked,
    make_folder,
    new_place,
    read_text,
    remove_unfinished,
    sync_directory,
    write_text,
)
from cm3core.interfaces.dataset import DocumentSource, Provenance, SkippedRecord
from cm3run.bank.manifest import (
    MANIFEST,
    WORK,
    ImageTokenizerMaker,
    Maker,
    Manifest,
    ShardInfo,
    is_shard_name,
    shard_of,
)
from cm3run.bank.shard import LENGTH_TOLERANCE, SHARDS, WRITING, BankDocument, Shard, write_shard
from cm3run.devices import choose_device
from cm3run.progress import make_bar

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import Embedder
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.interfaces.reach import Reach


@dataclass(frozen=True, eq=False)
class Tools:
    """What makes a bank's vectors and codes, and the recipe names and values by which it is built
    again.

    Args:
        embedder, image_tokenizer: built.
        embedder_name, image_tokenizer_name: in a recipe.
        embedder_config, image_tokenizer_config: their configs' values, as YAML holds them.
        reaches: what these values name outside; the bank of a user's own tools may use it.
    """

    embedder: Embedder
    image_tokenizer: ImageTokenizer
    embedder_name: str = ""
    embedder_config: Mapping[str, Any] = field(default_factory=dict)
    image_tokenizer_name: str = ""
    image_tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    reaches: Sequence[Reach] = ()

    def on(self, device: str | None) -> Tools:
        """These, computing on the device; None: the GPU when there is one, and the embedder where
        its config says."""
        chosen = choose_device(device)
        self.image_tokenizer.move_to(chosen)
        if device is not None:
            self.embedder.move_to(chosen)
        return self

    @property
    def manifest(self) -> Manifest:
        """Of a bank without documents."""
        tokenizer = self.image_tokenizer
        return Manifest(
            self.embedder.dimension,
            Maker(self.embedder_name, self.embedder_config, self.embedder.fingerprint),
            ImageTokenizerMaker(
                self.image_tokenizer_name,
                self.image_tokenizer_config,
                tokenizer.fingerprint,
                tokenizer.grid,
                tokenizer.codebook_size,
            ),
        )


def save_tokenizer(tokenizer: ImageTokenizer, folder: Path) -> None:
    """What is needed to build the image tokenizer again wherever the bank is moved; nothing when
    its config is enough."""
    if folder.exists():
        shutil.rmtree(folder)
    with new_place(folder) as temporary:
        temporary.mkdir()
        tokenizer.save(temporary)
        if any(temporary.iterdir()):
            temporary.rename(folder)
            sync_directory(folder.parent)


#: Documents embedded together, and pixels of their pictures after which no more are read.
_AT_ONCE, _PIXELS_AT_ONCE = 32, 1 << 25
#: Id, document and provenance.
_Read: TypeAlias = tuple[str, Document, Provenance]


def encoded_documents(
    source: DocumentSource,
    places: Sequence[int],
    tools: Tools,
    id_prefix: str,
    skipped: list[SkippedRecord],
) -> Iterator[BankDocument]:
    """The documents of a shard; what can't be used is reported in `skipped`."""
    batch: list[_Read] = []
    num_pixels = 0
    for index in places:
        name = id_prefix + source.id(index)
        try:
            document = _read(source.document(index), name)
        except DataError as error:
            skipped.append(SkippedRecord(error.place, error.cause, error.next_step))
            continue
        batch.append((name, document, source.provenance(index)))
        num_pixels += sum(segment.load().size for segment in document if isinstance(segment, Image))
        if len(batch) == _AT_ONCE or num_pixels >= _PIXELS_AT_ONCE:
            yield from _encoded(batch, tools, skipped)
            batch, num_pixels = [], 0
    yield from _encoded(batch, tools, skipped)


def _read(document: Document, name: str) -> Document:
    """The document with its pixels in memory: the embedder and the tokenizer both look at them."""
    for segment in document:
        if not isinstance(segment, (Text, Image)):
            raise DataError(
                f"document {name}",
                f"holds {type(segment).__name__}; a bank is built of texts and pictures",
                "merge banks with cm3 memory merge, or fill holes first",
            )
    if not any(
        isinstance(segment, Image) or segment.text.strip()
        for segment in document
        if isinstance(segment, (Image, Text))
    ):
        raise DataError(f"document {name}", "has neither text nor a picture", "give it one of them")
    return tuple(
        replace(segment, load=partial(_same, segment.load()))
        if isinstance(segment, Image)
        else segment
        for segment in document
    )


def _same(pixels: PixelArray) -> PixelArray:
    return pixels


def _encoded(
    batch: Sequence[_Read], tools: Tools, skipped: list[SkippedRecord]
) -> Iterator[BankDocument]:
    """Vectors and codes of documents that were read."""
    if not batch:
        return
    try:
        vectors_BE = tools.embedder.embed_documents([document for _, document, _ in batch])
    except DataError as error:
        if len(batch) > 1:
            for one in batch:
                yield from _encoded([one], tools, skipped)
        else:
            cause = f"can't be embedded ({error.place}: {error.cause})"
            skipped.append(SkippedRecord(f"document {batch[0][0]}", cause, error.next_step))
        return
    tokenizer = tools.image_tokenizer
    for (name, document, provenance), vector in zip(batch, vectors_BE, strict=True):
        # One by one, as a model does with what it is asked about: in a batch, the last bits depend
        # on how many there are.
        coded = tuple(
            Codes(
                tokenizer.encode(images.fit(segment.load(), tokenizer.image_size)[None])[0],
                tokenizer.grid,
            )
            if isinstance(segment, Image)
            else segment
            for segment in document
        )
        length = float(np.linalg.norm(vector))
        if not abs(length - 1) <= LENGTH_TOLERANCE:
            skipped.append(
                SkippedRecord(
                    f"document {name}",
                    f"the embedder gives it a vector of length {length:g}, not 1",
                    "look at its text and pictures, or use another embedder",
                )
            )
            continue
        keys = content_keys(document) | content_keys(coded)
        yield BankDocument(name, coded, keys, vector, provenance)


LOCK = ".lock"
#: The next step where a disk is full, and an interrupted command goes on; where it does all again.
RESUMES = f"{FREE_SPACE}, then run the same command again: it resumes"
AGAIN = f"{FREE_SPACE}, then run the same command again"


@contextmanager
def writing(folder: Path, step: str = RESUMES) -> Iterator[None]:
    """Change a bank; another process that does is refused meanwhile. The lock goes with the
    process, however that ends.

    Args:
        folder: the bank's.
        step: see `telling`.

    Raises:
        DataError: another process is at it.
        FileError: nothing can be written there, the lock's file is none, or a link leads elsewhere.
    """
    check_writable(folder, folder=True)
    make_folder(folder)
    busy = DataError(
        str(folder), "another process is changing this memory bank", "wait until it is done"
    )
    with telling(folder, step), locked(folder / LOCK, busy):
        check_links(folder)
        yield


@contextmanager
def telling(folder: Path, step: str = RESUMES) -> Iterator[None]:
    """Where the disk is full, say of the bank what becomes of it, and not which of its inner files
    was next. `step`: what to do then.

    Raises:
        FileError: the disk is full.
    """
    try:
        yield
    except FileError as error:
        if error.next_step != FREE_SPACE or not is_of(error, folder):
            raise
        cause = f"{error.cause}; what is in it stays as it was"
        raise FileError(str(folder), cause, step) from error


def is_of(error: FileError, folder: Path) -> bool:
    """Whether what could not be written is of this folder, and not of a cache elsewhere."""
    return Path(os.path.realpath(error.place)).is_relative_to(os.path.realpath(folder))


def tidy(folder: Path, manifest: Manifest) -> None:
    """Delete what the bank does not consist of: notes on finished shards, and what was never
    finished or is no longer named."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    remove_unfinished(folder)
    for path in folder.glob(f".{MANIFEST}.*"):  # as earlier versions named them
        if path.is_file():
            path.unlink(missing_ok=True)
    kept = {shard.name for shard in manifest.shards}
    for path in (folder / SHARDS).glob("*"):
        if path.name not in kept and (is_shard_name(path.name) or path.suffix == WRITING):
            shutil.rmtree(path, ignore_errors=True)


def remove_unfinished_shards(folder: Path) -> None:
    """Delete shards that a kill cut off."""
    for path in (folder / SHARDS).glob(f".*{WRITING}"):
        shutil.rmtree(path, ignore_errors=True)


#: Starts a process that calls `cm3run.bank.help_build`. If its output is piped, that is the error it fails with, and
#: no more than a pipe holds.
Helper = Callable[[], "subprocess.Popen[bytes]"]
_PLAN = "plan.txt"
#: Seconds between looks at what helpers have done.
_LOOK = 0.2


@dataclass(frozen=True, eq=False)
class ShardWork:
    """Shards to be made.

    Args:
        folder: the bank's.
        source: documents.
        wanted: indices of those that the shards are made of, in order.
        tools: make vectors and codes.
        plan: hash of all that decides the shards.
        shard_size: documents of a shard.
        id_prefix: prepended to the documents' ids.
    """

    folder: Path
    source: DocumentSource
    wanted: Sequence[int]
    tools: Tools
    plan: str
    shard_size: int
    id_prefix: str

    def build(
        self, helpers: Sequence[Helper] = (), *, progress: bool
    ) -> tuple[list[ShardInfo], list[SkippedRecord]]:
        """All shards, in order, and the records that they skip; those that an earlier call with this
        plan finished are taken as they are. `helpers`: see `cm3run.bank.build_bank`."""
        self._begin()
        remove_unfinished_shards(self.folder)
        shards: list[ShardInfo] = []
        skipped: list[SkippedRecord] = []
        with make_bar(
            total=len(self.wanted),
            desc="memory bank",
            unit="document",
            disable=None if progress else True,
        ) as bar:
            failed: list[_Failed] = []
            if helpers:
                failed = self._share(helpers, bar)
                bar.reset()
            for start in self._starts():
                info, own = self._finished(start) or self._rest(start, bar, failed)
                if info is not None:
                    shards.append(info)
                skipped += own
                bar.update(min(start + self.shard_size, len(self.wanted)) - bar.n)
        return shards, [*self.source.skipped, *skipped]

    def help(self, share: tuple[int, int]) -> None:
        """Make those shards of a share that are not there; see `cm3run.bank.help_build`."""
        path = self.folder / WORK / _PLAN
        if not path.is_file() or path.read_text() != self.plan:
            raise DataError(
                str(self.folder),
                "is not being built from this data and these settings",
                "run cm3 memory build, which starts its helpers itself",
            )
        with make_bar(disable=True) as bar:
            for start in self._starts()[share[0] :: share[1]]:
                if self._finished(start) is None:
                    self._make(start, bar)

    def _rest(
        self, start: int, bar: Any, failed: list[_Failed]
    ) -> tuple[ShardInfo | None, list[SkippedRecord]]:
        """Make a shard that helpers left, and say once why they did, unless it is what happens here too."""
        try:
            made = self._make(start, bar)
        except CM3Error as error:
            _say([one for one in failed if one.error != str(error)])
            raise
        _say(failed)
        failed.clear()
        return made

    def _share(self, helpers: Sequence[Helper], bar: Any) -> list[_Failed]:
        """Make every n-th shard while helpers make the others, and wait for them. Returns those that failed."""
        with _running(helpers) as processes:
            for start in self._starts()[:: 1 + len(helpers)]:
                if self._finished(start) is None:
                    self._make(start, bar)
            while any(process.poll() is None for process in processes):
                time.sleep(_LOOK)
                done = len(list((self.folder / WORK).glob("*.json"))) * self.shard_size
                bar.update(min(done, len(self.wanted)) - bar.n)
            return [
                _Failed(len(helpers), process.returncode, _told(process))
                for process in processes
                if process.returncode
            ]

    def _starts(self) -> range:
        return range(0, len(self.wanted), self.shard_size)

    def _note(self, start: int) -> Path:
        return self.folder / WORK / f"{start:012d}.json"

    def _make(self, start: int, bar: Any) -> tuple[ShardInfo | None, list[SkippedRecord]]:
        """Write a shard and its note; its records that can't be used."""
        own: list[SkippedRecord] = []
        places = self.wanted[start : start + self.shard_size]
        documents = encoded_documents(self.source, places, self.tools, self.id_prefix, own)
        info = write_shard(self.folder, _counted(documents, bar), self.tools.manifest)
        values = {
            "shard": None if info is None else asdict(info),
            "skipped": [asdict(record) for record in own],
        }
        write_text(self._note(start), json.dumps(values))
        return info, own

    def _finished(self, start: int) -> tuple[ShardInfo | None, list[SkippedRecord]] | None:
        """A shard that is there, and the records that it skipped; None when it is to be built."""
        try:
            values = json.loads(read_text(self._note(start)))
            info = None if values["shard"] is None else shard_of(values["shard"])
            if info is not None:
                Shard(self.folder, info, self.tools.manifest)
            return info, [SkippedRecord(**record) for record in values["skipped"]]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            # a `DataError` is a `ValueError`: what was lost is built again
            return None

    def _begin(self) -> None:
        """Keep the notes of this plan; those of another one are thrown away."""
        work = self.folder / WORK
        path = work / _PLAN
        if work.is_dir():
            if path.is_file() and path.read_text() == self.plan:
                return
            if path.is_file():
                tqdm.write(
                    "note: data or settings have changed since building was interrupted; starting "
                    "from scratch",
                    file=sys.stderr,
                )
            shutil.rmtree(work)
        make_folder(work)
        write_text(path, self.plan)


@dataclass(frozen=True)
class _Failed:
    """One of `number` helpers that ended with an exit code; `error`: what it told, "" if nothing."""

    number: int
    code: int
    error: str


def _told(process: subprocess.Popen[bytes]) -> str:
    """The error that a helper ended with."""
    return "" if process.stdout is None else process.stdout.read().decode(errors="replace")


def _say(failed: Sequence[_Failed]) -> None:
    """A note on helpers that failed, with the error of the first that told one."""
    if failed:
        told = next((one.error for one in failed if one.error), f"exit code {failed[0].code}")
        tqdm.write(
            f"note: {len(failed)} of {failed[0].number} other processes ended early ({told.splitlines()[0]}); "
            "what they left is made by this one",
            file=sys.stderr,
        )


@contextmanager
def _running(helpers: Sequence[Helper]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The helpers' processes, which end with the block."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for start in helpers:
            processes.append(start())
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def _counted(documents: Iterator[BankDocument], bar: Any) -> Iterator[BankDocument]:
    for document in documents:
        yield document
        bar.update()
