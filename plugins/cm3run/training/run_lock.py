"""One process at a time trains in a run's folder."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cm3core.errors import CM3Error, ProcessError
from cm3core.files import check_writable, locked, make_folder
from cm3run.processes import Processes

LOCK = ".lock"
#: Seconds in which a folder that one machine made appears on the others.
_SEEN_S = 10.0


@contextmanager
def run_lock(out_dir: Path, processes: Processes | None = None) -> Iterator[None]:
    """Context in which no other run trains in the folder: two would cut off each other's
    metrics and delete each other's checkpoints. The folder is made; a run that fails before it has
    written anything leaves none. Of processes that train together, the first holds it.

    Raises:
        CM3Error: another process is training there.
        FileError: nothing can be written there.
        ProcessError: a process doesn't see the folder of the first one.
    """
    processes = processes or Processes()
    with ExitStack() as held:
        processes.first(lambda: held.enter_context(_held(out_dir)))
        _check_seen(out_dir, processes)
        yield


def _check_seen(out_dir: Path, processes: Processes) -> None:
    """All write their parts of a checkpoint into the folder."""
    end = time.monotonic() + _SEEN_S  # file systems of several machines show new files late
    while not (out_dir / LOCK).exists() and time.monotonic() < end:
        time.sleep(0.1)
    for rank, (host, seen) in enumerate(
        processes.all_of((socket.gethostname(), (out_dir / LOCK).exists()))
    ):
        if not seen:
            raise ProcessError(
                str(out_dir),
                f"process {rank} of {processes.world_size} on {host} doesn't see this folder",
                "name a folder on a disk that all machines share (-o)",
            )


@contextmanager
def _held(out_dir: Path) -> Iterator[None]:
    check_writable(out_dir, folder=True)
    made = [place for place in (out_dir, *out_dir.parents) if not place.exists()]
    make_folder(out_dir)
    busy = CM3Error(
        str(out_dir),
        "another process is training in this folder",
        "wait for it, or name another folder (-o)",
    )
    with locked(out_dir / LOCK, busy):
        try:
            yield
        except BaseException:
            if made and [path.name for path in out_dir.iterdir()] == [LOCK]:
                _remove(made)
            raise


def _remove(made: Sequence[Path]) -> None:
    """Delete the folders, the innermost first, as far as they are empty."""
    try:
        (made[0] / LOCK).unlink()
        for folder in made:
            folder.rmdir()
    except OSError:  # another process uses one
        return
