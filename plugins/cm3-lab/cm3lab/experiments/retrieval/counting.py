"""How well a retrieved document predicts a picture, estimated from counts, without a decoder or training.

A cell is predicted from its left and upper neighbours, and then also from the same cell of the first retrieved
document. The improvement is the gain of a decoder that looks only at the same position of the document and nothing
else in the picture. The caption is ignored: a decoder may know what it states without
documents.

Codes are first grouped by colour: with a thousand codes, each pair would occur only once.

Legend: N pictures, H, W rows and columns of codes, C groups of codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from einops import repeat

from cm3core.document import IntArray
from cm3core.interfaces import ImageTokenizer

NUM_GROUPS = 16
#: Weight of the coarser table in the finer one, as a number of observed cells.
_PRIOR = 5.0
_SEED = 0


@dataclass(frozen=True)
class Told:
    """How well documents predict held-out pictures.

    Args:
        same: share of cells with the same code as the document at this cell.
        without: nats per cell for its group, given its two neighbours in the picture.
        with_document: the same, given also the document's cell.
    """

    same: float
    without: float
    with_document: float


def groups_of_codes(tokenizer: ImageTokenizer, num_groups: int = NUM_GROUPS) -> IntArray:
    """Return the group of each code, int32 [codebook_size], in 0..num_groups - 1.

    Codes are grouped by the mean colour of a picture with only that code.
    """
    codes = np.arange(tokenizer.codebook_size)
    height, width = tokenizer.grid
    colours = np.concatenate(
        [
            tokenizer.decode(
                repeat(part, "N -> N cells", cells=height * width).astype(np.int32)
            ).mean((1, 2), dtype=np.float64)
            for part in np.array_split(codes, max(1, len(codes) // 256))
        ]
    )
    return kmeans(colours, num_groups)


def kmeans(points_ND: npt.NDArray[np.float64], num_groups: int) -> IntArray:
    """Return the nearest of `num_groups` centres for each point, int32 [N].

    Centres start far apart, then follow Lloyd's algorithm.
    """
    rng = np.random.default_rng(_SEED)
    centres = points_ND[rng.integers(len(points_ND), size=1)]
    while len(centres) < min(num_groups, len(points_ND)):
        centres = np.concatenate(
            [centres, points_ND[_squares(points_ND, centres).min(1).argmax()][None]]
        )
    for _ in range(30):
        nearest = _squares(points_ND, centres).argmin(1)
        centres = np.stack(
            [
                points_ND[nearest == group].mean(0) if (nearest == group).any() else centres[group]
                for group in range(len(centres))
            ]
        )
    found: IntArray = _squares(points_ND, centres).argmin(1).astype(np.int32)
    return found


def _squares(
    points_ND: npt.NDArray[np.float64], centres_CD: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    squares_NC: npt.NDArray[np.float64] = ((points_ND[:, None] - centres_CD[None]) ** 2).sum(2)
    return squares_NC


def told(
    train_NHW: IntArray,
    of_train_NHW: IntArray,
    held_MHW: IntArray,
    of_held_MHW: IntArray,
    groups: IntArray,
) -> Told:
    """Count in training pictures, measure on held-out ones.

    Args:
        train_NHW: codes of training pictures.
        of_train_NHW: codes of the document retrieved for each.
        held_MHW, of_held_MHW: the same for held-out pictures.
        groups: the group of each code, see `groups_of_codes`.
    """
    num_groups = int(groups.max()) + 1
    around_N, own_N, document_N = _cells(groups[train_NHW], groups[of_train_NHW], num_groups)
    coarse = np.ones(((num_groups + 1) ** 2, num_groups))
    np.add.at(coarse, (around_N, own_N), 1)
    coarse /= coarse.sum(1, keepdims=True)
    fine = np.zeros(((num_groups + 1) ** 2, num_groups, num_groups))
    np.add.at(fine, (around_N, document_N, own_N), 1)
    fine = (fine + _PRIOR * coarse[:, None]) / (fine.sum(2, keepdims=True) + _PRIOR)
    around_M, own_M, document_M = _cells(groups[held_MHW], groups[of_held_MHW], num_groups)
    return Told(
        float((held_MHW == of_held_MHW).mean()),
        float(-np.log(coarse[around_M, own_M]).mean()),
        float(-np.log(fine[around_M, document_M, own_M]).mean()),
    )


def _cells(
    pictures_NHW: IntArray, documents_NHW: IntArray, num_groups: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Return, for every cell, its left and upper neighbour as one number, its group, and the document's group at this
    cell."""
    edged = np.pad(pictures_NHW, ((0, 0), (1, 0), (1, 0)), constant_values=num_groups)
    around = edged[:, 1:, :-1] * (num_groups + 1) + edged[:, :-1, 1:]
    return around.ravel(), pictures_NHW.ravel(), documents_NHW.ravel()
