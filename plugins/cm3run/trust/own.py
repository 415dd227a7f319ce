"""Which folders this user's commands made on this machine, and what their recipes named outside.

The record is in the user's state folder (`XDG_STATE_HOME`), never in the run's: a file in a run could come
with it from anywhere. It says of a folder what it may reach, so that other files in its place can reach
nothing else. A run that was moved, or came from elsewhere, has no record, and asks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from cm3core.errors import CM3Error
from cm3core.files import state_folder, write_text
from cm3core.interfaces.reach import Reach

#: Records that are kept of folders that are no more.
_MOST = 1024


def record_own(folder: str | Path, reaches: Iterable[Reach]) -> None:
    """Record that this user's command made a folder, and what it may reach.

    Nothing is raised: without a record the folder asks, as one from elsewhere does.
    """
    with contextlib.suppress(OSError, CM3Error):
        real = os.path.realpath(folder)
        targets = sorted({one.target for one in reaches})
        path = _file(real)
        if recorded(folder) == frozenset(targets):
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if targets:
            write_text(path, json.dumps({"path": real, "reaches": targets}) + "\n")
            path.chmod(0o600)
        else:
            path.unlink(missing_ok=True)
        _forget(path.parent)


def own_of(folder: str | Path) -> list[Reach]:
    """What this user's commands named for a folder, or for the run of a checkpoint: for the record of what is
    made of it."""
    targets = recorded(folder)
    # a run's `checkpoints` may be a link to a larger disk
    for spelling in (os.path.realpath(folder), os.path.abspath(folder)):  # noqa: PTH100  # a path as it is spelled
        if (place := Path(spelling)).parent.name == "checkpoints":
            targets |= recorded(place.parent.parent)
    return [Reach("", one, "") for one in sorted(targets)]


def recorded(folder: str | Path) -> frozenset[str]:
    """The targets that this user's commands named for a folder; none if they didn't make it."""
    try:
        real = os.path.realpath(folder)
        path = _file(real)
        for one in (path.parent, path):
            status = one.lstat()
            if (
                status.st_uid != os.geteuid()
                or status.st_mode & 0o022
                or stat.S_ISLNK(status.st_mode)
            ):
                return frozenset()
        found = json.loads(path.read_text(encoding="utf-8"))
        targets = found["reaches"] if found["path"] == real else []
        return frozenset(one for one in targets if isinstance(one, str))
    except (OSError, ValueError, LookupError, TypeError, RecursionError, CM3Error):
        return frozenset()


def _file(real: str) -> Path:
    name = hashlib.sha256(os.fsencode(real)).hexdigest()[:32]
    return state_folder("own") / f"{name}.json"


def _forget(folder: Path) -> None:
    """Remove the records of folders that are no more, once there are many."""
    records = list(folder.glob("*.json"))
    if len(records) <= _MOST:
        return
    for path in records:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if not Path(json.loads(path.read_text(encoding="utf-8"))["path"]).exists():
                path.unlink()
