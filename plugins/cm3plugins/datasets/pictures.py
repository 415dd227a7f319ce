"""Checks of the data sets' picture files: the header, and whether the file is complete.

`examine` is cheap (no pixel is decoded) and finds nearly all broken files when a data set is
opened; decoding finds the rest.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

from cm3core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

#: File name endings that count as pictures, in lower case.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
#: Endings of pictures that are not read; a file of this kind is reported.
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".svg", ".jxl", ".psd")
NEXT_STEP = "replace or remove it"
#: EXIF's tag of the orientation.
_ORIENTATION = 0x0112
#: What Pillow raises on broken headers.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def examine(data: bytes, place: str) -> tuple[int, int]:
    """(width, height) in pixels of a picture file's bytes, upright as `open_image` shows it, without
    decoding it.

    Raises:
        DataError: empty, not a picture that `cm3core.images` reads, too large, or truncated.
    """
    from cm3core.images import MAX_PIXELS

    if not data:
        raise DataError(place, "is empty (0 bytes)", NEXT_STEP)
    picture = _open(data, place)
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DataError(
            place, f"{width} x {height} pixels, more than {MAX_PIXELS:,}", "make it smaller first"
        )
    if picture.format is not None and (cause := _damage(data, picture.format)):
        raise DataError(place, cause, NEXT_STEP)
    return (height, width) if _lies_on_its_side(picture) else (width, height)


def _lies_on_its_side(picture: Picture) -> bool:
    """Whether the orientation that EXIF gives turns the picture by a quarter."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return False  # Pillow would decode the file to look behind the pixels
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tags that are damaged
            orientation = picture.getexif().get(_ORIENTATION)
        return orientation in (5, 6, 7, 8)
    except _BROKEN:
        return False  # decoding reports it


def _open(data: bytes, place: str) -> Picture:
    """The picture with its header read."""
    import warnings

    import PIL
    from PIL import Image as Pictures

    from cm3core.images import FORMATS, MAX_PIXELS

    try:
        with warnings.catch_warnings():
            # `examine` has its own limit
            warnings.simplefilter("ignore", Pictures.DecompressionBombWarning)
            return Pictures.open(io.BytesIO(data), formats=FORMATS)
    except Pictures.DecompressionBombError as error:
        raise DataError(
            place, f"has more than {MAX_PIXELS:,} pixels", "make it smaller first"
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise DataError(
            place, "is not a picture", f"convert it to one of {', '.join(FORMATS)}"
        ) from error
    except _BROKEN as error:
        raise DataError(place, f"has a broken header ({error})", NEXT_STEP) from error


def _damage(data: bytes, kind: str) -> str | None:
    """What is wrong with the file's structure; None if intact. Reads only markers and lengths."""
    if kind == "PNG":
        return _png_damage(data)
    if kind in ("JPEG", "MPO"):
        return (
            None if _has_jpeg_end(data) else "is truncated: the end marker of the JPEG is missing"
        )
    if kind == "GIF":
        return (
            None
            if data.rstrip(b"\0\r\n").endswith(b";")
            else "is truncated: the end marker of the GIF is missing"
        )
    if kind not in ("BMP", "WEBP"):
        return None  # no cheap way to tell
    announced = int.from_bytes(data[2:6] if kind == "BMP" else data[4:8], "little") + (
        0 if kind == "BMP" else 8
    )
    if announced > len(data):
        return f"is truncated: {len(data)} of {announced} bytes"
    return None


def _png_damage(data: bytes) -> str | None:
    """A PNG is a signature of 8 bytes and chunks (length, name, content, checksum), IEND last."""
    place = 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        name, end = data[place + 4 : place + 8], place + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[place + 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            return f"is damaged: wrong checksum of chunk {name.decode('latin-1')} at byte {place}"
        if name == b"IEND":
            return None
        place = end + 4
    return "is truncated: the last chunk of a PNG (IEND) is missing"


def _has_jpeg_end(data: bytes) -> bool:
    """Whether the end marker comes after the start of the scan.

    A thumbnail in the header has an end marker too.
    """
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0xDA:
            return data.rfind(b"\xff\xd9", place) >= 0
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def suffix_of(data: bytes) -> str:
    """The ending of a picture file's name, by its bytes.

    Raises:
        DataError: it is no picture.
    """
    kind = (_open(data, "picture").format or "png").lower()
    return {"jpeg": ".jpg", "tiff": ".tif"}.get(kind, f".{kind}")
