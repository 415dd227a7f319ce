"""Folders of a user: those behind a `~`, and the cache."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cm3core._unfinished import remove_unfinished_once
from cm3core.arguments import checked
from cm3core.errors import CM3Error, FileError


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
            f"the home folder that {user!r} stands for is not known",
            f"write the whole path, or ./{user} for a folder of that name",
        ) from error


def cache_directory() -> Path:
    """Return the folder for rendered pictures and computed codes.

    It is `CM3_CACHE`, else the user's cache folder.

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
    """Return a folder of what is kept for good, in `XDG_STATE_HOME`; it need not be there."""
    state = user_path(os.environ.get("XDG_STATE_HOME") or "~/.local/state")
    return (state / "cm3leon").joinpath(*names)


@checked(FileError)
def cache_folder(*names: str, root: str | Path | None = None) -> Path:
    """Return a folder of the cache; it need not be there.

    What killed processes left in it is removed: whoever finds a complete file there never writes in
    the folder again, so that `atomic_path` would not do it.

    Args:
        names: of the folder and those that it is in, from the outside.
        root: where caches are kept; None: `cache_directory()`.

    Raises:
        FileError: see `cache_directory`.
    """
    folder = (cache_directory() if root is None else user_path(root)).joinpath(*names)
    with suppress(OSError):  # not there yet
        remove_unfinished_once(folder)
    return folder
