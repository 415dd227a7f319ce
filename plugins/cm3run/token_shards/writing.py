"""Writing token shards by any number of processes, which share nothing but the folder.

Which documents a shard has depends on the data set alone. A process takes every n-th shard, writes it
atomically, and then a note that it is done: whatever kills it costs one shard. Whoever finds that all notes
are there writes the manifest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cm3core.errors import DataError
from cm3core.files import (
    atomic_path,
    check_links,
    check_writable,
    locked,
    make_folder,
    new_place,
    read_text,
    remove_unfinished,
    sha256_file,
    sync_directory,
    write_text,
)
from cm3core.interfaces.dataset import DocumentSource, Provenance, SkippedRecord
from cm3run.token_shards.encoding import Report, encoded_documents
from cm3run.token_shards.manifest import (
    MANIFEST,
    Manifest,
    ShardInfo,
    SplitInfo,
    StoredFile,
    TokenizerInfo,
    provenance_of,
    shard_of,
)
from cm3run.token_shards.planning import Settings, kept_documents, plan_of
from cm3run.token_shards.tar import write_tar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.interfaces.text_tokenizer import TextTokenizer

#: Documents of a shard: what a kill costs at most.
SHARD_SIZE = 4096
TEXT_TOKENIZER, SKIPPED = "text_tokenizer", "skipped.jsonl"
_WORK, _LOCK, _PLAN = ".encoding", ".lock", "plan.txt"

#: Called with the number of documents that are done.
Progress: TypeAlias = Callable[[int], None]


@dataclass(frozen=True)
class Part:
    """Every `number`-th shard, from the `index`-th on (0..number-1)."""

    index: int = 0
    number: int = 1


class Encoder:
    """Writes the shards of a data set.

    Args:
        folder: new, or one that an earlier call with the same data and settings left.
        sources: the splits by name.
        text_tokenizer, image_tokenizer: make ids and codes.
        text_info, image_info: their names and configs; their files are filled in here.
        task: name of the task that makes the documents; "" if none does.
        settings: see `Settings`.

    Raises:
        DataError: there is something else in the folder.
        FileError: nothing can be written there.
    """

    def __init__(
        self,
        folder: Path,
        sources: Mapping[str, DocumentSource],
        text_tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        text_info: TokenizerInfo,
        image_info: TokenizerInfo,
        task: str,
        settings: Settings,
    ) -> None:
        self.folder, self.sources, self.settings, self.task = folder, sources, settings, task
        self.text_tokenizer, self.image_tokenizer = text_tokenizer, image_tokenizer
        self.text_info, self.image_info = text_info, image_info
        self.plan = plan_of(sources, text_info, image_info, task, settings)
        self.work = folder / _WORK
        self._begin()
        self.kept: dict[str, npt.NDArray[np.int64]] = {
            name: kept_documents(source, settings.duplicates) for name, source in sources.items()
        }
        #: Shards of all parts: split and number.
        self.shards = [
            (name, number)
            for name, kept in self.kept.items()
            for number in range(-(-len(kept) // settings.shard_size))
        ]
        if not self.shards:
            raise _nothing_usable(self._source_skipped())

    def _begin(self) -> None:
        """Check the folder, and save the text tokenizer there."""
        folder = self.folder
        check_writable(folder, folder=True)
        if folder.is_dir() and not self.work.is_dir() and not (folder / MANIFEST).is_file():
            strange = sorted(path.name for path in folder.iterdir() if path.name[0] != ".")
            if strange:
                raise DataError(
                    str(folder),
                    f"holds {strange[0]!r} and no token shards",
                    "name a new folder",
                )
        make_folder(folder)
        with locked(folder / _LOCK):
            check_links(folder)
            if (folder / MANIFEST).is_file():
                if self.finished().plan != self.plan:
                    raise _other(folder, "holds token shards")
                return
            path = self.work / _PLAN
            if path.is_file() and read_text(path) != self.plan:
                raise _other(folder, "holds unfinished token shards")
            make_folder(self.work)
            write_text(path, self.plan)
            tokenizer = folder / TEXT_TOKENIZER
            if not tokenizer.is_dir():
                with new_place(tokenizer) as temporary:
                    temporary.mkdir()
                    self.text_tokenizer.save(temporary)
                    temporary.rename(tokenizer)
                    sync_directory(folder)

    def finished(self) -> Manifest:
        """The manifest in the folder."""
        path = self.folder / MANIFEST
        return Manifest.parse(path.read_bytes(), str(path))

    @property
    def is_finished(self) -> bool:
        """Whether all shards of all parts are there, and the manifest."""
        return (self.folder / MANIFEST).is_file()

    def num_documents(self, part: Part) -> int:
        """Documents of a part's shards, before any is skipped."""
        return sum(len(self._places(*shard)) for shard in self._shards_of(part))

    def encode(self, part: Part, progress: Progress) -> int:
        """Write the shards of a part that are not there yet; returns the number of those written.

        Args:
            part: which shards.
            progress: called after each shard, also after those that were there.
        """
        num_written = 0
        for split, number in self._shards_of(part):
            if not self.is_finished and self._note(split, number) is None:
                self._write(split, number)
                num_written += 1
            progress(len(self._places(split, number)))
        return num_written

    def num_done(self, part: Part) -> int:
        """Documents of the part's shards that are there."""
        shards = self._shards_of(part)
        if self.is_finished:
            return self.num_documents(part)
        return sum(
            len(self._places(*shard)) for shard in shards if self._note_path(*shard).is_file()
        )

    def finish(self) -> Manifest | None:
        """Write the manifest if all shards of all parts are there, else return None.

        Raises:
            DataError: no document could be used.
        """
        with locked(self.folder / _LOCK):
            if not self.is_finished:
                notes: dict[str, list[_Note]] = {name: [] for name in self.sources}
                for split, number in self.shards:
                    note = self._note(split, number)
                    if note is None:
                        return None
                    notes[split].append(note)
                self._write_manifest(notes)
            self._tidy()
        return self.finished()

    def _shards_of(self, part: Part) -> list[tuple[str, int]]:
        return self.shards[part.index :: part.number]

    def _places(self, split: str, number: int) -> npt.NDArray[np.int64]:
        size = self.settings.shard_size
        return self.kept[split][number * size : (number + 1) * size]

    def _write(self, split: str, number: int) -> None:
        report = Report()
        path = self.folder / f"{split}-{number:06d}.tar"
        with atomic_path(path) as temporary:
            num_documents = write_tar(
                temporary,
                encoded_documents(
                    self.sources[split],
                    self._places(split, number).tolist(),
                    self.text_tokenizer,
                    self.image_tokenizer,
                    self.settings.num_texts,
                    report,
                ),
            )
        shard = None
        if num_documents:
            shard = ShardInfo(path.name, path.stat().st_size, sha256_file(path), num_documents)
        else:
            path.unlink()
        values = {
            "shard": None if shard is None else asdict(shard),
            "skipped": [asdict(record) for record in report.skipped],
            "provenance": [
                {**one.stated(), "documents": count} for one, count in report.provenance.items()
            ],
        }
        write_text(self._note_path(split, number), json.dumps(values))

    def _note_path(self, split: str, number: int) -> Path:
        return self.work / f"{split}-{number:06d}.json"

    def _note(self, split: str, number: int) -> _Note | None:
        """What a finished shard is; None where it is to be written.

        Raises:
            DataError: it is there, and the disk doesn't give it out.
        """
        path = self._note_path(split, number)
        try:
            values = json.loads(read_text(path))
            shard = None if values["shard"] is None else shard_of(values["shard"])
            if shard is not None and (self.folder / shard.name).stat().st_size != shard.num_bytes:
                return None
            return _Note(
                shard,
                [SkippedRecord(**record) for record in values["skipped"]],
                dict(map(provenance_of, values["provenance"])),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        except OSError as error:  # to write it again would not make the disk whole
            cause = f"can't be read ({error.strerror or error})"
            raise DataError(
                str(path), cause, "check the disk, then run the command again"
            ) from error

    def _write_manifest(self, notes: Mapping[str, list[_Note]]) -> None:
        skipped = {
            name: [*self.sources[name].skipped, *(one for note in own for one in note.skipped)]
            for name, own in notes.items()
        }
        splits = {
            name: SplitInfo(
                tuple(note.shard for note in own if note.shard is not None),
                len(skipped[name]),
                len(self.sources[name]) - len(self.kept[name]),
                _summed(own),
            )
            for name, own in notes.items()
        }
        splits = {name: split for name, split in splits.items() if split.shards}
        if not splits:
            raise _nothing_usable([one for own in skipped.values() for one in own])
        lines = "".join(
            json.dumps({"split": name, **asdict(record)}, ensure_ascii=False) + "\n"
            for name, own in skipped.items()
            for record in own
        )
        write_text(self.folder / SKIPPED, lines)
        folder = self.folder / TEXT_TOKENIZER
        files = {
            path.name: StoredFile(path.stat().st_size, sha256_file(path))
            for path in sorted(folder.iterdir())
            if path.is_file()
        }
        text = TokenizerInfo(
            self.text_info.name, self.text_info.config, self.text_info.fingerprint, files
        )
        grid = self.image_tokenizer.grid
        Manifest(text, self.image_info, grid, self.task, self.plan, splits).write(self.folder)

    def _tidy(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        remove_unfinished(self.folder)

    def _source_skipped(self) -> list[SkippedRecord]:
        return [record for source in self.sources.values() for record in source.skipped]


@dataclass(frozen=True)
class _Note:
    """A finished shard, None where no document could be used."""

    shard: ShardInfo | None
    skipped: list[SkippedRecord]
    provenance: Mapping[Provenance, int]


def _summed(notes: list[_Note]) -> tuple[tuple[Provenance, int], ...]:
    """Documents by where they are from, most first."""
    numbers: dict[Provenance, int] = {}
    for note in notes:
        for provenance, number in note.provenance.items():
            numbers[provenance] = numbers.get(provenance, 0) + number
    return tuple(sorted(numbers.items(), key=lambda item: (-item[1], str(item[0]))))


def _other(folder: Path, what: str) -> DataError:
    return DataError(
        str(folder),
        f"{what} of other data or settings",
        "name a new folder, or delete this one",
    )


def _nothing_usable(skipped: list[SkippedRecord]) -> DataError:
    first = f"; the first is {skipped[0].place}: {skipped[0].cause}" if skipped else ""
    return DataError(
        "the data set",
        f"has no document that can be used ({len(skipped)} are skipped{first})",
        "run 'cm3 data validate' to see why",
    )


def shard_names(manifest: Manifest) -> Iterator[str]:
    """Names of all shards, split by split."""
    for split in manifest.splits.values():
        yield from (shard.name for shard in split.shards)
