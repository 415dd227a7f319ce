"""Records in the user's state folder (`XDG_STATE_HOME`): what this user's commands did in other folders.

A record belongs to the path of a folder. It is never kept in that folder, because a file there could come from
anywhere. A state folder that another user could have written has no records.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from pathlib import Path

from cm3core.files import state_folder

#: Number of records after which those of folders that no longer exist are removed.
_MOST = 1024
#: Seconds since its last line after which a record of a folder that is not there may go: a new folder's is written before the
#: folder takes its name.
_KEPT_S = 86_400.0


def record_path(kind: str, folder: str, suffix: str = ".json") -> Path:
    """The file of a folder's record; it may not exist.

    Args:
        kind: of the record: the name of a folder of the state folder.
        folder: its real path. The record's first line is a JSON object that has it as "path".
        suffix: of the file's name.
    """
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
    return state_folder(kind) / f"{name}{suffix}"


def make_records_folder(path: Path) -> None:
    """Make the folder of a record, readable by this user only. Raises `OSError` if this fails."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def is_private(path: Path) -> bool:
    """Whether a record and its folder are this user's, no links, and can be written by nobody else.

    Raises:
        OSError: one of them does not exist or can't be read.
    """
    found = [one.lstat() for one in (path.parent, path)]
    return all(
        one.st_uid == os.geteuid() and not one.st_mode & 0o022 and not stat.S_ISLNK(one.st_mode)
        for one in found
    )


def remove_old_records(folder: Path) -> None:
    """Remove the records of folders that have not existed for some time, once there are many."""
    records = list(folder.glob("*.json*"))
    if len(records) <= _MOST:
        return
    for path in records:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if path.stat().st_mtime > time.time() - _KEPT_S:
                continue
            with path.open(encoding="utf-8") as file:
                named = json.loads(file.readline())["path"]
            if not Path(named).exists():
                path.unlink()
