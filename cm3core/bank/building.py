"""Building a bank of a data set, and adding another data set to it: in shards, so that whatever
kills it costs one of them.

The documents of a shard, and those that are embedded together, depend on their places in the data
set alone: a build that was cut off and went on leaves the very bytes of an undisturbed one. Legend:
E numbers of a vector.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from cm3core import images
from cm3core.bank.manifest import WORK, ImageTokenizerMaker, Maker, Manifest, ShardInfo, shard_of
from cm3core.bank.memory_bank import MemoryBank, is_bank
from cm3core.bank.shard import LENGTH_TOLERANCE, SHARDS, BankDocument, Shard, write_shard
from cm3core.bank.writing import remove_unfinished, tidy, writing
from cm3core.document import Codes, Document, Image, PixelArray, Text, content_keys
from cm3core.errors import DataError
from cm3core.files import make_folder, sync_directory, write_text
from cm3core.interfaces.dataset import DocumentSource, SkippedRecord
from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import Embedder
    from cm3core.interfaces.image_tokenizer import ImageTokenizer

#: Documents of a shard: what a kill costs at most, and what stands in memory before it is written.
SHARD_SIZE = 4096
#: Documents embedded together, and pixels of their pictures after which no more are read.
_AT_ONCE, _PIXELS_AT_ONCE = 32, 1 << 25
_PLAN = "plan.txt"


@dataclass(frozen=True, eq=False)
class Tools:
    """What makes a bank's vectors and codes, and the recipe names and values by which it is built
    again.

    Args:
        embedder, image_tokenizer: built.
        embedder_name, image_tokenizer_name: in a recipe.
        embedder_config, image_tokenizer_config: their configs' values, as YAML holds them.
    """

    embedder: Embedder
    image_tokenizer: ImageTokenizer
    embedder_name: str = ""
    embedder_config: Mapping[str, Any] = field(default_factory=dict)
    image_tokenizer_name: str = ""
    image_tokenizer_config: Mapping[str, Any] = field(default_factory=dict)

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


@dataclass(frozen=True)
class BuildReport:
    """What became of a data set: documents `num_added` to the bank (0 when it was there before),
    those left out because a document of their id was there (`num_duplicates`), records that can't
    be used, and the documents that the bank now has."""

    num_added: int
    num_duplicates: int
    skipped: list[SkippedRecord]
    num_documents: int


def build_bank(
    source: DocumentSource,
    folder: str | Path,
    tools: Tools,
    *,
    shard_size: int = SHARD_SIZE,
    id_prefix: str = "",
    progress: bool = True,
) -> BuildReport:
    """Build a bank of all documents of a source, or go on where an earlier call was cut off; of one
    that was built and has damaged shards since, all are built again.

    Args:
        source: documents, in their canonical form.
        folder: new, or one that an earlier call with the same arguments left.
        tools: embedder and image tokenizer.
        shard_size: see `SHARD_SIZE`.
        id_prefix: stands in front of the documents' ids.
        progress: show a bar.

    Raises:
        DataError: another bank or something else is in the folder, or no document can be used.
        FileError: the disk is full.
    """
    folder = Path(folder).expanduser()
    _check_size(shard_size)
    if folder.is_dir() and not is_bank(folder):
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        others = sorted(names - {SHARDS, IMAGE_TOKENIZER})
        if others:
            raise DataError(
                str(folder), f"holds {others[0]!r} and is no memory bank", "name a new folder"
            )
    with writing(folder):
        plan = _plan(source, range(len(source)), tools, shard_size, id_prefix, "")
        if is_bank(folder):
            manifest = Manifest.read(folder)
            if manifest.built_from != plan:
                raise DataError(
                    str(folder),
                    f"holds a memory bank of {manifest.num_documents:,} documents, built of "
                    "other data "
                    "or otherwise, or changed since",
                    "name a new folder, or add to this one: cm3 memory add",
                )
            if _is_sound(folder):
                tidy(folder, manifest)
                return BuildReport(0, 0, [], manifest.num_documents)
        _save_tokenizer(tools.image_tokenizer, folder / IMAGE_TOKENIZER)
        shards, skipped = _build_shards(
            folder, source, range(len(source)), tools, plan, shard_size, id_prefix, progress
        )
        if not shards:
            raise _nothing_usable(folder, skipped)
        manifest = tools.manifest.with_shards(tuple(shards), plan)
        manifest.write(folder)
        tidy(folder, manifest)
    return BuildReport(manifest.num_documents, 0, skipped, manifest.num_documents)


def add_documents(
    folder: str | Path,
    source: DocumentSource,
    tools: Tools,
    *,
    shard_size: int = SHARD_SIZE,
    id_prefix: str = "",
    skip_duplicates: bool = False,
    progress: bool = True,
) -> BuildReport:
    """Add all documents of a source behind those of a bank, which stays as it was until all are
    there.

    Args:
        folder: a bank.
        source, tools, shard_size, id_prefix, progress: see `build_bank`.
        skip_duplicates: leave out documents whose ids the bank has; else they are refused.

    Raises:
        DataError: other tools than the bank's, ids that it has, or no document can be used.
        FileError: the disk is full.
    """
    folder = Path(folder).expanduser()
    _check_size(shard_size)
    MemoryBank.open(folder)  # before anything is written into a folder that is none
    with writing(folder):
        bank = MemoryBank.open(folder)
        bank.check_embedder(tools.embedder)
        bank.check_tokenizer(tools.image_tokenizer)
        names = [id_prefix + source.id(index) for index in range(len(source))]
        there = bank.find(names)
        if there and not skip_duplicates:
            raise duplicate_ids(
                str(folder), list(there), f"has {len(there):,} of the {len(names):,} ids already"
            )
        wanted = [index for index, name in enumerate(names) if name not in there]
        if there and not wanted:
            tidy(folder, bank.manifest)
            return BuildReport(0, len(there), source.skipped, len(bank))
        plan = _plan(source, wanted, tools, shard_size, id_prefix, bank.fingerprint)
        shards, skipped = _build_shards(
            folder, source, wanted, tools, plan, shard_size, id_prefix, progress
        )
        if not shards:
            raise _nothing_usable(folder, skipped)
        manifest = bank.manifest.with_shards((*bank.manifest.shards, *shards))
        manifest.write(folder)
        tidy(folder, manifest)
    added = manifest.num_documents - len(bank)
    return BuildReport(added, len(there), skipped, manifest.num_documents)


def duplicate_ids(place: str, names: Sequence[str], cause: str) -> DataError:
    """The error of ids that are there twice."""
    shown = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    return DataError(
        place,
        f"{cause} ({shown})",
        "leave the later documents of these ids out (--skip-duplicates), remove the "
        "earlier ones (cm3 memory remove), or give the new ones other ids (cm3 memory add "
        "--id-prefix)",
    )


def _is_sound(folder: Path) -> bool:
    """Whether a bank can be opened; says so when it can't."""
    try:
        MemoryBank.open(folder)
    except DataError as error:
        tqdm.write(f"note: {error.place}: {error.cause}; the bank is built again", file=sys.stderr)
        return False
    return True


def _nothing_usable(folder: Path, skipped: Sequence[SkippedRecord]) -> DataError:
    shutil.rmtree(folder / WORK, ignore_errors=True)
    first = f"; the first is {skipped[0].place}: {skipped[0].cause}" if skipped else ""
    return DataError(
        "the data set",
        f"has no document that can be used ({len(skipped)} are skipped{first})",
        "run 'cm3 data validate' to see why",
    )


def _check_size(shard_size: int) -> None:
    if shard_size < 1:
        raise DataError("shard_size", f"is {shard_size}", "use 1 or more")


def _plan(
    source: DocumentSource,
    wanted: Sequence[int],
    tools: Tools,
    shard_size: int,
    id_prefix: str,
    bank: str,
) -> str:
    """Hash of all that decides the shards."""
    parts = [
        asdict(tools.manifest),
        source.content_fingerprint,
        list(wanted),
        shard_size,
        id_prefix,
        bank,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _save_tokenizer(tokenizer: ImageTokenizer, folder: Path) -> None:
    """What is needed to build the image tokenizer again wherever the bank is moved; nothing when
    its config is enough."""
    if folder.exists():
        shutil.rmtree(folder)
    temporary = folder.parent / f".{folder.name}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tokenizer.save(temporary)
    if not any(temporary.iterdir()):
        temporary.rmdir()
        return
    temporary.rename(folder)
    sync_directory(folder.parent)


def _build_shards(
    folder: Path,
    source: DocumentSource,
    wanted: Sequence[int],
    tools: Tools,
    plan: str,
    shard_size: int,
    id_prefix: str,
    progress: bool,
) -> tuple[list[ShardInfo], list[SkippedRecord]]:
    """Shards of the wanted documents; those that an earlier call with this plan finished are taken
    as they are."""
    manifest, work = tools.manifest, folder / WORK
    _begin(work, plan)
    remove_unfinished(folder)
    shards: list[ShardInfo] = []
    skipped: list[SkippedRecord] = []
    with tqdm(
        total=len(wanted), desc="memory bank", unit="document", disable=None if progress else True
    ) as bar:
        for start in range(0, len(wanted), shard_size):
            places = wanted[start : start + shard_size]
            note = work / f"{start:012d}.json"
            finished = _finished(folder, note, manifest)
            if finished is None:
                own: list[SkippedRecord] = []
                info = write_shard(
                    folder,
                    _counted(_documents(source, places, tools, id_prefix, own), bar),
                    manifest,
                )
                values = {
                    "shard": None if info is None else asdict(info),
                    "skipped": [asdict(record) for record in own],
                }
                write_text(note, json.dumps(values))
                finished = info, own
            if finished[0] is not None:
                shards.append(finished[0])
            skipped += finished[1]
            bar.update(min(start + len(places), len(wanted)) - bar.n)
    return shards, [*source.skipped, *skipped]


def _counted(documents: Iterator[BankDocument], bar: Any) -> Iterator[BankDocument]:
    for document in documents:
        yield document
        bar.update()


def _begin(work: Path, plan: str) -> None:
    """Go on with the notes of this plan; those of another one are thrown away."""
    path = work / _PLAN
    if work.is_dir():
        if path.is_file() and path.read_text() == plan:
            return
        if path.is_file():
            tqdm.write(
                "note: data or settings are others than when building was cut off; it begins anew",
                file=sys.stderr,
            )
        shutil.rmtree(work)
    make_folder(work)
    write_text(path, plan)


def _finished(
    folder: Path, note: Path, manifest: Manifest
) -> tuple[ShardInfo | None, list[SkippedRecord]] | None:
    """A shard that is there, and the records that it skipped; None when it is to be built."""
    try:
        values = json.loads(note.read_text(encoding="utf-8"))
        info = None if values["shard"] is None else shard_of(values["shard"])
        if info is not None:
            Shard(folder, info, manifest)
        return info, [SkippedRecord(**record) for record in values["skipped"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        # a `DataError` is a `ValueError`: what was lost is built again
        return None


def _documents(
    source: DocumentSource,
    places: Sequence[int],
    tools: Tools,
    id_prefix: str,
    skipped: list[SkippedRecord],
) -> Iterator[BankDocument]:
    """The documents of a shard; what can't be used is told in `skipped`."""
    batch: list[tuple[str, Document]] = []
    num_pixels = 0
    for index in places:
        name = id_prefix + source.id(index)
        try:
            document = _read(source.document(index), name)
        except DataError as error:
            skipped.append(SkippedRecord(error.place, error.cause, error.next_step))
            continue
        batch.append((name, document))
        num_pixels += sum(segment.load().size for segment in document if isinstance(segment, Image))
        if len(batch) == _AT_ONCE or num_pixels >= _PIXELS_AT_ONCE:
            yield from _made(batch, tools, skipped)
            batch, num_pixels = [], 0
    yield from _made(batch, tools, skipped)


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


def _made(
    batch: Sequence[tuple[str, Document]], tools: Tools, skipped: list[SkippedRecord]
) -> Iterator[BankDocument]:
    """Vectors and codes of documents that were read."""
    if not batch:
        return
    try:
        vectors_BE = tools.embedder.embed_documents([document for _, document in batch])
    except DataError as error:
        if len(batch) > 1:
            for one in batch:
                yield from _made([one], tools, skipped)
        else:
            cause = f"can't be embedded ({error.place}: {error.cause})"
            skipped.append(SkippedRecord(f"document {batch[0][0]}", cause, error.next_step))
        return
    tokenizer = tools.image_tokenizer
    for (name, document), vector in zip(batch, vectors_BE, strict=True):
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
        yield BankDocument(name, coded, content_keys(document) | content_keys(coded), vector)
