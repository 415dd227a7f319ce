"""Measure an upscaler beside Lanczos: on shrunk pictures, and on what an image tokenizer makes of
them (what it will see).

Legend: N pictures, H W pixels of the small ones, C 3 channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.images import fit, grid
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3core.interfaces.upscaler import Upscaler
from cm3run.evaluation.image_tokenizer import psnr_per_picture, ssim_per_picture


@dataclass(frozen=True)
class Quality:
    """Means over pictures: `psnr` in dB, peak 255, of all channels; `ssim` of grey values, at most
    1."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class UpscalerReport:
    """What `evaluate_upscaler` found.

    `quality`: of each sort of small pictures ("shrunk" with Lanczos; "reconstructed" from those by
    the image tokenizer) enlarged by (Lanczos, the upscaler). `picture`: uint8 [h, w, 3], some of
    them, next to the real ones.
    """

    quality: dict[str, tuple[Quality, Quality]]
    picture: PixelArray


def lanczos(pixels_NHWC: PixelArray, scale: int) -> PixelArray:
    """Pictures uint8 [N, scale * H, scale * W, 3] of pictures uint8 [N, H, W, 3], by Pillow's
    Lanczos."""
    height, width = pixels_NHWC.shape[1:3]
    return np.stack(
        [fit(pixels_HWC, (height * scale, width * scale)) for pixels_HWC in pixels_NHWC]
    )


def small_pictures(
    large_NHWC: PixelArray,
    tokenizer: ImageTokenizer,
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> tuple[PixelArray, PixelArray]:
    """What an upscaler behind `tokenizer` is given, both uint8 [N, H, W, 3] of the tokenizer's
    size: the pictures shrunk with Lanczos, and those encoded and decoded.

    Args:
        large_NHWC: uint8 [N, *, *, 3], squares or whatever shape the tokenizer has.
        tokenizer: of the small size.
        batch_size: pictures a call.
        progress: told the number of pictures done since it was last called.
    """
    small_NHWC = np.empty((len(large_NHWC), *tokenizer.image_size, 3), np.uint8)
    reconstructed_NHWC = np.empty_like(small_NHWC)
    for first in range(0, len(large_NHWC), batch_size):
        batch = slice(first, min(first + batch_size, len(large_NHWC)))
        small_NHWC[batch] = [
            fit(large_HWC, tokenizer.image_size) for large_HWC in large_NHWC[batch]
        ]
        reconstructed_NHWC[batch] = tokenizer.decode(tokenizer.encode(small_NHWC[batch]))
        if progress is not None:
            progress(batch.stop - batch.start)
    return small_NHWC, reconstructed_NHWC


def evaluate_upscaler(
    upscaler: Upscaler,
    tokenizer: ImageTokenizer,
    large_NHWC: PixelArray,
    *,
    name: str = "upscaler",
    batch_size: int = 32,
    num_shown: int = 8,
    progress: Callable[[int], None] | None = None,
) -> UpscalerReport:
    """Shrink pictures, enlarge them again, and measure what is lost, beside Lanczos.

    Args:
        upscaler: any.
        tokenizer: the image tokenizer whose pictures it enlarges.
        large_NHWC: uint8 [N, scale * H, scale * W, 3] with the tokenizer's H and W, at least one.
        name: what the report's picture calls the upscaler.
        batch_size: pictures a call.
        num_shown: pictures in the report's picture, spread evenly over the set.
        progress: told the number of pictures done since it was last called.
    """
    expected = (*(side * upscaler.scale for side in tokenizer.image_size), 3)
    if not len(large_NHWC) or large_NHWC.shape[1:] != expected or large_NHWC.dtype != np.uint8:
        raise DataError(
            "pictures",
            f"{large_NHWC.dtype} {list(large_NHWC.shape)}, expected at least one, uint8 "
            f"[N, {expected[0]}, {expected[1]}, 3]",
            "resize with cm3core.images.fit",
        )
    shown = set(
        np.linspace(0, len(large_NHWC) - 1, min(num_shown, len(large_NHWC))).astype(int).tolist()
    )
    values: dict[str, list[npt.NDArray[np.float64]]] = {"shrunk": [], "reconstructed": []}
    rows: list[list[PixelArray]] = []
    for first in range(0, len(large_NHWC), batch_size):
        large = large_NHWC[first : first + batch_size]
        small = dict(
            zip(values, small_pictures(large, tokenizer, batch_size=batch_size), strict=True)
        )
        found = {
            sort: (lanczos(pixels, upscaler.scale), upscaler.upscale_batch(pixels))
            for sort, pixels in small.items()
        }
        for sort, ways in found.items():
            values[sort].append(
                np.stack(
                    [[psnr_per_picture(large, way), ssim_per_picture(large, way)] for way in ways]
                )
            )
        for index in sorted({place - first for place in shown} & set(range(len(large)))):
            pixels = (
                small["reconstructed"][index]
                .repeat(upscaler.scale, axis=0)
                .repeat(upscaler.scale, axis=1)
            )
            rows.append(
                [
                    pixels,
                    *(way[index] for sort in ("reconstructed", "shrunk") for way in found[sort]),
                    large[index],
                ]
            )
        if progress is not None:
            progress(len(large))
    means = {
        sort: np.concatenate(parts, axis=2).mean(axis=2).tolist() for sort, parts in values.items()
    }
    return UpscalerReport(
        quality={sort: (Quality(*base), Quality(*ours)) for sort, (base, ours) in means.items()},
        picture=grid(
            rows,
            scale=1,
            column_labels=[
                "reconstructed",
                "reconstructed, Lanczos",
                f"reconstructed, {name}",
                "shrunk, Lanczos",
                f"shrunk, {name}",
                "real",
            ],
        ),
    )
