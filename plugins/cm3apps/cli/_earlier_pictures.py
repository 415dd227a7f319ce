"""The files that an earlier `cm3 generate` or `cm3 edit` wrote into a folder, and no others."""

from __future__ import annotations

import re
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

from cm3apps.cli._picture_set import ZIP_COMMENT
from cm3core._version import PROGRAM, SOFTWARE
from cm3core.files import open_regular

_PNG = re.compile(r"(\d{3,})(-large|-transparent)?\.png|grid\.png|retrieved\.png")
_ZIP = "set.zip"
#: Whatever is written beside pictures.
_WRITTEN = re.compile(
    r"\d{3,}(-large|-transparent)?\.(png|svg)|(grid|retrieved|preview)\.png|set\.zip"
)
#: What is beside the pictures: sheets of them, and other versions of one.
_SHEET = ("grid.png", "retrieved.png", "preview.png")
_ORIGINAL = re.compile(r"(\d{3,})-original\.[a-z0-9]{1,8}(\.license)?")
_VERSION = re.compile(r"(\d{3,})-(large|transparent)\.png")


def earlier_pictures(folder: Path) -> list[Path]:
    """Numbered pictures and what belongs to them, by name and by what is written in the files: a picture
    that somebody put there, or gave another name, is none of them. Sorted; the folder need not exist.
    """
    if not folder.is_dir():
        return []
    names = [path for path in folder.iterdir() if not path.is_symlink()]
    found = [path for path in names if _PNG.fullmatch(path.name) and _is_ours(path)]
    traced = {path.with_suffix(".svg") for path in found if path.stem.isdecimal()}
    found += [path for path in names if path in traced and path.is_file()]
    stems = {path.stem for path in found}
    found += [
        path
        for path in names
        if (own := _ORIGINAL.fullmatch(path.name)) and own[1] in stems and path.is_file()
    ]
    found += [path for path in names if path.name == _ZIP and _is_our_zip(path)]
    return sorted(found)


def beside_pictures(folder: Path) -> list[Path]:
    """The sheets that this program wrote into a folder, and the enlarged and transparent versions of
    pictures that are there themselves, known as above. Sorted; the folder exists."""
    found = []
    for path in folder.iterdir():
        version = _VERSION.fullmatch(path.name)
        small = None if version is None else folder / f"{version[1]}.png"
        if path.name in _SHEET or (small is not None and small.is_file()):
            found += [path] if _is_ours(path) else []
    return sorted(found)


def remove_earlier_pictures(folder: Path) -> None:
    """Remove them, and print how many there were: next to new ones they would be taken for new."""
    from tqdm import tqdm

    if not (found := earlier_pictures(folder)):
        return
    for path in found:
        with suppress(FileNotFoundError):
            path.unlink()
    number = "1 file" if len(found) == 1 else f"{len(found)} files"
    tqdm.write(
        f"note: {folder}: {number} of an earlier call {'is' if len(found) == 1 else 'are'} replaced",
        file=sys.stderr,
    )


def remove_links(folder: Path) -> None:
    """Remove links that have the names of pictures, not what they lead to, where a picture would be written."""
    from tqdm import tqdm

    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_symlink() and _WRITTEN.fullmatch(path.name):
            with suppress(FileNotFoundError):
                path.unlink()
            tqdm.write(
                f"note: {path} was a link; the picture is written in its place", file=sys.stderr
            )


def _is_ours(path: Path) -> bool:
    from PIL import Image, UnidentifiedImageError

    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            return str(image.info.get(SOFTWARE, "")).startswith(PROGRAM)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return False  # not a picture: somebody else's


def _is_our_zip(path: Path) -> bool:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return archive.comment == ZIP_COMMENT
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False
