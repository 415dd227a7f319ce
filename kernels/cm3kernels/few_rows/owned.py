"""Whether a file that is to be run as code is this user's, and nobody else can have put it there."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import stat
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def folder_fault(folder: Path) -> str | None:
    """Why what lies in a folder can't be trusted to be this user's; None: it can.

    The folder must be this user's, and writable for nobody else. So must each folder that it is in, by either of
    its spellings where links are followed; these may also be root's, and writable for others where the sticky bit
    keeps them from replacing what is not theirs (`/tmp`). Access control lists are not looked at.
    """
    # Path.resolve would lose the spelling
    for spelling in dict.fromkeys((Path(os.path.abspath(folder)), Path(os.path.realpath(folder)))):  # noqa: PTH100
        for place in (spelling, *spelling.parents):
            try:
                found = place.stat()
            except OSError as error:
                return f"{place} can't be looked at ({error.strerror})"
            own = found.st_uid == os.geteuid()
            if not own and (place == spelling or found.st_uid != 0):
                return f"{place} belongs to another user"
            sticky = place != spelling and found.st_mode & stat.S_ISVTX
            if _others_write(found) and not sticky:
                return f"{place} can be written by other users"
    return None


def file_fault(path: Path) -> str | None:
    """The same of a file in such a folder."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        return f"{path} is not a regular file"
    if found.st_uid != os.geteuid():
        return f"{path} belongs to another user"
    if _others_write(found):
        return f"{path} can be written by other users"
    return None


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _others_write(found: os.stat_result) -> bool:
    """Whether anybody but the owner may write; a group that has no other member is the owner."""
    mode = found.st_mode & _OTHERS_WRITE
    return bool(mode) and not (mode == stat.S_IWGRP and _is_private(found.st_gid))


def _is_private(group: int) -> bool:
    try:
        user, named = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    alone = set(named.gr_mem) <= {user.pw_name}
    return group == user.pw_gid and named.gr_name == user.pw_name and alone
