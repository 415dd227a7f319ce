"""Decode steps for the tests of `segment_decode`: a plan, a pool whose unused slots are NaN, and
the expected result in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cm3kernels import SegmentPlan, plan_segments, segment_decode

#: Relative error of the whole result that is due to the dtype's rounding.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


@dataclass
class Case:
    """Arguments of one call, and the expected result."""

    q: Tensor
    keys: Tensor
    values: Tensor
    lengths: Tensor
    plan: SegmentPlan
    expected: Tensor

    def run(self, implementation: str, **changed: Any) -> Tensor:
        case = replace(self, **changed)
        return segment_decode(
            case.q, case.keys, case.values, case.lengths, case.plan, implementation=implementation
        )

    def check(self, implementation: str) -> None:
        """Right within rounding, in the dtype of q."""
        out = self.run(implementation)
        assert out.dtype == self.q.dtype
        assert out.shape == self.q.shape
        error = (out.cpu().double() - self.expected).norm()
        assert error <= TOLERANCE[self.q.dtype] * self.expected.norm().clamp(min=1e-30), error


def make_case(
    capacities: Sequence[int],
    lengths: Sequence[int],
    row_segments: Sequence[Sequence[int]],
    *,
    num_query_heads: int = 1,
    num_key_heads: int = 1,
    dim: int = 32,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    gap: int = 0,
    q_scale: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> Case:
    """Segments one after the other in the pool, `gap` slots between them; memory is head by head,
    slots are strided."""
    generator = torch.Generator().manual_seed(seed)
    starts = [sum(capacities[:segment]) + gap * segment for segment in range(len(capacities))]
    plan = plan_segments(
        starts,
        capacities,
        row_segments,
        num_query_heads=num_query_heads,
        num_key_heads=num_key_heads,
        device=device,
        **options,
    )
    pools = torch.full(
        (2, num_key_heads, plan.num_slots + gap, dim), float("nan"), dtype=dtype
    ).transpose(1, 2)
    for start, length in zip(starts, lengths, strict=True):
        pools[:, start : start + length] = torch.randn(
            2, length, num_key_heads, dim, generator=generator
        ).to(dtype)
    q = (torch.randn(len(row_segments), num_query_heads, dim, generator=generator) * q_scale).to(
        dtype
    )
    held = torch.tensor(lengths, dtype=torch.int32)
    on_cpu = (
        plan
        if device == "cpu"
        else plan_segments(
            starts,
            capacities,
            row_segments,
            num_query_heads=num_query_heads,
            num_key_heads=num_key_heads,
        )
    )
    expected = segment_decode(
        q.double(), pools[0].double(), pools[1].double(), held, on_cpu, implementation="reference"
    )
    return Case(
        q.to(device), pools[0].to(device), pools[1].to(device), held.to(device), plan, expected
    )


def shared_prefix(
    prefix: int, num_rows: int, suffixes: Sequence[int], capacity: int
) -> tuple[list[int], list[int], list[list[int]]]:
    """Capacities, lengths and segments of rows that share a prefix, each with a suffix of
    individual length."""
    return (
        [prefix, *[capacity] * num_rows],
        [prefix, *suffixes[:num_rows]],
        [[0, row + 1] for row in range(num_rows)],
    )
