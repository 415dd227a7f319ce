"""Building a bank from a data set, and adding another data set to it. The work is done in shards, so that an
interruption costs at most one of them.

The documents of a shard, and those embedded together, depend only on their positions in the data set. A build that
was interrupted and resumed is therefore byte-identical to an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from cm3core.errors import DataError
from cm3core.files import user_path
from cm3core.interfaces.dataset import DocumentSource, SkippedRecord
from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
from cm3core.outputs import OutputFolder, remove_own
from cm3run.bank.manifest import WORK, Manifest
from cm3run.bank.memory_bank import MemoryBank, is_bank
from cm3run.bank.shard import SHARDS
from cm3run.bank.writing import (
    Helper,
    ShardWork,
    Tools,
    is_begun,
    save_tokenizer,
    telling,
    tidy,
    writing,
)
from cm3run.trust import record_own

#: Documents per shard: the most that an interruption costs, and held in memory until written.
SHARD_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class Shards:
    """How the documents of a source become shards.

    Args:
        size: documents per shard, see `SHARD_SIZE`.
        id_prefix: prepended to the documents' ids.
        part: (i, n), 1 <= i <= n: build only the i-th of n parts of the shards. None: all.
    """

    size: int = SHARD_SIZE
    id_prefix: str = ""
    part: tuple[int, int] | None = None

    def check(self) -> None:
        """Raise `DataError` for a size below 1."""
        if self.size < 1:
            raise DataError("shard_size", f"is {self.size}", "use 1 or more")

    def wanted(self, source: DocumentSource) -> Sequence[int]:
        """Return the documents of the part, in whole shards."""
        if self.part is None:
            return range(len(source))
        number, parts = self.part
        num_shards = -(-len(source) // self.size)
        if not 1 <= number <= parts:
            raise DataError("part", f"is {number} of {parts}", f"use 1/{parts} to {parts}/{parts}")
        if parts > num_shards:
            raise DataError(
                f"part {number}/{parts}",
                f"the data set's {len(source):,} documents are {num_shards:,} shards of {self.size:,}, "
                "fewer than parts",
                f"use {num_shards or 1} parts or fewer, or a smaller --shard-size",
            )
        first, last = ((place * num_shards) // parts * self.size for place in (number - 1, number))
        return range(first, min(last, len(source)))

    def work(
        self,
        folder: Path,
        source: DocumentSource,
        wanted: Sequence[int],
        tools: Tools,
        bank: str = "",
    ) -> ShardWork:
        """Return the work on these documents; its plan is a hash of everything that determines the shards.

        Args:
            bank: fingerprint of the bank that they are added to; "": a new one.
        """
        parts = [
            tools.manifest.values(),
            source.content_fingerprint,
            list(wanted),
            self.size,
            self.id_prefix,
            bank,
        ]
        plan = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
        return ShardWork(folder, source, wanted, tools, plan, self.size, self.id_prefix)


#: All documents, in shards of the usual size.
ALL = Shards()


@dataclass(frozen=True)
class BuildReport:
    """The result of adding a data set: documents `num_added` (0 if it was already in the bank),
    documents skipped because their id exists (`num_duplicates`), unusable records,
    and the bank's total number of documents."""

    num_added: int
    num_duplicates: int
    skipped: list[SkippedRecord]
    num_documents: int


def build_bank(
    source: DocumentSource,
    folder: str | Path,
    tools: Tools,
    shards: Shards = ALL,
    *,
    helpers: Sequence[Helper] = (),
    progress: bool = True,
) -> BuildReport:
    """Build a bank of all documents of a source, or resume an interrupted build. If an existing bank has damaged
    shards, all are rebuilt.

    The shards don't depend on how the work is divided: merging the banks of all parts in order gives the shards of the
    whole bank, and so does building with helpers.

    Args:
        source: documents, in their canonical form.
        folder: a new one, or one left by an earlier call with the same arguments.
        tools: embedder and image tokenizer.
        shards: how the documents are cut into shards.
        helpers: start processes that call `help_build` with the same arguments and shares
            (1, n), (2, n), ... of n = 1 + the number of helpers. This process finishes the shards of
            helpers that fail.
        progress: show a progress bar.

    Raises:
        DataError: there are fewer shards than parts, the folder contains another bank or other files, or no document
            is usable.
        FileError: the disk is full.
    """
    folder = user_path(folder)
    shards.check()
    if tools.codes_psnr is not None and not math.isfinite(tools.codes_psnr):
        raise DataError("codes_psnr", f"is {tools.codes_psnr}", "give a finite number, or None")
    _check_free(folder)
    with writing(folder):
        work = shards.work(folder, source, shards.wanted(source), tools)
        if is_bank(folder) and (there := _built(folder, work.plan)) is not None:
            tidy(folder, there)
            record_own(folder, tools.reaches)
            return BuildReport(0, 0, [], there.num_documents)
        save_tokenizer(tools.image_tokenizer, folder / IMAGE_TOKENIZER)
        made, skipped = work.build(helpers, progress=progress)
        if not made:
            raise _nothing_usable(folder, skipped)
        empty = replace(tools.manifest, codes_psnr=tools.codes_psnr)
        manifest = empty.with_shards(tuple(made), work.plan)
        manifest.write(folder)
        tidy(folder, manifest)
        record_own(folder, tools.reaches)
    return BuildReport(manifest.num_documents, 0, skipped, manifest.num_documents)


def _check_free(folder: Path) -> None:
    """Refuse a folder with other files than those of a bank or of an unfinished build."""
    begun = is_bank(folder) or is_begun(folder)
    parts = () if begun else (f"{SHARDS}/**/*", f"{IMAGE_TOKENIZER}/**/*", f"{WORK}/**/*")
    OutputFolder(folder, *parts, resumes=True)
    if not folder.is_dir() or is_bank(folder):
        return
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    others = sorted(names - {SHARDS, IMAGE_TOKENIZER})
    if others:
        raise DataError(
            str(folder), f"contains {others[0]!r} and is not a memory bank", "name a new folder"
        )


def _built(folder: Path, plan: str) -> Manifest | None:
    """Return the manifest of the existing bank; print a note and return None if it is damaged.

    Raises `DataError` for a bank of another plan."""
    manifest = Manifest.read(folder)
    if manifest.built_from != plan:
        raise DataError(
            str(folder),
            f"already has a memory bank of {manifest.num_documents:,} documents, built from "
            "other data or settings, or changed since",
            "name a new folder, or add to this bank: cm3 memory add",
        )
    try:
        MemoryBank.open(folder)
    except DataError as error:
        tqdm.write(f"note: {error.place}: {error.cause}; rebuilding the bank", file=sys.stderr)
        return None
    return manifest


def help_build(
    source: DocumentSource,
    folder: str | Path,
    tools: Tools,
    share: tuple[int, int],
    shards: Shards = ALL,
) -> None:
    """Write a share of the shards of a bank that `build_bank` is building in another process.

    Args:
        share: (k, n): every n-th shard, beginning with the k-th, 0 <= k < n.
        source, folder, tools, shards: see `build_bank`.

    Raises:
        DataError: no process is building a bank there from the same data and settings.
        FileError: the disk is full.
    """
    folder = user_path(folder)
    work = shards.work(folder, source, shards.wanted(source), tools)
    with telling(folder):
        work.help(share)


def add_documents(
    folder: str | Path,
    source: DocumentSource,
    tools: Tools,
    shards: Shards = ALL,
    *,
    skip_duplicates: bool = False,
    progress: bool = True,
) -> BuildReport:
    """Append all documents of a source to a bank, which is unchanged until all are
    written.

    Args:
        folder: a bank.
        source, tools, shards, progress: see `build_bank`; without a part.
        skip_duplicates: skip documents whose ids the bank already has; otherwise they are refused.

    Raises:
        DataError: the tools differ from the bank's, ids already exist, or no document is usable.
        FileError: the disk is full.
    """
    folder = user_path(folder)
    shards.check()
    MemoryBank.open(folder)  # raises before anything is written if this is not a bank
    with writing(folder):
        bank = MemoryBank.open(folder)
        bank.check_embedder(tools.embedder)
        bank.check_tokenizer(tools.image_tokenizer)
        names = [shards.id_prefix + source.id(index) for index in range(len(source))]
        there = bank.find(names)
        if there and not skip_duplicates:
            raise duplicate_ids(
                str(folder), list(there), f"already has {len(there):,} of the {len(names):,} ids"
            )
        wanted = [index for index, name in enumerate(names) if name not in there]
        if there and not wanted:
            tidy(folder, bank.manifest)
            return BuildReport(0, len(there), source.skipped, len(bank))
        work = shards.work(folder, source, wanted, tools, bank.fingerprint)
        made, skipped = work.build(progress=progress)
        if not made:
            raise _nothing_usable(folder, skipped)
        manifest = bank.manifest.with_shards((*bank.manifest.shards, *made))
        manifest.write(folder)
        tidy(folder, manifest)
    added = manifest.num_documents - len(bank)
    return BuildReport(added, len(there), skipped, manifest.num_documents)


def duplicate_ids(place: str, names: Sequence[str], cause: str) -> DataError:
    """The error for duplicate ids."""
    shown = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    return DataError(
        place,
        f"{cause} ({shown})",
        "skip the later documents with these ids (--skip-duplicates), remove the "
        "earlier ones (cm3 memory remove), or give the new ones other ids (cm3 memory add "
        "--id-prefix)",
    )


def _nothing_usable(folder: Path, skipped: Sequence[SkippedRecord]) -> DataError:
    remove_own(folder / WORK)
    first = f"; the first is {skipped[0].place}: {skipped[0].cause}" if skipped else ""
    return DataError(
        "the data set",
        f"has no usable document ({len(skipped)} skipped{first})",
        "run 'cm3 data validate' to see why",
    )
