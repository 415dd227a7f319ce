"""The quality of an image tokenizer on icons, compared with k-means of plain squares and usual picture
files of equal size: PSNR, and R@1 of the reconstructions (`ranking.py`)."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Pillow

from cm3apps.evaluation.icons.drawing import order, reconstructed
from cm3apps.evaluation.icons.ranking import RealPictures, judges
from cm3core.document import PixelArray
from cm3core.errors import CM3Error
from cm3plugins.image_tokenizers.patches import PatchTokenizerConfig
from cm3run.evaluation.quality import psnr_per_picture
from cm3run.progress import make_bar

if TYPE_CHECKING:
    from cm3core.interfaces import ImageTokenizer
    from cm3run.model import Model

#: Number of pictures of `unseen` to measure, and of `train` for k-means.
NUM_MEASURED = 200
NUM_LEARNT_FROM = 1500
KMEANS_ROUNDS = 6
FORMATS = ("png", "webp", "jpeg")
#: Sides, as shares of the picture's side, and settings of each format, best first: colours of a
#: palette, or quality.
SHRINKING = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125)
SETTINGS: dict[str, tuple[int, ...]] = {
    "png": (256, 64, 16, 8, 4, 3, 2),
    "webp": (95, 80, 60, 40, 20, 10, 5, 0),
    "jpeg": (95, 80, 60, 40, 20, 10, 5, 1),
}


@dataclass(frozen=True)
class Kept:
    """The quality of compressed pictures.

    Args:
        bytes: mean bytes per picture.
        psnr: dB, mean over pictures.
        r1: R@1 by pixels.
        fits: share of pictures for which the format can make a file as small as the codes; for the
            others, the smallest file is measured. None: no limit.
        same_psnr_bytes: mean size of the smallest full-size file whose PSNR is at least that of the
            tokenizer's reconstruction.
    """

    bytes: float
    psnr: float
    r1: float
    fits: float | None = None
    same_psnr_bytes: float | None = None


def tokenizer_figures(model: Model, real: RealPictures) -> dict[str, dict[str, Any]]:
    """Figures by name: "tokenizer", "k-means", and the formats.

    "k-means" is left out if squares don't fit the picture or the pictures have too few different
    ones.
    """
    entries = real.corpus.entries
    chosen = _chosen(real, "unseen", NUM_MEASURED)
    pictures = np.stack([real[index] for index in chosen])
    shown = [entries[index] for index in chosen]
    tokenizer = model.components.image_tokenizer
    budget, judge = num_bytes(tokenizer), judges(["pixels"], real)["pixels"]

    def kept(made: PixelArray, size: float, **more: float) -> dict[str, Any]:
        r1 = judge.chances(made, shown, (1,))[1]
        return asdict(Kept(size, float(psnr_per_picture(pictures, made).mean()), r1, **more))

    by_tokenizer = reconstructed(model, list(pictures))
    found = {"tokenizer": kept(by_tokenizer, budget)}
    plain = _plain_squares(tokenizer, real)
    if plain is not None:
        found["k-means"] = kept(plain.decode(plain.encode(pictures)), num_bytes(plain))
    wanted_N = psnr_per_picture(pictures, by_tokenizer)
    for name in FORMATS:
        bar = make_bar(pictures, desc=f"  {name}", leave=False, unit="picture")
        files = [best_within(pixels, name, budget) for pixels in bar]
        as_good = [
            bytes_for(pixels, name, wanted)
            for pixels, wanted in zip(pictures, wanted_N, strict=True)
        ]
        found[name] = kept(
            np.stack([_opened(file, pixels) for file, pixels in zip(files, pictures, strict=True)]),
            float(np.mean([len(file) for file in files])),
            fits=float(np.mean([len(file) <= budget for file in files])),
            same_psnr_bytes=float(np.mean(as_good)),
        )
    return found


def num_bytes(tokenizer: ImageTokenizer) -> int:
    """Bytes of a picture's codes with the minimum number of bits: 64 codes from a codebook of 768 take 80
    bytes."""
    bits = math.prod(tokenizer.grid) * max(1, math.ceil(math.log2(tokenizer.codebook_size)))
    return -(-bits // 8)


def best_within(pixels: PixelArray, name: str, budget: int) -> bytes:
    """The file of at most `budget` bytes with the least squared error; the smallest file if none is
    that small.

    Args:
        pixels: uint8 [H, W, 3].
        name: one of `FORMATS`.
        budget: maximum bytes.
    """
    best: tuple[float, bytes] | None = None
    smallest: bytes | None = None
    for share in SHRINKING:
        for setting in SETTINGS[name]:
            file = _file(pixels, name, setting, share)
            if smallest is None or len(file) < len(smallest):
                smallest = file
            if len(file) <= budget:
                error = _error(_opened(file, pixels), pixels)
                if best is None or error < best[0]:
                    best = (error, file)
                break  # the next settings of this side are worse
    assert smallest is not None
    return smallest if best is None else best[1]


def bytes_for(pixels: PixelArray, name: str, psnr: float) -> int:
    """Size of the smallest full-size file with at least this PSNR, or of the best one if none
    reaches it."""
    files = [_file(pixels, name, setting, 1.0) for setting in SETTINGS[name]]
    good = [
        len(file)
        for file in files
        if psnr_per_picture(pixels[None], _opened(file, pixels)[None])[0] >= psnr
    ]
    return min(good) if good else len(files[0])


def _file(pixels: PixelArray, name: str, setting: int, share: float) -> bytes:
    picture = Pillow.fromarray(pixels)
    if share < 1:
        size = tuple(max(1, round(side * share)) for side in picture.size)
        picture = picture.resize((size[0], size[1]), Pillow.Resampling.BOX)
    if bool((pixels == pixels[..., :1]).all()):
        picture = picture.convert("L")
    target = io.BytesIO()
    save: Callable[..., None] = partial(picture.save, target, name.upper())
    if name == "png":
        picture.convert("RGB").quantize(setting).save(target, "PNG", optimize=True)
    elif name == "webp":
        save(quality=setting, method=4)
    else:
        save(quality=setting, optimize=True)
    return target.getvalue()


def _opened(file: bytes, like: PixelArray) -> PixelArray:
    """The picture of a file, resized to another's size, uint8 [H, W, 3]."""
    with Pillow.open(io.BytesIO(file)) as picture:
        whole = picture.convert("RGB")
    height, width = like.shape[:2]
    if whole.size != (width, height):
        whole = whole.resize((width, height), Pillow.Resampling.BICUBIC)
    return np.asarray(whole).copy()


def _error(one: PixelArray, other: PixelArray) -> float:
    return float(((one.astype(np.float32) - other.astype(np.float32)) ** 2).mean())


def _chosen(real: RealPictures, split: str, num: int) -> Sequence[int]:
    entries = real.corpus.entries
    indices = [index for index, entry in enumerate(entries) if entry.split == split]
    return sorted(indices, key=lambda index: order("tokenizer", entries[index].id))[:num]


def _plain_squares(tokenizer: ImageTokenizer, real: RealPictures) -> ImageTokenizer | None:
    """k-means of plain squares with the same grid and number of codes, or None if that is impossible."""
    (height, width), (rows, columns) = tokenizer.image_size, tokenizer.grid
    if height != width or rows != columns or height % rows:
        return None
    config = PatchTokenizerConfig(
        resolution=height, patch_size=height // rows, codebook_size=tokenizer.codebook_size
    )
    bar = make_bar(
        _chosen(real, "train", NUM_LEARNT_FROM), desc="  pictures for k-means", leave=False
    )
    pictures = np.stack([real[index] for index in bar])
    with tempfile.TemporaryDirectory() as folder:
        try:
            weights = config.train(pictures, Path(folder), steps=KMEANS_ROUNDS, show_progress=False)
        except CM3Error:  # fewer different squares than codes
            return None
        config.weights = str(weights)
        return config.build()
