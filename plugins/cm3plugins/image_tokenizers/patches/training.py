"""The codebook of pictures: their frequent squares as they are, and k-means over the others, by faiss.

Legend: P squares, F frequent ones, K codes, d numbers per square.
"""

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
from cm3plugins.image_tokenizers.patches.tokenizer import (
    PatchTokenizer,
    distinct,
    save_codebook,
    squares,
)
from cm3plugins.trained.training_run import RunOptions

WEIGHTS = "model.safetensors"
#: Number of training squares; more make no visible difference.
_NUM_SQUARES = 120_000
#: Squares that differ by less than this are merged, so that plain backgrounds don't take up the
#: codebook.
_STEP = 4
#: At most one code in so many is a frequent square.
_FREQUENT = 4


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
    frequent_Fd, others_Pd = divided(
        squares(images_NHWC, patches.patch_size), patches.codebook_size
    )
    number = len(frequent_Fd) + len(others_Pd)
    if number < patches.codebook_size:
        raise DataError(
            "training pictures",
            f"hold {number:,} different squares, fewer than codebook_size "
            f"{patches.codebook_size:,}",
            "add more pictures, or lower image_tokenizer.codebook_size",
        )
    centres_Kd, rounds = _centres(
        others_Pd, patches.codebook_size - len(frequent_Fd), patches.seed, options
    )
    codebook_Kd = np.concatenate([frequent_Fd, centres_Kd])
    make_folder(out_dir)
    save_codebook(out_dir / WEIGHTS, patches.patch_size, codebook_Kd)
    facts: dict[str, float] = {"rounds": rounds, "different_squares": number}
    facts["frequent_squares"] = len(frequent_Fd)
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
    found_Pd: npt.NDArray[np.uint8], codes: int, seed: int, options: RunOptions
) -> tuple[npt.NDArray[np.uint8], int]:
    """Return the centres of different squares, uint8 [K, d], and the number of rounds of k-means."""
    import faiss

    rng = np.random.default_rng(seed)
    number = max(_NUM_SQUARES, codes)
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
            codes,
            niter=1,
            seed=seed,
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


def divided(
    squares_Pd: npt.NDArray[np.uint8], codebook_size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Divide squares into the frequent ones, which become codes as they are, and the others.

    Returns:
        Those that are at least 1 / `codebook_size` of all squares, such as plain backgrounds, uint8
        [F, d]: the most frequent first, at most a quarter of the codebook. Then the other ones that
        are `different` from each other and from those.

    >>> [found.tolist() for found in divided(np.array([[255], [20], [255], [255], [253]], np.uint8), 4)]
    [[[255]], [[22]]]
    """
    found_Pd, _, times_P = distinct(squares_Pd)
    order_P = np.argsort(-times_P, kind="stable")[: codebook_size // _FREQUENT]
    frequent_Fd = found_Pd[order_P[times_P[order_P] * codebook_size >= len(squares_Pd)]]
    # the merged frequent squares are among `others_Pd`, too: what occurs once is not one of them
    merged_Fd, others_Pd = different(frequent_Fd), different(found_Pd)
    once_Pd, _, times_P = distinct(np.concatenate([others_Pd, merged_Fd]))
    return frequent_Fd, once_Pd[times_P == 1]


def different(squares_Pd: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return squares that differ by more than rounding, without duplicates, in a fixed order.

    >>> different(np.array([[0, 8], [1, 9], [200, 8]], np.uint8)).tolist()
    [[2, 10], [202, 10]]
    """
    return distinct(squares_Pd // _STEP)[0] * _STEP + np.uint8(_STEP // 2)


def _psnr(tokenizer: PatchTokenizer, pictures_NHWC: PixelArray) -> float:
    """Return the mean peak signal-to-noise ratio in dB."""
    again = tokenizer.decode(tokenizer.encode(pictures_NHWC))
    error_N = ((again.astype(np.float64) - pictures_NHWC) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error_N, 1e-3))).mean())
