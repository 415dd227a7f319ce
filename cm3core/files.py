"""A user's files and folders: atomic writes, so that readers see the old file or the new one, never half of it; the
cache; refusing special files; locks on folders that only one process at a time may change.

A file is first written in a temporary folder beside its place, which the writing process locks. The system frees the
lock when that process ends, however it ends, so a temporary folder with a free lock has no owner and can be removed.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cm3core.arguments import checked
from cm3core.errors import CM3Error, DataError, FileError

#: Suffix of temporary folders; no other file that we write has it.
SUFFIX = ".cm3-writing"
_NAME = re.compile(rf"\..*\.[0-9a-f]{{8}}{re.escape(SUFFIX)}", re.DOTALL)
#: Letters of the target's name in a temporary folder's name; names have a limited length.
_MAX_LETTERS = 40
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_mask_lock = threading.Lock()

#: Checks what a command writes where its user wants it; set by `cm3core.outputs`, which says what the arguments are.
guard: Callable[[Path, Path, Path | None], bool] | None = None
#: Folders that `cache_folder` named.
_caches: set[str] = set()

#: Path, device and inode of the folders in which this process has looked for leftovers. A new folder
#: may get the inode of a removed one. A forked process looks again.
_searched: set[tuple[str, int, int]] = set()
os.register_at_fork(after_in_child=_searched.clear)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, whose parent exists; at the end it is removed with everything
    still in it.

    The first one that a process makes in a place also removes those that killed processes left there.

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
        # free the lock last, so that only one process removes the folder
        shutil.rmtree(folder, ignore_errors=True)  # the next process here removes the rest
        _close(handle)


def _close(handle: int) -> None:
    """Close a folder's descriptor and so free its lock; no data can be lost."""
    with suppress(OSError):
        os.close(handle)


def _made(target: Path) -> tuple[Path, int] | None:
    """Make and lock a folder; return it and its open descriptor. None: another process found it before it was
    locked, and removed it."""
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
    except OSError:  # a disk without locks: then nobody can lock it to remove it, either
        return folder, handle
    if not _is_at(folder, handle):
        _close(handle)
        return None
    return folder, handle


def make_ordinary(file: Path) -> None:
    """Give a file the default permissions of the user's files: some libraries make private ones."""
    # Python can read the umask only by changing it, so two threads must not do so at once
    with _mask_lock:
        umask = os.umask(0o077)
        os.umask(umask)
    file.chmod(0o666 & ~umask)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary folders in `folder` whose owners have ended. Never fails: folders that can't be
    removed stay."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if _NAME.fullmatch(entry.name)]
    except OSError:
        return
    for name in found:
        _remove_if_free(folder / name)


def is_unfinished(path: Path, folder: Path) -> bool:
    """Whether a path in `folder` is, or is in, a temporary folder: a killed process's, or one in use."""
    return any(_NAME.fullmatch(part) for part in path.relative_to(folder).parts)


def remove_unfinished_once(folder: Path) -> None:
    """Call `remove_unfinished` the first time that this process names this folder.

    Raises:
        OSError: the folder does not exist.
    """
    status = folder.stat()
    place = (str(folder), status.st_dev, status.st_ino)
    if place not in _searched:
        _searched.add(place)
        remove_unfinished(folder)


def _remove_if_free(folder: Path) -> None:
    try:
        handle = os.open(folder, _OPEN)
    except OSError:  # removed, a link, or another user's
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(folder, handle):
            shutil.rmtree(folder, ignore_errors=True)  # another process may be removing it, too
    except OSError:  # its owner is alive, or the disk has no locks
        return
    finally:
        _close(handle)


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


@checked(FileError)
def user_path(path: str | Path, place: str | None = None) -> Path:
    """Return a path with a leading `~` or `~user` replaced by that user's home folder.

    Args:
        path: as a user wrote it.
        place: where it was written, for the error; None: the path itself.

    Raises:
        CM3Error: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0]
        raise CM3Error(
            str(path) if place is None else place,
            f"{user!r} has no known home folder",
            f"write the whole path, or ./{user} for a folder of that name",
        ) from error


def cache_directory() -> Path:
    """Return the folder for rendered pictures and computed codes.

    It is `CM3_CACHE` if set, otherwise the user's cache folder.

    Raises:
        FileError: `CM3_CACHE` is not a folder.
    """
    if configured := os.environ.get("CM3_CACHE"):
        folder = user_path(configured, "CM3_CACHE")
        if folder.exists() and not folder.is_dir():
            raise FileError("CM3_CACHE", f"is {configured}, not a folder", "name a folder")
        return folder
    return user_path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "cm3leon"


def state_folder(*names: str) -> Path:
    """Return a folder for permanent state, in `XDG_STATE_HOME`; it may not exist yet."""
    state = user_path(os.environ.get("XDG_STATE_HOME") or "~/.local/state")
    return (state / "cm3leon").joinpath(*names)


@checked(FileError)
def cache_folder(*names: str, root: str | Path | None = None) -> Path:
    """Return a folder of the cache; it may not exist yet.

    Removes what killed processes left in it: a process that finds a complete file there never writes in
    the folder again, so `atomic_path` would not do it.

    Args:
        names: of the folder, preceded by those of its parents.
        root: where caches are kept; None: `cache_directory()`.

    Raises:
        FileError: see `cache_directory`.
    """
    folder = (cache_directory() if root is None else user_path(root)).joinpath(*names)
    _caches.add(os.path.realpath(folder))
    with suppress(OSError):  # does not exist yet
        remove_unfinished_once(folder)
    return folder


def is_cache(path: Path) -> bool:
    """Whether a path, with links resolved, is in the cache or in a folder that `cache_folder` named."""
    if path.is_relative_to(os.path.realpath(cache_directory())):
        return True
    return not _caches.isdisjoint(map(str, path.parents))


_SPECIAL = "is a device, a pipe or a socket, not a regular file"
#: s3://bucket/folder, as written or as spelled by a `Path`.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")
#: Errors of a disk that is full or fails during a write.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
#: Errors of a disk without write permission, at the first byte or later (a share whose permissions changed).
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ESTALE)
#: The next step for a full disk.
FREE_SPACE = "free space on that disk"
#: A few bytes, which a disk that is not full accepts.
_A_LITTLE = 1 << 16


@checked(FileError)
@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path for a file that becomes `path`; on success, flush it to disk and replace `path`.

    On any error (a full disk, Ctrl-C) the file is removed and `path` is unchanged; after a kill, the
    next process that writes in the folder removes it. A symbolic link is kept, and its target
    replaced.

    Where a command writes what its user asked for, the file that is replaced must be one that it wrote itself, see
    `cm3core.outputs`.

    Raises:
        FileError: the disk is full, or the path is not writable: a folder, a device, a pipe, somebody else's file.
    """
    target = Path(os.path.realpath(path))
    _check_replaceable(path, target)
    if guard is not None:
        guard(Path(path), target, None)
    with new_place(target) as temporary:
        try:
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
        except CM3Error:
            raise
        except Exception as error:  # a full disk raises errors of many types; others are re-raised
            if (cause := _disk_error(error, temporary)) is not None:
                raise not_written(target, cause) from error
            raise
        if guard is not None and not guard(Path(path), target, temporary):
            return  # the same bytes are there
        try:
            _take_place(temporary, target, mode)
        except OSError as error:
            raise not_written(target, error) from error


@contextmanager
def new_place(target: Path) -> Iterator[Path]:
    """Yield an unused path on the disk of `target`, for making a file or a folder that is then renamed to
    `target`. Anything still there at the end is removed; what a killed process leaves is removed by the next
    one that writes in the same folder.

    Raises:
        FileError: the place is not writable.
    """
    make_folder(target.parent)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder(target))
        except OSError as error:
            raise not_written(target, error) from error
        yield folder / target.name


def _check_replaceable(path: str | Path, target: Path) -> None:
    """Refuse to replace anything but a regular file: replacing a device node would break the system.

    Nothing is made beside a folder, either: it may be a link to a far-away place."""
    if target.is_dir():
        raise not_written(
            target, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        )
    if target.exists() and not target.is_file():
        raise FileError(str(path), _SPECIAL, "name a file's path")


def check_regular(path: str | Path, place: str) -> None:
    """Refuse to read a device, a pipe or a socket, also through a link, because reading may block or never end.

    Raises:
        DataError: it is one of these. Folders and missing paths are left to the reader's own message.
    """
    path = Path(path)
    try:
        special = path.exists() and not path.is_file() and not path.is_dir()
    except OSError as error:  # a name that is too long, for example
        reason = error.strerror or str(error)
        raise DataError(place, f"can't be read ({reason})", "correct the path") from error
    if special:
        raise DataError(place, _SPECIAL, "use a regular file instead")


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open an untrusted file for reading bytes.

    Raises:
        OSError: it can't be opened, or is a folder, a device, a pipe or a socket, also through a
            link: reading these may block, or never end.
    """
    handle = os.open(
        path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    )  # don't wait for a pipe's writer
    if not stat.S_ISREG((status := os.fstat(handle)).st_mode):
        os.close(handle)
        code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        cause = os.strerror(code) if code == errno.EISDIR else "Is not a regular file"
        raise OSError(code, cause, str(path))
    return os.fdopen(handle, "rb")


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    r"""Return the text of an untrusted file, with lines ended by `\n`.

    Raises:
        OSError: see `open_regular`.
        UnicodeDecodeError: it does not have this encoding.
    """
    with io.TextIOWrapper(open_regular(path), encoding=encoding) as file:
        return file.read()


def check_links(folder: Path, *names: str) -> None:
    """Refuse to write to a folder, or to these files in it, if a link leads to a file outside the
    folder: an untrusted folder must not make us change other files.

    Raises:
        FileError: there is such a link.
    """
    found = [folder / name for name in names] if names else _entries(folder)
    for path in found:
        if path.is_symlink() and not path.is_dir() and not _is_inside(path, folder):
            raise FileError(
                str(path),
                "is a link to a file outside of this folder, which would be overwritten",
                "replace the link by a copy of the file, or remove it",
            )


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def check_not_input(out: str | Path, *inputs: str | Path) -> None:
    """Raise `FileError` if writing `out` would replace one of the input files."""
    for source in inputs:
        if Path(out).exists() and Path(source).exists() and Path(out).samefile(source):
            raise FileError(str(out), "is the input file", "name another file to write")


def _disk_error(error: Exception, file: Path) -> OSError | None:
    """The disk's error behind a failed write; None: the failure has another cause.

    Libraries in C++ and Rust raise their own errors for a full disk, which may not say so.
    The file is therefore extended a little, to get the system's error."""
    if isinstance(error, OSError) and error.errno is not None:
        # an error about a file being read names that file
        own = error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(
            file.parent
        )
        refused = error.errno in _DISK_ERRORS or (own and error.errno in _REFUSED)
        return error if refused else None
    try:
        with file.open("ab") as more:
            more.write(bytes(_A_LITTLE))
            more.flush()
            os.fsync(more.fileno())
    except OSError as found:
        return found if found.errno in _DISK_ERRORS else None
    return None


def _take_place(temporary: Path, target: Path, mode: int) -> None:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.chmod(mode)  # some libraries make private files
    temporary.replace(target)
    sync_directory(target.parent)


def not_written(path: Path, error: OSError) -> FileError:
    """Return the error that says why a path could not be written."""
    step = FREE_SPACE if error.errno in _DISK_ERRORS else "name a place where you may write"
    if error.errno not in _DISK_ERRORS and path.is_relative_to(cache_directory()):
        # the user did not name this place, so suggest how to change it
        step = "set CM3_CACHE to a folder where you may write"
    return FileError(str(path), f"can't be written ({error.strerror or error})", step)


@checked(FileError)
def make_folder(path: Path) -> None:
    """Make a folder and its parents if they don't exist. Raises `FileError` if this fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(path, error) from error


@checked(FileError)
def check_writable(path: str | Path, *, folder: bool = False) -> None:
    """Raise `FileError` if this file, or files in this folder, certainly can't be written.

    Called before long work; creates nothing.

    Args:
        path: the file or folder that will be written.
        folder: whether it is a folder.
    """
    if _ADDRESS.match(str(path)):
        cause = "is an address, but only local disks can be written"
        raise FileError(str(path), cause, "write to a folder here, then copy it to the store")
    target = Path(path).absolute()
    if target.exists() and target.is_dir() != folder:
        is_now, needed = (
            ("a folder", "a file's path") if target.is_dir() else ("a file", "a folder")
        )
        raise FileError(str(path), f"is {is_now}", f"name {needed}")
    if not folder:
        _check_replaceable(path, target)
    nearest = next(place for place in (target, *target.parents) if place.is_dir() or place.exists())
    cause = ""
    if nearest != target and not nearest.is_dir():
        cause = f"can't be written ({nearest} is a file)"
    elif not os.access(nearest if nearest.is_dir() else nearest.parent, os.W_OK | os.X_OK):
        read_only = nearest.exists() and os.statvfs(nearest).f_flag & os.ST_RDONLY
        why = f"{nearest} is on a read-only disk" if read_only else f"no permission in {nearest}"
        cause = f"can't be written ({why})"
    if cause:
        raise FileError(str(path), cause, "name a place where you may write")


def sync_directory(path: Path) -> None:
    """Make a rename in `path` durable: POSIX keeps the entries in the directory's own pages."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@checked(FileError)
def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@checked(FileError)
def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) atomically."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        cause = (
            f"can't be written: the text has an unpaired surrogate ({error.object[error.start]!a})"
        )
        raise FileError(str(path), cause, "correct the text") from error
    write_bytes(path, data)


@contextmanager
def locked(path: str | Path, busy: CM3Error | None = None) -> Iterator[None]:
    """Hold a lock: `path` is its file, made if missing and never written to. The lock ends
    with the process.

    Args:
        path: the lock's file, in an existing folder.
        busy: raised if another process holds the lock; None: wait for it.

    Raises:
        FileError: the file can't be made or locked, or is a link, a folder or a device.
    """
    while not _still_there(path, handle := _open_lock_held(Path(path), busy)):
        os.close(handle)  # its last holder deleted it
    _held.add(handle)
    try:
        yield
    finally:
        if handle in _held:
            _held.remove(handle)
            _close(handle)


#: Descriptors of the locks that this process holds. A forked process closes them: otherwise it would hold them, too, and
#: longer than a process that was killed.
_held: set[int] = set()


def _let_go() -> None:
    while _held:
        _close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def held_folder(folder: str | Path, busy: CM3Error) -> Iterator[None]:
    """A context in which no other process holds the folder (otherwise raises `busy`). Makes the folder if missing, and
    removes it again if an error occurs while it is empty. The folder itself is locked, without a lock file."""
    folder = Path(folder)
    made = not folder.exists()
    make_folder(folder)
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:  # no read permission
        raise not_written(folder, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        except OSError:  # a disk without locks: continue unlocked rather than refuse
            pass
        yield
    except BaseException:
        if made:
            with suppress(OSError):  # not empty
                folder.rmdir()
        raise
    finally:
        with suppress(OSError):
            os.close(handle)


def _still_there(path: str | Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _open_lock_held(path: Path, busy: CM3Error | None) -> int:
    handle = _open_lock(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
    except BaseException as error:
        os.close(handle)
        if isinstance(error, BlockingIOError) and busy is not None:
            raise busy from error
        if isinstance(error, OSError):
            raise FileError(
                str(path),
                f"can't be locked ({error.strerror or error})",
                "name a place on a disk whose files can be locked",
            ) from error
        raise
    return handle


def _open_lock(path: Path) -> int:
    """Open a lock's file. Its folder is untrusted: a link would make us open, or
    make, a file elsewhere; a pipe would block."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if os.path.lexists(path) and not _is_regular(path.lstat()):
            raise _not_a_lock(path) from error
        raise not_written(path, error) from error
    if not _is_regular(os.fstat(handle)):
        os.close(handle)
        raise _not_a_lock(path)
    return handle


def _is_regular(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)


def _not_a_lock(path: Path) -> FileError:
    return FileError(
        str(path), "is a link, a folder or a device, not a lock's file", "move or delete it"
    )


@checked(FileError)
def sha256_file(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes. Raises `OSError`, see `open_regular`."""
    import hashlib  # imported here because it loads OpenSSL, which few commands need

    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
