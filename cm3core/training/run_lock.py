"""One process at a time trains in a run's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cm3core.errors import CM3Error
from cm3core.files import check_writable, locked, make_folder

LOCK = ".lock"


@contextmanager
def run_lock(out_dir: Path) -> Iterator[None]:
    """Context in which no other process trains in the folder: two would cut off each other's
    metrics and delete each other's checkpoints. The folder is made; a run that fails before it has
    written anything leaves none.

    Raises:
        CM3Error: another process is training there.
        FileError: nothing can be written there.
    """
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
