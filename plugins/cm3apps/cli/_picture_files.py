"""The picture files of a command: their names, their sheet and their zip; and the files that an earlier
`cm3 generate` or `cm3 edit` wrote into a folder.
"""

from __future__ import annotations

import math
import re
import sys
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cm3core._version import PROGRAM, SOFTWARE
from cm3core.files import open_regular
from cm3core.outputs import OutputFolder

if TYPE_CHECKING:
    from cm3core.document import PixelArray


#: Maximum letters and bytes of a file's name, without the number that makes it unique; disks allow
#: 255 bytes.
LONGEST_NAME, MOST_BYTES = 60, 200
#: Suffixes between the name and the extension in files of the same picture.
VARIANTS = ("-transparent", "-large", "-original")
#: Device names on Windows, where the files should also open.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)
#: Approximate side of a picture in the sheet, in pixels.
_SHEET_SIDE = 192
#: The file of a zip that lists the documents from which its pictures were drawn.
LICENCES = "LICENSES"
#: The time of every file in a zip, so that equal pictures make equal zips.
_TIME = (1980, 1, 1, 0, 0, 0)


def styled(things: Sequence[str], style: str | None) -> list[str]:
    """The prompts for things in a style, which follows a comma, as in the bundled data.

    >>> styled(["bell", "house "], "outline rounded"), styled(["bell"], None)
    (['bell, outline rounded', 'house, outline rounded'], ['bell'])
    """
    return [thing if not style else f"{thing.rstrip()}, {style}" for thing in things]


def file_names(texts: Sequence[str]) -> list[str]:
    """A file name for each text, without extension: letters, digits and hyphens. All names are different,
    also with their suffixes (`VARIANTS`), even on disks that ignore case and the encoding of
    accents.

    >>> file_names(["Bell, off", "bell off", "../ключ", "?", "con"])
    ['Bell-off', 'bell-off-2', 'ключ', 'picture', 'con-2']
    >>> file_names(["bell", "bell, transparent"])
    ['bell', 'bell-transparent-2']
    """
    taken: set[str] = set()
    numbers: dict[str, int] = {}  # where to continue: thousands of pictures may have the same text
    names = []
    for text in texts:
        stem = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", text)).strip("-")[:LONGEST_NAME]
        stem = stem.encode()[:MOST_BYTES].decode(errors="ignore").strip("-") or "picture"
        number = numbers.get(stem.casefold(), 2 if _DEVICES.fullmatch(stem) else 1)
        while not taken.isdisjoint(files := _files_of(stem, number)):
            number += 1
        taken |= files
        numbers[stem.casefold()] = number + 1
        names.append(stem if number == 1 else f"{stem}-{number}")
    return names


def _files_of(stem: str, number: int) -> set[str]:
    """The names that a picture's files may have, as disks compare them."""
    name = (stem if number == 1 else f"{stem}-{number}").casefold()
    return {name, *(name + variant for variant in VARIANTS)}


def sheet(pictures: Sequence[PixelArray], texts: Sequence[str]) -> PixelArray:
    """All pictures, each above its text, in about as many rows as columns; uint8 [height, width, 3]."""
    from cm3run import sheets

    columns = math.ceil(math.sqrt(len(pictures)))
    starts = range(0, len(pictures), columns)
    return sheets.grid(
        [list(pictures[start : start + columns]) for start in starts],
        captions=[list(texts[start : start + columns]) for start in starts],
        scale=max(1, _SHEET_SIDE // pictures[0].shape[0]),
        gap=16,
    )


def write_zip(target: Path | IO[bytes], files: Iterable[tuple[str, bytes]]) -> None:
    """Write files, (name, content), to a zip. Equal files make equal zips."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            info = zipfile.ZipInfo(name, _TIME)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, content)


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
