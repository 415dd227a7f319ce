"""k-means over the squares of pictures, by faiss."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.files import make_folder, write_text
from cm3plugins.image_tokenizers.patches.tokenizer import PatchTokenizer, save_codebook, squares
from cm3plugins.trained.training_run import RunOptions

WEIGHTS = "model.safetensors"
#: Number of training squares; more make no visible difference.
_NUM_SQUARES = 120_000
#: Squares that differ by less than this are merged, so that plain backgrounds don't take up the
#: codebook.
_STEP = 4


class Patches(Protocol):
    """The keys of `PatchTokenizerConfig` that determine the codebook."""

    resolution: int
    patch_size: int
    codebook_size: int
    seed: int


def train_patches(
    patches: Patches, images_NHWC: PixelArray, out_dir: Path, options: RunOptions
) -> Path:
    """Train the codebook; see `ImageTokenizerConfig.train`. Returns the path of the weights.

    Raises:
        DataError: there are fewer different squares than codes.
    """
    found = different(squares(images_NHWC, patches.patch_size))
    if len(found) < patches.codebook_size:
        raise DataError(
            "training pictures",
            f"hold {len(found):,} different squares, fewer than codebook_size "
            f"{patches.codebook_size:,}",
            "add more pictures, or lower image_tokenizer.codebook_size",
        )
    codebook_Kd, rounds = _centres(found, patches, options)
    make_folder(out_dir)
    save_codebook(out_dir / WEIGHTS, patches.patch_size, codebook_Kd)
    facts: dict[str, float] = {"rounds": rounds, "different_squares": len(found)}
    if options.validation_NHWC is not None and len(options.validation_NHWC):
        tokenizer = PatchTokenizer(patches.resolution, patches.patch_size, codebook_Kd)
        facts["validation_psnr"] = round(_psnr(tokenizer, options.validation_NHWC), 3)
    write_text(out_dir / "training.json", json.dumps(facts))
    if options.show_progress:
        print(
            ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in facts.items()),
            file=sys.stderr,
        )
    return out_dir / WEIGHTS


def _centres(
    found_Pd: npt.NDArray[np.uint8], patches: Patches, options: RunOptions
) -> tuple[npt.NDArray[np.uint8], int]:
    """Return the centres of different squares, uint8 [K, d], and the number of rounds of k-means."""
    import faiss

    rng = np.random.default_rng(patches.seed)
    number = max(_NUM_SQUARES, patches.codebook_size)
    sample_Pd = found_Pd[np.sort(rng.permutation(len(found_Pd))[:number])].astype(np.float32)
    centres_Kd: Any = None
    started, rounds = time.monotonic(), 0
    while (
        rounds < options.steps
        if options.steps is not None
        else time.monotonic() - started < 60 * (options.minutes or 0.0) or rounds == 0
    ):
        kmeans = faiss.Kmeans(
            sample_Pd.shape[1],
            patches.codebook_size,
            niter=1,
            seed=patches.seed,
            max_points_per_centroid=10**9,
            min_points_per_centroid=1,
        )
        kmeans.train(sample_Pd, init_centroids=centres_Kd)
        found_Kd = np.asarray(kmeans.centroids)
        same = centres_Kd is not None and np.array_equal(found_Kd, centres_Kd)
        centres_Kd, rounds = found_Kd, rounds + 1
        if same:
            break
    return np.clip(np.rint(centres_Kd), 0, 255).astype(np.uint8), rounds


def different(squares_Pd: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return squares that differ by more than rounding, without duplicates, in a fixed order.

    >>> different(np.array([[0, 8], [1, 9], [200, 8]], np.uint8)).tolist()
    [[2, 10], [202, 10]]
    """
    return np.unique(squares_Pd // _STEP, axis=0) * _STEP + np.uint8(_STEP // 2)


def _psnr(tokenizer: PatchTokenizer, pictures_NHWC: PixelArray) -> float:
    """Return the mean peak signal-to-noise ratio in dB."""
    again = tokenizer.decode(tokenizer.encode(pictures_NHWC))
    error_N = ((again.astype(np.float64) - pictures_NHWC) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error_N, 1e-3))).mean())
