"""The kernel inception distance (metric `kid`) of whole sets, and the floor to read it against.

Unlike the Frechet distance, it is unbiased for few pictures, so nothing is drawn at random but the floor's
halves. Legend: N, M pictures of the two sets, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cm3plugins.metrics.kid import mmd2

Features = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class KID:
    """A distance, and the floor to read it against.

    Args:
        distance: between the pictures and the real ones; about 0 when they can't be told apart, and
            then below 0 as often as above.
        floor: the same between two halves of the real ones, mean over random halvings.
        floor_spread: their standard deviation; smaller differences between distances mean nothing.
    """

    distance: float
    floor: float
    floor_spread: float


def kid(features_NF: Features, real_MF: Features, *, num_halvings: int = 20, seed: int = 0) -> KID:
    """The distance of pictures from real ones, and the floor.

    Args:
        features_NF: of the pictures, N >= 2.
        real_MF: of real pictures, M >= 4.
        num_halvings, seed: of the floor.
    """
    rng = np.random.default_rng(seed)
    floors = []
    for _ in range(num_halvings):
        order = rng.permutation(len(real_MF))
        one, other = order[: len(order) // 2], order[len(order) // 2 :]
        floors.append(mmd2(real_MF[one], real_MF[other]))
    return KID(mmd2(features_NF, real_MF), float(np.mean(floors)), float(np.std(floors)))
