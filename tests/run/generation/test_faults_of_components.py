"""Components that raise whatever Python can raise: the requests that they were asked for fail, and no others."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.document import ImageHole, Text, TextHole
from cm3core.errors import CM3Error
from cm3core.interfaces import Sampler
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3plugins.samplers.planned import PlannedSampler
from cm3run.generation.engine import Failed, Finished, PictureGrown, TextGrown, TokensDrawn
from engine_parts import REQUESTS, SERIALIZER, WARM, make_engine
from profiles import examples


class Unreadable(Exception):
    def __str__(self):
        raise SystemExit("no text")


class Incomplete(CM3Error):
    def __init__(self):
        Exception.__init__(self)  # without place, cause and next step


class OwnBase(BaseException):
    pass


#: Raised by a component: the request's error says this of it.
RAISED = {
    "SystemExit: 3": lambda: SystemExit(3),
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "OwnBase: own": lambda: OwnBase("own"),
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "CancelledError": asyncio.CancelledError,
    "RecursionError: deep": lambda: RecursionError("deep"),
    "MemoryError": MemoryError,
    "RuntimeError: CUDA error: an illegal memory access": lambda: RuntimeError(
        "CUDA error: an illegal memory access"
    ),
    "Unreadable (its text can't be read: SystemExit)": Unreadable,
    "Incomplete": Incomplete,
}
SEEDS = range(5)


class Raising(PlannedSampler):
    """Draws as its base does, and raises for the seed 3 after so many draws, having spoilt what it was given."""

    def __init__(self, raised, after=2):
        super().__init__({one: WARM.build().plan(one) for one in ("text", "image")})
        self.raised, self.after = raised, after

    def draws_with(self, other):
        return type(other) is type(self)

    def draw(self, logits_SR, stream_rows_nG, weights_nG, plans, **call):
        wrong = (call["seed_n"] == 3) & (call["position_n"] >= self.after)
        if wrong.any():
            given = (logits_SR, stream_rows_nG, weights_nG, *call.values())
            for spoilt in (one for one in given if isinstance(one, torch.Tensor)):
                spoilt.zero_()
            raise self.raised()
        return super().draw(logits_SR, stream_rows_nG, weights_nG, plans, **call)


def in_a_thread(function):
    """The result of a function in another thread: on the main one, a KeyboardInterrupt is the user's."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(60)


def completed(session, requests):
    """What became of requests in one session, by their places, and all of their events."""
    numbers = [session.submit(one) for one in requests]
    events = list(session.events())
    ends = {one.request: one for one in events if isinstance(one, (Finished, Failed))}
    return [ends[number] for number in numbers], events


@pytest.fixture(scope="module")
def alone(decoder):
    """What requests draw one by one, by document and seed."""
    return {
        (place, seed): make_engine(decoder, WARM).complete([replace(REQUESTS[place], seed=seed)])[0]
        for place in (0, 4)
        for seed in SEEDS
    }


@pytest.mark.parametrize("said", RAISED)
def test_what_a_draw_raises_ends_its_request_alone(decoder, alone, said):
    sampler = Raising(RAISED[said])
    places = [(place, seed) for place, seed in alone for _ in range(2)]
    asked = [
        replace(REQUESTS[place], seed=seed, sampler=own)
        for place, seed in alone
        for own in (sampler, None)
    ]
    ends, _ = in_a_thread(lambda: completed(make_engine(decoder, WARM).open(), asked))
    for request, end, own in zip(asked, ends, map(alone.get, places), strict=True):
        if request.sampler is sampler and request.seed == 3:
            assert isinstance(end, Failed)
            assert end.error.place == f"request {end.request}"
            assert end.error.cause == said
        else:
            assert end.completion.document == own.document
            assert end.completion.num_tokens == own.num_tokens


class Broken:
    """An inference decoder that raises when it reads a token in a batch: which request did it, nobody can tell."""

    def __init__(self, inner, raised, token, at):
        self.inner, self.raised, self.token, self.at = inner, raised, token, at
        self.calls = 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def hidden_states(self, tokens_BT, **options):
        self.calls += 1
        hidden_BTE = self.inner.hidden_states(tokens_BT, **options)
        if (tokens_BT == self.token).any() and self.calls >= self.at:
            raise self.raised()
        return hidden_BTE


def breaking(decoder, raised, token, at=0, **options):
    """An engine of such a decoder."""
    engine = make_engine(decoder, WARM, **options)
    engine.inference = engine.preparer.inference = Broken(engine.inference, raised, token, at)
    return engine


def told_of(events, number):
    """The tokens and pieces of text of a request, in order, and how its pictures grew."""
    own = [event for event in events if event.request == number]
    tokens = [event.tokens.tolist() for event in own if isinstance(event, TokensDrawn)]
    texts = [(event.segment, event.text) for event in own if isinstance(event, TextGrown)]
    grown = [event for event in own if isinstance(event, PictureGrown)]
    return list(itertools.chain(*tokens)), texts, grown


def ids_in(engine, request):
    """Ids of a request's prompts."""
    row = engine.preparer.prepare(0, request)
    return {int(token) for prompt in row.prompts for token in prompt.tokens}


@pytest.mark.parametrize("raised", [SystemExit, RuntimeError, GeneratorExit, MemoryError])
def test_a_step_that_fails_for_nobody_knows_whom_is_done_again_apart(decoder, raised):
    """One of seven prompts breaks the decoder: six are completed as they are alone."""
    poisoned = replace(REQUESTS[0], document=(Text("a jab"), ImageHole()))
    pictures = [REQUESTS[0], REQUESTS[1], REQUESTS[3]]  # what draws texts may draw any letter
    asked = [*pictures, poisoned, *(replace(one, seed=5) for one in pictures)]
    plain = make_engine(decoder, WARM)
    others = set.union(*(ids_in(plain, one) for one in pictures))
    [token] = ids_in(plain, poisoned) - others
    engine = breaking(decoder, raised, token)
    session = engine.open()
    ends, events = in_a_thread(lambda: completed(session, asked))
    assert isinstance(ends[3], Failed)
    assert ends[3].error.cause == raised.__name__
    for place, request in enumerate(asked):
        if place != 3:
            own, told = completed(make_engine(decoder, WARM).open(), [request])
            assert ends[place].completion.document == own[0].completion.document
            assert told_of(events, place)[:2] == told_of(told, 0)[:2]
    assert not session.busy
    assert session.num_rows == 0


@settings(max_examples=examples(6))
@given(
    asked=st.lists(st.sampled_from(REQUESTS), min_size=2, max_size=6),
    token=st.integers(4, 14),
    at=st.integers(0, 12),
    cancelled=st.none() | st.integers(0, 5),
)
def test_events_are_told_once_whatever_is_drawn_again(decoder, asked, token, at, cancelled):
    """Every request that finishes has the tokens, texts and pictures that it has alone, each told once."""
    asked = [replace(one, seed=place) for place, one in enumerate(asked)]
    session = breaking(decoder, OwnBase, token, at).open()
    numbers = [session.submit(one) for one in asked]
    events = list(session.step())
    if cancelled is not None and cancelled < len(asked):
        session.cancel(cancelled)
    events += session.events()
    assert session._batch.rows == []
    ends = [one for one in events if not isinstance(one, (TokensDrawn, TextGrown, PictureGrown))]
    assert sorted(one.request for one in ends) == numbers
    for end in ends:
        own, told = completed(make_engine(decoder, WARM).open(), [asked[end.request]])
        expected, drawn = told_of(told, 0), told_of(events, end.request)
        if isinstance(end, Finished):
            assert end.completion.document == own[0].completion.document
            assert drawn[0] == expected[0]
            assert "".join(text for _, text in drawn[1]) == "".join(text for _, text in expected[1])
            left = {}
            for grown in drawn[2]:
                missing = grown.codes.missing
                assert missing.sum() < left.get(grown.segment, missing.size)
                left[grown.segment] = missing.sum()
                final = end.completion.document[grown.segment].codes
                assert (grown.codes.codes[~missing] == final[~missing]).all()
            assert not any(left.values())
        else:
            assert drawn[0] == expected[0][: len(drawn[0])]


def test_a_text_tokenizer_that_fails_costs_its_request(decoder, monkeypatch):
    """A text that can't be decoded: the picture beside it is finished."""
    engine = make_engine(decoder, WARM)
    whole = SERIALIZER.text_tokenizer.decode

    def decode(ids):
        raise SystemExit

    asked = [replace(REQUESTS[6], document=(REQUESTS[6].document[0], TextHole(4))), REQUESTS[0]]
    alone = engine.complete([asked[1]])[0]
    monkeypatch.setattr(SERIALIZER.text_tokenizer, "decode", decode)
    ends, _ = in_a_thread(lambda: completed(engine.open(), asked))
    assert ends[0].error.cause == "SystemExit"
    assert ends[1].completion.document == alone.document
    monkeypatch.setattr(SERIALIZER.text_tokenizer, "decode", whole)


def test_a_users_interrupt_still_interrupts(decoder):
    """On the main thread a KeyboardInterrupt is a user's Ctrl-C."""
    assert threading.current_thread() is threading.main_thread()
    sampler = Raising(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        make_engine(decoder, WARM).complete([replace(REQUESTS[0], seed=3, sampler=sampler)])


def test_a_decoder_that_no_longer_works_ends_the_session(decoder):
    """A lost device: nothing can be drawn again."""
    engine = breaking(decoder, lambda: RuntimeError("lost"), 0)
    engine.inference.token = -1
    session = engine.open()
    session.submit(REQUESTS[0])

    def lost(*_, **__):
        raise RuntimeError("lost")

    engine.inference.hidden_states = lost
    with pytest.raises(RuntimeError, match="lost"):
        session.step()


class Louder(PlannedSampler):
    """A subclass that draws in another way, and has its base's `draws_with`."""

    def draw(self, *tables, seed_n, **call):
        return super().draw(*tables, seed_n=seed_n ^ 1, **call)


class Claiming(Louder):
    """One that says that it draws for all."""

    def draws_with(self, other):
        return True


class Mute(Louder):
    """One that can't say."""

    def draws_with(self, other: Sampler) -> bool:
        raise SystemExit


@pytest.mark.parametrize("kind", [Louder, Claiming, Mute])
@pytest.mark.parametrize("first", [True, False])
def test_a_plugins_subclass_draws_for_no_neighbour(decoder, kind, first):
    plans = {one: WARM.build().plan(one) for one in ("text", "image")}
    plain = [
        replace(REQUESTS[0], seed=seed, sampler=own)
        for seed in range(2)
        for own in (None, CFGSamplerConfig(guidance_scale=3.0).build())
    ]
    own = replace(REQUESTS[0], seed=7, sampler=kind(plans))
    asked = [own, *plain] if first else [*plain, own]
    done = make_engine(decoder, WARM).complete(asked)
    for request, completion in zip(asked, done, strict=True):
        assert completion.document == make_engine(decoder, WARM).complete([request])[0].document
