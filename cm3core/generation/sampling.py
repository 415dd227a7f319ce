"""Sampling plans as tensors, which a sampler's `draw` passes to a kernel. Legend: n requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

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
