"""Sets of pictures, such as eight things in one style: their names, their sheet, and all in a zip."""

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

#: Letters and bytes of a file's name, before what tells it from others; disks take 255 bytes.
LONGEST_NAME, MOST_BYTES = 60, 200
#: What stands between a name and its end in files of the same picture.
VARIANTS = ("-transparent", "-large", "-original")
#: Names that are devices on Windows, where the files should open too.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)
#: Side of a picture in the sheet, about, in pixels.
_SHEET_SIDE = 192
#: The file of a zip that names the documents after which its pictures were drawn.
LICENCES = "LICENSES"
#: Every file of a zip has this time, so that equal pictures make an equal zip.
_TIME = (1980, 1, 1, 0, 0, 0)
#: By which a zip is known to be ours.
ZIP_COMMENT = b"cm3leon"


def styled(things: Sequence[str], style: str | None) -> list[str]:
    """The prompts of things in a style, which stands behind a comma, as in the bundled data.

    >>> styled(["bell", "house "], "outline rounded"), styled(["bell"], None)
    (['bell, outline rounded', 'house, outline rounded'], ['bell'])
    """
    return [thing if not style else f"{thing.rstrip()}, {style}" for thing in things]


def file_names(texts: Sequence[str]) -> list[str]:
    """A name for the file of each text, without its end: letters, digits and hyphens. All are different,
    with what is put behind them (`VARIANTS`) too, even where capitals and ways of writing an accent
    don't count.

    >>> file_names(["Bell, off", "bell off", "../ключ", "?", "con"])
    ['Bell-off', 'bell-off-2', 'ключ', 'picture', 'con-2']
    >>> file_names(["bell", "bell, transparent"])
    ['bell', 'bell-transparent-2']
    """
    taken: set[str] = set()
    numbers: dict[str, int] = {}  # to go on with: thousands of pictures may have one text
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
    """All pictures in about as many rows as columns, uint8 [height, width, 3], each above its text."""
    from cm3core import images

    columns = math.ceil(math.sqrt(len(pictures)))
    starts = range(0, len(pictures), columns)
    return images.grid(
        [list(pictures[start : start + columns]) for start in starts],
        captions=[list(texts[start : start + columns]) for start in starts],
        scale=max(1, _SHEET_SIDE // pictures[0].shape[0]),
        gap=16,
    )


def write_zip(target: Path | IO[bytes], files: Iterable[tuple[str, bytes]]) -> None:
    """Write files, (name, content), to a zip. Equal files make an equal zip."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = ZIP_COMMENT
        for name, content in files:
            info = zipfile.ZipInfo(name, _TIME)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, content)
