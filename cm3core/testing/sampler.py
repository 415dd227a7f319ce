"""Conformance kit of samplers: `class TestMine(SamplerContract)` with a `make`.

Legend: n requests, S stream rows, G guidance streams, R ids of the legal slice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from cm3core.interfaces.sampler import Sampler, SamplingPlan
from cm3core.testing._laws import Contract

_MODALITIES = ("text", "image")


class SamplerContract(Contract[Sampler]):
    """Laws of samplers: plans are constant and fit together; what is drawn is legal, plausible, and no neighbour's business."""

    def law_plans_are_constant_and_name_the_same_streams(self) -> None:
        """`plan` gives the same answer for the sampler's life, and both modalities see the same prompts in the same order."""
        text, image = (self.subject.plan(modality) for modality in _MODALITIES)
        assert text == self.subject.plan("text")
        assert image == self.subject.plan("image")
        assert [stream.variant for stream in text.streams] == [stream.variant for stream in image.streams]
        for plan in (text, image):
            assert plan.streams
            assert 0 <= plan.reference < len(plan.streams)

    def law_only_legal_ids_are_drawn(self, data: st.DataObject) -> None:
        """Each request gets an id of the slice that it is allowed, also when the streams' logits are extreme."""
        batch = _Batch(self.subject, data)
        drawn_n = batch.draw()
        assert drawn_n.dtype == torch.int64
        assert drawn_n.shape == (batch.n,)
        index_n = drawn_n - batch.first_id
        assert bool(((index_n >= 0) & (index_n < batch.logits_SR.shape[1])).all())
        assert bool(batch.allowed_nR.gather(1, index_n[:, None]).all())

    def law_a_draw_does_not_depend_on_its_place(self, data: st.DataObject) -> None:
        """A request alone, its stream rows elsewhere and its slice cut to what matters draws what it draws in the batch."""
        batch = _Batch(self.subject, data)
        together_n = batch.draw()
        place = data.draw(st.integers(0, batch.n - 1))
        rows_G = batch.stream_rows_nG[place]
        low = int(batch.allowed_nR[place].nonzero()[0])
        alone = self.subject.draw(
            batch.logits_SR[rows_G, low:], torch.arange(len(rows_G))[None], batch.weights_nG[place, None], (batch.plans[place],),
            first_id=batch.first_id + low, allowed_nR=batch.allowed_nR[None, place, low:],
            seed_n=batch.seed_n[None, place], position_n=batch.position_n[None, place])
        assert int(alone[0]) == int(together_n[place])

    def law_equal_draws_are_equal_and_seeds_matter(self) -> None:
        """The same seed and position draw the same id; over many seeds a flat distribution is not one id."""
        plan = _with_filters(self.subject.plan("image"), temperature=1.0, top_k=0, top_p=1.0)
        G, n = len(plan.streams), 64
        first, second = (self.subject.draw(
            torch.zeros(G, 8), torch.arange(G).expand(n, G), _weights((plan,) * n), (plan,) * n, first_id=5, allowed_nR=None, seed_n=torch.arange(n),
            position_n=torch.zeros(n, dtype=torch.int64)) for _ in range(2))
        assert torch.equal(first, second)
        assert len(set(first.tolist())) > 1

    def law_temperature_zero_takes_the_largest_of_the_mix(self, data: st.DataObject) -> None:
        """At temperature 0, with plausibility off, the id is the argmax of the weighted sum over the legal ids."""
        batch = _Batch(self.subject, data)
        off = {"plausible_top_k": 0, "plausible_top_p": 1.0, "plausible_alpha": 0.0}
        batch.plans = tuple(_with_filters(plan, temperature=0.0, top_k=0, top_p=1.0, **off) for plan in batch.plans)
        for place, token in enumerate(batch.draw().tolist()):
            mixed_R = batch.mixed(place).masked_fill(~batch.allowed_nR[place], -torch.inf)
            # The sum's order may differ in the last bits: any id within rounding of the largest is right.
            assert float(mixed_R[token - batch.first_id]) >= float(mixed_R.max()) - 1e-4

    def law_only_plausible_ids_are_drawn(self, data: st.DataObject) -> None:
        """An id outside the plan's plausible set of the reference stream is never drawn, whatever the mix says."""
        batch = _Batch(self.subject, data)
        for place, token in enumerate(batch.draw().tolist()):
            assert bool(batch.plausible(place)[token - batch.first_id])


class _Batch:
    """A random batch: stream rows in any order, plans of both modalities, a mask for each request."""

    def __init__(self, sampler: Sampler, data: st.DataObject) -> None:
        self.sampler, self.n = sampler, data.draw(st.integers(1, 4))
        self.plans: tuple[SamplingPlan, ...] = tuple(sampler.plan(data.draw(st.sampled_from(_MODALITIES))) for _ in range(self.n))
        G, R = len(self.plans[0].streams), data.draw(st.integers(1, 12))
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
        scale = data.draw(st.sampled_from([0.0, 1.0, 5.0, 100.0]))
        self.logits_SR = torch.randn(self.n * G, R, generator=generator) * scale
        self.weights_nG = _weights(self.plans)
        self.stream_rows_nG = torch.randperm(self.n * G, generator=generator).view(self.n, G)
        self.allowed_nR = torch.rand(self.n, R, generator=generator) < 0.6
        self.allowed_nR[torch.arange(self.n), torch.randint(R, (self.n,), generator=generator)] = True
        self.first_id = data.draw(st.integers(0, 70))
        self.seed_n = torch.randint(2**62, (self.n,), generator=generator)
        self.position_n = torch.randint(4096, (self.n,), generator=generator)

    def draw(self) -> Tensor:
        return self.sampler.draw(self.logits_SR, self.stream_rows_nG, self.weights_nG, self.plans, first_id=self.first_id,
                                 allowed_nR=self.allowed_nR, seed_n=self.seed_n, position_n=self.position_n)

    def mixed(self, place: int) -> Tensor:
        weights_G = torch.tensor([stream.weight for stream in self.plans[place].streams], dtype=torch.float64)
        return weights_G @ self.logits_SR[self.stream_rows_nG[place]].double()

    def plausible(self, place: int) -> Tensor:
        """Bool [R], by the definitions in `Filters`; ties and rounding at the threshold count as inside."""
        plan = self.plans[place]
        filters, allowed_R = plan.filters, self.allowed_nR[place]
        reference_R = self.logits_SR[self.stream_rows_nG[place, plan.reference]].double()
        probability_R = reference_R.masked_fill(~allowed_R, -torch.inf).softmax(0)
        ordered = probability_R.sort(descending=True).values
        threshold = 0.0
        if 0 < filters.plausible_top_k < int(allowed_R.sum()):
            threshold = max(threshold, float(ordered[filters.plausible_top_k - 1]))
        if filters.plausible_top_p < 1:
            before = ordered.cumsum(0) - ordered
            threshold = max(threshold, float(ordered[before < filters.plausible_top_p - 1e-9].min()))
        if filters.plausible_alpha > 0:
            kth = float(ordered[min(filters.plausible_k, int(allowed_R.sum())) - 1])
            threshold = max(threshold, filters.plausible_alpha * kth)
        threshold = min(threshold, float(ordered[0]))
        return allowed_R & (probability_R >= threshold * (1 - 1e-6))


def _weights(plans: Sequence[SamplingPlan]) -> Tensor:
    return torch.tensor([[stream.weight for stream in plan.streams] for plan in plans], dtype=torch.float32)


def _with_filters(plan: SamplingPlan, **changes: Any) -> SamplingPlan:
    return dataclasses.replace(plan, filters=dataclasses.replace(plan.filters, **changes))
