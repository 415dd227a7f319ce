"""Losses of networks that output pictures."""

from __future__ import annotations

from torch import Tensor


def edge_error(error_BCHW: Tensor) -> Tensor:
    """Mean absolute first differences of an error, horizontal plus vertical.

    Penalises blur and ringing.
    """
    return error_BCHW.diff(dim=-1).abs().mean() + error_BCHW.diff(dim=-2).abs().mean()
