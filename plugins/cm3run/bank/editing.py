"""Removing documents from a bank, and merging banks. Shards never change; affected ones
are written again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cm3core.errors import DataError, FileError
from cm3core.files import (
    check_writable,
    make_folder,
    new_place,
    not_written,
    sha256_file,
    sync_directory,
    user_path,
)
from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
from cm3run.bank.building import duplicate_ids
from cm3run.bank.manifest import Manifest, ShardInfo
from cm3run.bank.memory_bank import MemoryBank
from cm3run.bank.shard import SHARDS, Shard, write_shard
from cm3run.bank.writing import AGAIN, is_of, tidy, writing
from cm3run.progress import make_bar
from cm3run.trust import own_of, record_own

_SHOWN = 3
#: Folder within a bank for damaged shards that were taken out.
SET_ASIDE = "set-aside"


@dataclass(frozen=True)
class RemoveReport:
    """The result of removing documents.

    Args:
        num_removed: documents removed.
        missing: ids that were not found.
        num_damaged_shards: damaged shards taken out of the bank.
        num_documents: remaining documents.
        set_aside: folder that the damaged shards were moved to; None: there were none, or they were
            deleted.
    """

    num_removed: int
    missing: list[str]
    num_damaged_shards: int
    num_documents: int
    set_aside: Path | None = None


def remove_documents(
    folder: str | Path, names: Sequence[str], *, damaged: bool = False, delete: bool = False
) -> RemoveReport:
    """Remove documents from a bank and delete their data. The other documents keep their order, vectors
    and codes.

    Args:
        folder: a bank.
        names: ids. Ids that are not found are reported.
        damaged: also take out damaged shards, which are otherwise an error. Their files are moved to the
            bank's folder `SET_ASIDE`.
        delete: delete the damaged shards' files instead.

    Raises:
        DataError: nothing would change, or no document would be left.
        FileError: the disk is full.
    """
    folder = user_path(folder)
    # raise before anything is written if this is not a bank
    MemoryBank.open(folder, skip_damaged=damaged)
    with writing(folder, AGAIN), _tidied(folder):
        bank = MemoryBank.open(folder, skip_damaged=damaged)
        found = bank.find(names)
        missing = [name for name in dict.fromkeys(names) if name not in found]
        if not found and names:
            shown = ", ".join(map(repr, missing[:_SHOWN])) + (
                ", ..." if len(missing) > _SHOWN else ""
            )
            raise DataError(
                str(folder),
                f"has no document with these ids ({shown})",
                "give the ids under which they were added, including any prefix",
            )
        if len(found) == len(bank):
            raise DataError(str(folder), "would have no document left", "delete the folder instead")
        shards = _without(folder, bank, set(found.values()))
        num_damaged = len(bank.skipped)
        if found or num_damaged:
            lost = {info.name for info in Manifest.read(folder).shards} - {
                shard.info.name for shard in bank.shards
            }
            if not delete:  # move them first, because files missing from the manifest are deleted
                _set_aside(folder, lost)
            bank.manifest.with_shards(tuple(shards)).write(folder)
    aside = folder / SET_ASIDE if num_damaged and not delete else None
    return RemoveReport(len(found), missing, num_damaged, len(bank) - len(found), aside)


@contextmanager
def _tidied(folder: Path) -> Iterator[None]:
    """Delete files that don't belong to the bank, now and at the end, so that a failed write on a full disk
    leaves nothing behind."""
    before = Manifest.read(folder)
    tidy(folder, before)
    try:
        yield
    finally:
        tidy(folder, Manifest.read(folder), before)


def _set_aside(folder: Path, shards: Collection[str]) -> None:
    """Move shards that the bank no longer lists to its folder `SET_ASIDE`; files already there stay."""
    for name in sorted(shards):
        source = folder / SHARDS / name
        if not source.exists():
            continue
        target = folder / SET_ASIDE / name
        make_folder(target.parent)
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{name}-{number}")
        try:
            source.rename(target)
            sync_directory(target.parent)
        except OSError as error:
            raise not_written(target, error) from error


def _without(target: Path, bank: MemoryBank, removed: Collection[int]) -> list[ShardInfo]:
    """The bank's shards without some documents; affected shards are written again, into the bank
    `target`."""
    shards, start = [], 0
    for shard in bank.shards:
        rows = (
            [row for row in range(len(shard)) if start + row not in removed]
            if removed
            else range(len(shard))
        )
        start += len(shard)
        info = (
            shard.info
            if len(rows) == len(shard)
            else write_shard(target, shard.documents(rows), bank.manifest)
        )
        if info is not None:
            shards.append(info)
    return shards


def merge_banks(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    skip_duplicates: bool = False,
    progress: bool = True,
) -> MemoryBank:
    """Merge several banks into one, in their order; the originals are unchanged.

    Args:
        folders: two or more banks with the same embedder and image tokenizer.
        out: a new folder; it appears only when complete.
        skip_duplicates: of documents with the same id, keep the first; otherwise they are refused.
        progress: show a progress bar.

    Raises:
        DataError: different tools, duplicate ids, a damaged shard, or `out`
            exists.
        FileError: the disk is full.
    """
    target = user_path(out)
    if target.exists():
        raise DataError(str(target), "already exists", "name a new folder")
    check_writable(target, folder=True)
    banks = [MemoryBank.open(folder) for folder in folders]
    if len(banks) < 2:
        raise DataError("cm3 memory merge", f"was given {len(banks)} banks", "name two or more")
    _check_same_tools(banks)
    removed = _later_duplicates(banks)
    if any(removed) and not skip_duplicates:
        names = [
            bank.id(index)
            for bank, indices in zip(banks, removed, strict=True)
            for index in sorted(indices)
        ]
        raise duplicate_ids(
            str(banks[0].folder), names, f"and the banks after it share {len(names):,} ids"
        )
    try:
        with new_place(target) as temporary:
            _write_merged(temporary, target, banks, removed, progress)
            temporary.rename(target)
            sync_directory(target.parent)
    except OSError as error:
        raise not_written(target, error) from error
    record_own(target, own_of(folders[0]))
    return MemoryBank.open(target)


def _write_merged(
    temporary: Path,
    target: Path,
    banks: Sequence[MemoryBank],
    removed: Sequence[Collection[int]],
    progress: bool,
) -> None:
    """Write the merged bank, omitting some documents of each, into a folder that becomes `target`."""
    make_folder(temporary / SHARDS)
    shards: list[ShardInfo] = []
    bar = make_bar(
        total=sum(map(len, banks)),
        desc="merging",
        unit="document",
        disable=None if progress else True,
    )
    try:
        with bar:
            for bank, indices in zip(banks, removed, strict=True):
                own = _without(temporary, bank, indices)
                for shard in bank.shards:
                    if shard.info in own:
                        _copy(shard, temporary)
                    bar.update(len(shard))
                shards += own
        if (banks[0].folder / IMAGE_TOKENIZER).is_dir():
            _copy_files(banks[0].folder / IMAGE_TOKENIZER, temporary / IMAGE_TOKENIZER)
        # the minimum: a model may generate from a document of any of them
        known = [psnr for bank in banks if (psnr := bank.manifest.codes_psnr) is not None]
        manifest = replace(banks[0].manifest, codes_psnr=min(known, default=None))
        manifest.with_shards(tuple(shards)).write(temporary)
    except FileError as error:
        if not is_of(error, temporary):
            raise
        # the temporary folder in the message no longer exists when the user reads it
        raise FileError(str(target), error.cause, error.next_step) from error


def _check_same_tools(banks: Sequence[MemoryBank]) -> None:
    first = banks[0].manifest
    for bank in banks[1:]:
        for kind, ours, theirs in (
            ("embedder", first.embedder, bank.manifest.embedder),
            ("image tokenizer", first.image_tokenizer, bank.manifest.image_tokenizer),
        ):
            if ours.fingerprint != theirs.fingerprint:
                raise DataError(
                    str(bank.folder),
                    f"was built with a different {kind} ({theirs.name!r}, fingerprint "
                    f"{theirs.fingerprint[-12:]}) than {banks[0].folder} ({ours.name!r}, "
                    f"{ours.fingerprint[-12:]})",
                    "rebuild one of them with the other's: cm3 memory build",
                )


def _later_duplicates(banks: Sequence[MemoryBank]) -> list[set[int]]:
    """For each bank, the documents whose ids occur in an earlier bank."""
    result: list[set[int]] = [set()]
    for place, bank in enumerate(banks[1:], 1):
        shared = np.isin(
            bank.id_hashes, np.concatenate([earlier.id_hashes for earlier in banks[:place]])
        )
        names = {bank.id(index): index for index in np.flatnonzero(shared).tolist()}
        # rules out hash collisions
        found = {name for earlier in banks[:place] for name in earlier.find(list(names))}
        result.append({names[name] for name in found})
    return result


def _copy(shard: Shard, target: Path) -> None:
    """Copy a shard, and verify the copy against the recorded hashes."""
    _copy_files(shard.folder, target / SHARDS / shard.info.name)
    for name, file in shard.info.files.items():
        path = target / SHARDS / shard.info.name / name
        if sha256_file(path) != file.sha256:
            raise shard.damaged(name, "does not match its recorded SHA-256")
        with path.open("rb+") as copy:
            os.fsync(copy.fileno())


def _copy_files(source: Path, target: Path) -> None:
    """Copy a folder. `shutil.copytree` continues after a full disk, and raises one error that lists all files."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
