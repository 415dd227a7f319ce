"""The files that a command writes where its user wants them: it replaces and deletes only what cm3leon wrote itself.

A file is ours if its hash is in the user's state folder, recorded for this very path by the process that wrote it. Nothing
in the folder itself is evidence: neither a name, nor a report that lists files, nor metadata in a picture. A file that was
changed after we wrote it is the user's.

A hash is recorded before the file takes its name. A process that is killed in between leaves either the old file or the
new one, and both are known. Without a usable state folder nothing is ours, so nothing is ever replaced.

    with OutputFolder(folder, "report.json", "*.svg"): ...   # refused here, before any work
    write_text(folder / "report.json", text)                 # checked and recorded, by `cm3core.files.atomic_path`
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from cm3core import files
from cm3core.arguments import checked
from cm3core.errors import CM3Error, FileError
from cm3core.files import (
    check_writable,
    is_cache,
    is_unfinished,
    not_written,
    open_regular,
    remove_unfinished,
    state_folder,
    write_bytes,
)
from cm3core.user_state import (
    is_private,
    make_records_folder,
    record_path,
    remove_old_records,
)

_WRITTEN = "written"
#: Files with more bytes are known by size, time, and a hash of their two ends.
_MOST_HASHED = 1 << 26
_END = 1 << 20
#: A record with more lines per file is shortened to the last two hashes of each file: of the file that is there, and
#: of the one that was about to replace it.
_MOST_LINES = 64
_LEAST_SHORTENED = 4096

_mutex = threading.RLock()
#: Claimed by this process. Folders: path as it was named, without following links -> real path. Files: real paths.
_folders: dict[str, str] = {}
#: Real paths of the folders whose work is resumed, see `OutputFolder`.
_resumed: set[str] = set()
_files: set[str] = set()
#: Record's path -> (inode, size, time), and the hashes of each file.
_read: dict[Path, tuple[tuple[int, int, int], dict[str, set[str]]]] = {}


class OutputFolder:
    """A folder that a user named for a command's results, and the files that will be written there.

    From now on, this process writes in the folder only new files and over its own: `cm3core.files` refuses everything
    else, whoever calls it. Files with other names are never looked at.

    Args:
        folder: need not exist, and is not made.
        names: of the files that will be written, as patterns relative to the folder ("candidates/*.svg", "model/**/*").
        resumes: hours of work that may have begun on another machine go on: somebody else's file that turns out to be in
            the way is renamed (see `set_aside`) instead of refused.

    Raises:
        FileError: the folder can't be written, or has such a file that is not ours, or a link leads out of it.
    """

    @checked(FileError)
    def __init__(self, folder: str | Path, *names: str, resumes: bool = False) -> None:
        check_writable(folder, folder=True)
        self.folder = Path(folder)
        with _mutex:
            _folders[_lexical(folder)] = real = os.path.realpath(folder)
            if resumes:
                _resumed.add(real)
        files.guard = _guard
        self.refuse(*names)

    def refuse(self, *names: str) -> None:
        """Raise `FileError` if there are files of these names (patterns, as above) that are not ours."""
        foreign = [path for name in names for path in _found(self.folder, name) if _foreign(path)]
        _refuse(foreign)

    def is_own(self, name: str) -> bool:
        """Whether a file is there, and is ours and unchanged."""
        return is_own(self.folder / name)

    def remove(self, name: str) -> bool:
        """Delete a file if it is ours and unchanged; return whether it is gone."""
        path = self.folder / name
        if not os.path.lexists(path):
            return True
        if not is_own(path) or self._leaves(path):
            return False
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return True

    def _leaves(self, path: Path) -> bool:
        real = os.path.realpath(self.folder)
        return not Path(os.path.realpath(path)).is_relative_to(real)


def claim_file(path: str | Path, *more: str | Path) -> None:
    """The same for single files that a user named: refuse them now if they are there and not ours; from now on, this
    process writes them only while they are missing or ours.

    Raises:
        FileError: a file can't be written, or is somebody else's.
    """
    for one in (path, *more):
        check_writable(one)
        with _mutex:
            _files.add(os.path.realpath(one))
    files.guard = _guard
    _refuse(
        [Path(one) for one in (path, *more) if _foreign(Path(os.path.realpath(one)))],
        step="move it, or name another file",
    )


def is_own(path: str | Path) -> bool:
    """Whether a file was written by this user's commands at this path, and is unchanged. False for a link."""
    real = Path(os.path.realpath(Path(path).parent)) / Path(path).name
    known = _hashes(real.parent).get(real.name)
    try:
        return known is not None and _fingerprint(real) in known
    except OSError:
        return False


def foreign_in(folder: str | Path) -> list[Path]:
    """The files and links in a folder and its subfolders that are not ours, sorted."""
    return sorted(
        path
        for path in Path(folder).rglob("*")
        if (path.is_symlink() or not path.is_dir()) and not is_own(path)
    )


def remove_own(folder: Path) -> bool:
    """Delete a folder if all files in it are ours; return whether it is gone. Never fails: what can't be deleted stays."""
    if folder.is_symlink():
        return False
    _remove_unfinished_in(folder)
    if folder.exists() and foreign_in(folder):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def refuse_foreign_in(folder: str | Path) -> None:
    """Raise `FileError` if a folder that is to be replaced as a whole has files that are not ours."""
    _remove_unfinished_in(Path(folder))
    _refuse(foreign_in(folder))


def _remove_unfinished_in(folder: Path) -> None:
    """Remove what killed processes left in a folder and its subfolders, which nobody wrote to an end."""
    for place, _, _ in os.walk(folder):
        remove_unfinished(Path(place))


def record_folder(made: Path, target: Path) -> None:
    """Record all files in a new folder, which is about to be renamed to `target`."""
    for place, _, names in os.walk(made):
        final = Path(os.path.realpath(target)) / os.path.relpath(place, made)
        _record(
            Path(os.path.normpath(final)),
            {name: _fingerprint(Path(place) / name) for name in sorted(names)},
        )


def set_aside(path: Path) -> Path | None:
    """Keep a file or folder that is not ours as NAME-1, NAME-2, ..., so that a command which resumes somebody's results
    can write its own; prints a note. A folder is renamed. A file gets the second name, and is then as good as ours: after a
    kill it is still there. None: it is ours, or missing.

    Raises:
        FileError: it can't be renamed.
    """
    if not os.path.lexists(path) or is_own(path):
        return None
    path = Path(os.path.realpath(path.parent)) / path.name
    number = 1
    while os.path.lexists(new := path.with_name(f"{path.stem}-{number}{path.suffix}")):
        number += 1
    try:
        if path.is_symlink() or not path.is_file():
            path.rename(new)
        else:
            _link(path, new)
            _record(path.parent, {path.name: _fingerprint(path)})
    except OSError as error:
        raise not_written(path, error) from error
    print(
        f"note: {path} was not written by this user's commands; it is kept as {new.name}",
        file=sys.stderr,
    )
    return new


def _link(path: Path, new: Path) -> None:
    """Give a file a second name; on disks without hard links, copy it."""
    try:
        new.hardlink_to(path)
    except FileExistsError:
        raise
    except OSError:
        shutil.copy2(path, new)


class AppendedFile:
    """A log in a user's folder that grows, and is known as ours after each line.

    Args:
        path: the file; made if missing.

        content: with which it begins; somebody else's file is set aside. None: it goes on after what is there.

    Raises:
        FileError: there is a file that is not ours.
    """

    def __init__(self, path: str | Path, content: bytes | None = None) -> None:
        self.path = Path(path)
        if content is not None:
            set_aside(self.path)
        claim_file(self.path)
        if content is not None or not self.path.exists():
            write_bytes(self.path, content or b"")
        with open_regular(self.path) as file:
            self._hash = hashlib.file_digest(file, "sha256")
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._handle = os.open(self.path, flags)

    def write(self, line: bytes) -> int:
        """Append bytes in a single write, so that a killed process leaves whole lines; return how many were written.

        Raises:
            OSError: the disk is full.
        """
        self._hash.update(line)
        real = Path(os.path.realpath(self.path))
        _record(real.parent, {real.name: self._hash.hexdigest()}, lasting=False)
        return os.write(self._handle, line)

    def flush(self) -> None:
        """Flush everything written so far to disk. Raises `OSError` if that fails."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def __enter__(self) -> AppendedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---- what `cm3core.files` asks


def _guard(path: Path, target: Path, made: Path | None) -> bool:
    """Check a write, first without the new file, then with it; record it. Returns False if there is nothing to do.

    Args:
        path: as the caller names it.
        target: the same with links resolved.
        made: the new file, complete, which is about to be renamed to `target`; None: not yet made.

    Raises:
        FileError: it would replace a file that is not ours, or leave the folder by a link.
    """
    if not _is_claimed(path, target):
        return True
    there = target.exists()
    if there and not is_own(target):
        if made is None:
            return True  # it may become the same bytes
        if _is_same(made, target):
            return False
        elif _is_resumed(target):
            set_aside(target)
        else:
            _refuse([path])
    if made is not None:
        _record(target.parent, {target.name: _fingerprint(made)})
    return True


def _is_claimed(path: Path, target: Path) -> bool:
    """Whether a path is a claimed file or in a claimed folder. Raises `FileError` for a link out of the folder."""
    real = str(target)
    if real in _files:
        return True
    parents = {real, *map(str, target.parents)}
    with _mutex:
        inside = not parents.isdisjoint(_folders.values())
        named = _lexical(path)
        roots = [root for root in map(str, (Path(named), *Path(named).parents)) if root in _folders]
    if not inside and not roots:
        return False
    if is_cache(target) or target.is_relative_to(state_folder()):
        return False
    if not inside:
        raise FileError(
            str(path),
            f"leads out of the folder {roots[0]}, to {target}",
            "replace the link by a file or folder of its own, or remove it",
        )
    return True


def _is_resumed(target: Path) -> bool:
    """Whether the innermost claimed folder around a file is one whose work is resumed."""
    with _mutex:
        claimed = set(_folders.values())
        inner = next((one for one in map(str, target.parents) if one in claimed), "")
        return inner in _resumed and str(target) not in _files


def _is_same(made: Path, target: Path) -> bool:
    if made.stat().st_size != target.stat().st_size:
        return False
    with open_regular(made) as one, open_regular(target) as other:
        while content := one.read(_END):
            if content != other.read(_END):
                return False
    return True


def _lexical(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # keeps links


def _found(folder: Path, name: str) -> list[Path]:
    if not glob.has_magic(name):
        return [folder / name] if os.path.lexists(folder / name) else []
    return sorted(path for path in folder.glob(name) if not is_unfinished(path, folder))


def _foreign(path: Path) -> bool:
    """Whether something is there that must not be replaced."""
    if not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
        return False  # a folder is refused where a file is written
    return not is_own(path)


def _refuse(foreign: Iterable[Path], step: str = "move it, or name another folder") -> None:
    found = list(dict.fromkeys(foreign))
    if not found:
        return
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise FileError(
        str(found[0]),
        f"is there already, and was not written by cm3leon or was changed since{more}",
        step,
    )


# ---- records


def _fingerprint(path: Path) -> str:
    """What identifies a regular file's content. Raises `OSError` for anything else, and for links."""
    if not stat.S_ISREG((status := path.lstat()).st_mode):
        raise OSError(f"{path} is not a regular file")
    with open_regular(path) as file:
        if status.st_size <= _MOST_HASHED:
            return hashlib.file_digest(file, "sha256").hexdigest()
        ends = hashlib.sha256(file.read(_END))
        file.seek(-_END, os.SEEK_END)
        ends.update(file.read(_END))
    return f"{status.st_size}:{status.st_mtime_ns}:{ends.hexdigest()}"


def _hashes(folder: Path) -> dict[str, set[str]]:
    """The recorded hashes of the files in a folder (a real path), by name; empty without a usable record."""
    try:
        path = record_path(_WRITTEN, str(folder), ".jsonl")
        if not is_private(path):
            return {}
        status = path.stat()
        stamp = status.st_ino, status.st_size, status.st_mtime_ns
        with _mutex:
            if (kept := _read.get(path)) is not None and kept[0] == stamp:
                return kept[1]
        found = dict[str, set[str]]()
        for name, value in _lines(path, folder):
            found.setdefault(name, set()).add(value)
    except (OSError, ValueError, CM3Error):
        return {}
    with _mutex:
        _read[path] = stamp, found
    return found


def _lines(path: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the names and hashes in a record, in order; a line that a kill or a full disk cut is skipped."""
    with open_regular(path) as file:
        first, *rest = file.read().splitlines()
    if json.loads(first) != {"path": str(folder)}:
        raise ValueError(f"{path} is another folder's")
    for line in rest:
        with contextlib.suppress(ValueError, TypeError):
            name, value = json.loads(line)
            if isinstance(name, str) and isinstance(value, str):
                yield name, value


def _record(folder: Path, hashes: dict[str, str], *, lasting: bool = True) -> None:
    """Record hashes of files in a folder (a real path). Raises nothing: unrecorded files are not ours.

    `lasting`: flush the record to disk, so that it is there after a power failure, too."""
    with contextlib.suppress(OSError, ValueError, CM3Error), _mutex:
        path = record_path(_WRITTEN, str(folder), ".jsonl")
        make_records_folder(path)
        with _locked_record(path) as handle:
            if os.fstat(handle).st_size == 0:
                remove_old_records(path.parent)
                os.write(handle, _json({"path": str(folder)}))
            if not is_private(path):
                return
            # a leading line break ends a line that was cut
            content = b"".join(_json([name, value]) for name, value in hashes.items())
            os.write(handle, b"\n" + content)
            if lasting:
                os.fdatasync(handle)
            _shorten(path, folder)


def _json(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


@contextlib.contextmanager
def _locked_record(path: Path) -> Iterator[int]:
    """Open a record for appending and lock it. Raises `OSError` if it is a link or can't be written."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    while True:
        handle = os.open(path, flags, 0o600)
        try:
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(path), os.fstat(handle)):
                    yield handle
                    return
        finally:
            os.close(handle)


def _shorten(path: Path, folder: Path) -> None:
    """Remove old hashes from a long record; its lock is held."""
    if path.stat().st_size < _LEAST_SHORTENED * 128:
        return
    last: dict[str, list[str]] = {}
    lines = list(_lines(path, folder))
    for name, value in lines:
        last[name] = [*(one for one in last.get(name, []) if one != value), value][-2:]
    if len(lines) < _MOST_LINES * len(last):
        return
    content = b"".join(_json([name, value]) for name, own in last.items() for value in own)
    new = path.with_suffix(".new")
    new.write_bytes(_json({"path": str(folder)}) + content)
    new.chmod(0o600)
    new.replace(path)
