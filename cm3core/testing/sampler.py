"""Conformance kit of samplers.

    class TestMine(SamplerContract):
        config = MySamplerConfig()

Legend: n requests, S stream rows, G guidance streams, R ids of the legal slice.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from cm3core.errors import CM3Error
from cm3core.interfaces.model_parts import ModelParts
from cm3core.interfaces.sampler import Sampler, SamplingPlan, tells_log_probabilities
from cm3core.testing._filters import kept_ids, rounding
from cm3core.testing.model_parts import example_parts
from cm3core.testing.sampler_state import FIRST_ID, GRID, NUM_CODES, StateLaws
from cm3core.testing.samples import own_cache
from cm3core.testing.strategies import logits

_MODALITIES = ("text", "image")
_RAMPS = ("constant", "up", "down")
#: Seeds with which one request is drawn in a batch and alone.
_NUM_SEEDS = 256
#: Seeds whose draws are counted, and the difference of a count's share from its probability that 6
#: standard deviations allow.
_MANY_SEEDS = 1024
_RARELY_MORE = 0.1


class SamplerContract(StateLaws):
    """Laws of samplers: plans are constant and consistent; draws legal, plausible, independent."""

    kind: ClassVar[str] = "sampler"

    def build(self, config: Any) -> Sampler:
        """See `SamplerConfig.build_for`; the model is `parts`."""
        with own_cache():
            sampler: Sampler = config.build_for(self.parts())
        return sampler

    def parts(self) -> ModelParts:
        """Those of a small model whose pictures are the ones drawn here."""
        return example_parts(grid=GRID, num_codes=NUM_CODES, first_code=FIRST_ID)

    def companions(self) -> Sequence[Sampler]:
        """Other samplers that share calls with this one, mixed into its batches."""
        return ()

    def law_plans_are_constant_and_name_the_same_streams(self) -> None:
        """`plan` is constant, and both modalities have the same prompts in the same order."""
        text, image = (self.subject.plan(modality) for modality in _MODALITIES)
        assert text == self.subject.plan("text")
        assert image == self.subject.plan("image")
        assert _variants(text) == _variants(image)
        for plan in (text, image):
            _check_plan(plan)

    def law_candidates_share_their_prompts(self, data: st.DataObject) -> None:
        """All candidates of a request have the same prompts in the same order, which are read once.

        Equal calls give equal plans, and candidate 0 has the plans of the sampler itself.
        """
        candidate, again = (
            self.subject.for_candidate(index) for index in [data.draw(st.integers(0, 100))] * 2
        )
        for modality in _MODALITIES:
            plan = candidate.plan(modality)
            _check_plan(plan)
            assert plan == again.plan(modality)
            assert _variants(plan) == _variants(self.subject.plan(modality))
            assert self.subject.for_candidate(0).plan(modality) == self.subject.plan(modality)

    def law_samplers_that_share_a_call_say_so(self) -> None:
        """A sampler shares calls with itself, and with those that the test names."""
        assert self.subject.draws_with(self.subject)
        assert all(self.subject.draws_with(other) for other in self.companions())

    def law_neighbours_keep_their_pictures(self, data: st.DataObject) -> None:
        """What the sampler draws for requests of those that it says it draws with is what these would draw.

        They are its candidates, those that the test names, samplers of other configs, and it as an instance of each
        of its bases, whose `draws_with` it may have inherited.
        """
        others = [*_as_its_bases(self.subject), *self.companions()]
        others += {id(one): one for one in map(self.subject.for_candidate, range(4))}.values()
        if self.config is not None and (numbers := _numbers(self.config)):
            name = data.draw(st.sampled_from(numbers))
            changed = [getattr(self.config, name) / 2, getattr(self.config, name) + 1]
            others += self._of_other_configs(name, changed)
        for other in others:
            if other is not self.subject and self.subject.draws_with(other):
                batch = _Batch(self, data, [other])
                batch = batch.repeated(batch.seed_n[0] + torch.arange(_NUM_SEEDS // 4))
                assert batch.draw().tolist() == batch.draw(other).tolist()

    def _of_other_configs(self, name: str, values: Sequence[float]) -> Iterator[Sampler]:
        """Samplers of the config with these values of a key, as far as it takes them."""
        kind = type(getattr(self.config, name))
        for value in values:
            config = dataclasses.replace(self.config, **{name: kind(value)})
            with suppress(CM3Error):
                config.check()
                yield self.build(config)

    def law_only_legal_ids_are_drawn(self, data: st.DataObject) -> None:
        """Each request gets an allowed id of the slice, even with extreme logits."""
        batch = _Batch(self, data)
        drawn_n = batch.draw()
        assert drawn_n.dtype == torch.int64
        assert drawn_n.shape == (batch.n,)
        index_n = drawn_n - batch.first_id
        assert bool(((index_n >= 0) & (index_n < batch.logits_SR.shape[1])).all())
        assert bool(batch.allowed_nR.gather(1, index_n[:, None]).all())

    def law_a_draw_does_not_depend_on_its_place(self, data: st.DataObject) -> None:
        """A request draws the same alone as in a batch, with each of many seeds.

        Alone, its rows are elsewhere, its slice is cut to what matters, and there are no columns
        for requests with more streams.
        """
        batch = _Batch(self, data)
        if data.draw(st.booleans(), label="unfiltered"):  # then all ids count
            batch.plans = tuple(_only(plan) for plan in batch.plans)
        place = data.draw(st.integers(0, batch.n - 1))
        rows_G, low = batch.rows(place), int(batch.allowed_nR[place].nonzero()[0])
        # one seed rarely shows logits that are slightly wrong
        seed_k = batch.seed_n[place] + torch.arange(_NUM_SEEDS)
        together_nk = batch.repeated(seed_k).draw().view(batch.n, _NUM_SEEDS)
        alone_k = self._alone(batch, place, rows_G, low, seed_k)
        assert alone_k.tolist() == together_nk[place].tolist()
        one = self._alone(batch, place, rows_G, low, seed_k[:1])
        assert int(one[0]) == int(batch.draw()[place]) == int(alone_k[0])

    def _alone(self, batch: _Batch, place: int, rows_G: Tensor, low: int, seed_k: Tensor) -> Tensor:
        """The ids that one request of a batch draws without the others, one for each seed."""
        num_seeds, num_streams = len(seed_k), len(rows_G)
        return self.subject.draw(
            batch.logits_SR[rows_G, low:],
            torch.arange(num_streams).repeat(num_seeds, 1),
            batch.weights_nG[place, :num_streams].repeat(num_seeds, 1),
            (batch.plans[place],) * num_seeds,
            first_id=batch.first_id + low,
            allowed_nR=batch.allowed_nR[place, low:].repeat(num_seeds, 1),
            seed_n=seed_k,
            position_n=batch.position_n[place].repeat(num_seeds),
        )

    def law_equal_draws_are_equal_and_seeds_matter(self) -> None:
        """The same seed and position draw the same id; many seeds do not all draw one id."""
        plan = _only(self.subject.plan("image"))
        G, n = len(plan.streams), 64
        first, second = (
            self.subject.draw(
                torch.zeros(G, 8),
                torch.arange(G).expand(n, G),
                torch.tensor([_weights(plan)] * n),
                (plan,) * n,
                first_id=5,
                allowed_nR=None,
                seed_n=torch.arange(n),
                position_n=torch.zeros(n, dtype=torch.int64),
            )
            for _ in range(2)
        )
        assert torch.equal(first, second)
        assert len(set(first.tolist())) > 1

    def law_positions_matter(self) -> None:
        """One seed does not draw the same id at all of many positions."""
        plan = _only(self.subject.plan("image"))
        G, n = len(plan.streams), 64
        drawn_n = self.subject.draw(
            torch.zeros(G, 8),
            torch.arange(G).expand(n, G),
            torch.tensor([_weights(plan)] * n),
            (plan,) * n,
            first_id=5,
            allowed_nR=None,
            seed_n=torch.full((n,), 7),
            position_n=torch.arange(n),
        )
        assert len(set(drawn_n.tolist())) > 1

    def law_without_a_mask_all_ids_are_legal(self, data: st.DataObject) -> None:
        """`allowed_nR=None` is the same as a mask of all True."""
        batch = _Batch(self, data)
        batch.allowed_nR = torch.ones_like(batch.allowed_nR)
        masked_n = batch.draw()
        unmasked_n = self.subject.draw(
            batch.logits_SR,
            batch.stream_rows_nG,
            batch.weights_nG,
            batch.plans,
            first_id=batch.first_id,
            allowed_nR=None,
            seed_n=batch.seed_n,
            position_n=batch.position_n,
        )
        assert torch.equal(unmasked_n, masked_n)

    def law_inputs_are_not_written_to(self, data: st.DataObject) -> None:
        """Logits, weights, masks, seeds and positions are unchanged: the engine reuses them."""
        batch = _Batch(self, data)
        inputs = (
            batch.logits_SR,
            batch.stream_rows_nG,
            batch.weights_nG,
            batch.allowed_nR,
            batch.seed_n,
            batch.position_n,
        )
        before = [tensor.clone() for tensor in inputs]
        batch.draw()
        assert all(torch.equal(tensor, old) for tensor, old in zip(inputs, before, strict=True))

    def law_temperature_zero_takes_the_largest_of_the_mix(self, data: st.DataObject) -> None:
        """At temperature 0, without plausibility, the id is the legal argmax of the weighted sum.

        The weights are the call's, not the plan's, whatever min-p and typical are.
        """
        batch = _Batch(self, data)
        others = {
            "min_p": data.draw(st.sampled_from([0.0, 0.5])),
            "typical_p": data.draw(st.sampled_from([1.0, 0.2])),
        }
        batch.plans = tuple(_only(plan, temperature=0.0, **others) for plan in batch.plans)
        for place, token in enumerate(batch.draw().tolist()):
            mixed_R = batch.mixed(place)
            # The order of sums may change the last bits: any id within rounding of the largest is
            # right.
            assert float(mixed_R[token - batch.first_id]) >= float(mixed_R.max()) - rounding(
                mixed_R
            )

    def law_only_plausible_ids_are_drawn(self, data: st.DataObject) -> None:
        """An id outside the reference stream's plausible set is never drawn, whatever the mix."""
        batch = _Batch(self, data)
        for place, token in enumerate(batch.draw().tolist()):
            assert bool(batch.plausible(place)[token - batch.first_id])

    def law_log_probabilities_are_those_of_its_draws(self, data: st.DataObject) -> None:
        """If the sampler tells them: they are a distribution over allowed ids, and so often is each drawn.

        Told which ids the filters keep, it answers the same.
        """
        if not tells_log_probabilities(self.subject):
            return
        batch = _Batch(self, data)
        log_nR = batch.log_probabilities(None)
        assert log_nR.shape == batch.allowed_nR.shape
        assert log_nR.dtype == torch.float32
        assert bool((log_nR[~batch.allowed_nR] == -torch.inf).all())
        torch.testing.assert_close(log_nR.exp().sum(dim=1), torch.ones(batch.n))
        kept_nR = log_nR > -torch.inf
        torch.testing.assert_close(batch.log_probabilities(kept_nR), log_nR, rtol=1e-4, atol=1e-4)
        drawn_nk = batch.repeated(batch.seed_n[0] + torch.arange(_MANY_SEEDS)).draw()
        index_nk = drawn_nk.view(batch.n, _MANY_SEEDS) - batch.first_id
        assert bool(kept_nR.gather(1, index_nk).all())
        share_nR = torch.zeros_like(log_nR).scatter_add_(
            1, index_nk, torch.full(index_nk.shape, 1 / _MANY_SEEDS)
        )
        assert float((share_nR - log_nR.exp()).abs().max()) < _RARELY_MORE

    def law_each_filter_keeps_what_it_says(self, data: st.DataObject) -> None:
        """Top-k, top-p, min-p and typical, one at a time, keep the ids defined by `Filters`."""
        batch = _Batch(self, data)
        name = data.draw(st.sampled_from(["top_k", "top_p", "min_p", "typical_p"]))
        value = data.draw(st.integers(1, 5) if name == "top_k" else st.floats(0.01, 1.0))
        temperature = data.draw(st.sampled_from([0.5, 1.0, 4.0]))
        batch.plans = tuple(
            _only(plan, **{name: value, "temperature": temperature}) for plan in batch.plans
        )
        kept = [kept_ids(name, value, batch.mixed(place) / temperature) for place in range(batch.n)]
        for _ in range(8):  # an id that should be excluded may be a rare one
            for place, token in enumerate(batch.draw().tolist()):
                assert bool(kept[place][token - batch.first_id])
            batch.position_n = batch.position_n + 1


def _numbers(config: Any) -> list[str]:
    """Keys of a config that hold numbers."""
    if not dataclasses.is_dataclass(config):
        return []
    names = [one.name for one in dataclasses.fields(config) if one.init]
    return [name for name in names if type(getattr(config, name)) in (int, float)]


def _as_its_bases(sampler: Sampler) -> Iterator[Sampler]:
    """The sampler as an instance of each base that could be one, with the same attributes."""
    for base in type(sampler).__mro__[1:]:
        if issubclass(base, Sampler) and not inspect.isabstract(base):
            twin = copy.copy(sampler)
            try:
                twin.__class__ = base
                twin.plan("image")
            except (AttributeError, TypeError):  # it has other attributes than its base
                continue
            yield twin


class _Batch:
    """A random batch of requests of the sampler, its candidates and its companions.

    Stream rows are in any order, -1 after a request's last stream; weights are as a schedule might
    set them; plans are of both modalities, with a mask per request.
    """

    def __init__(
        self,
        contract: SamplerContract,
        data: st.DataObject,
        sharing: Sequence[Sampler] | None = None,
    ) -> None:
        self.contract, self.n = contract, data.draw(st.integers(1, 4))
        sampler = contract.subject
        others = [*(sampler.for_candidate(index) for index in range(4)), *contract.companions()]
        if sharing is None:
            sharing = [sampler, *(other for other in others if sampler.draws_with(other))]
        self.plans: tuple[SamplingPlan, ...] = tuple(
            data.draw(st.sampled_from(sharing)).plan(data.draw(st.sampled_from(_MODALITIES)))
            for _ in range(self.n)
        )
        num_streams = [len(plan.streams) for plan in self.plans]
        S, R = sum(num_streams), data.draw(st.integers(1, 12))
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
        self.logits_SR = data.draw(logits(S, R))
        G = max(num_streams) + data.draw(st.integers(0, 2))
        self.stream_rows_nG = torch.full((self.n, G), -1)
        self.weights_nG = torch.zeros(self.n, G)
        for place, rows_G in enumerate(torch.randperm(S, generator=generator).split(num_streams)):
            self.stream_rows_nG[place, : len(rows_G)] = rows_G
            share = data.draw(st.sampled_from([1.0, 0.0, 0.25]))
            self.weights_nG[place, : len(rows_G)] = torch.tensor(_weights(self.plans[place], share))
        self.allowed_nR = torch.rand(self.n, R, generator=generator) < 0.6
        self.allowed_nR[torch.arange(self.n), torch.randint(R, (self.n,), generator=generator)] = (
            True
        )
        self.first_id = data.draw(st.integers(0, 70))
        self.seed_n = torch.randint(2**62, (self.n,), generator=generator)
        self.position_n = torch.randint(4096, (self.n,), generator=generator)

    def draw(self, sampler: Sampler | None = None) -> Tensor:
        return (sampler or self.contract.subject).draw(
            self.logits_SR,
            self.stream_rows_nG,
            self.weights_nG,
            self.plans,
            first_id=self.first_id,
            allowed_nR=self.allowed_nR,
            seed_n=self.seed_n,
            position_n=self.position_n,
        )

    def log_probabilities(self, kept_nR: Tensor | None) -> Tensor:
        return self.contract.subject.draw_log_probabilities(
            self.logits_SR,
            self.stream_rows_nG,
            self.weights_nG,
            self.plans,
            first_id=self.first_id,
            allowed_nR=self.allowed_nR,
            kept_nR=kept_nR,
        )

    def repeated(self, seed_k: Tensor) -> _Batch:
        """The batch with each request once for every seed, k times in a row."""
        repeated, k = copy.copy(self), len(seed_k)
        repeated.n = self.n * k
        repeated.plans = tuple(plan for plan in self.plans for _ in range(k))
        repeated.stream_rows_nG = self.stream_rows_nG.repeat_interleave(k, 0)
        repeated.weights_nG = self.weights_nG.repeat_interleave(k, 0)
        repeated.allowed_nR = self.allowed_nR.repeat_interleave(k, 0)
        repeated.seed_n = seed_k.repeat(self.n)
        repeated.position_n = self.position_n.repeat_interleave(k)
        return repeated

    def rows(self, place: int) -> Tensor:
        """Rows of a request's own G streams, int64 [G]."""
        return self.stream_rows_nG[place, : len(self.plans[place].streams)]

    def mixed(self, place: int) -> Tensor:
        """Weighted sum of a request's streams, float64 [R]; -inf where an id is not allowed."""
        rows_G = self.rows(place)
        mixed_R = self.weights_nG[place, : len(rows_G)].double() @ self.logits_SR[rows_G].double()
        return mixed_R.masked_fill(~self.allowed_nR[place], -torch.inf)

    def plausible(self, place: int) -> Tensor:
        """Bool [R], as defined in `Filters`; ties and rounding at the threshold are included."""
        plan = self.plans[place]
        filters, allowed_R = plan.filters, self.allowed_nR[place]
        reference_R = self.logits_SR[self.rows(place)[plan.reference]].double()
        probability_R = reference_R.masked_fill(~allowed_R, -torch.inf).softmax(0)
        ordered = probability_R.sort(descending=True).values
        threshold = 0.0
        if 0 < filters.plausible_top_k < int(allowed_R.sum()):
            threshold = max(threshold, float(ordered[filters.plausible_top_k - 1]))
        if filters.plausible_top_p < 1:
            before = ordered.cumsum(0) - ordered
            threshold = max(
                threshold, float(ordered[before < filters.plausible_top_p - 1e-9].min())
            )
        if filters.plausible_alpha > 0:
            kth = float(ordered[min(filters.plausible_k, int(allowed_R.sum())) - 1])
            threshold = max(threshold, filters.plausible_alpha * kth)
        threshold = min(threshold, float(ordered[0]))
        return allowed_R & (probability_R >= threshold * (1 - 1e-6))


def _check_plan(plan: SamplingPlan) -> None:
    assert plan.streams
    assert 0 <= plan.reference < len(plan.streams)
    assert all(math.isfinite(stream.weight) for stream in plan.streams)
    if plan.schedule is not None:
        assert 0 <= plan.schedule.start <= plan.schedule.stop <= 1
        assert plan.schedule.ramp in _RAMPS
        assert all(0 <= plan.schedule.share(step / 64) <= 1 for step in range(65))


def _variants(plan: SamplingPlan) -> list[object]:
    return [stream.variant for stream in plan.streams]


def _weights(plan: SamplingPlan, share: float = 1.0) -> list[float]:
    """The streams' weights at a schedule's share of the guidance."""
    return [
        (1 - share) * (index == plan.reference) + share * stream.weight
        for index, stream in enumerate(plan.streams)
    ]


def _only(plan: SamplingPlan, **filters: Any) -> SamplingPlan:
    """The plan with only these filters; all others, including the sampler's own, are off."""
    return dataclasses.replace(plan, filters=type(plan.filters)(**filters))
