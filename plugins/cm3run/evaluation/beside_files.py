"""Codes of pictures beside JPEG and WebP files of the same number of bytes.

Codes are counted in two ways: each as log2 of the codes that can be at its place, and as an arithmetic coder would write
them that knows how frequent each code is in other pictures. Files are counted without what is the same in all of them:
headers, and JPEG's tables. A format may also shrink the pictures first, which is better at few bytes.

Legend: N pictures, c codes of a picture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cm3core.document import IntArray, PixelArray
from cm3core.picture_form import PictureForm
from cm3run.evaluation.quality import psnr_per_picture

FORMATS = ("WebP", "JPEG")
#: Sides to which pictures may be shrunk, relative to their own.
SCALES = (1.0, 0.75, 0.5, 0.375, 0.25)
QUALITIES = range(101)
#: WebP: the headers of the file (12 bytes), of its chunk (8) and of its only frame (10).
_WEBP_HEADERS = 30
#: JPEG: start of the picture data, and end of the file.
_START, _END = b"\xff\xda", 2


@dataclass(frozen=True)
class Files:
    """Pictures as files.

    Args:
        name: of the format.
        size: mean bytes of a picture's data.
        scale: side of the pictures in the files, relative to their own.
        quality: the format's setting, 0 to 100.
        decoded_NHWC: uint8.
    """

    name: str
    size: float
    scale: float
    quality: int
    decoded_NHWC: PixelArray


def plain_bytes(codes_Nc: IntArray, form: PictureForm, codebook_size: int) -> float:
    """Mean bytes of a picture whose codes are written one after the other, all with the same number of bits.

    >>> plain_bytes(np.zeros((1, 64), np.int32), PictureForm.of_grid(8, 8), 1024)
    80.0
    """
    own = codebook_size // form.depth if form.rules is not None else codebook_size
    return float(np.mean(_lengths(codes_Nc, form)) * np.log2(max(own, 1)) / 8)


def coded_bytes(codes_Nc: IntArray, form: PictureForm) -> float:
    """Mean bytes of a picture by an arithmetic coder with the frequencies of each code in half of the pictures, for those
    of the other half; each code that is anywhere is counted half a time more. The codes of a place have their own.

    By hand: of two pictures with one code each, 0 and 1, each has the probability 0.5 / (1 + 1) of being the other.

    >>> coded_bytes(np.array([[0], [1]]), PictureForm.of_grid(1, 1)) * 8
    2.0
    """
    slots_c = np.arange(codes_Nc.shape[1]) % form.depth
    real_Nc = np.arange(codes_Nc.shape[1]) < np.array(_lengths(codes_Nc, form))[:, None]
    half_Nc = np.broadcast_to((np.arange(len(codes_Nc)) % 2)[:, None], codes_Nc.shape)
    bits = 0.0
    for slot in range(form.depth):
        chosen_Nc = real_Nc & (slots_c == slot)
        ids, codes = np.unique(codes_Nc[chosen_Nc], return_inverse=True)
        half = half_Nc[chosen_Nc]
        times = np.stack([np.bincount(codes[half == one], minlength=len(ids)) for one in (0, 1)])
        shares = (times + 0.5) / (times.sum(1, keepdims=True) + 0.5 * len(ids))
        bits -= float(np.log2(shares[1 - half, codes]).sum())
    return bits / 8 / len(codes_Nc)


def _lengths(codes_Nc: IntArray, form: PictureForm) -> list[int]:
    """Number of codes of each picture."""
    if not form.is_sequence:
        return [codes_Nc.shape[1]] * len(codes_Nc)
    return [form.length(codes) for codes in codes_Nc]


def files_of(pictures_NHWC: PixelArray, name: str, most_bytes: float) -> Files | None:
    """The pictures in a format at one size and quality: of those whose mean bytes are at most `most_bytes`, the ones with
    the highest mean PSNR. None: there are none.

    Args:
        pictures_NHWC: uint8.
        name: one of `FORMATS`.
        most_bytes: mean bytes of a picture's data.
    """
    best, best_psnr = None, -np.inf
    for scale in SCALES:
        found = _best_quality(pictures_NHWC, name, most_bytes, scale)
        if found is None:
            continue
        psnr = float(psnr_per_picture(pictures_NHWC, found.decoded_NHWC).mean())
        if psnr > best_psnr:
            best, best_psnr = found, psnr
    return best


def _best_quality(
    pictures_NHWC: PixelArray, name: str, most_bytes: float, scale: float
) -> Files | None:
    """The highest quality that fits, by bisection."""
    height, width = pictures_NHWC.shape[1:3]
    sides = max(1, round(width * scale)), max(1, round(height * scale))
    small = [Image.fromarray(one).resize(sides, Image.Resampling.LANCZOS) for one in pictures_NHWC]
    fitting, low, high = None, QUALITIES.start, QUALITIES.stop
    while low < high:
        quality = (low + high) // 2
        written = [_written(one, name, quality) for one in small]
        size = float(np.mean([_data_bytes(one, name) for one in written]))
        if size <= most_bytes:
            fitting, low = (written, size, quality), quality + 1
        else:
            high = quality
    if fitting is None:
        return None
    decoded = _read(fitting[0], (width, height))
    return Files(name, fitting[1], scale, fitting[2], decoded)


def _written(picture: Image.Image, name: str, quality: int) -> bytes:
    options: dict[str, Any] = {"method": 6} if name == "WebP" else {}
    stream = io.BytesIO()
    picture.save(stream, name, quality=quality, **options)
    return stream.getvalue()


def _data_bytes(file: bytes, name: str) -> int:
    """Bytes without headers and tables."""
    if name == "WebP":
        return len(file) - _WEBP_HEADERS
    start = file.index(_START) + len(_START)
    return len(file) - start - int.from_bytes(file[start : start + 2], "big") - _END


def _read(files: Sequence[bytes], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The pictures of files, at (width, height)."""
    pictures = (Image.open(io.BytesIO(file)).convert("RGB") for file in files)
    return np.stack([np.asarray(one.resize(size, Image.Resampling.LANCZOS)) for one in pictures])
