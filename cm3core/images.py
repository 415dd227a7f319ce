"""Pictures: open untrusted files, resize, save with metadata.

Pixels are RGB, uint8 [height, width, 3], 0..255, everywhere in the framework.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps, PngImagePlugin, UnidentifiedImageError

from cm3core.arguments import Called, Range, Shape, checked
from cm3core.document import PixelArray, Pixels
from cm3core.errors import DataError, FileError
from cm3core.files import atomic_path, check_regular
from cm3core.outputs import claim_file

#: Pictures with more pixels are refused before decoding, because a small file can be a decompression bomb.
MAX_PIXELS = 64_000_000
#: Larger files are refused before they are read (`MAX_PIXELS` RGB pixels of 8 bits take 183 MiB).
MAX_FILE_BYTES = 256 << 20
#: Supported formats. Others involve interpreters (EPS) or code that is not fuzzed.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: File name extensions of other formats than PNG, which is what is written.
OTHER_SUFFIXES = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".svg")

#: Maximum difference between pixels of a blank picture, of 255 levels: JPEG's rounding in a plain area.
_INVISIBLE = 4
#: Maximum number of scans of a progressive JPEG; encoders make ten.
MAX_SCANS = 100
#: A JPEG marker that is not a stuffed byte or a restart within a scan.
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_SCAN, _END, _WITHOUT_LENGTH = 0xDA, 0xD9, (0x01, 0xD8)
#: Number of pixels converted at a time.
_STRIP_PIXELS = 1 << 20

# Errors that Pillow's parsers raise for broken files, each seen in its issue tracker; any other error is a
# bug and is not caught.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


@checked(DataError)
def open_image(source: str | Path | bytes, place: str | None = None) -> PixelArray:
    """Return the pixels of a picture file.

    Rotated upright (EXIF), 16 bits reduced to 8, palettes resolved, transparency on white, first
    frame.

    Args:
        source: a path, or the file's bytes.
        place: its name in messages; the path by default.

    Raises:
        DataError: missing, not a regular file, not a picture, truncated, more than `MAX_PIXELS` or
            `MAX_FILE_BYTES`, or of an unsupported format.
    """
    pixels = _opened(source, place, MAX_PIXELS, _to_rgb)
    if pixels is None:
        raise DataError(
            _named(source, place),
            "has pixels that are not 8-bit or 16-bit numbers",
            "convert it to an 8 bit PNG",
        )
    return pixels


def open_alpha(
    source: str | Path | bytes, place: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8] | None:
    """Return the opacity of each pixel of a picture file: uint8 [height, width], 0 is transparent.

    None: the picture has no transparency at all. Upright, like the pixels from `open_image`.

    Args:
        source, place: as for `open_image`.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        DataError: as for `open_image`.
    """
    return _opened(source, place, max_pixels, _alpha_of)


def size_of(source: bytes, place: str, max_pixels: int) -> tuple[int, int]:
    """(width, height) of a picture, read from its header.

    Raises:
        DataError: it is not a picture, or has more than `max_pixels`.
    """
    return _opened(source, place, max_pixels, lambda image: image.size, decode=False)


def has_alpha(source: bytes, place: str, max_pixels: int) -> bool:
    """Whether a picture can have transparency, according to its header; raises as `size_of`."""
    return _opened(source, place, max_pixels, _has_alpha, decode=False)


def check_pixels(source: bytes, place: str, max_pixels: int) -> None:
    """Raise `DataError` for a picture of more than `max_pixels`, before it is decoded.

    Also raises it for a file that is not a picture.
    """
    size_of(source, place, max_pixels)


T = TypeVar("T")
#: Side of a picture in pixels.
Side = Annotated[int, Range(1, 65_536)]
#: uint8 [height, width, 4], with opacity as the last channel.
TransparentPixels = Annotated[
    PixelArray,
    Shape((None, None, 4)),
    Called("with how opaque they are uint8 [height, width, 4]"),
]


def _named(source: str | Path | bytes, place: str | None) -> str:
    """A picture's name in messages."""
    return place or (f"{len(source)} bytes" if isinstance(source, bytes) else str(source) or "''")


def _opened(
    source: str | Path | bytes,
    place: str | None,
    max_pixels: int,
    convert: Callable[[Pillow.Image], T],
    *,
    decode: bool = True,
) -> T:
    """Apply `convert` to a picture file, turned upright; `open_image` lists what is refused."""
    place = _named(source, place)
    if not isinstance(source, bytes):
        _check_file(Path(source), place)
    file: str | Path | IO[bytes] = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Pillow.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(
                    place,
                    f"{width} x {height} pixels, more than {max_pixels:,}",
                    "reduce its size first",
                )
            if not decode:
                return convert(image)
            if image.format == "JPEG":
                _check_scans(image, place)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return convert(image)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            place, "is not a picture", f"convert it to one of {', '.join(FORMATS)}"
        ) from error
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise DataError(
            place, f"has more than {max_pixels:,} pixels", "reduce its size first"
        ) from error
    except _BROKEN as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            place,
            f"can't be read as a picture ({reason})",
            "replace the file; it is damaged or truncated",
        ) from error


def check_file_bytes(size: int, place: str) -> None:
    """Raise `DataError` for a picture file of more than `MAX_FILE_BYTES`."""
    if size > MAX_FILE_BYTES:
        raise DataError(
            place,
            f"has {size:,} bytes, but a picture may have at most {MAX_FILE_BYTES:,}",
            "reduce its size first",
        )


def _check_file(path: Path, place: str) -> None:
    """Refuse files that can't be read to their end: a pipe blocks, a device may never end."""
    check_regular(path, place)
    if path.is_dir():
        raise DataError(place, "is a folder, not a picture", "name a picture in it")
    if not path.is_file():
        raise DataError(place, "there is no such file", "correct the path")
    check_file_bytes(path.stat().st_size, place)


def _has_alpha(image: Pillow.Image) -> bool:
    return bool({"A", "a"} & set(image.getbands())) or "transparency" in image.info


def _alpha_of(image: Pillow.Image) -> NDArray[np.uint8] | None:
    """The opacity of each pixel; None for a picture without transparency."""
    if not _has_alpha(image):
        return None
    alpha = np.empty((image.height, image.width), np.uint8)
    for rows, part in _strips(image):
        alpha[rows] = np.asarray(part.convert("RGBA"))[:, :, 3]
    return alpha


def _to_rgb(image: Pillow.Image) -> PixelArray | None:
    """Return RGB pixels; None for a mode without an agreed range (floating point, 32 bits)."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        return None
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows, part in _strips(image):
        if part.mode.startswith("I"):  # 16-bit grey, which Pillow also returns as "I"
            pixels[rows] = (np.asarray(part).astype(np.int64) // 257).astype(np.uint8)[:, :, None]
        elif _has_alpha(part):
            layer = part.convert("RGBA")
            white = Pillow.new("RGBA", layer.size, (255, 255, 255, 255))
            pixels[rows] = np.asarray(Pillow.alpha_composite(white, layer).convert("RGB"))
        else:
            pixels[rows] = np.asarray(part.convert("RGB"))
    return pixels


def _strips(image: Pillow.Image) -> Iterator[tuple[slice, Pillow.Image]]:
    """A picture in strips of rows, so that no full copies are made during conversion."""
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    if rows >= image.height:
        yield slice(None), image
        return
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _check_scans(image: Pillow.Image, place: str) -> None:
    """Raise `DataError` for a JPEG with more than `MAX_SCANS` scans: each scan of a few bytes is
    decoded over the whole picture, and a small file can have thousands."""
    file = image.fp  # type: ignore[attr-defined]  # of pictures that are opened
    start = file.tell()
    file.seek(0)
    number = _scans(file.read())
    file.seek(start)
    if number > MAX_SCANS:
        raise DataError(
            place,
            f"has more than {MAX_SCANS} scans, each of which takes as long as a picture",
            "save it again, as a baseline JPEG",
        )


def _scans(data: bytes) -> int:
    """Number of scans of a JPEG up to its end, at most `MAX_SCANS` + 1. Segments are skipped, because they may contain
    another JPEG, a preview."""
    number = place = 0
    while number <= MAX_SCANS and (found := _MARKER.search(data, place)):
        kind, place = found[1][0], found.end()
        if kind == _END:
            break
        number += kind == _SCAN
        if kind not in _WITHOUT_LENGTH:
            place += int.from_bytes(data[place : place + 2], "big")
    return number


def is_blank(pixels_HWC: PixelArray) -> bool:
    """Whether a picture uint8 [height, width, 3] is blank: every channel is constant, except for invisible
    differences.

    >>> page = np.full((4, 4, 3), 250, np.uint8)
    >>> dot = page.copy()
    >>> dot[1, 1] = 240
    >>> is_blank(page), is_blank(dot)
    (True, False)
    """
    lowest, highest = pixels_HWC.min(axis=(0, 1)), pixels_HWC.max(axis=(0, 1))
    return bool((highest - lowest <= _INVISIBLE).all())


@checked(DataError)
def fit(pixels: Pixels, size: tuple[Side, Side]) -> PixelArray:
    """Return the picture at exactly `size` = (height, width), centre-cropped and resized.

    The largest centred part of that aspect ratio is resampled with LANCZOS. This is like resizing
    the short side and cropping the centre (Chameleon's `image_tokenizer.py`), without the large
    intermediate picture that a long thin one would need. A picture of this size is returned
    unchanged.

    >>> fit(np.zeros((10, 30, 3), np.uint8), (4, 4)).shape
    (4, 4, 3)
    """
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    scale = min(height / size[0], width / size[1])
    part_height, part_width = size[0] * scale, size[1] * scale
    left, top = (width - part_width) / 2, (height - part_height) / 2
    box = (
        max(left, 0.0),
        max(top, 0.0),
        min(left + part_width, float(width)),
        min(top + part_height, float(height)),
    )
    return np.asarray(
        Pillow.fromarray(pixels).resize((size[1], size[0]), Pillow.Resampling.LANCZOS, box=box)
    ).copy()


def claim_png(path: str | Path) -> None:
    """`outputs.claim_file` for a PNG: a name with another format's extension is refused, too.

    Only extensions made of letters count: a known format's, or a misspelt `.png`. The name `drawing.v2` has none.

    Raises:
        FileError: the file can't be written, is somebody else's, or its name has another format's extension.
    """
    suffix = Path(path).suffix
    if suffix.lower() != ".png" and (suffix[1:].isalpha() or suffix.lower() in OTHER_SUFFIXES):
        raise FileError(
            str(path),
            f"ends in {suffix}, but pictures are written as PNG",
            f"name it {Path(path).with_suffix('.png').name}",
        )
    claim_file(path)


@checked(DataError)
def save_png(
    path: str | Path,
    pixels: Pixels | TransparentPixels,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a PNG atomically, with text chunks (any Unicode; keys 1 to 79 Latin-1 characters)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(png_bytes(pixels, metadata))


def png_bytes(pixels: PixelArray, metadata: Mapping[str, str] | None = None) -> bytes:
    """Encode a PNG, with text chunks as for `save_png`.

    Args:
        pixels: uint8 [height, width, 3], or [height, width, 4] with opacity.
        metadata: the text chunks.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(key, value)
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


@checked(DataError)
def read_png_metadata(path: str | Path) -> dict[str, str]:
    """Return the text chunks of a PNG; raises `DataError` if it isn't one or is damaged."""
    open_image(path)  # reports errors in broken files; text chunks may also follow the pixels
    with Pillow.open(path, formats=FORMATS) as image:
        if not isinstance(image, PngImagePlugin.PngImageFile):
            raise DataError(str(path), f"is a {image.format} file", "give a PNG")
        image.load()
        return {key: str(value) for key, value in image.text.items()}
