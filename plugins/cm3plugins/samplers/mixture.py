"""The sampler whose candidates come from two methods."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import floor
from typing import ClassVar

from cm3core.interfaces.sampler import Sampler, SamplingPlan
from cm3plugins.samplers.planned import PlannedSampler


class MixtureSampler(PlannedSampler):
    """Draws candidates by two methods; used directly, it is the sampler of candidate 0.

    Args:
        first, second: each method's plans, one per modality; all have the same streams.
        second_share: 0..1; floor(n * share) of the first n candidates are the second method's. A
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
