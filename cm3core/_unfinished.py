"""Folders in which files are written before they take their place, and removing those that killed
processes left.

Each is locked by the process that writes in it. The system frees the lock when that process ends,
however that happens: a folder whose lock is free has no owner, and nobody needs what is in it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Ending of the folders' names; nothing else that we write has it.
SUFFIX = ".cm3-writing"
_NAME = re.compile(rf"\..*\.[0-9a-f]{{8}}{re.escape(SUFFIX)}", re.DOTALL)
#: Letters of the target's name that a folder's name has: a file's name may be as long as names can be.
_MAX_LETTERS = 40
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_mask_lock = threading.Lock()

#: Path, device and inode of the folders in which this process has looked for what others left. A new folder
#: may get the inode of one that was removed. A forked process looks again.
_searched: set[tuple[str, int, int]] = set()
os.register_at_fork(after_in_child=_searched.clear)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, whose folder is there; it is removed at the end, with all that is
    still in it.

    The first one of a process in a place also removes those that killed processes left there.

    Raises:
        OSError: it can't be made.
    """
    remove_unfinished_once(target.parent)
    while (made := _made(target)) is None:
        pass
    folder, handle = made
    try:
        yield folder
    finally:
        # the lock is freed last, so that only one process removes the folder
        shutil.rmtree(folder, ignore_errors=True)
        _close(handle)


def _close(handle: int) -> None:
    """Close a folder's descriptor, whose lock goes with it; nothing was written by it that could be lost."""
    with suppress(OSError):
        os.close(handle)


def _made(target: Path) -> tuple[Path, int] | None:
    """A folder and its open descriptor, locked. None: between the two, another process took it for
    one without an owner."""
    name = f".{target.name[:_MAX_LETTERS]}.{os.urandom(4).hex()}{SUFFIX}"
    folder = target.parent / name
    folder.mkdir(mode=0o700)
    try:
        handle = os.open(folder, _OPEN)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _close(handle)
        return None
    except OSError:  # no locks on this disk: then nobody can lock it to remove it, either
        return folder, handle
    if not _is_at(folder, handle):
        _close(handle)
        return None
    return folder, handle


def make_ordinary(file: Path) -> None:
    """Give a file the rights of one that the user makes: some libraries make private ones."""
    # Python can ask for the mask only by changing it, which another thread may be in the middle of
    with _mask_lock:
        umask = os.umask(0o077)
        os.umask(umask)
    file.chmod(0o666 & ~umask)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary folders in `folder` whose owners have ended. Never fails: what can't be
    removed stays."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if _NAME.fullmatch(entry.name)]
    except OSError:
        return
    for name in found:
        _remove_if_free(folder / name)


def remove_unfinished_once(folder: Path) -> None:
    """`remove_unfinished`, the first time that this process is asked for this folder.

    Raises:
        OSError: the folder is not there.
    """
    status = folder.stat()
    place = (str(folder), status.st_dev, status.st_ino)
    if place not in _searched:
        _searched.add(place)
        remove_unfinished(folder)


def _remove_if_free(folder: Path) -> None:
    try:
        handle = os.open(folder, _OPEN)
    except OSError:  # gone, a link, or another user's
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(folder, handle):
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its owner is alive, or the disk has no locks
        return
    finally:
        _close(handle)


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
