"""What all that changes a bank shares: one process at a time, and clearing away what killed ones
left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cm3core.errors import DataError, FileError
from cm3core.files import (
    FREE_SPACE,
    check_links,
    check_writable,
    locked,
    make_folder,
    remove_unfinished,
)
from cm3run.bank.manifest import MANIFEST, WORK, Manifest, is_shard_name
from cm3run.bank.shard import SHARDS, WRITING

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
