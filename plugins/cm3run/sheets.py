"""Contact sheets: rows of pictures, with text left of, above and below them, in fonts that have its letters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from cm3core.arguments import Range, checked
from cm3core.document import PixelArray, Pixels
from cm3core.errors import DataError


@checked(DataError)
def grid(
    rows: Sequence[Sequence[Pixels | None]],
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
    scale: Annotated[int, Range(1, 256)] = 2,
    gap: Annotated[int, Range(0, 10_000)] = 6,
    font_size: Annotated[int, Range(1, 1_000)] = 13,
    label_width: Annotated[int, Range(1, 10_000)] = 180,
) -> PixelArray:
    """Return a contact sheet: rows of pictures, with text left of, above and below them.

    Args:
        rows: pictures uint8 [h, w, 3] of any sizes; None leaves a place empty. Rows may differ in
            length.
        row_labels: a text left of each row, wrapped to `label_width` pixels.
        column_labels: a text above each column, wrapped to the column's width.
        captions: a text below each picture, in the shape of `rows`, wrapped to the column's width.
        scale: each pixel becomes scale x scale (small pictures stay readable).
        gap: pixels between items. font_size: of all text, in pixels.

    Returns:
        uint8 [height, width, 3], black on white.
    """
    num_columns = max((len(row) for row in rows), default=0)
    if num_columns == 0:
        raise DataError("contact sheet", "there are no pictures", "pass at least one")
    every = [picture for row in rows for picture in row if picture is not None]
    tile_height = scale * max((picture.shape[0] for picture in every), default=32)
    tile_width = scale * max((picture.shape[1] for picture in every), default=32)
    headings = [_lines(text, font_size, tile_width) for text in column_labels or ()]
    beside = [_lines(text, font_size, label_width) for text in row_labels or ()]
    below = [[_lines(text, font_size, tile_width) for text in row] for row in captions or ()]
    line = font_size + 3
    left = gap + (label_width + gap if beside else 0)
    top = gap + (line * max(map(len, headings)) + gap if headings else 0)
    heights = [tile_height] * len(rows)
    for index in range(len(rows)):
        if below:
            heights[index] += line * max((len(lines) for lines in below[index]), default=0)
        if beside:
            heights[index] = max(heights[index], line * len(beside[index]))
    width = left + num_columns * (tile_width + gap)
    sheet = _Sheet(width, top + sum(heights) + gap * len(rows), line)
    for column, heading in enumerate(headings):
        sheet.write(heading, left + column * (tile_width + gap), gap)
    y = top
    for index, row in enumerate(rows):
        if beside:
            sheet.write(beside[index], gap, y)
        for column, picture in enumerate(row):
            x = left + column * (tile_width + gap)
            if picture is not None:
                sheet.paste(picture.repeat(scale, axis=0).repeat(scale, axis=1), x, y)
            if below and column < len(below[index]):
                sheet.write(below[index][column], x, y + tile_height)
        y += heights[index] + gap
    return sheet.pixels()


class _Sheet:
    """A white sheet of pictures and of texts in lines.

    Args:
        width, height: in pixels.
        line: height of a line of text.
    """

    def __init__(self, width: int, height: int, line: int) -> None:
        self._image = Pillow.new("RGB", (width, height), (255, 255, 255))
        self._draw, self._line = ImageDraw.Draw(self._image), line

    def write(self, lines: list[tuple[str, Font]], x: int, y: int) -> None:
        """Put lines of text, each with its font, below (x, y)."""
        for number, (words, font) in enumerate(lines):
            self._draw.text((x, y + number * self._line), words, fill=(0, 0, 0), font=font)

    def paste(self, picture: PixelArray, x: int, y: int) -> None:
        """Put a picture's upper left corner at (x, y)."""
        self._image.paste(Pillow.fromarray(picture), (x, y))

    def pixels(self) -> PixelArray:
        """The sheet as uint8 [height, width, 3]."""
        return np.asarray(self._image).copy()


def _lines(text: str, font_size: int, width: int) -> list[tuple[str, Font]]:
    """A text in lines of at most `width` pixels, each with its font."""
    font = font_for(text, font_size)
    return [(words, font) for words in _wrap(text, font, width)]


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Wrap text to `width` pixels, at spaces, and inside a word that alone is wider."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        words = paragraph.split(" ")
        current = ""
        for word in words:
            longer = f"{current} {word}" if current else word
            if font.getlength(longer) <= width:
                current = longer
                continue
            if current:
                lines.append(current)
            while (cut := _fitting_letters(word, font, width)) < len(word):
                lines.append(word[:cut])
                word = word[cut:]
            current = word
        lines.append(current)
    return lines


def _fitting_letters(word: str, font: Font, width: int) -> int:
    """How many letters of a word, from its first on, are no wider than `width` pixels; at least 1.
    Measures a few times what fits, however long the word is."""
    fits = 1
    while fits < len(word) and font.getlength(word[: 2 * fits]) <= width:
        fits = min(2 * fits, len(word))
    too_many = min(2 * fits, len(word) + 1)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if font.getlength(word[:middle]) <= width:
            fits = middle
        else:
            too_many = middle
    return fits


# Fonts for the texts of contact sheets: the one that comes with Pillow, or one of this machine for letters that it
# has not (accents, other alphabets), which would all be drawn as the same empty box.


#: Fonts of Debian, Fedora and macOS, looked for where the system keeps fonts; those of many alphabets first.
_FONT_FILES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "FreeSans.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "Arial Unicode.ttf",
)
#: A code that no font has a letter for: what it looks like is what a letter looks like that a font has not.
_NO_LETTER = "\U0010ffff"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_for(text: str, size: int) -> Font:
    """The font in which most letters of a text can be drawn: Pillow's own where it has all of them."""
    letters = {letter for letter in text if letter.isprintable() and not letter.isspace()}
    best, fewest = _font(None, size), len(letters) + 1
    for file in (None, *_FONT_FILES):
        if (font := _font(file, size)) is None:
            continue
        lacking = sum(not _has_letter(file, size, letter) for letter in letters)
        if lacking < fewest:
            best, fewest = font, lacking
        if lacking == 0:
            break
    assert best is not None  # Pillow's own is always there
    return best


@lru_cache(maxsize=64)
def _font(file: str | None, size: int) -> Font | None:
    """Pillow's own font, or that of a file; None where this machine has no such file."""
    if file is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(file, size)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _has_letter(file: str | None, size: int, letter: str) -> bool:
    font = _font(file, size)
    return font is not None and bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))
