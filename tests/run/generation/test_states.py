"""State of samplers in the engine: each request's own, whatever shares its batch."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from cm3core.document import Codes, ImageHole, Text
from cm3core.errors import GenerationError
from cm3core.interfaces import DrawState, RequestStart, StatefulSampler
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3run.generation.engine import Cancelled, Finished, Request, TokensDrawn, candidates
from cm3run.model import AsyncEngine
from engine_parts import APPLE, HOLED, REQUESTS, VOCABULARY, WARM, boom, make_engine
from messages import tells
from mirostat_plugin import MirostatConfig, MirostatSampler
from stateful_samplers import NextToNeighbours, Wrapper

MIROSTAT = MirostatConfig(target=1.0, rate=0.5, guidance_scale=2.0)


class Recording(Wrapper):
    """Keeps what each draw of each request was given, by (seed, position)."""

    def __init__(self, inner) -> None:
        super().__init__(inner)
        self.seen: dict[tuple[int, int], dict[str, Any]] = {}

    def for_candidate(self, index):
        return self

    def draw_with_state(self, *tables, state, seed_n, position_n, **call):
        before = {name: value.clone() for name, value in state.values().items()}
        drawn_n = super().draw_with_state(
            *tables, state=state, seed_n=seed_n, position_n=position_n, **call
        )
        for row, at in enumerate(zip(seed_n.tolist(), position_n.tolist(), strict=True)):
            assert (state.drawn_nT[row, at[1] :] == -1).all()
            self.seen[at] = {
                "before": {name: float(value[row]) for name, value in before.items()},
                "after": {name: float(value[row]) for name, value in state.values().items()},
                "cell": int(state.cell_n[row]),
                "codes": state.codes_nC[row].tolist(),
                "drawn": state.drawn_nT[row, : at[1]].tolist(),
                "token": int(drawn_n[row]),
            }
        return drawn_n


def recorded(decoder, asked, sampler=MIROSTAT):
    """What the draws of a batch were given, and the completions."""
    recording = Recording(sampler.build())
    return recording.seen, make_engine(decoder, recording).complete(asked)


def seeded(*places: int) -> list[Request]:
    return [replace(REQUESTS[place], seed=10 + number) for number, place in enumerate(places)]


def assert_same(one, other):
    """Equal, but for the last bits of a state: a batch's logits are not those of one row."""
    assert one.keys() == other.keys()
    for at, what in one.items():
        for name, value in what.items():
            expected = other[at][name]
            assert value == (pytest.approx(expected, abs=1e-3) if value else expected)


def test_mu_follows_the_surprise_by_hand():
    """Probabilities 1/2, 1/4, 1/8, 1/8 are 1, 2, 3 and 3 bits. With target 1 and rate 1/2, a mu
    of 2.01 leaves two ids; the second one makes it 2.01 - (2 - 1) / 2: only the first is left."""
    sampler = MirostatConfig(target=1.0, rate=0.5, guidance_scale=1.0).build()
    plan, n = sampler.plan("image"), 64
    state = DrawState(
        {"mu": torch.full((n,), 2.01, dtype=torch.float64)},
        grid=(1, 2),
        cell_n=torch.zeros(n, dtype=torch.int64),
        codes_nC=torch.full((n, 2), -1),
        drawn_nT=torch.full((n, 2), -1),
    )

    def draw(position):
        return sampler.draw_with_state(
            torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(),
            torch.zeros(n, 1, dtype=torch.int64),
            torch.ones(n, 1),
            (plan,) * n,
            first_id=30,
            allowed_nR=None,
            seed_n=torch.arange(n),
            position_n=torch.full((n,), position),
            state=state,
        )

    first = draw(0)
    assert set(first.tolist()) == {30, 31}
    assert state["mu"].tolist() == pytest.approx([2.01 if id_ == 30 else 1.51 for id_ in first])
    second = draw(1)
    assert set(second[first == 31].tolist()) == {30}
    assert set(second[first == 30].tolist()) == {30, 31}
    assert {round(mu, 6) for mu in state["mu"].tolist()} == {1.51, 2.01}


def test_mu_is_carried_from_draw_to_draw_of_each_request(decoder):
    asked = seeded(0, 5, 3)
    seen, found = recorded(decoder, asked)
    assert len(seen) == sum(one.num_tokens for one in found)
    for number, one in enumerate(found):
        mus = [seen[10 + number, position] for position in range(one.num_tokens)]
        assert mus[0]["before"] == {"inner.mu": 2.0}
        for former, later in pairwise(mus):
            assert later["before"] == former["after"]
    assert len({what["after"]["inner.mu"] for what in seen.values()}) > len(asked)


def test_a_state_is_the_same_alone_in_a_batch_and_late(decoder):
    asked = seeded(0, 1, 5, 3, 4)
    seen, found = recorded(decoder, asked)
    alone: dict[tuple[int, int], dict[str, Any]] = {}
    for request, expected in zip(asked, found, strict=True):
        own, [completion] = recorded(decoder, [request])
        alone |= own
        assert completion.document == expected.document
    assert_same(seen, alone)

    late = Recording(MIROSTAT.build())
    session = make_engine(decoder, late).open()
    for request in reversed(asked):
        session.submit(request)
        session.submit(replace(request, seed=request.seed + 100, sampler=WARM.build()))
        session.step()
    session.submit(replace(asked[0], seed=99))
    while session.busy:
        session.step()
    assert_same(seen, {at: what for at, what in late.seen.items() if at[0] < 90})


def test_candidates_are_requests_with_states_of_their_own(decoder):
    engine = make_engine(decoder, MIROSTAT)
    asked = candidates(seeded(0)[0], 4, engine.sampler)
    together, alone = engine.complete(asked), [engine.complete([one])[0] for one in asked]
    assert [one.document for one in together] == [one.document for one in alone]
    assert len({one.document[1].codes.tobytes() for one in together}) > 1


def test_a_state_has_the_codes_around_and_all_that_was_drawn(decoder):
    """Of a new picture, of one with given codes, of the second hole of a document."""
    asked = [
        Request((Text("ab"), ImageHole()), seed=1),
        Request((Text("had"), HOLED), seed=2),
        replace(REQUESTS[5], seed=3),  # text, picture, text, partial picture
    ]
    seen, _ = recorded(decoder, asked)
    tokens: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for event in make_engine(decoder, MIROSTAT).stream(asked):
        if isinstance(event, TokensDrawn):
            tokens[event.request] += event.tokens.tolist()
    given = np.where(HOLED.missing, -1, HOLED.codes)
    cells = {1: [*range(6)], 2: [1, 2, 4], 3: [-1, -1, -1, *range(6), 1, 2, 4]}
    for number, drawn in tokens.items():
        seed = number + 1
        picture = given.copy() if seed == 2 else np.full(6, -1)
        for position, token in enumerate(drawn):
            what = seen[seed, position]
            assert what["token"] == token
            assert what["drawn"] == drawn[:position]
            if what["cell"] == -1:
                assert what["codes"] == [-1] * 6
                continue
            if seed == 3 and what["cell"] == 1 and (picture >= 0).all():
                picture = given.copy()  # the second picture
            assert what["codes"] == picture.tolist()
            picture[what["cell"]] = token - VOCABULARY.image.start
        assert [seen[seed, at]["cell"] for at in range(len(drawn))][-6:] == cells[seed][-6:]


def test_a_cancelled_request_leaves_nothing_and_changes_nothing(decoder):
    asked = seeded(0, 1, 4)
    expected = make_engine(decoder, MIROSTAT).complete(asked)
    session = make_engine(decoder, MIROSTAT).open()
    numbers = [session.submit(request) for request in asked]
    state = weakref.ref(session.waiting[1].state)
    finished = {}
    for step in range(100):
        if step == 1:
            assert session.cancel(numbers[1])
            gc.collect()
            assert state() is None
        for event in session.step():
            assert not isinstance(event, Cancelled) or event.request == numbers[1]
            if isinstance(event, Finished):
                finished[event.request] = event.completion.document
        if not session.busy:
            break
    assert finished == {numbers[place]: expected[place].document for place in (0, 2)}


def test_states_end_with_their_requests(decoder):
    engine, kept = make_engine(decoder, MIROSTAT), []
    session = engine.open(details=False)
    for request in seeded(0, 3):
        session.submit(request)
    rows = session.waiting
    kept = [weakref.ref(row.state) for row in rows]
    while session.busy:
        session.step()
    gc.collect()
    assert [row.state for row in rows] == [None, None]
    assert [state() for state in kept] == [None, None]


def test_a_request_that_fails_does_not_move_the_states_of_others(decoder):
    class Fails(MirostatSampler):
        def draw_with_state(self, *tables, state, seed_n, **call):
            drawn_n = super().draw_with_state(*tables, state=state, seed_n=seed_n, **call)
            return boom(drawn_n, seed_n) if 11 in seed_n.tolist() else drawn_n

    asked = seeded(0, 0, 1)
    found = make_engine(decoder, Fails(MIROSTAT)).complete(asked, on_error="return")
    expected = make_engine(decoder, MIROSTAT).complete(asked)
    assert str(found[1]).startswith("request 1: RuntimeError: boom")
    assert [found[place].document for place in (0, 2)] == [
        expected[place].document for place in (0, 2)
    ]


def test_the_engine_of_coroutines_draws_the_same(decoder):
    asked = seeded(0, 1, 3, 5)
    expected = make_engine(decoder, MIROSTAT).complete(asked)

    async def main():
        async with AsyncEngine(make_engine(decoder, MIROSTAT, max_rows=5)) as engine:
            return await asyncio.gather(*map(engine.complete, asked))

    assert [one.document for one in asyncio.run(main())] == [one.document for one in expected]


@pytest.mark.parametrize("inner", [CFGSamplerConfig(guidance_scale=2.0), MIROSTAT])
def test_a_wrapped_sampler_draws_as_it_does_unwrapped(decoder, inner):
    asked = seeded(0, 4, 5)
    wrapped = make_engine(decoder, Wrapper(Wrapper(inner.build()))).complete(asked)
    plain = make_engine(decoder, inner).complete(asked)
    assert [one.document for one in wrapped] == [one.document for one in plain]


def test_a_sampler_that_looks_at_the_codes_around_is_the_same_in_any_batch(decoder):
    """Nearest neighbours of what surrounds the cell change pictures, and a batch changes nothing."""
    asked = seeded(0, 1, 3, 4, 5)
    inner = CFGSamplerConfig(guidance_scale=2.0)
    sampler = NextToNeighbours(inner.build())
    together = make_engine(decoder, sampler).complete(asked)
    alone = [make_engine(decoder, sampler).complete([request])[0] for request in asked]
    assert [one.document for one in together] == [one.document for one in alone]
    plain = make_engine(decoder, inner).complete(asked)
    assert [one.document for one in together] != [one.document for one in plain]


def test_codes_around_a_cell():
    state = DrawState(
        {},
        grid=(2, 3),
        cell_n=torch.tensor([4, 0, 5, -1]),
        codes_nC=torch.tensor([[0, 1, 2, 3, -1, -1]] * 4),
        drawn_nT=torch.zeros(4, 0, dtype=torch.int64),
    )
    found = state.codes_around([(0, -1), (-1, 0), (-1, 1), (1, 0)])
    assert found.tolist() == [[3, 1, 2, -1], [-1, -1, -1, 3], [-1, 2, -1, -1], [-1] * 4]


def test_states_of_other_forms_are_drawn_apart(decoder):
    """Samplers that say they share calls, but remember different things, don't."""

    class Long(MirostatSampler):
        def initial_state(self, request):
            return {**super().initial_state(request), "more": torch.zeros(request.seed % 3)}

    asked = [
        replace(request, sampler=sampler)
        for request, sampler in zip(
            seeded(0, 0, 0, 1), [Long(MIROSTAT), None, Long(MIROSTAT), None], strict=True
        )
    ]
    found = make_engine(decoder, MIROSTAT).complete(asked)
    expected = make_engine(decoder, MIROSTAT).complete(seeded(0, 0, 0, 1))
    assert [one.document for one in found] == [one.document for one in expected]


def test_a_state_starts_from_what_is_asked(decoder):
    starts = []

    class Starts(MirostatSampler):
        def initial_state(self, request):
            starts.append(request)
            return super().initial_state(request)

    make_engine(decoder, Starts(MIROSTAT)).complete(seeded(1))
    [start] = starts
    assert isinstance(start, RequestStart)
    assert start.seed == 10
    assert start.grid == APPLE.grid
    assert start.document == REQUESTS[1].document
    assert [type(document[1]) for document in start.retrieved] == [Codes, Codes]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, "has 'mu' as"),
        ({"": torch.zeros(1)}, "has the name ''\n  next: name it with a text without dots"),
    ],
)
def test_an_initial_state_that_cannot_be_is_refused_before_anything_is_drawn(
    decoder, value, message
):
    class Wrong(MirostatSampler):
        def initial_state(self, request):
            return {"mu": value}

    with pytest.raises(GenerationError) as error:
        make_engine(decoder, Wrong(MIROSTAT)).complete(seeded(0))
    assert tells(error.value, f"... {message}")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mu", torch.zeros(1, 3), "sets 'mu' to torch.float32 [1, 3] on cpu, but it started as "),
        ("nu", torch.zeros(1), "its state has no 'nu'\n  next: return it from `initial_state`; "),
    ],
)
def test_a_state_that_changes_its_form_fails_its_request(decoder, name, value, message):
    class Wrong(MirostatSampler):
        def draw_with_state(self, *tables, state, **call):
            state[name] = value
            return super().draw_with_state(*tables, state=state, **call)

    [error] = make_engine(decoder, Wrong(MIROSTAT)).complete(seeded(0), on_error="return")
    assert isinstance(error, GenerationError)
    assert f"request 0, sampler: {message}" in str(error)


def test_steps_with_a_state_are_not_captured(decoder):
    """A captured step would replay what the sampler made of one moment's state."""

    def capture(step):
        raise AssertionError("captured")

    engine = make_engine(decoder, MIROSTAT)
    engine.capture = capture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cm3run.generation.batch.FEWEST_STEPS", 1)
        patch.setattr("cm3plugins.decoders.cache.SegmentPool.can_be_recorded", True)
        assert len(engine.complete(seeded(0))) == 1


def test_a_sampler_with_a_state_draws_for_those_that_start(decoder):
    """`draw` alone is a request's first draw."""
    sampler = MIROSTAT.build()
    assert isinstance(sampler, StatefulSampler)
    G = len(sampler.plan("image").streams)
    drawn = sampler.draw(
        torch.zeros(G, 4),
        torch.arange(G)[None],
        torch.tensor([[2.0, -1.0]]),
        (sampler.plan("image"),),
        first_id=7,
        allowed_nR=None,
        seed_n=torch.tensor([1]),
        position_n=torch.tensor([0]),
    )
    assert 7 <= int(drawn) < 11
