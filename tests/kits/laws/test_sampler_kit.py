"""The samplers' kit: a right sampler passes, and each law fails for one that is wrong in just that
way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cm3core.interfaces.sampler import Filters, Sampler, SamplingPlan
from cm3kits.sampler import SamplerContract
from cm3plugins.samplers.cfg import CFGSamplerConfig, TopPSamplerConfig
from kit_mutants import assert_covers, assert_law_fails, cases
from sampler_state_mutants import STATE_MUTANTS


class Right(Sampler):
    """The bundled sampler of classifier-free guidance, a way to spoil its calls."""

    def __init__(self) -> None:
        self.inner: Sampler = CFGSamplerConfig(guidance_scale=3.0, plausible_top_k=3).build()
        self.numbers = itertools.count()

    def plan(self, modality: str) -> SamplingPlan:
        return self.inner.plan(modality)

    def draw(
        self,
        logits_SR: Tensor,
        stream_rows_nG: Tensor,
        weights_nG: Tensor,
        plans: Sequence[SamplingPlan],
        **options: Any,
    ) -> Tensor:
        return self.inner.draw(logits_SR, stream_rows_nG, weights_nG, plans, **options)

    def draw_log_probabilities(self, *args: Any, **options: Any) -> Tensor:
        return self.inner.draw_log_probabilities(*args, **options)


class TestRight(SamplerContract):
    def make(self) -> Sampler:
        return Right()


class SeedsByPlace(Right):
    def draw(self, *args: Any, seed_n: Tensor, **options: Any) -> Tensor:
        return super().draw(*args, seed_n=seed_n + torch.arange(len(seed_n)), **options)


class SeedsByWidth(Right):
    def draw(self, logits_SR: Tensor, *args: Any, seed_n: Tensor, **options: Any) -> Tensor:
        return super().draw(logits_SR, *args, seed_n=seed_n + logits_SR.shape[1], **options)


class WarmthOfTheBatch(Right):
    """Logits within five percent of the right ones, by the batch's mean: few draws show it."""

    def draw(self, logits_SR: Tensor, *args: Any, **options: Any) -> Tensor:
        factor = 1 + 0.05 * torch.tanh(logits_SR.mean())
        return super().draw(factor * logits_SR, *args, **options)


class SeedsFromTorch(Right):
    """Its noise depends on torch's global seed, which no draw changes."""

    def draw(self, *args: Any, seed_n: Tensor, **options: Any) -> Tensor:
        return super().draw(*args, seed_n=seed_n + torch.initial_seed() % 1000, **options)


class NoiseFromTorch(Right):
    """It reads torch's global generator, and restores it."""

    def draw(self, *args: Any, seed_n: Tensor, **options: Any) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            number = int(torch.randint(1000, ()))
        return super().draw(*args, seed_n=seed_n + number, **options)


class CandidatesHaveOneStream(Right):
    def for_candidate(self, index: int) -> Sampler:
        return self if index % 2 == 0 else TopPSamplerConfig().build()


class FirstCandidateIsOther(Right):
    def for_candidate(self, index: int) -> Sampler:
        other = Right()
        other.inner = CFGSamplerConfig(guidance_scale=float(index + 9)).build()
        return other


def unfiltered(plans: Sequence[SamplingPlan], *kept: str) -> list[SamplingPlan]:
    """Plans without filters, but for those named."""
    return [
        replace(plan, filters=Filters(**{name: getattr(plan.filters, name) for name in kept}))
        for plan in plans
    ]


class PlausibleOnly(Right):
    def draw(
        self,
        logits_SR: Tensor,
        rows: Tensor,
        weights: Tensor,
        plans: Sequence[SamplingPlan],
        **options: Any,
    ) -> Tensor:
        return super().draw(
            logits_SR, rows, weights, unfiltered(plans, "temperature", "plausible_top_k"), **options
        )


class NoPlausibility(Right):
    def draw(
        self,
        logits_SR: Tensor,
        rows: Tensor,
        weights: Tensor,
        plans: Sequence[SamplingPlan],
        **options: Any,
    ) -> Tensor:
        return super().draw(
            logits_SR, rows, weights, unfiltered(plans, "temperature", "top_k", "top_p"), **options
        )


class NeverTwice(Right):
    def draw(self, *args: Any, seed_n: Tensor, **options: Any) -> Tensor:
        return super().draw(*args, seed_n=seed_n + next(self.numbers), **options)


class OneSeedForAll(Right):
    def draw(self, *args: Any, seed_n: Tensor, **options: Any) -> Tensor:
        return super().draw(*args, seed_n=torch.zeros_like(seed_n), **options)


class OnePositionForAll(Right):
    def draw(self, *args: Any, position_n: Tensor, **options: Any) -> Tensor:
        return super().draw(*args, position_n=torch.zeros_like(position_n), **options)


class WritesOnLogits(Right):
    def draw(self, logits_SR: Tensor, *args: Any, **options: Any) -> Tensor:
        drawn_n = super().draw(logits_SR, *args, **options)
        logits_SR /= 2
        return drawn_n


class WritesOnMasks(Right):
    def draw(self, *args: Any, allowed_nR: Tensor | None, **options: Any) -> Tensor:
        drawn_n = super().draw(*args, allowed_nR=allowed_nR, **options)
        if allowed_nR is not None:
            allowed_nR.logical_not_()
        return drawn_n


class ForgetsMasks(Right):
    def draw(self, *args: Any, allowed_nR: Tensor | None, **options: Any) -> Tensor:
        return super().draw(*args, allowed_nR=None, **options)


class CountsFromZero(Right):
    def draw(self, *args: Any, first_id: int, **options: Any) -> Tensor:
        return super().draw(*args, first_id=0, **options)


class HalfWithoutAMask(Right):
    def draw(
        self,
        logits_SR: Tensor,
        rows_nG: Tensor,
        *args: Any,
        allowed_nR: Tensor | None,
        **options: Any,
    ) -> Tensor:
        if allowed_nR is None:
            R = logits_SR.shape[1]
            allowed_nR = (torch.arange(R) <= R // 2).expand(len(rows_nG), R)
        return super().draw(logits_SR, rows_nG, *args, allowed_nR=allowed_nR, **options)


class PlansChange(Right):
    def plan(self, modality: str) -> SamplingPlan:
        return replace(
            super().plan(modality), filters=Filters(temperature=1.0 + next(self.numbers))
        )


class TextHasOneStream(Right):
    def plan(self, modality: str) -> SamplingPlan:
        return (
            TopPSamplerConfig().build().plan(modality)
            if modality == "text"
            else super().plan(modality)
        )


class ReferenceBehindTheLast(Right):
    def plan(self, modality: str) -> SamplingPlan:
        return replace(super().plan(modality), reference=2)


class DrawsAlone(Right):
    def draws_with(self, other: Sampler) -> bool:
        return False


class DrawsForItsBase(Right):
    """A subclass that draws in another way, and says that it draws for its base."""

    def draws_with(self, other: Sampler) -> bool:
        return isinstance(other, Right)

    def draw(self, *args: Any, seed_n: Tensor, **options: Any) -> Tensor:
        return super().draw(*args, seed_n=seed_n ^ 1, **options)


class TakesThePlansWeights(Right):
    def draw(
        self,
        logits_SR: Tensor,
        rows: Tensor,
        weights_nG: Tensor,
        plans: Sequence[SamplingPlan],
        **options: Any,
    ) -> Tensor:
        own_nG = torch.zeros_like(weights_nG)
        for place, plan in enumerate(plans):
            own_nG[place, : len(plan.streams)] = torch.tensor(
                [stream.weight for stream in plan.streams]
            )
        return super().draw(logits_SR, rows, own_nG, plans, **options)


class WarmAtZero(Right):
    def draw(
        self,
        logits_SR: Tensor,
        rows: Tensor,
        weights: Tensor,
        plans: Sequence[SamplingPlan],
        **options: Any,
    ) -> Tensor:
        warm = [
            replace(
                plan, filters=replace(plan.filters, temperature=plan.filters.temperature or 1.0)
            )
            for plan in plans
        ]
        return super().draw(logits_SR, rows, weights, warm, **options)


class TellsThemUnfiltered(Right):
    def draw_log_probabilities(
        self,
        logits_SR: Tensor,
        rows: Tensor,
        weights: Tensor,
        plans: Sequence[SamplingPlan],
        **options: Any,
    ) -> Tensor:
        return super().draw_log_probabilities(
            logits_SR, rows, weights, unfiltered(plans, "temperature"), **options
        )


class TellsThemCold(Right):
    def draw_log_probabilities(self, logits_SR: Tensor, *args: Any, **options: Any) -> Tensor:
        return super().draw_log_probabilities(2 * logits_SR, *args, **options)


class ForgetsWhatWasKept(Right):
    def draw_log_probabilities(self, *args: Any, kept_nR: Tensor | None, **options: Any) -> Tensor:
        if kept_nR is not None:
            kept_nR = torch.ones_like(kept_nR)
        return super().draw_log_probabilities(*args, kept_nR=kept_nR, **options)


MUTANTS = {
    "a_draw_does_not_depend_on_its_place": [
        SeedsByPlace,
        SeedsByWidth,
        WarmthOfTheBatch,
        SeedsFromTorch,
    ],
    "candidates_share_their_prompts": [CandidatesHaveOneStream, FirstCandidateIsOther],
    "each_filter_keeps_what_it_says": [PlausibleOnly],
    "equal_draws_are_equal_and_seeds_matter": [
        NeverTwice,
        OneSeedForAll,
        SeedsFromTorch,
        NoiseFromTorch,
    ],
    "inputs_are_not_written_to": [WritesOnLogits, WritesOnMasks],
    "log_probabilities_are_those_of_its_draws": [
        TellsThemUnfiltered,
        TellsThemCold,
        ForgetsWhatWasKept,
    ],
    "only_legal_ids_are_drawn": [ForgetsMasks, CountsFromZero],
    "only_plausible_ids_are_drawn": [NoPlausibility],
    "plans_are_constant_and_name_the_same_streams": [
        PlansChange,
        TextHasOneStream,
        ReferenceBehindTheLast,
    ],
    "neighbours_keep_their_pictures": [DrawsForItsBase],
    "positions_matter": [OnePositionForAll],
    "samplers_that_share_a_call_say_so": [DrawsAlone],
    "temperature_zero_takes_the_largest_of_the_mix": [TakesThePlansWeights, WarmAtZero],
    "without_a_mask_all_ids_are_legal": [HalfWithoutAMask],
    **STATE_MUTANTS,
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_sampler_fails(law: str, wrong: type[Sampler]) -> None:
    assert_law_fails(SamplerContract, law, {"make": lambda self: wrong()})


def test_every_law_has_a_mutant() -> None:
    assert_covers(SamplerContract, MUTANTS)
