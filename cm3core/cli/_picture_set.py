"""Sets of pictures, such as eight things in one style: their names, their sheet, and all in a zip."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from cm3core.document import PixelArray

#: Letters of a file's name, before what tells it from others.
LONGEST_NAME = 60
#: Names that are devices on Windows, where the files should open too.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)
#: Side of a picture in the sheet, about, in pixels.
_SHEET_SIDE = 192
#: Every file of a zip has this time, so that equal pictures make an equal zip.
_TIME = (1980, 1, 1, 0, 0, 0)


def styled(things: Sequence[str], style: str | None) -> list[str]:
    """The prompts of things in a style, which stands behind a comma, as in the bundled data.

    >>> styled(["bell", "house "], "outline rounded"), styled(["bell"], None)
    (['bell, outline rounded', 'house, outline rounded'], ['bell'])
    """
    return [thing if not style else f"{thing.rstrip()}, {style}" for thing in things]


def file_names(texts: Sequence[str]) -> list[str]:
    """A name for the file of each text, without its end: letters, digits and hyphens, all different
    even where capitals don't count.

    >>> file_names(["Bell, off", "bell off", "../ключ", "?", "con"])
    ['Bell-off', 'bell-off-2', 'ключ', 'picture', 'con-2']
    """
    taken: set[str] = set()
    names = []
    for text in texts:
        stem = re.sub(r"[\W_]+", "-", text).strip("-")[:LONGEST_NAME].strip("-") or "picture"
        number = 2 if _DEVICES.fullmatch(stem) else 1
        while (name := stem if number == 1 else f"{stem}-{number}").casefold() in taken:
            number += 1
        taken.add(name.casefold())
        names.append(name)
    return names


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
        for name, content in files:
            info = zipfile.ZipInfo(name, _TIME)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, content)
