"""Kernel inception distance (KID) of two sets of pictures.

Unlike the Frechet distance, it is unbiased for few pictures.

Binkowski et al. 2018, "Demystifying MMD GANs", arXiv:1801.01401, section 4: the unbiased estimate
of the squared maximum mean discrepancy under the kernel (x . y / F + 1) ** 3. Theirs uses
Inception features; ours any features, so figures compare only with each other. Legend: N, M
pictures of the two sets, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    kernel_MM = _kernel(real_MF, real_MF)
    floors = []
    for _ in range(num_halvings):
        order = rng.permutation(len(real_MF))
        one, other = order[: len(order) // 2], order[len(order) // 2 :]
        floors.append(
            _estimate(
                kernel_MM[np.ix_(one, one)],
                kernel_MM[np.ix_(other, other)],
                kernel_MM[np.ix_(one, other)],
            )
        )
    distance = _estimate(
        _kernel(features_NF, features_NF), kernel_MM, _kernel(features_NF, real_MF)
    )
    return KID(distance, float(np.mean(floors)), float(np.std(floors)))


def mmd2(x_NF: Features, y_MF: Features) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy.

    Below 0 when the sets are more alike than by chance.

    >>> x = np.array([[1.0], [1.0]])
    >>> mmd2(x, x + 1)  # (1 + 1) ** 3 = 8 within, (4 + 1) ** 3 = 125 within, (2 + 1) ** 3 = 27 between: 8 + 125 - 2 * 27
    79.0
    """
    return _estimate(_kernel(x_NF, x_NF), _kernel(y_MF, y_MF), _kernel(x_NF, y_MF))


def _kernel(x_NF: Features, y_MF: Features) -> npt.NDArray[np.float64]:
    kernel: npt.NDArray[np.float64] = (
        np.asarray(x_NF, np.float64) @ np.asarray(y_MF, np.float64).T / x_NF.shape[1] + 1
    ) ** 3
    return kernel


def _estimate(
    within_NN: npt.NDArray[np.float64],
    within_MM: npt.NDArray[np.float64],
    between_NM: npt.NDArray[np.float64],
) -> float:
    """Mean kernel over pairs of different pictures within both sets, minus twice that between."""
    N, M = between_NM.shape
    assert min(N, M) >= 2, "an estimate needs two pictures of each set"
    inner = sum(
        (kernel.sum() - kernel.trace()) / (n * (n - 1))
        for kernel, n in ((within_NN, N), (within_MM, M))
    )
    return float(inner - 2 * between_NM.mean())
