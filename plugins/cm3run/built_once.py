"""What takes long to compute and is stored in the cache: one process builds it, and the others wait for it.

The builder holds a lock that the system frees when it ends, however it ends; the process that waits and gets the lock
next goes on. The lock's file also says who holds it, what it builds and how far it is, so that those who wait can show
that. A finished result is read without a lock. Where nothing can be written, the result is built in a temporary folder
that belongs to this process alone; where files can't be locked, each process builds it in its place.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from cm3core.arguments import checked
from cm3core.errors import FileError
from cm3core.files import (
    atomic_path,
    check_writable,
    locked,
    make_folder,
    read_text,
    remove_unfinished,
    temporary_folder,
)
from cm3run.printing import printable
from cm3run.progress import Shown, are_bars_silenced, make_bar, shown_to

T = TypeVar("T")

#: Seconds between two tries to get a lock, at first and at most; and of waiting before it is told.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _PATIENCE_S = 0.02, 0.25, 1.0
#: Seconds between two notes of the builder's progress.
_BETWEEN_RECORDS_S = 0.5
#: Bytes of a lock's record, which is padded so that a shorter one hides a longer one; and the most that is read.
_RECORD_BYTES, _MOST_LETTERS = 512, 1 << 14

#: The places that the running code builds; code forked from it does not wait for its own parent.
_building: ContextVar[frozenset[Path]] = ContextVar("building", default=frozenset())


class _Busy(FileError):
    """Another process, or another thread of this one, holds the lock."""


@checked(FileError)
def built_once(
    path: Path,
    what: str,
    read: Callable[[Path], T | None],
    build: Callable[[Path], object],
    *,
    or_alone: bool = True,
) -> T:
    """Return what `read` finds at a place of the cache. If that is nothing, build it first, unless another process does.

    Args:
        path: a file or a folder; its parent is made, and `PATH.lock` is held there while this process builds.
        what: what is built, as in "process 12 is drawing icons at 64 px".
        read: path -> what is there; None if it is missing, incomplete or damaged. Called without a lock.
        build: writes it at a path so that it is visible when it is whole (`files.atomic_path`). What a killed process left
            there is its own matter: nobody else writes there meanwhile.
        or_alone: where the cache can't be written, build it in a temporary folder of this process; otherwise raise.

    Raises:
        FileError: it can't be written anywhere.
    """
    if (found := read(path)) is not None:
        return found
    private = _private_place(path, make=False)
    if private is not None and (found := read(private)) is not None:
        return found
    try:
        return _built(path, what, read, build)
    except FileError as error:
        if not or_alone or not _is_of(error, path):
            raise
        private = _private_place(path, make=True)
        if private is None:
            raise
        _note_once(
            private.parent,
            f"{path.parent} {error.cause}; {what} for this process alone. To keep the result, "
            f"{error.next_step}",
        )
        try:
            return built_once(private, what, read, build, or_alone=False)
        except FileError as second:
            if not _is_of(second, private):
                raise
            raise error from second  # no room there, either: the user can name the other place


@checked(FileError)
def computed_once(
    path: Path,
    what: str,
    read: Callable[[Path], T | None],
    compute: Callable[[], T],
    write: Callable[[Path, T], object],
) -> T:
    """As `built_once`, for what is computed in memory and then written; if it can't be written, it is returned all the same.

    Args:
        path, what, read: see `built_once`.
        compute: the result.
        write: writes a result to a new file, which then becomes `path`.
    """
    computed: list[T] = []

    def build(place: Path) -> None:
        if not computed:  # after a failure to write it, it is not computed again
            computed.append(compute())
        with atomic_path(place) as temporary:
            write(temporary, computed[0])

    try:
        found = built_once(path, what, read, build)
    except FileError as error:
        if not computed:
            raise
        _note_once(
            path,
            f"{error.place} {error.cause}; {what} again and again, unless you {error.next_step}",
        )
    return computed[0] if computed else found


def _built(
    path: Path, what: str, read: Callable[[Path], T | None], build: Callable[[Path], object]
) -> T:
    make_folder(path.parent)
    with only_builder(path, what):
        # what a killed builder left, whose place this process takes
        remove_unfinished(path.parent)
        # another process may have built it in the meantime
        if (found := read(path)) is None:
            build(path)
            found = read(path)
    return _whole(found, path)


def _whole(found: T | None, path: Path) -> T:
    if found is None:
        raise FileError(
            str(path), "was written and can't be read", "look for faults of that disk, then repeat"
        )
    return found


def _is_of(error: FileError, path: Path) -> bool:
    """Whether an error says that a place, or its folder, can't be written."""
    place = os.path.realpath(error.place)
    folder = os.path.realpath(path.parent)
    return Path(place).is_relative_to(folder) or Path(folder).is_relative_to(place)


# ---- who builds


@contextmanager
def only_builder(path: Path, what: str) -> Iterator[None]:
    """A context in which no other process or thread builds a place; waits for those that do. `built_once` enters it.

    Args:
        path, what: see `built_once`; the parent of `path` exists.

    Raises:
        FileError: nothing can be written there.
    """
    if path in _building.get():
        yield
        return
    lock = path.with_name(f"{path.name}.lock")
    with ExitStack() as stack:
        _hold(stack, lock, what)
        token = _building.set(_building.get() | {path})
        try:
            yield
        finally:
            _building.reset(token)


def _hold(stack: ExitStack, lock: Path, what: str) -> None:
    """Enter the lock and a context that publishes the progress. Where there are no locks, enter neither."""
    waiting: _Waiting | None = None
    pause = _FIRST_PAUSE_S
    try:
        while True:
            busy = _Busy(str(lock), "is held by another process", "wait")
            try:
                stack.enter_context(locked(lock, busy))
                break
            except _Busy:
                pass
            waiting = waiting or _Waiting(what)
            waiting.look(lock)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
    except FileError as error:
        if not os.access(
            lock, os.W_OK
        ):  # not a disk without locks, but one where nothing can be written
            raise
        _note_once(
            lock.parent,
            f"{error.place} {error.cause}; of several processes that start together, each is {what}",
        )
        return
    finally:
        if waiting is not None:
            waiting.close()
    stack.callback(_remove, lock)
    record = _Record(lock, what)
    stack.callback(record.close)
    stack.enter_context(shown_to(record.write))


def _remove(lock: Path) -> None:
    with suppress(OSError):  # it is free in any case
        lock.unlink(missing_ok=True)


class _Record:
    """What a lock's file says of its holder; a failure to write it is no failure of the work."""

    def __init__(self, lock: Path, what: str) -> None:
        self._what, self._last = what, -_BETWEEN_RECORDS_S
        self._owner = os.getpid()
        self._handle: int | None = None
        with suppress(OSError):
            self._handle = os.open(lock, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.write(Shown())

    def write(self, shown: Shown) -> None:
        """Write how far the work is, unless that was done a moment ago."""
        now, handle = time.monotonic(), self._handle
        if handle is None or now - self._last < _BETWEEN_RECORDS_S or os.getpid() != self._owner:
            return
        self._last = now
        holder = Holder(self._owner, socket.gethostname(), self._what, shown)
        data = json.dumps(asdict(holder)).encode().ljust(_RECORD_BYTES)
        with suppress(OSError):  # a full disk
            os.pwrite(handle, data, 0)
            os.ftruncate(handle, len(data))

    def close(self) -> None:
        """Close the file."""
        handle, self._handle = self._handle, None
        if handle is not None and os.getpid() == self._owner:
            with suppress(OSError):
                os.close(handle)


@dataclass(frozen=True)
class Holder:
    """The process that builds something.

    Args:
        process: its number.
        host: its machine.
        builds: see `what` of `built_once`.
        shown: its bar.
    """

    process: int
    host: str
    builds: str
    shown: Shown


def holder_of(lock: Path) -> Holder | None:
    """Return who holds a lock; None if its record is missing, or is being written at this moment."""
    try:
        values = json.loads(read_text(lock)[:_MOST_LETTERS])
        shown = values["shown"]
        return Holder(
            int(values["process"]),
            str(values["host"]),
            str(values["builds"]),
            Shown(
                str(shown["what"]), float(shown["done"]), float(shown["total"]), str(shown["unit"])
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None


class _Waiting:
    """What a process shows while it waits: once, for whom, and then the bar of that process."""

    def __init__(self, what: str) -> None:
        self._what, self._since = what, time.monotonic()
        self._told: int | None = None
        self._bar: tqdm[object] | None = None
        self._of: tuple[int, str, float] | None = None

    def look(self, lock: Path) -> None:
        """Show what the lock's record says now."""
        if time.monotonic() - self._since < _PATIENCE_S:
            return
        holder = holder_of(lock)
        if holder is None:
            return
        if self._told != holder.process:
            self._told = holder.process
            self._tell(holder)
        shown = holder.shown
        if self._of != (holder.process, shown.what, shown.total):
            self._close_bar()
            if shown.total > 0:
                self._bar = make_bar(
                    desc=f"waiting: {shown.what or holder.builds}",
                    total=shown.total,
                    initial=shown.done,
                    unit=shown.unit,
                    leave=False,
                )
                self._of = (holder.process, shown.what, shown.total)
        if self._bar is not None:
            self._bar.update(max(0.0, shown.done - self._bar.n))

    def _tell(self, holder: Holder) -> None:
        who = f"process {holder.process}"
        if holder.host != socket.gethostname():
            who += f" on {holder.host}"
        elif holder.process == os.getpid():
            who = "another thread of this process"
        if not are_bars_silenced():
            builds = printable(holder.builds)
            tqdm.write(f"note: waiting for {who}, which is {builds}", file=sys.stderr)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = self._of = None

    def close(self) -> None:
        """Show nothing more."""
        self._close_bar()


# ---- a folder of this process, where the cache can't be written

_noted: set[Path] = set()


def _note_once(place: Path, text: str) -> None:
    if place not in _noted:
        _noted.add(place)
        tqdm.write(f"note: {printable(text)}", file=sys.stderr)


def place_to_write(path: Path, what: str) -> Path:
    """Return a place of the cache, or the place that stands for it in a temporary folder of this process if nothing can be
    written there; for files that are changed again and again, such as a database.

    Args:
        path, what: see `built_once`.

    Raises:
        FileError: there is no temporary folder, either.
    """
    try:
        make_folder(path.parent)
        check_writable(path)
    except FileError as error:
        private = _private_place(path, make=True)
        if private is None:
            raise
        make_folder(private.parent)
        _note_once(private, f"{error.place} {error.cause}; {what} for this process alone")
        return private
    return path


_guard = threading.Lock()
_own = ExitStack()
_own_folder: tuple[int, Path] | None = None


def _private_place(path: Path, *, make: bool) -> Path | None:
    """The place in this process's temporary folder that stands for a place of the cache; None: there is no such folder.

    It is removed when the process ends; what a killed one leaves, by the next process that makes such a folder.
    """
    global _own_folder
    with _guard:
        if _own_folder is None:
            if not make:
                return None
            try:
                folder = _own.enter_context(
                    temporary_folder(Path(tempfile.gettempdir()) / "cm3leon-cache")
                )
            except OSError:
                return None
            _own_folder = os.getpid(), folder
            atexit.register(_remove_own)
        name = hashlib.sha256(os.fsencode(path.parent.absolute())).hexdigest()[:16]
        return _own_folder[1] / name / path.name


def _remove_own() -> None:
    if _own_folder is not None and _own_folder[0] == os.getpid():  # not a forked process
        _own.close()
