"""What is done to the heads of queries and keys before attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class HeadNorms:
    """Norms of the heads of queries and of keys.

    Args:
        weight: floating [H + K, D]; multiplies each normalised head, those of queries first.
        bias: floating [H + K, D]; added to it. None: nothing is.
        centred: the mean is subtracted (layer norm); otherwise the norm is by the root mean square.
        eps: positive; added to the mean square.
    """

    weight: Tensor
    bias: Tensor | None = None
    centred: bool = True
    eps: float = 1e-5


@dataclass(frozen=True, eq=False)
class Turn:
    """Rotary positions: dimension d of a head is rotated with d + D / 2.

    Args:
        cosines, sines: float32 [M, D], of each token's angles; contiguous.
    """

    cosines: Tensor
    sines: Tensor
