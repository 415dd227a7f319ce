"""Fonts for the texts of contact sheets: the one that comes with Pillow, or one of this machine for letters that it
has not (accents, other alphabets), which would all be drawn as the same empty box."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageFont

#: Fonts of Debian, Fedora and macOS, looked for where the system keeps fonts; those of many alphabets first.
_FILES = (
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
    for file in (None, *_FILES):
        if (font := _font(file, size)) is None:
            continue
        lacking = sum(not _has(file, size, letter) for letter in letters)
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
def _has(file: str | None, size: int, letter: str) -> bool:
    font = _font(file, size)
    return font is not None and bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))
