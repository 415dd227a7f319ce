"""Sampling plans as tensors, which a sampler's `draw` passes to a kernel; weights at positions.

Legend: n requests, G guidance streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cm3core.interfaces.sampler import Filters, SamplingPlan


def plan_columns(plans: Sequence[SamplingPlan], device: torch.device) -> dict[str, Any]:
    """Reference streams and filters of plans, as tensors [n].

    These are keyword arguments of `cm3kernels.guided_sample`. A filter that is off for all requests
    is left out, and costs nothing. A sampler handles filters other than those of `Filters` itself.

    >>> plans = [SamplingPlan((), filters=Filters(top_k=5)), SamplingPlan(())]
    >>> plan_columns(plans, torch.device("cpu"))
    {'reference_n': tensor([0, 0]), 'top_k_n': tensor([5, 0])}
    """
    columns = {
        "reference_n": torch.tensor(
            [plan.reference for plan in plans], dtype=torch.int64, device=device
        )
    }
    for item in fields(Filters):
        values = [getattr(plan.filters, item.name) for plan in plans]
        if any(value != item.default for value in values):
            dtype = torch.int64 if isinstance(item.default, int) else torch.float32
            columns[f"{item.name}_n"] = torch.tensor(values, dtype=dtype, device=device)
    return columns


def stream_weights(plan: SamplingPlan, first: int, last: int, num: int) -> npt.NDArray[np.float32]:
    """Weights [num, G] of a plan's streams at `num` positions of a hole, scaled by its schedule.

    Args:
        plan: of the hole's modality.
        first: place of the first position in its hole.
        last: place of the hole's last position.
        num: number of positions.
    """
    full = np.array([stream.weight for stream in plan.streams], np.float32)
    if plan.schedule is None:
        return np.broadcast_to(full, (num, len(full)))
    only = np.zeros(len(full), np.float32)
    only[plan.reference] = 1.0
    shares = [
        plan.schedule.share(min(position / max(last, 1), 1.0))
        for position in range(first, first + num)
    ]
    share = np.array(shares, np.float32)[:, None]
    return only + share * (full - only)


def reads_stream(plan: SamplingPlan, stream: int) -> bool:
    """Whether a plan needs a stream's logits: it has a weight, or decides plausibility."""
    return plan.streams[stream].weight != 0 or stream == plan.reference
