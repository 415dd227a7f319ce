"""Writing the shards of a bank, in one process or several: read documents, embed them, encode their pictures.

Only one process at a time changes a bank, and removes what killed processes left. Several can help to build it: each
finished shard is recorded in the bank's folder `WORK`, and recorded shards are not made again, whoever made them. The
record is written when the shard is complete, so processes need nothing else to share work. Legend: E numbers of a
vector.
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
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np
from tqdm import tqdm

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
from cm3core.interfaces.dataset import DocumentSource, Provenance, SkippedRecord, StatedSkipped
from cm3core.outputs import OutputFolder, record_folder, remove_own, set_aside
from cm3run.bank.manifest import (
    WORK,
    ImageTokenizerMaker,
    Maker,
    Manifest,
    ShardForm,
    ShardInfo,
    is_shard_name,
    shard_of,
)
from cm3run.bank.shard import LENGTH_TOLERANCE, SHARDS, WRITING, BankDocument, Shard, write_shard
from cm3run.devices import choose_device
from cm3run.json_text import check_form, parse_json
from cm3run.progress import make_bar

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import Embedder
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.interfaces.reach import Reach


@dataclass(frozen=True, eq=False)
class Tools:
    """The embedder and image tokenizer of a bank, with the recipe names and config values for building them
    again.

    Args:
        embedder, image_tokenizer: built.
        embedder_name, image_tokenizer_name: in a recipe.
        embedder_config, image_tokenizer_config: their configs' values, as in YAML.
        reaches: external resources that these values name; a bank built with the user's own tools may use them.
        codes_psnr: stored in the manifest of a bank that is built, see `cm3run.bank.Manifest`.
    """

    embedder: Embedder
    image_tokenizer: ImageTokenizer
    embedder_name: str = ""
    embedder_config: Mapping[str, Any] = field(default_factory=dict)
    image_tokenizer_name: str = ""
    image_tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    reaches: Sequence[Reach] = ()
    codes_psnr: float | None = None

    def on(self, device: str | None) -> Tools:
        """These tools on another device; None: the GPU if there is one, and for the embedder the device in
        its config."""
        chosen = choose_device(device)
        self.image_tokenizer.move_to(chosen)
        if device is not None:
            self.embedder.move_to(chosen)
        return self

    @property
    def manifest(self) -> Manifest:
        """The manifest of an empty bank, without `codes_psnr`."""
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
    """Save the image tokenizer's files, so that the bank can be moved; writes nothing if
    its config is sufficient."""
    if folder.exists() and not remove_own(folder):
        set_aside(folder)
    with new_place(folder) as temporary:
        temporary.mkdir()
        tokenizer.save(temporary)
        if any(temporary.iterdir()):
            record_folder(temporary, folder)
            temporary.rename(folder)
            sync_directory(folder.parent)


#: Documents embedded together, and the limit of their pictures' pixels, after which no more are read.
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
    """The documents of a shard; unusable ones are reported in `skipped`."""
    batch: list[_Read] = []
    num_pixels = 0
    for index in places:
        name = id_prefix + source.id(index)
        if source.is_withheld(index):
            cause = "is withheld by its data set, so it would never be retrieved, as a logo is not"
            skipped.append(SkippedRecord(f"document {name}", cause, "nothing to do"))
            continue
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
    """The document with its pixels in memory, because embedder and tokenizer both read them."""
    for segment in document:
        if not isinstance(segment, (Text, Image)):
            raise DataError(
                f"document {name}",
                f"contains {type(segment).__name__}, but banks are built from texts and pictures",
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
    """Compute vectors and codes for documents that were read."""
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
        try:
            coded = tuple(
                Codes(tokenizer.encode_image(segment), tokenizer.grid)
                if isinstance(segment, Image)
                else segment
                for segment in document
            )
        except DataError as error:
            cause = f"can't be encoded ({error.place}: {error.cause})"
            skipped.append(SkippedRecord(f"document {name}", cause, error.next_step))
            continue
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
#: Next step after a full disk: for a command that resumes, and for one that starts over.
RESUMES = f"{FREE_SPACE}, then run the same command again: it resumes"
AGAIN = f"{FREE_SPACE}, then run the same command again"


@contextmanager
def writing(folder: Path, step: str = RESUMES) -> Iterator[None]:
    """Lock a bank for changes; other processes that try to change it are refused. The lock ends with the
    process.

    Args:
        folder: the bank's.
        step: see `telling`.

    Raises:
        DataError: another process is changing the bank.
        FileError: the folder is not writable, the lock file is not a regular file, or a link points elsewhere.
    """
    check_writable(folder, folder=True)
    make_folder(folder)
    busy = DataError(
        str(folder), "another process is changing this memory bank", "wait until it has finished"
    )
    with telling(folder, step), locked(folder / LOCK, busy):
        check_links(folder)
        yield


@contextmanager
def telling(folder: Path, step: str = RESUMES) -> Iterator[None]:
    """If the disk is full, report the state of the bank rather than the internal file that could not be
    written. `step`: the next step.

    Raises:
        FileError: the disk is full.
    """
    try:
        yield
    except FileError as error:
        if error.next_step != FREE_SPACE or not is_of(error, folder):
            raise
        cause = f"{error.cause}; the bank is unchanged"
        raise FileError(str(folder), cause, step) from error


def is_of(error: FileError, folder: Path) -> bool:
    """Whether the unwritable file belongs to this folder, and not to a cache elsewhere."""
    return Path(os.path.realpath(error.place)).is_relative_to(os.path.realpath(folder))


def tidy(folder: Path, manifest: Manifest, before: Manifest | None = None) -> None:
    """Delete files that don't belong to the bank: records of finished shards, and shards of this user's commands that
    were never finished or are not listed.

    Args:
        folder: the bank's.
        manifest: its manifest.
        before: that of the bank that the user asked to change; shards that are no longer listed are deleted, whoever
            wrote them.
    """
    remove_own(folder / WORK)
    remove_unfinished(folder)
    remove_unfinished_shards(folder)
    kept = {shard.name for shard in manifest.shards}
    replaced = set() if before is None else {shard.name for shard in before.shards}
    for path in (folder / SHARDS).glob("*"):
        if path.name in kept or not is_shard_name(path.name):
            continue
        if path.name in replaced:
            shutil.rmtree(path, ignore_errors=True)
        else:
            remove_own(path)


def is_begun(folder: Path) -> bool:
    """Whether a folder has an unfinished build."""
    return (folder / WORK / _PLAN).is_file()


def remove_unfinished_shards(folder: Path) -> None:
    """Delete shards whose writing was interrupted."""
    for path in (folder / SHARDS).glob(f".*{WRITING}"):
        shutil.rmtree(path, ignore_errors=True)


#: Starts a process that calls `cm3run.bank.help_build`. If its output is piped, it contains only the error with which
#: it failed, and fits into the pipe's buffer.
Helper = Callable[[], "subprocess.Popen[bytes]"]
_PLAN = "plan.txt"
#: Polling interval for helpers, in seconds.
_LOOK = 0.2


@dataclass(frozen=True, eq=False)
class ShardWork:
    """A set of shards to write.

    Args:
        folder: the bank's.
        source: documents.
        wanted: indices of the documents for the shards, in order.
        tools: make vectors and codes.
        plan: hash of everything that determines the shards.
        shard_size: documents per shard.
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
        """Return all shards, in order, and their skipped records. Shards that an earlier call finished with this
        plan are reused. `helpers`: see `cm3run.bank.build_bank`."""
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
        """Write the missing shards of a share; see `cm3run.bank.help_build`."""
        OutputFolder(self.folder / WORK, resumes=True)
        path = self.folder / WORK / _PLAN
        if not path.is_file() or path.read_text() != self.plan:
            raise DataError(
                str(self.folder),
                "is not being built from this data with these settings",
                "run cm3 memory build, which starts its helpers itself",
            )
        with make_bar(disable=True) as bar:
            for start in self._starts()[share[0] :: share[1]]:
                if self._finished(start) is None:
                    self._make(start, bar)

    def _rest(
        self, start: int, bar: Any, failed: list[_Failed]
    ) -> tuple[ShardInfo | None, list[SkippedRecord]]:
        """Write a shard that a helper left; print the helper's error once, unless the same error occurs here."""
        try:
            made = self._make(start, bar)
        except CM3Error as error:
            _say([one for one in failed if one.error != str(error)])
            raise
        _say(failed)
        failed.clear()
        return made

    def _share(self, helpers: Sequence[Helper], bar: Any) -> list[_Failed]:
        """Write every n-th shard while helpers write the others, and wait for them. Returns the helpers that
        failed."""
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
        """Write a shard and its record; return it and its skipped records."""
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
        """A finished shard and its skipped records; None if it must be built."""
        try:
            path = self._note(start)
            values = parse_json(read_text(path), str(path))
            check_form(values, _NoteForm, str(path))  # file names in it may be no Unicode
            info = None if values["shard"] is None else shard_of(values["shard"])
            if info is not None:
                Shard(self.folder, info, self.tools.manifest)
            return info, [SkippedRecord(**record) for record in values["skipped"]]
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            # a `DataError` is a `ValueError`: a lost shard is rebuilt
            return None

    def _begin(self) -> None:
        """Keep the records of this plan, and delete those of any other."""
        work = self.folder / WORK
        OutputFolder(work, resumes=True)
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
            if not remove_own(work):
                set_aside(work)
        make_folder(work)
        write_text(path, self.plan)


class _NoteForm(TypedDict):
    """A finished shard in its file."""

    shard: ShardForm | None
    skipped: list[StatedSkipped]


@dataclass(frozen=True)
class _Failed:
    """A helper, one of `number`, that ended with an exit code; `error`: its message, "" if it printed none."""

    number: int
    code: int
    error: str


def _told(process: subprocess.Popen[bytes]) -> str:
    """The error message of a helper."""
    return "" if process.stdout is None else process.stdout.read().decode(errors="replace")


def _say(failed: Sequence[_Failed]) -> None:
    """Print a note about failed helpers, with the first error message."""
    if failed:
        told = next((one.error for one in failed if one.error), f"exit code {failed[0].code}")
        tqdm.write(
            f"note: {len(failed)} of {failed[0].number} other processes ended early ({told.splitlines()[0]}); "
            "this process finishes their work",
            file=sys.stderr,
        )


@contextmanager
def _running(helpers: Sequence[Helper]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run the helpers' processes, and end them when the block is left."""
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
