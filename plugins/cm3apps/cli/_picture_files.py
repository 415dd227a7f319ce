"""The numbered picture files of a command, and those that an earlier `cm3 generate` or `cm3 edit` wrote into a folder."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cm3core._version import PROGRAM, SOFTWARE
from cm3core.files import open_regular
from cm3core.outputs import OutputFolder

#: Files beside the pictures: sheets, and other versions of a picture.
_SHEET = ("grid.png", "retrieved.png", "preview.png")
_ZIP = "set.zip"
#: A picture, by its number, and its other files.
_NUMBERED = re.compile(
    r"(\d{3,})((-large|-transparent)?\.png|\.svg|-original\.[a-z0-9]{1,8}(\.license)?)"
)
_VERSION = re.compile(r"(\d{3,})-(large|transparent)\.png")


def digits_of(number: int) -> int:
    """Digits in the names of so many pictures.

    >>> digits_of(1000), digits_of(1001)
    (3, 4)
    """
    return max(3, len(str(number - 1)))


def refuse_foreign_pictures(folder: OutputFolder, number: int, *others: str) -> None:
    """Raise `FileError` if somebody else's files have the names of so many pictures, of their other files, or of
    these `others`."""
    digits = digits_of(number)
    found = [
        name
        for name in _entries(folder.folder)
        if (own := _NUMBERED.fullmatch(name)) and len(own[1]) == digits and int(own[1]) < number
    ]
    folder.refuse(*others, *found)


def _entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def beside_pictures(folder: Path) -> list[Path]:
    """The sheets that this program wrote into a folder, and the enlarged and transparent versions of
    existing pictures, sorted. They are recognised by name and by the metadata in the files. The folder exists."""
    found = []
    for path in folder.iterdir():
        version = _VERSION.fullmatch(path.name)
        small = None if version is None else folder / f"{version[1]}.png"
        if path.name in _SHEET or (small is not None and small.is_file()):
            found += [path] if _is_ours(path) else []
    return sorted(found)


def remove_earlier_pictures(folder: OutputFolder) -> None:
    """Remove the numbered pictures of an earlier call and its sheets, and print their number: beside new ones they would
    look new. Files that this program did not write, or that were changed since, stay."""
    from tqdm import tqdm

    found = [
        name
        for name in _entries(folder.folder)
        if (_NUMBERED.fullmatch(name) or name in ("grid.png", "retrieved.png", _ZIP))
        and folder.is_own(name)
    ]
    for name in found:
        folder.remove(name)
    if not found:
        return
    number = "1 file" if len(found) == 1 else f"{len(found)} files"
    tqdm.write(
        f"note: {folder.folder}: {number} of an earlier call {'is' if len(found) == 1 else 'are'} replaced",
        file=sys.stderr,
    )


def _is_ours(path: Path) -> bool:
    from PIL import Image, UnidentifiedImageError

    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            return str(image.info.get(SOFTWARE, "")).startswith(PROGRAM)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return False  # not a picture: somebody else's
