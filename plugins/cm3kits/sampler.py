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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from cm3core.errors import CM3Error
from cm3core.interfaces.sampler import (
    ModelParts,
    Sampler,
    SamplingPlan,
    StatefulSampler,
    tells_log_probabilities,
)
from cm3core.interfaces.sampler_state import DrawState, RequestStart, flat_state, stacked
from cm3kits._findings import doing, every, holds, same, shown
from cm3kits._laws import presupposes
from cm3kits._module_laws import Outputs
from cm3kits._work import check_growth, work_of
from cm3kits.sampler_state import FIRST_ID, GRID, NUM_CODES, StateLaws
from cm3kits.samples import own_cache
from cm3kits.strategies import logits, shaped
from cm3kits.tiny import example_parts

if TYPE_CHECKING:
    from cm3kits._elsewhere import Moving

_MODALITIES = ("text", "image")
_RAMPS = ("constant", "up", "down")
#: Number of seeds with which a request is drawn in a batch and alone.
_NUM_SEEDS = 256
#: Number of seeds whose draws are counted, and the allowed difference between a count's share and its
#: probability: 6 standard deviations.
_MANY_SEEDS = 1024
_RARELY_MORE = 0.1
_FEW_IDS = st.integers(1, 12)
#: (shape of the distribution, ids), checked by laws that require different draws for different seeds.
_SPREADS = (("flat", 8), ("few", 8), ("power", 64), ("flat", 256))


class SamplerContract(StateLaws):
    """Laws of samplers: plans are constant and consistent; draws are legal, plausible and independent."""

    kind: ClassVar[str] = "sampler"

    def build(self, config: Any) -> Sampler:
        """See `SamplerConfig.build_for`; the model is `parts`."""
        with own_cache():
            sampler: Sampler = config.build_for(self.parts())
        return sampler

    def parts(self) -> ModelParts:
        """Return the parts of a small model for the pictures drawn here."""
        return example_parts(grid=GRID, num_codes=NUM_CODES, first_code=FIRST_ID)

    def works_without(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Vectors of codes."""

        def use() -> object:
            parts = self.parts()
            tokenizer = copy.copy(parts.image_tokenizer)
            tokenizer.codebook = lambda: None  # type: ignore[method-assign]  # of this copy alone
            with own_cache():
                return self.config.build_for(dataclasses.replace(parts, image_tokenizer=tokenizer))

        yield "code_vectors", use

    def companions(self) -> Sequence[Sampler]:
        """Return other samplers that share calls with this one, mixed into its batches."""
        return ()

    def observe(self, component: Sampler) -> Outputs:
        """Return plans and draws of the sampler and its candidates, for both modalities."""
        found: Outputs = {}
        for modality in _MODALITIES:
            found[f"plans ({modality})"] = [
                str(component.for_candidate(index).plan(modality)) for index in range(4)
            ]
        generator = torch.Generator().manual_seed(0)
        for shape in ("power", "few"):
            rows_SR = torch.stack([shaped(shape, 256, generator) for _ in range(4)])
            for modality in _MODALITIES:
                drawn = []
                for index in range(2):
                    own = component.for_candidate(index)
                    drawn.append(_run(own, own.plan(modality), rows_SR, modality))
                found[f"ids drawn ({modality}, {shape} distribution)"] = drawn
        return found

    def law_plans_are_constant_and_name_the_same_streams(self) -> None:
        """`plan` is constant, and both modalities have the same prompts in the same order."""
        text, image = (self.subject.plan(modality) for modality in _MODALITIES)
        for modality, plan in zip(_MODALITIES, (text, image), strict=True):
            again = self.subject.plan(modality)
            same(str(again), str(plan), f"asked for plan({modality!r}) twice")
        did = "compared the prompts of plan('text') and plan('image')"
        same(_variants(image), _variants(text), did)
        for plan in (text, image):
            _check_plan(plan)

    def law_candidates_share_their_prompts(self, data: st.DataObject) -> None:
        """All candidates of a request have the same prompts in the same order, so they are read once.

        Equal calls give equal plans, and candidate 0 has the sampler's own plans.
        """
        index = data.draw(st.integers(0, 100), label="candidate")
        candidate, again = (self.subject.for_candidate(index) for _ in range(2))
        for modality in _MODALITIES:
            plan, did = candidate.plan(modality), f"asked for the {modality} plan of "
            _check_plan(plan)
            same(str(again.plan(modality)), str(plan), f"{did}candidate {index} twice")
            own = self.subject.plan(modality)
            prompts = f"{did}candidate {index} and of the sampler: its prompts"
            same(_variants(plan), _variants(own), prompts)
            first = self.subject.for_candidate(0).plan(modality)
            same(str(first), str(own), f"{did}candidate 0 and of the sampler")

    def law_samplers_that_share_a_call_say_so(self) -> None:
        """A sampler shares calls with itself, and with the companions of the test."""
        for other, name in (
            (self.subject, "itself"),
            *((one, "a companion") for one in self.companions()),
        ):
            answer = self.subject.draws_with(other)
            holds(answer, f"asked draws_with({name})", "True", answer)

    @presupposes("only_legal_ids_are_drawn")
    def law_neighbours_keep_their_pictures(self, data: st.DataObject) -> None:
        """If the sampler says that it draws with others, it draws for their requests what they would draw.

        The others are its candidates, the test's companions, samplers of other configs, and the sampler itself as an
        instance of each of its bases, whose `draws_with` it may have inherited.
        """
        others = [*_as_its_bases(self.subject), *self.companions()]
        others += {id(one): one for one in map(self.subject.for_candidate, range(4))}.values()
        if self.config is not None and (numbers := _numbers(self.config)):
            name = data.draw(st.sampled_from(numbers))
            changed = [getattr(self.config, name) / 2, getattr(self.config, name) + 1]
            others += self._of_other_configs(name, changed)
        for other in others:
            alike = other is not self.subject and _start_alike(self.subject, other)
            if alike and self.subject.draws_with(other):
                batch = _Batch(self, data, [other])
                batch = batch.repeated(batch.seed_n[0] + torch.arange(_NUM_SEEDS // 4))
                same(
                    batch.draw(),
                    batch.draw(other),
                    f"drew for requests of another sampler, a {type(other).__name__}, with which it claims to "
                    "draw, and with that sampler",
                    next_step="let draws_with say no, or draw by each request's own plan",
                )

    def _of_other_configs(self, name: str, values: Sequence[float]) -> Iterator[Sampler]:
        """Yield samplers of the config with these values of a key, skipping rejected ones."""
        kind = type(getattr(self.config, name))
        for value in values:
            config = dataclasses.replace(self.config, **{name: kind(value)})
            with suppress(CM3Error):
                config.check()
                yield self.build(config)

    def declared(self, component: Sampler) -> Iterator[tuple[str, bool, str, Any]]:
        """Pictures that it can draw, and what it is made for."""
        if self.config is not None:
            with doing("called check_pictures with the pictures that it was built for"):
                self.config.check_pictures(GRID, NUM_CODES)
            for name in ("edits", "structures"):
                value = getattr(self.config, name)
                yield name, isinstance(value, bool), "True or False", value

    def works_elsewhere(self, device: Moving) -> Iterator[tuple[str, Callable[[], object]]]:
        """Draws for both modalities, and log-probabilities."""
        sampler = self.make_again()
        generator = torch.Generator().manual_seed(0)
        for modality in _MODALITIES:
            rows_SR = torch.stack([shaped("power", NUM_CODES, generator) for _ in range(2)])
            plan, there = sampler.plan(modality), device.moved(rows_SR)
            yield (
                f"drew ids of {modality}",
                lambda plan=plan, there=there, modality=modality: _run(  # type: ignore[misc]  # defaults
                    sampler, plan, there, modality
                ),
            )
            if tells_log_probabilities(sampler):
                G = len(plan.streams)
                weights = device.moved(torch.tensor([_weights(plan)]))
                yield (
                    f"asked for log-probabilities of {modality}",
                    lambda plan=plan, there=there, weights=weights, G=G: (
                        sampler.draw_log_probabilities(  # type: ignore[misc]  # defaults
                            there[:1].expand(G, -1),
                            torch.arange(G, device=device.device)[None],
                            weights,
                            (plan,),
                            first_id=FIRST_ID,
                            allowed_nR=None,
                        )
                    ),
                )

    def law_a_draw_costs_what_it_reads(self) -> None:
        """The work of a draw is at most proportional to the number of ids, and to that of requests, up to a logarithm."""
        sampler, plan = self.subject, self.subject.plan("image")
        generator = torch.Generator().manual_seed(0)
        for of, sizes in (("ids", (1024, 2048, 4096)), ("requests", (32, 64, 128))):
            works = {}
            for size in sizes:
                row_R = shaped("power", size if of == "ids" else 64, generator)
                many = torch.arange(2 if of == "ids" else size)
                works[size] = work_of(
                    lambda row_R=row_R, many=many: _drawn(sampler, plan, row_R, many, many)  # type: ignore[misc]  # defaults
                )
            check_growth(works, of, "drew")

    @presupposes("only_legal_ids_are_drawn")
    def law_a_filter_at_its_limit_keeps_what_it_says(self) -> None:
        """Top-k of one id less than the slice has, of all and of one more, filters that are just on and just off, one id
        alone, and the last position and seed: draws are those that `Filters` keeps."""
        generator, num = torch.Generator().manual_seed(0), 7
        row_R = shaped("power", num, generator)
        plan, many = self.subject.plan("image"), torch.arange(256)
        cases: list[tuple[str, float]] = [("top_k", k) for k in (1, num - 1, num, num + 1)]
        cases += [("top_p", 1e-9), ("top_p", 1.0), ("min_p", 1.0), ("min_p", 0.0)]
        cases += [("typical_p", 1e-9), ("typical_p", 1.0)]
        for name, value in cases:
            only = _only(plan, **{name: value, "temperature": 2.0})
            did = f"drew 256 times from {num} ids by {name} {value:g}"
            with doing(did):
                drawn_k = _drawn(self.subject, only, row_R, many, 0 * many) - _FIRST
            mixed_R = sum(stream.weight for stream in only.streams) * row_R.double()
            off = name in ("min_p",) and value == 0
            kept_R = row_R == row_R if off else kept_ids(name, value, mixed_R / 2.0)
            every(drawn_k + _FIRST, kept_R[drawn_k], did, f"ids that {name} {value:g} keeps")
        one_R = row_R[:1]
        alone = _drawn(self.subject, plan, one_R, many[:1] + 2**62, many[:1] + 2**20)
        same(alone.tolist(), [_FIRST], "drew from one id alone, with a large seed and position")

    def law_only_legal_ids_are_drawn(self, data: st.DataObject) -> None:
        """Each request gets an allowed id of the slice, even with extreme logits."""
        batch = _Batch(self, data)
        drawn_n = batch.draw()
        R, did = batch.logits_SR.shape[1], f"drew for {batch.n} requests"
        good = drawn_n.dtype == torch.int64 and drawn_n.shape == (batch.n,)
        holds(good, did, f"int64 [{batch.n}]", drawn_n)
        index_n = drawn_n - batch.first_id
        ids = f"ids {batch.first_id}..{batch.first_id + R - 1}, first_id and the {R - 1} after it"
        every(drawn_n, (index_n >= 0) & (index_n < R), did, ids)
        allowed_n = batch.allowed_nR.gather(1, index_n[:, None])[:, 0]
        every(drawn_n, allowed_n, did, "ids that allowed_nR allows")

    @presupposes(
        "only_legal_ids_are_drawn",
        "global_generators_are_left_alone",
        "inputs_are_not_written_to",
        "equal_draws_are_equal_and_seeds_matter",
    )
    def law_a_draw_does_not_depend_on_its_place(self, data: st.DataObject) -> None:
        """A request draws the same alone as in a batch, with each of many seeds.

        Alone, its rows are elsewhere, its slice is cut to the relevant ids, and there are no columns for
        requests with more streams.
        """
        batch = _Batch(self, data)
        if data.draw(st.booleans(), label="unfiltered"):  # then all ids count
            batch.plans = tuple(_only(plan) for plan in batch.plans)
        place = data.draw(st.integers(0, batch.n - 1))
        rows_G, low = batch.rows(place), int(batch.allowed_nR[place].nonzero()[0])
        # one seed rarely reveals slightly wrong logits
        seed_k = batch.seed_n[place] + torch.arange(batch.num_seeds(_NUM_SEEDS))
        together_nk = batch.repeated(seed_k).draw().view(batch.n, len(seed_k))
        alone_k = self._alone(batch, place, rows_G, low, seed_k)
        did = f"drew for request {place} alone, and among {batch.n}"
        same(
            alone_k,
            together_nk[place],
            f"{did}, with {len(seed_k)} seeds",
            next_step="use only the row's own logits and allowed ids: the slice contains ids of other requests, as many "
            "as the batch needs, so its width must not matter",
        )
        one = self._alone(batch, place, rows_G, low, seed_k[:1])
        same(int(one[0]), int(batch.draw()[place]), f"{did}, with one seed")
        same(int(alone_k[0]), int(one[0]), f"{did}, with one seed and with {len(seed_k)}")

    def _alone(self, batch: _Batch, place: int, rows_G: Tensor, low: int, seed_k: Tensor) -> Tensor:
        """Return the ids that one request of a batch draws without the others, one per seed."""
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
        """The same seed and position draw the same id; many seeds do not all draw the same id."""
        many = torch.arange(64)
        self._check_spread_of("seeds", many, torch.zeros_like(many))

    def law_positions_matter(self) -> None:
        """A seed does not draw the same id at all of many positions."""
        many = torch.arange(64)
        self._check_spread_of("positions", torch.full_like(many, 7), many)

    def _check_spread_of(self, what: str, seed_n: Tensor, position_n: Tensor) -> None:
        """Draw from several distributions: equal draws are equal, and they differ for some distribution."""
        plan = _only(self.subject.plan("image"))
        generator = torch.Generator().manual_seed(0)
        found, greedy = [], isinstance(self.subject, StatefulSampler)
        for shape, num_ids in _SPREADS:
            row_R = shaped(shape, num_ids, generator)
            first, second = (_drawn(self.subject, plan, row_R, seed_n, position_n) for _ in "12")
            did = f"drew twice with each of 64 {what}, of a distribution that is {shape!r}"
            same(second, first, did)
            found.append(sorted(set((first - _FIRST).tolist())))
            # a threshold above all ids leaves only the likeliest
            greedy = greedy and found[-1] == [int(row_R.argmax())]
        holds(
            greedy or any(len(ids) > 1 for ids in found),
            f"drew with each of 64 {what} from {len(_SPREADS)} distributions",
            "not the same id for all",
            f"the same id for all: {shown([ids[0] for ids in found])}",
            next_step=f"draw by seed_n and position_n: other {what} draw other ids",
        )

    @presupposes("only_legal_ids_are_drawn")
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
        same(unmasked_n, masked_n, "drew without a mask, and with one of all True")

    def law_inputs_are_not_written_to(self, data: st.DataObject) -> None:
        """Logits, weights, masks, seeds and positions are unchanged, since the engine reuses them."""
        batch = _Batch(self, data)
        names = ("logits_SR", "stream_rows_nG", "weights_nG", "allowed_nR", "seed_n", "position_n")
        before = {name: getattr(batch, name).clone() for name in names}
        batch.draw()
        for name, old in before.items():
            did = f"drew, and looked at the {name} given"
            same(getattr(batch, name), old, did, next_step="change a copy")

    @presupposes("only_legal_ids_are_drawn")
    def law_temperature_zero_takes_the_largest_of_the_mix(self, data: st.DataObject) -> None:
        """At temperature 0, without plausibility, the id is the legal argmax of the weighted sum.

        The weights come from the call, not from the plan, whatever min-p and typical are.
        """
        batch = _Batch(self, data)
        others = {
            "min_p": data.draw(st.sampled_from([0.0, 0.5])),
            "typical_p": data.draw(st.sampled_from([1.0, 0.2])),
        }
        batch.plans = tuple(_only(plan, temperature=0.0, **others) for plan in batch.plans)
        for place, token in enumerate(batch.draw().tolist()):
            mixed_R = batch.mixed(place)
            # The order of summation may change the last bits: any id within rounding of the largest is
            # right.
            got, best = float(mixed_R[token - batch.first_id]), float(mixed_R.max())
            holds(
                got >= best - rounding(mixed_R),
                f"drew at temperature 0 with weights {batch.weights_nG[place].tolist()}",
                f"the id {batch.first_id + int(mixed_R.argmax())}, whose weighted sum is {best:.6g}",
                f"the id {token}, whose sum is {got:.6g}",
                where=f"request {place}",
            )

    @presupposes("only_legal_ids_are_drawn")
    def law_only_plausible_ids_are_drawn(self, data: st.DataObject) -> None:
        """An id outside the reference stream's plausible set is never drawn, whatever the mix."""
        batch = _Batch(self, data)
        kept = [batch.plausible(place) for place in range(batch.n)]
        for _ in range(8):  # an id that should be excluded may be rare
            for place, token in enumerate(batch.draw().tolist()):
                holds(
                    bool(kept[place][token - batch.first_id]),
                    f"drew by {batch.plans[place].filters}",
                    f"one of the {int(kept[place].sum())} plausible ids of the reference stream",
                    f"the id {token}",
                    where=f"request {place}",
                )
            batch.position_n = batch.position_n + 1

    @presupposes("only_legal_ids_are_drawn")
    def law_log_probabilities_are_those_of_its_draws(self, data: st.DataObject) -> None:
        """Log-probabilities, if the sampler returns them, are a distribution over allowed ids and match the draws.

        With the ids that the filters keep as an argument, the result is the same.
        """
        if not tells_log_probabilities(self.subject):
            return
        batch = _Batch(self, data)
        log_nR, did = batch.log_probabilities(None), "asked for log-probabilities of draws"
        shape = list(batch.allowed_nR.shape)
        good = list(log_nR.shape) == shape and log_nR.dtype == torch.float32
        holds(good, did, f"float32 {shape}", log_nR)
        gone_nR = batch.allowed_nR | (log_nR == -torch.inf)
        every(log_nR, gone_nR, did, "-inf for ids that are not allowed")
        sums_n = log_nR.exp().sum(dim=1)
        same(sums_n, torch.ones(batch.n), f"{did}, and summed probabilities", tolerance=1e-4)
        kept_nR = log_nR > -torch.inf
        told_nR = batch.log_probabilities(kept_nR)
        same(told_nR, log_nR, f"{did}, and again with kept_nR", tolerance=1e-4)
        many = batch.num_seeds(_MANY_SEEDS)
        drawn_nk = batch.repeated(batch.seed_n[0] + torch.arange(many)).draw()
        index_nk = drawn_nk.view(batch.n, many) - batch.first_id
        never = f"drew {many} times for each request, and looked at the ids' probabilities"
        every(index_nk, kept_nR.gather(1, index_nk), never, "above 0")
        share_nR = torch.zeros_like(log_nR).scatter_add_(
            1, index_nk, torch.full(index_nk.shape, 1 / many)
        )
        off_nR = share_nR - log_nR.exp()
        rarely = _RARELY_MORE * (_MANY_SEEDS / many) ** 0.5
        often = f"drew {many} times, and subtracted probabilities from how often each id came"
        every(off_nR, off_nR.abs() < rarely, often, f"at most {rarely:.2f}")

    @presupposes("only_legal_ids_are_drawn")
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
        for _ in range(8):  # an id that should be excluded may be rare
            for place, token in enumerate(batch.draw().tolist()):
                holds(
                    bool(kept[place][token - batch.first_id]),
                    f"drew by a plan with {name} {value} and temperature {temperature}",
                    f"one of the {int(kept[place].sum())} ids that {name} keeps",
                    f"the id {token}",
                    where=f"request {place}",
                    next_step="follow each request's plan, with its filters in the order of "
                    "cm3core.interfaces.Filters",
                )
            batch.position_n = batch.position_n + 1


def _numbers(config: Any) -> list[str]:
    """Return the keys of a config that hold numbers."""
    if not dataclasses.is_dataclass(config):
        return []
    names = [one.name for one in dataclasses.fields(config) if one.init]
    return [name for name in names if type(getattr(config, name)) in (int, float)]


def _start_alike(one: Sampler, other: Sampler) -> bool:
    """Whether two samplers' requests start with equal states: `draw` starts requests with its own state."""
    flat = [
        flat_state(each.initial_state(RequestStart())) if isinstance(each, StatefulSampler) else {}
        for each in (one, other)
    ]
    return flat[0].keys() == flat[1].keys() and all(
        torch.equal(value, flat[1][name]) for name, value in flat[0].items()
    )


def _as_its_bases(sampler: Sampler) -> Iterator[Sampler]:
    """Yield the sampler as an instance of each concrete base class, with the same attributes."""
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

    Stream rows are in any order, -1 after a request's last stream; weights are as a schedule might set
    them; plans cover both modalities, with a mask per request.
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
        sharing_only = sharing is not None
        if sharing is None:
            sharing = [sampler, *(other for other in others if sampler.draws_with(other))]
        self.plans: tuple[SamplingPlan, ...] = tuple(
            data.draw(st.sampled_from(sharing)).plan(data.draw(st.sampled_from(_MODALITIES)))
            for _ in range(self.n)
        )
        num_streams = [len(plan.streams) for plan in self.plans]
        S, R = (
            sum(num_streams),
            data.draw(_FEW_IDS if sharing_only else _FEW_IDS | st.sampled_from([40, 300])),
        )
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

    def num_seeds(self, most: int) -> int:
        """Return how many seeds laws try: fewer if there are many ids."""
        return most if self.logits_SR.shape[1] <= 12 else most // 4

    def repeated(self, seed_k: Tensor) -> _Batch:
        """Return the batch with each request repeated k times in a row, once per seed."""
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
        """Return the rows of a request's own G streams, int64 [G]."""
        return self.stream_rows_nG[place, : len(self.plans[place].streams)]

    def mixed(self, place: int) -> Tensor:
        """Return the weighted sum of a request's streams, float64 [R]; -inf for ids that are not allowed."""
        rows_G = self.rows(place)
        mixed_R = self.weights_nG[place, : len(rows_G)].double() @ self.logits_SR[rows_G].double()
        return mixed_R.masked_fill(~self.allowed_nR[place], -torch.inf)

    def plausible(self, place: int) -> Tensor:
        """Return the plausible ids as bool [R], as defined in `Filters`; includes ties and rounding at the threshold."""
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


#: First id of the slices used by `_drawn`.
_FIRST = 5


def _drawn(
    sampler: Sampler, plan: SamplingPlan, row_R: Tensor, seed_n: Tensor, position_n: Tensor
) -> Tensor:
    """Return the id that each seed and position draws from one distribution, the same in all streams."""
    n, G = len(seed_n), len(plan.streams)
    return sampler.draw(
        row_R.expand(G, -1).contiguous(),
        torch.arange(G).expand(n, G),
        torch.tensor([_weights(plan)] * n),
        (plan,) * n,
        first_id=_FIRST,
        allowed_nR=None,
        seed_n=seed_n,
        position_n=position_n,
    )


def _run(sampler: Sampler, plan: SamplingPlan, rows_SR: Tensor, modality: str) -> list[list[int]]:
    """Return the ids of 6 requests in a run of several draws, from their initial state."""
    n, G, T = 6, len(plan.streams), len(rows_SR)
    where = rows_SR.device
    seed_n, is_image = torch.arange(n, device=where), modality == "image"
    starts = [RequestStart(seed=seed, grid=GRID) for seed in range(n)]
    flat = [
        {name: value.to(where) for name, value in flat_state(sampler.initial_state(one)).items()}
        if isinstance(sampler, StatefulSampler)
        else {}
        for one in starts
    ]
    cells = GRID[0] * GRID[1] if is_image else 0
    state = DrawState(
        stacked(flat),
        grid=GRID,
        cell_n=torch.full((n,), -1, device=where),
        codes_nC=torch.full((n, cells), -1, device=where),
        drawn_nT=torch.full((n, T), -1, device=where),
    )
    for step in range(T):
        # streams that see less have other logits
        logits_GR = torch.stack([rows_SR[step].roll(7 * g) for g in range(G)])
        if is_image:
            state.cell_n.fill_(step)
        drawn_n = sampler.draw_with_state(
            logits_GR,
            torch.arange(G, device=where).expand(n, G),
            torch.tensor([_weights(plan)] * n, device=where),
            (plan,) * n,
            first_id=FIRST_ID,
            allowed_nR=None,
            seed_n=seed_n,
            position_n=torch.full((n,), step, device=where),
            state=state,
        )
        state.drawn_nT[:, step] = drawn_n
        if is_image:
            state.codes_nC[:, step] = drawn_n - FIRST_ID
    ids: list[list[int]] = (state.drawn_nT - FIRST_ID).tolist()
    return ids


def _check_plan(plan: SamplingPlan) -> None:
    did = "looked at a plan"
    holds(plan.streams, did, "at least one stream", "none")
    number = len(plan.streams)
    holds(0 <= plan.reference < number, f"{did}: reference", f"0..{number - 1}", plan.reference)
    for stream in plan.streams:
        holds(math.isfinite(stream.weight), did, "finite weights", stream.weight)
    if (schedule := plan.schedule) is not None:
        at = f"{did}: its schedule"
        ordered = 0 <= schedule.start <= schedule.stop <= 1
        holds(ordered, at, "0 <= start <= stop <= 1", f"{schedule.start} and {schedule.stop}")
        holds(schedule.ramp in _RAMPS, at, f"a ramp of {', '.join(_RAMPS)}", schedule.ramp)
        shares = [schedule.share(step / 64) for step in range(65)]
        holds(all(0 <= one <= 1 for one in shares), at, "shares in 0..1", shares)


def _variants(plan: SamplingPlan) -> list[object]:
    return [stream.variant for stream in plan.streams]


def _weights(plan: SamplingPlan, share: float = 1.0) -> list[float]:
    """Return the streams' weights at a schedule's share of the guidance."""
    return [
        (1 - share) * (index == plan.reference) + share * stream.weight
        for index, stream in enumerate(plan.streams)
    ]


def _only(plan: SamplingPlan, **filters: Any) -> SamplingPlan:
    """Return the plan with only these filters; all others, including the sampler's own, are off."""
    return dataclasses.replace(plan, filters=type(plan.filters)(**filters))


# The ids kept by each filter of `Filters`, by definition. Legend: R ids of the legal slice.


def kept_ids(name: str, value: float, scores_R: Tensor) -> Tensor:
    """Return the ids kept by one filter, bool [R]; includes ties and rounding at the threshold."""
    slack, legal_R = rounding(scores_R), scores_R > -torch.inf
    if name == "top_k":
        return (
            scores_R
            >= scores_R.sort(descending=True).values[min(int(value), int(legal_R.sum())) - 1]
            - slack
        )
    if name == "min_p":
        return scores_R >= scores_R.max() + math.log(value) - slack
    probability_R, surprise_R = scores_R.softmax(0), -scores_R.log_softmax(0)
    cost_R = surprise_R  # order of inclusion: the most probable, or the most typical first
    if name == "typical_p":
        cost_R = (surprise_R - (probability_R * surprise_R.masked_fill(~legal_R, 0.0)).sum()).abs()
    nearer_RR = cost_R[None] < cost_R[:, None] - slack
    return legal_R & ((nearer_RR * probability_R).sum(dim=1) < value + 1e-6)


def rounding(values_R: Tensor) -> float:
    """Return the maximum rounding error of a float32 sum of such values."""
    return 1e-6 * (1 + float(values_R[values_R > -torch.inf].abs().max()))
