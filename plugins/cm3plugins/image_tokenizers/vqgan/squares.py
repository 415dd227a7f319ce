"""The codebook of `encoder: squares`: k-means centres of squares of pixels, grey and coloured ones apart.

Most squares of a drawing are blank, and few have colour, so that centres of all squares together would hardly
show colours. One code is plain white; a share of the others are centres of coloured squares, the rest of grey
ones that are not blank. Where there are fewer squares of a kind than its codes, the other kind has the rest.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3plugins.image_tokenizers.by_network import to_input
from cm3plugins.image_tokenizers.vqgan.model import VQModel
from cm3plugins.image_tokenizers.vqgan.settings import VQGANTraining

NUM_ITERATIONS = 12
BLANK_FROM = 250
"""A square whose darkest channel is at least this is blank."""
COLOUR_FROM = 20
"""A square has colour if the channels of some pixel differ by more than this."""

_PICTURES_AT_ONCE = 1000


def fit_squares(model: VQModel, training: VQGANTraining, images_NHWC: PixelArray) -> None:
    """Set the codebook to centres of the pictures' squares.

    Args:
        model: `arch.encoder` is "squares".
        training: `codebook_squares`, `colour_share` and `seed` are used.
        images_NHWC: uint8 [N, H, W, 3].

    Raises:
        DataError: the pictures have fewer different squares than the codebook has codes.
    """
    rng = np.random.default_rng(training.seed)
    grey_ND, coloured_ND = _sample(model, training, images_NHWC, rng)
    num_codes = model.arch.codebook_size - 1
    num_coloured = min(round(num_codes * training.colour_share), len(coloured_ND))
    num_grey = min(num_codes - num_coloured, len(grey_ND))
    num_coloured = min(num_codes - num_grey, len(coloured_ND))  # photographs have few grey squares
    if num_grey + num_coloured < num_codes:
        raise DataError(
            "image_tokenizer",
            f"{num_grey + num_coloured} squares of the pictures are not blank, for {num_codes} codes",
            "give more pictures, or lower image_tokenizer.codebook_size",
        )
    white_1D = model.features(torch.ones(1, 3, *(model.arch.downsampling,) * 2)).flatten()[None]
    centres = [white_1D.numpy()]
    for squares_ND, count in ((coloured_ND, num_coloured), (grey_ND, num_grey)):
        if count > 0:
            centres.append(_kmeans(squares_ND, count, training.seed))
    model.quantize.embedding.weight.data.copy_(torch.from_numpy(np.concatenate(centres)))


def _sample(
    model: VQModel, training: VQGANTraining, images_NHWC: PixelArray, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw squares until there are enough of either kind, or no more pictures."""
    side, limit = model.arch.downsampling, training.codebook_squares
    kinds: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
    order = rng.permutation(len(images_NHWC))
    for start in range(0, len(order), _PICTURES_AT_ONCE):
        images_BHWC = images_NHWC[np.sort(order[start : start + _PICTURES_AT_ONCE])]
        squares_NPC = rearrange(images_BHWC, "B (Y y) (X x) C -> (B Y X) (y x) C", y=side, x=side)
        features_BDYX: Tensor = model.features(to_input(images_BHWC))
        features_ND = rearrange(features_BDYX, "B D Y X -> (B Y X) D").numpy()
        coloured_N = (np.ptp(squares_NPC, axis=2) > COLOUR_FROM).any(1)
        grey_N = ~coloured_N & (squares_NPC.min((1, 2)) < BLANK_FROM)
        for kind, chosen_N in zip(kinds, (grey_N, coloured_N), strict=True):
            if sum(map(len, kind)) < limit:
                kind.append(features_ND[chosen_N])
        if all(sum(map(len, kind)) >= limit for kind in kinds):
            break
    empty = [np.zeros((0, model.arch.embed_dim), np.float32)]
    grey_ND, coloured_ND = (np.concatenate(kind or empty)[:limit] for kind in kinds)
    return grey_ND, coloured_ND


def _kmeans(squares_ND: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    import faiss

    kmeans = faiss.Kmeans(
        squares_ND.shape[1],
        count,
        niter=NUM_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(squares_ND),
    )
    kmeans.train(np.ascontiguousarray(squares_ND))
    assert kmeans.centroids is not None
    centres_KD: NDArray[np.float32] = kmeans.centroids
    return centres_KD
