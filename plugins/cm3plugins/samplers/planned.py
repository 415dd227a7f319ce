"""Samplers that execute plans: the kernels mix, filter and sample in one call.

Legend: n requests, S stream rows, G guidance streams, R ids of the legal slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor
from typing import Any, ClassVar

import torch
from torch import Tensor

from cm3core.interfaces.sampler import Sampler, SamplingPlan
from cm3kernels import guided_log_probabilities, guided_sample
from cm3run.generation import plan_columns

#: Number of batches whose filter tensors a sampler caches.
_NUM_SEEN = 4


class PlannedSampler(Sampler):
    """A sampler defined by its plans alone, one per modality."""

    #: A subclass that draws in the same way must set it again.
    by_plans_alone: ClassVar[bool] = True

    def __init__(self, plans: Mapping[str, SamplingPlan]) -> None:
        self._plans = dict(plans)
        self._seen: tuple[tuple[Sequence[SamplingPlan], torch.device, dict[str, Any]], ...] = ()

    def plan(self, modality: str) -> SamplingPlan:
        """See `Sampler.plan`."""
        return self._plans[modality]

    def draws_with(self, other: Sampler) -> bool:
        """Whether both draw by plans alone."""
        return other is self or (_by_plans_alone(self) and _by_plans_alone(other))

    def draw(
        self,
        logits_SR: Tensor,
        stream_rows_nG: Tensor,
        weights_nG: Tensor,
        plans: Sequence[SamplingPlan],
        *,
        first_id: int,
        allowed_nR: Tensor | None,
        seed_n: Tensor,
        position_n: Tensor,
    ) -> Tensor:
        """See `Sampler.draw`."""
        columns = self._columns(plans, logits_SR.device)
        return guided_sample(
            logits_SR,
            stream_rows_nG,
            weights_nG,
            allowed_nV=allowed_nR,
            seed_n=seed_n,
            position_n=position_n,
            first_id=first_id,
            **columns,
        )

    def draw_log_probabilities(
        self,
        logits_SR: Tensor,
        stream_rows_nG: Tensor,
        weights_nG: Tensor,
        plans: Sequence[SamplingPlan],
        *,
        first_id: int,
        allowed_nR: Tensor | None,
        kept_nR: Tensor | None = None,
    ) -> Tensor:
        """See `Sampler.draw_log_probabilities`."""
        return guided_log_probabilities(
            logits_SR,
            stream_rows_nG,
            weights_nG,
            allowed_nV=allowed_nR,
            kept_nV=kept_nR,
            **self._columns(plans, logits_SR.device),
        )

    def _columns(self, plans: Sequence[SamplingPlan], device: torch.device) -> dict[str, Any]:
        """Return the plans' filters as tensors.

        A batch passes the same tuple step after step, so the last results are cached.
        """
        for known in self._seen:
            if known[0] is plans and known[1] == device:
                return known[2]
        columns = plan_columns(plans, device)
        if isinstance(plans, tuple):  # a list may change its contents
            # replaced in one assignment: other threads may be reading it
            self._seen = ((plans, device, columns), *self._seen[: _NUM_SEEN - 1])
        return columns


def _by_plans_alone(sampler: Sampler) -> bool:
    return bool(vars(type(sampler)).get("by_plans_alone", False))


class MixtureSampler(PlannedSampler):
    """Draws candidates with two methods; used directly, it is the sampler of candidate 0.

    Args:
        first, second: each method's plans, one per modality; all have the same streams.
        second_share: 0..1; floor(n * share) of the first n candidates use the second method. A
            fraction, because 100 * 0.29 is less than 29.
    """

    by_plans_alone: ClassVar[bool] = True

    def __init__(
        self,
        first: Mapping[str, SamplingPlan],
        second: Mapping[str, SamplingPlan],
        second_share: Fraction,
    ) -> None:
        self._first, self._second, self._second_share = (
            PlannedSampler(first),
            PlannedSampler(second),
            second_share,
        )
        super().__init__(second if self._is_second(0) else first)

    def draws_with(self, other: Sampler) -> bool:
        """See `PlannedSampler`."""
        return super().draws_with(other)

    def for_candidate(self, index: int) -> Sampler:
        """See `Sampler.for_candidate`."""
        return self._second if self._is_second(index) else self._first

    def _is_second(self, index: int) -> bool:
        return floor((index + 1) * self._second_share) > floor(index * self._second_share)
