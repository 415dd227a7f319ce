"""Writing token shards with any number of processes, which share only the folder.

The documents of a shard depend on the data set alone. Each process takes every n-th shard, writes it
atomically, and then records that it is finished, so an interruption costs one shard. The process that finds all
records complete writes the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import numpy as np

from cm3core import images
from cm3core.document import Codes, Document, Image, IntArray, Text
from cm3core.errors import CM3Error, DataError
from cm3core.files import (
    atomic_path,
    check_links,
    locked,
    make_folder,
    new_place,
    read_text,
    remove_unfinished,
    sha256_file,
    sync_directory,
    write_text,
)
from cm3core.interfaces.dataset import DocumentSource, Provenance, SkippedRecord, StatedSkipped
from cm3core.outputs import OutputFolder, remove_own
from cm3run.json_text import check_form, parse_json
from cm3run.token_shards.manifest import (
    MANIFEST,
    Manifest,
    ProvenanceForm,
    Settings,
    ShardForm,
    ShardInfo,
    SplitInfo,
    StoredFile,
    TokenizerInfo,
    kept_documents,
    plan_of,
    provenance_of,
    shard_of,
)
from cm3run.token_shards.record import RecordFacts, write_tar, written

if TYPE_CHECKING:
    import numpy.typing as npt

    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3core.interfaces.text_tokenizer import TextTokenizer


#: Pictures held in memory and encoded together.
ENCODED_AT_ONCE = 32


@dataclass
class Report:
    """The results for the documents of a shard."""

    skipped: list[SkippedRecord] = field(default_factory=list)
    provenance: dict[Provenance, int] = field(default_factory=dict)


def encoded_pictures(
    pictures: Sequence[Image], tokenizer: ImageTokenizer
) -> Iterator[tuple[Image, IntArray | DataError]]:
    """Yield each picture with its codes int32 [c], or the error if it can't be read."""
    for start in range(0, len(pictures), ENCODED_AT_ONCE):
        chunk = pictures[start : start + ENCODED_AT_ONCE]
        results: list[IntArray | DataError | None] = []
        pixels = []
        for picture in chunk:
            try:
                if tokenizer.reads_drawings and picture.drawing is not None:
                    results.append(tokenizer.encode_image(picture))
                    continue
                pixels.append(images.fit(picture.load(), tokenizer.image_size))
                results.append(None)
            except DataError as error:
                results.append(error)
        rows = iter(tokenizer.encode(np.stack(pixels)) if pixels else ())
        for picture, result in zip(chunk, results, strict=True):
            yield picture, next(rows) if result is None else result


def encoded_documents(
    source: DocumentSource,
    places: Sequence[int],
    text_tokenizer: TextTokenizer,
    image_tokenizer: ImageTokenizer,
    num_texts: int,
    report: Report,
) -> Iterator[tuple[str, bytes, bytes | None]]:
    """Yield key, JSON and codes of each document; unusable ones are counted in `report`."""
    found: dict[int, Document] = {}
    for place in places:
        try:
            found[place] = _read(source, place)
        except DataError as error:
            report.skipped.append(_skipped(error))
    pictures = {
        segment.key: segment
        for document in found.values()
        for segment in document
        if isinstance(segment, Image)
    }
    codes: dict[str, IntArray] = {}
    unreadable: dict[str, DataError] = {}
    for picture, result in encoded_pictures(list(pictures.values()), image_tokenizer):
        if isinstance(result, DataError):
            unreadable[picture.key] = result
        else:
            codes[picture.key] = result
    for place, document in found.items():
        bad = [unreadable[key] for key in _keys(document) if key in unreadable]
        if bad:
            report.skipped.append(_skipped(bad[0]))
            continue
        alternatives = source.text_alternatives(place)
        versions = [document]
        if alternatives is None and num_texts > 1:
            versions = _drawn(source, place, document, num_texts)
        try:
            facts = RecordFacts.of(source, place)
            text, file = written(
                facts,
                versions,
                codes,
                text_tokenizer,
                codebook_size=image_tokenizer.codebook_size,
                alternatives=alternatives,
            )
        except CM3Error as error:
            cause = f"{error.place}: {error.cause}"
            report.skipped.append(
                SkippedRecord(f"document {source.id(place)}", cause, error.next_step)
            )
            continue
        shared = facts.provenance.shared
        report.provenance[shared] = report.provenance.get(shared, 0) + 1
        yield f"{place:012d}", text, file


def _read(source: DocumentSource, place: int) -> Document:
    document = source.document(place)
    name = f"document {source.id(place)}"
    if not document:
        raise DataError(name, "is empty", "give it a text or a picture")
    for segment in document:
        if not isinstance(segment, (Text, Image, Codes)):
            raise DataError(
                name,
                f"contains {type(segment).__name__}, but shards are made of texts and pictures",
                "fill holes first",
            )
    return document


def _drawn(
    source: DocumentSource, place: int, document: Document, num_texts: int
) -> list[Document]:
    """The canonical document and versions with texts drawn as in training, without repetitions. The draws are a
    function of the document's id."""
    digest = hashlib.sha256(source.id(place).encode("utf-8", "surrogatepass")).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    versions = {_texts(document): document}
    for _ in range(num_texts - 1):
        drawn = source.document(place, rng)
        versions.setdefault(_texts(drawn), drawn)
    return list(versions.values())


def _texts(document: Document) -> tuple[tuple[str, object], ...]:
    return tuple(
        (segment.text, segment.responses) for segment in document if isinstance(segment, Text)
    )


def _keys(document: Document) -> Iterable[str]:
    return (segment.key for segment in document if isinstance(segment, Image))


def _skipped(error: DataError) -> SkippedRecord:
    return SkippedRecord(error.place, error.cause, error.next_step)


#: Documents per shard: the most that an interruption costs.
SHARD_SIZE = 4096
TEXT_TOKENIZER, SKIPPED = "text_tokenizer", "skipped.jsonl"
_WORK, _LOCK, _PLAN = ".encoding", ".lock", "plan.txt"

#: Called with the number of finished documents.
Progress: TypeAlias = Callable[[int], None]


@dataclass(frozen=True)
class Part:
    """Every `number`-th shard, starting with the `index`-th (0..number-1)."""

    index: int = 0
    number: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizers:
    """The tokenizers that make ids and codes, with names and configs; the `Encoder` adds their files."""

    text: TextTokenizer
    image: ImageTokenizer
    text_info: TokenizerInfo
    image_info: TokenizerInfo


class Encoder:
    """Writes the shards of a data set.

    Args:
        folder: a new one, or one left by an earlier call with the same data and settings.
        sources: the splits by name.
        tokenizers: make ids and codes.
        task: name of the task that makes the documents; "" if none does.
        settings: see `Settings`.

    Raises:
        DataError: the folder contains something else.
        FileError: the folder is not writable.
    """

    def __init__(
        self,
        folder: Path,
        sources: Mapping[str, DocumentSource],
        tokenizers: Tokenizers,
        task: str,
        settings: Settings,
    ) -> None:
        self.folder, self.sources, self.settings, self.task = folder, sources, settings, task
        self.tokenizers = tokenizers
        self.plan = plan_of(sources, tokenizers.text_info, tokenizers.image_info, task, settings)
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
        OutputFolder(folder, resumes=True)
        if folder.is_dir() and not self.work.is_dir() and not (folder / MANIFEST).is_file():
            strange = sorted(path.name for path in folder.iterdir() if path.name[0] != ".")
            if strange:
                raise DataError(
                    str(folder),
                    f"contains {strange[0]!r} and no token shards",
                    "name a new folder",
                )
        make_folder(folder)
        with locked(folder / _LOCK):
            check_links(folder)
            if (folder / MANIFEST).is_file():
                if self.finished().plan != self.plan:
                    raise _other(folder, "contains token shards")
                return
            path = self.work / _PLAN
            if path.is_file() and read_text(path) != self.plan:
                raise _other(folder, "contains unfinished token shards")
            make_folder(self.work)
            write_text(path, self.plan)
            tokenizer = folder / TEXT_TOKENIZER
            if not tokenizer.is_dir():
                with new_place(tokenizer) as temporary:
                    temporary.mkdir()
                    self.tokenizers.text.save(temporary)
                    temporary.rename(tokenizer)
                    sync_directory(folder)

    def finished(self) -> Manifest:
        """The manifest in the folder."""
        path = self.folder / MANIFEST
        return Manifest.parse(path.read_bytes(), str(path))

    @property
    def is_finished(self) -> bool:
        """Whether the manifest and all shards of all parts exist."""
        return (self.folder / MANIFEST).is_file()

    def num_documents(self, part: Part) -> int:
        """Number of documents in a part's shards, including those that will be skipped."""
        return sum(len(self._places(*shard)) for shard in self._shards_of(part))

    def encode(self, part: Part, progress: Progress) -> int:
        """Write the missing shards of a part; return their number.

        Args:
            part: which shards.
            progress: called after each shard, including existing ones.
        """
        num_written = 0
        for split, number in self._shards_of(part):
            if not self.is_finished and self._note(split, number) is None:
                self._write(split, number)
                num_written += 1
            progress(len(self._places(split, number)))
        return num_written

    def num_done(self, part: Part) -> int:
        """Number of documents in the part's finished shards."""
        shards = self._shards_of(part)
        if self.is_finished:
            return self.num_documents(part)
        return sum(
            len(self._places(*shard)) for shard in shards if self._note_path(*shard).is_file()
        )

    def finish(self) -> Manifest | None:
        """Write the manifest if all shards of all parts exist, otherwise return None.

        Raises:
            DataError: no document is usable.
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
                    self.tokenizers.text,
                    self.tokenizers.image,
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
        """The record of a finished shard; None if it must be written.

        Raises:
            DataError: it exists but can't be read from the disk.
        """
        path = self._note_path(split, number)
        try:
            values = parse_json(read_text(path), str(path))
            check_form(values, _NoteForm, str(path))  # file names in it may be no Unicode
            shard = None if values["shard"] is None else shard_of(values["shard"])
            if shard is not None and (self.folder / shard.name).stat().st_size != shard.num_bytes:
                return None
            return _Note(
                shard,
                [SkippedRecord(**record) for record in values["skipped"]],
                dict(map(provenance_of, values["provenance"])),
            )
        except (FileNotFoundError, ValueError):  # of a process that was killed, or damaged
            return None
        except OSError as error:  # writing it again would not repair the disk
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
            self.tokenizers.text_info.name,
            self.tokenizers.text_info.config,
            self.tokenizers.text_info.fingerprint,
            files,
        )
        grid = self.tokenizers.image.grid
        Manifest(text, self.tokenizers.image_info, grid, self.task, self.plan, splits).write(
            self.folder
        )

    def _tidy(self) -> None:
        remove_own(self.work)
        remove_unfinished(self.folder)

    def _source_skipped(self) -> list[SkippedRecord]:
        return [record for source in self.sources.values() for record in source.skipped]


class _NoteForm(TypedDict):
    """A `_Note` in its file."""

    shard: ShardForm | None
    skipped: list[StatedSkipped]
    provenance: list[ProvenanceForm]


@dataclass(frozen=True)
class _Note:
    """A finished shard; None if none of its documents was usable."""

    shard: ShardInfo | None
    skipped: list[SkippedRecord]
    provenance: Mapping[Provenance, int]


def _summed(notes: list[_Note]) -> tuple[tuple[Provenance, int], ...]:
    """Numbers of documents by provenance, largest first."""
    numbers: dict[Provenance, int] = {}
    for note in notes:
        for provenance, number in note.provenance.items():
            numbers[provenance] = numbers.get(provenance, 0) + number
    return tuple(sorted(numbers.items(), key=lambda item: (-item[1], str(item[0]))))


def _other(folder: Path, what: str) -> DataError:
    return DataError(
        str(folder),
        f"{what} made from other data or settings",
        "name a new folder, or delete this one",
    )


def _nothing_usable(skipped: list[SkippedRecord]) -> DataError:
    first = f"; the first is {skipped[0].place}: {skipped[0].cause}" if skipped else ""
    return DataError(
        "the data set",
        f"has no usable document ({len(skipped)} skipped{first})",
        "run 'cm3 data validate' to see why",
    )


def shard_names(manifest: Manifest) -> Iterator[str]:
    """Names of all shards, by split."""
    for split in manifest.splits.values():
        yield from (shard.name for shard in split.shards)
