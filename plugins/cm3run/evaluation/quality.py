"""Quality of image tokenizers and upscalers: PSNR, SSIM, codebook usage, perplexity, and pictures of reconstructions.

An upscaler is compared with Lanczos, on shrunk pictures and on an image tokenizer's reconstructions of them (its
actual input). Legend: N pictures, H W pixels of the small ones, C 3 channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cm3core.document import IntArray, PixelArray
from cm3core.errors import DataError, TokenizerError
from cm3core.images import fit
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3core.interfaces.upscaler import Upscaler
from cm3run.nearness import FAINT, background
from cm3run.sheets import grid

#: Side of SSIM's windows (Wang et al. 2004 use Gaussian windows of 11; scikit-image's
#: default is 7).
SSIM_WINDOW = 7

#: PSNR in dB over non-blank areas, below which shapes and colours are lost. With the icon tokenizer, icons have 19.6
#: (median of 300), emoji 16.8, Tux Paint's stamps 16.2, Open Clipart's pictures 15.2; with the emoji tokenizer, emoji
#: have 23.4, photographs 22.4, stamps 21.2, clipart 19.8.
LEAST_PSNR = 18.0


@dataclass(frozen=True)
class TokenizerReport:
    """Results of `evaluate_image_tokenizer`.

    `psnr`: mean over pictures of each picture's PSNR, dB, peak 255; `psnr_drawn`: the same over non-blank areas
    (`drawn_psnr_per_picture`), for pictures that have any, None if none has; `ssim`: mean structural
    similarity (`ssim_per_picture`), None for pictures smaller than its window. `num_used_codes` of
    `codebook_size` occurred; `perplexity`: exp of the codes' entropy, at most `codebook_size`.
    `picture`: uint8 [h, w, 3], originals above reconstructions. `reconstructed_NHWC`: all of them, uint8.
    """

    psnr: float
    psnr_drawn: float | None
    ssim: float | None
    num_used_codes: int
    codebook_size: int
    perplexity: float
    picture: PixelArray
    reconstructed_NHWC: PixelArray

    @property
    def usage(self) -> float:
        """Share of the codebook that occurred."""
        return self.num_used_codes / self.codebook_size


def psnr_per_picture(
    pixels_NHWC: PixelArray, reconstructed_NHWC: PixelArray
) -> npt.NDArray[np.float64]:
    """10 log10(255^2 / MSE) of each picture, float64 [N]; equal pictures count as MSE 1e-10."""
    error_NHWC = pixels_NHWC.astype(np.float64) - reconstructed_NHWC.astype(np.float64)
    mse_N = np.maximum((error_NHWC**2).mean(axis=(1, 2, 3)), 1e-10)
    psnr_N: npt.NDArray[np.float64] = 10.0 * np.log10(255.0**2 / mse_N)
    return psnr_N


def drawn_psnr_per_picture(
    pixels_NHWC: PixelArray, reconstructed_NHWC: PixelArray
) -> npt.NDArray[np.float64]:
    """PSNR over the places where a picture or its reconstruction differs from the picture's background, float64 [N];
    NaN for pictures without such places.

    A plain background is reconstructed without error, so the more of it a picture has, the higher is its overall PSNR,
    however badly the drawing itself is reconstructed. In a photograph nearly all places count.

    >>> page = np.full((1, 8, 8, 3), 255, np.uint8)
    >>> drawn, lost = page.copy(), page.copy()
    >>> drawn[:, 2:4, 2:4], lost[:, 2:4, 2:4] = 0, 85
    >>> [round(float(psnr[0]), 2) for psnr in (psnr_per_picture(drawn, lost), drawn_psnr_per_picture(drawn, lost))]
    [21.58, 9.54]
    """
    pixels, reconstructed = (
        pictures.astype(np.float64) for pictures in (pixels_NHWC, reconstructed_NHWC)
    )
    background_N11C = np.stack(list(map(background, pixels_NHWC)))[:, None, None]
    drawn_NHW = np.zeros(pixels.shape[:3], np.bool_)
    for pictures in (pixels, reconstructed):
        drawn_NHW |= (np.abs(pictures - background_N11C) > FAINT).any(axis=3)
    error_NHW = ((pixels - reconstructed) ** 2).mean(axis=3) * drawn_NHW
    num_N = drawn_NHW.sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        mse_N = np.maximum(error_NHW.sum(axis=(1, 2)) / num_N, 1e-10)
    psnr_N: npt.NDArray[np.float64] = 10.0 * np.log10(255.0**2 / mse_N)
    return psnr_N


def ssim_per_picture(a_NHWC: PixelArray, b_NHWC: PixelArray) -> npt.NDArray[np.float64]:
    """Structural similarity of grey values (the channels' mean), float64 [N], as in scikit-image's
    `structural_similarity`: the mean over all windows of `SSIM_WINDOW` pixels a side that lie
    inside, K1 = 0.01, K2 = 0.03, sample variances.

    Raises:
        DataError: pictures smaller than a window.
    """
    import torch
    import torch.nn.functional as F

    if min(a_NHWC.shape[1:3]) < SSIM_WINDOW:
        raise DataError(
            "pictures",
            f"{a_NHWC.shape[2]} x {a_NHWC.shape[1]} pixels, smaller than SSIM's window of "
            f"{SSIM_WINDOW}",
            "compare larger pictures",
        )
    a, b = (
        torch.from_numpy(pixels.astype(np.float64).mean(axis=3)[:, None])
        for pixels in (a_NHWC, b_NHWC)
    )

    def mean(values_N1HW: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(values_N1HW, SSIM_WINDOW, stride=1)

    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    mean_a, mean_b = mean(a), mean(b)
    variances = unbiased * (mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2)
    covariance = unbiased * (mean(a * b) - mean_a * mean_b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = (
        (2 * mean_a * mean_b + c1)
        * (2 * covariance + c2)
        / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
    )
    return np.asarray(values.mean(dim=(1, 2, 3)))


def _mean_drawn(
    images_NHWC: PixelArray, reconstructed_NHWC: PixelArray, batch_size: int
) -> float | None:
    """The mean of `drawn_psnr_per_picture` over the pictures that are not blank."""
    parts = [slice(start, start + batch_size) for start in range(0, len(images_NHWC), batch_size)]
    psnr_N = np.concatenate(
        [drawn_psnr_per_picture(images_NHWC[part], reconstructed_NHWC[part]) for part in parts]
    )
    drawn = psnr_N[~np.isnan(psnr_N)]
    return float(drawn.mean()) if len(drawn) else None


def perplexity_of(codes: IntArray, codebook_size: int) -> float:
    """exp(entropy in nats) of the codes' frequencies."""
    frequency_K = np.bincount(codes.ravel(), minlength=codebook_size) / codes.size
    frequency_K = frequency_K[frequency_K > 0]
    return float(np.exp(-(frequency_K * np.log(frequency_K)).sum()))


def reconstruction_picture(
    pixels_NHWC: PixelArray, reconstructed_NHWC: PixelArray, num_columns: int = 12
) -> PixelArray:
    """Rows of originals, each above its row of reconstructions; unused places are white."""
    n, height, width, _ = pixels_NHWC.shape
    num_columns = min(num_columns, n)
    num_rows = -(-n // num_columns)
    sheet = np.full((2 * num_rows, num_columns, height, width, 3), 255, np.uint8)
    for i in range(n):
        row, column = divmod(i, num_columns)
        sheet[2 * row, column], sheet[2 * row + 1, column] = pixels_NHWC[i], reconstructed_NHWC[i]
    return sheet.transpose(0, 2, 1, 3, 4).reshape(2 * num_rows * height, num_columns * width, 3)


def evaluate_image_tokenizer(
    tokenizer: ImageTokenizer,
    images_NHWC: PixelArray,
    codes_Nc: IntArray | None = None,
    *,
    batch_size: int = 64,
    num_shown: int = 36,
) -> TokenizerReport:
    """Encode and decode pictures and measure the reconstruction quality.

    Args:
        tokenizer: any image tokenizer.
        images_NHWC: uint8 [N, H, W, 3] of the tokenizer's size, at least one.
        codes_Nc: their codes, if they come from something else than pixels. None: they are encoded.
        batch_size: pictures per call.
        num_shown: pictures in the report's picture, spread evenly over the set.
    """
    if len(images_NHWC) == 0:
        raise TokenizerError("pictures", "are missing", "choose a split that has pictures")
    batches = [slice(i, i + batch_size) for i in range(0, len(images_NHWC), batch_size)]
    if codes_Nc is None:
        codes_Nc = np.concatenate([tokenizer.encode(images_NHWC[batch]) for batch in batches])
    reconstructed_NHWC = np.concatenate([tokenizer.decode(codes_Nc[batch]) for batch in batches])
    shown = np.linspace(0, len(images_NHWC) - 1, min(num_shown, len(images_NHWC))).astype(int)
    ssim = None
    if min(images_NHWC.shape[1:3]) >= SSIM_WINDOW:
        starts = range(0, len(images_NHWC), batch_size)
        parts_of = (slice(start, start + batch_size) for start in starts)
        parts = [ssim_per_picture(images_NHWC[part], reconstructed_NHWC[part]) for part in parts_of]
        ssim = float(np.concatenate(parts).mean())
    return TokenizerReport(
        psnr=float(psnr_per_picture(images_NHWC, reconstructed_NHWC).mean()),
        psnr_drawn=_mean_drawn(images_NHWC, reconstructed_NHWC, batch_size),
        ssim=ssim,
        num_used_codes=int(np.unique(codes_Nc).size),
        codebook_size=tokenizer.codebook_size,
        perplexity=perplexity_of(codes_Nc, tokenizer.codebook_size),
        picture=reconstruction_picture(images_NHWC[shown], reconstructed_NHWC[shown]),
        reconstructed_NHWC=reconstructed_NHWC,
    )


@dataclass(frozen=True)
class Quality:
    """Means over pictures: `psnr` in dB, peak 255, over all channels; `ssim` of grey values, at most
    1."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class UpscalerReport:
    """Results of `evaluate_upscaler`.

    `quality`: for each kind of small pictures ("shrunk" with Lanczos; "reconstructed" from those by
    the image tokenizer), the quality when enlarged by (Lanczos, the upscaler). `picture`: uint8 [h, w, 3], some of
    them, next to the real ones.
    """

    quality: dict[str, tuple[Quality, Quality]]
    picture: PixelArray


def lanczos(pixels_NHWC: PixelArray, scale: int) -> PixelArray:
    """Enlarge pictures uint8 [N, H, W, 3] to uint8 [N, scale * H, scale * W, 3] with Pillow's
    Lanczos filter."""
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
    """Inputs for an upscaler after `tokenizer`, both uint8 [N, H, W, 3] of the tokenizer's
    size: the pictures shrunk with Lanczos, and their reconstructions.

    Args:
        large_NHWC: uint8 [N, *, *, 3], squares or whatever shape the tokenizer has.
        tokenizer: of the small size.
        batch_size: pictures per call.
        progress: called with the number of pictures done since the last call.
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


def _check_large(large_NHWC: PixelArray, upscaler: Upscaler, tokenizer: ImageTokenizer) -> None:
    expected = (*(side * upscaler.scale for side in tokenizer.image_size), 3)
    if not len(large_NHWC) or large_NHWC.shape[1:] != expected or large_NHWC.dtype != np.uint8:
        raise DataError(
            "pictures",
            f"{large_NHWC.dtype} {list(large_NHWC.shape)}, expected at least one, uint8 "
            f"[N, {expected[0]}, {expected[1]}, 3]",
            "resize with cm3core.images.fit",
        )


def _shown(
    large: PixelArray,
    reconstructed: PixelArray,
    found: Mapping[str, tuple[PixelArray, PixelArray]],
    index: int,
    scale: int,
) -> list[PixelArray]:
    """A row of the report's picture: the input, each method's result for each kind, and the real picture."""
    pixels = reconstructed.repeat(scale, axis=0).repeat(scale, axis=1)
    ways = [way[index] for sort in ("reconstructed", "shrunk") for way in found[sort]]
    return [pixels, *ways, large]


#: Pictures in the picture of a report on an upscaler.
NUM_SHOWN = 8


def evaluate_upscaler(
    upscaler: Upscaler,
    tokenizer: ImageTokenizer,
    large_NHWC: PixelArray,
    *,
    name: str = "upscaler",
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> UpscalerReport:
    """Shrink pictures, enlarge them again, and measure the loss in comparison with Lanczos.

    Args:
        upscaler: any.
        tokenizer: the image tokenizer whose pictures it enlarges.
        large_NHWC: uint8 [N, scale * H, scale * W, 3] with the tokenizer's H and W, at least one.
        name: the upscaler's name in the report's picture.
        batch_size: pictures per call.
        progress: called with the number of pictures done since the last call.

    Returns:
        the report; its picture shows `NUM_SHOWN` pictures, spread evenly over the set.
    """
    _check_large(large_NHWC, upscaler, tokenizer)
    last, number = len(large_NHWC) - 1, min(NUM_SHOWN, len(large_NHWC))
    shown = set(np.linspace(0, last, number).astype(int).tolist())
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
            both = [[psnr_per_picture(large, way), ssim_per_picture(large, way)] for way in ways]
            values[sort].append(np.stack(both))
        rows += [
            _shown(large[index], small["reconstructed"][index], found, index, upscaler.scale)
            for index in sorted({place - first for place in shown} & set(range(len(large))))
        ]
        if progress is not None:
            progress(len(large))
    means = {
        sort: np.concatenate(parts, axis=2).mean(axis=2).tolist() for sort, parts in values.items()
    }
    quality = {sort: (Quality(*base), Quality(*ours)) for sort, (base, ours) in means.items()}
    sorts = ("reconstructed", "shrunk")
    enlarged = [f"{sort}, {way}" for sort in sorts for way in ("Lanczos", name)]
    labels = ["reconstructed", *enlarged, "real"]
    return UpscalerReport(quality=quality, picture=grid(rows, scale=1, column_labels=labels))
