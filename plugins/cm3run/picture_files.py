"""Several pictures of one call as files: their prompts and names, a sheet of all, and a zip."""

from __future__ import annotations

import math
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

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
