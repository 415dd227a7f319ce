"""Several codes a step: the tokens are those of one a step, in fewer forwards.

Legend: n requests, w positions a step, S stream rows, E model dimension.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import nn

from cm3core.document import Codes, Document, ImageHole, Text
from cm3core.errors import GenerationError
from cm3core.sequence.serialize import Serializer
from cm3plugins.attention import SDPAAttentionConfig
from cm3plugins.decoders.cm3leon import CM3LeonConfig
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from cm3plugins.samplers.cfg import CFGSamplerConfig, TopPSamplerConfig
from cm3plugins.samplers.contrastive import CDKSamplerConfig
from cm3run.generation.engine import (
    Engine,
    EngineOptions,
    PictureGrown,
    Request,
    candidates,
)
from cm3run.generation.jacobi import Acceptance, Ahead, Guesses
from engine_parts import (
    GRID,
    LETTERS,
    OTHERS,
    REQUESTS,
    WARM,
    Failing,
    LetterTokenizer,
    boom,
    make_decoder,
    make_engine,
    requests,
)
from messages import tells
from profiles import examples

DRAWING = [REQUESTS[0], REQUESTS[1], REQUESTS[3], REQUESTS[5]]
SAMPLERS = {
    **OTHERS,
    "contrastive": CDKSamplerConfig().build(),
    "scheduled": CFGSamplerConfig(
        guidance_scale=3.0, guidance_start=0.2, guidance_stop=0.7, guidance_ramp="up"
    ).build(),
}


@settings(max_examples=examples(8))
@given(st.lists(requests(), min_size=1, max_size=4), st.integers(2, 8) | st.just("auto"))
def test_tokens_are_those_of_one_at_a_time(decoder, asked, window):
    one_by_one = make_engine(decoder, WARM).complete(asked)
    ahead = make_engine(decoder, WARM, window=window).complete(asked)
    for expected, found in zip(one_by_one, ahead, strict=True):
        assert found.document == expected.document
        assert (found.num_tokens, found.ends) == (expected.num_tokens, expected.ends)
        assert found.log_probability == pytest.approx(expected.log_probability, abs=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_with_every_kind_of_guidance(decoder, name):
    asked = [replace(one, seed=seed, sampler=SAMPLERS[name]) for one in DRAWING for seed in (0, 1)]
    expected = [one.document for one in make_engine(decoder).complete(asked)]
    assert [one.document for one in make_engine(decoder, window=4).complete(asked)] == expected


def test_rows_that_are_full_and_candidates_of_one_prompt(decoder):
    """Few rows at a time: requests join while others are ahead of what counts."""
    asked = candidates(REQUESTS[1], 9)
    expected = [one.document for one in make_engine(decoder).complete(asked)]
    for max_rows in (2, 5):
        engine = make_engine(decoder, window=5, max_rows=max_rows)
        assert [one.document for one in engine.complete(asked)] == expected


@pytest.mark.parametrize("window", [2, 4, 8])
def test_partial_pictures_are_those_of_one_code_per_step(decoder, window):
    """After each row, also where a step draws codes of two."""

    def grown(window: int) -> list[Codes]:
        events = make_engine(decoder, WARM, window=window).stream([REQUESTS[0]])
        return [event.codes for event in events if isinstance(event, PictureGrown)]

    assert grown(window) == grown(1)
    assert [int(codes.missing.sum()) for codes in grown(window)] == [3, 0]


def indifferent() -> nn.Module:
    """A decoder whose logits are all 0: greedy pictures are of code 0, the first."""
    decoder = make_decoder()
    with torch.no_grad():
        decoder.head_weight().zero_()
    return decoder


class Counting:
    """An inference decoder that counts forwards."""

    def __init__(self, inner):
        self.inner, self.forwards = inner, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def hidden_states(self, *arguments, **options):
        self.forwards += 1
        return self.inner.hidden_states(*arguments, **options)

    def hidden_states_ahead(self, *arguments, **options):
        self.forwards += 1
        return self.inner.hidden_states_ahead(*arguments, **options)


@pytest.mark.parametrize(("window", "forwards"), [(1, 6), (2, 4), (3, 3), (6, 2), ("auto", 2)])
def test_forwards_by_hand(window, forwards):
    """A greedy picture of equal codes: the prompt's forward gives the first of six, and every guess is right. The
    second forward reads that code and w - 1 guesses, which gives w more."""
    decoder = indifferent()
    greedy = TopPSamplerConfig(temperature=0).build()
    counting = Counting(decoder.for_inference())
    serializer = make_engine(decoder).serializer
    engine = Engine(
        decoder,
        serializer,
        greedy,
        serializer.vocabulary,
        EngineOptions(window=window),
        inference=counting,
    )
    [done] = engine.complete([Request((Text("ab"), ImageHole()))])
    assert done.document[1] == Codes(np.zeros(6, np.int32), GRID)
    assert counting.forwards == forwards


def test_what_counts_by_hand():
    """Three requests and guesses of three codes: the first is right twice, the second never, the third has one guess,
    which is right, and room for one token."""
    ahead = Ahead(torch.zeros(3, 4, 1), np.array([[5, 6, 7], [5, 6, 7], [5, -1, -1]], np.int32))
    drawn = np.array([[5, 6, 9, 8], [6, 6, 7, 8], [5, 4, 3, 2]], np.int32)
    assert ahead.accepted(drawn, [6, 6, 6]) == [3, 1, 2]
    assert ahead.accepted(drawn, [6, 6, 1]) == [3, 1, 1]


def test_guesses_by_hand(decoder):
    """A picture of two rows of three codes, of which four are drawn: the next ones are what was drawn for them before,
    then as the cell above."""
    row = make_engine(decoder).preparer.prepare(0, Request((Text("ab"), ImageHole())))
    first = row.grammar.legal[0].start
    row.grammar.take(np.array([first + code for code in (3, 4, 5, 6)], np.int32))
    guesses = Guesses(window=8, columns=3)
    assert guesses.of(row, 2).tolist() == [
        first + 4
    ]  # one of the two that are left: the last is not fed
    guesses.keep(row, np.array([first + 6, first + 9, first + 10], np.int32), 1)
    assert guesses.of(row, 2).tolist() == [first + 9]
    assert guesses.of(row, 2).tolist() == [first + 4], "what was drawn is used once"
    assert Guesses(window=1, columns=3).of(row, 2).tolist() == []


def test_windows_of_auto_by_hand():
    """Eight steps of 16 codes, 4 accepted each: a power of 0.5, so the best window is that of as many rows as are at once."""
    assert Acceptance().best_window(num_rows=2, rows_at_once=30) == 15
    assert Acceptance().best_window(num_rows=2, rows_at_once=8) == 4
    # 2 ** 0.5 codes in (8 + 8) / (8 + 4) of the time gain 6%
    assert Acceptance().best_window(num_rows=4, rows_at_once=8) == 1
    assert Acceptance().best_window(num_rows=2, rows_at_once=0) == 1
    # a power of 0.35 takes the window of 0.4, and one of 0.2 none: 8 ** 0.2 codes in (24 + 16) / (24 + 2) of the time
    slow = Acceptance(steps=8, window=128, accepted=8 * 16**0.35)
    assert slow.best_window(num_rows=2, rows_at_once=24) == 8
    slow = Acceptance(steps=8, window=128, accepted=8 * 16**0.2)
    assert slow.best_window(num_rows=2, rows_at_once=24) == 1
    known = Acceptance(steps=1, window=16, accepted=12)
    known.add(window=16, accepted=16)
    assert (known.steps, known.window, known.accepted) == pytest.approx((1.95, 31.2, 27.4))
    assert known.best_window(num_rows=2, rows_at_once=30) == 16
    assert known.best_window(num_rows=32, rows_at_once=30) == 8, "a power of at most 0.9"


def test_auto_stops_where_no_guess_is_right(decoder):
    """And keeps nothing of requests that have left."""
    row = make_engine(decoder).preparer.prepare(0, Request((Text("ab"), ImageHole())))
    guesses = Guesses("auto", columns=3, rows_at_once=30)
    windows = [guesses.window(row, 2)]
    while windows[-1] > 1:
        guesses.keep(row, np.zeros(windows[-1], np.int32), 1)
        windows.append(guesses.window(row, 2))
    assert windows[0] == 15
    assert windows == sorted(windows, reverse=True)
    assert len(windows) < 32
    guesses.passed_over([row])
    assert guesses.window(row, 2) > 1, "behind a stretch of one by one it is tried again"
    del row
    gc.collect()
    assert not guesses._acceptance
    assert not guesses._drawn


def test_a_sampler_that_fails_costs_its_request_alone(decoder):
    engine = make_engine(decoder, Failing(WARM.build(), boom), window=4)
    asked = [replace(REQUESTS[0], seed=seed) for seed in (1, 2, 3, 4)]
    alone = [make_engine(decoder, WARM).complete([one])[0].document for one in asked]
    found = list(engine.complete(asked, on_error="return"))
    failed = [isinstance(one, GenerationError) for one in found]
    assert failed == [False, False, True, False]
    assert [found[place].document for place in (0, 1, 3)] == [alone[0], alone[1], alone[3]]


def test_recorded_and_stateful_draws_come_one_by_one(decoder):
    """They look at each draw; nothing of theirs changes."""
    engine = make_engine(decoder, WARM, window=4)
    [expected] = make_engine(decoder, WARM).complete([REQUESTS[0]], record=True)
    [found] = engine.complete([REQUESTS[0]], record=True)
    assert found.document == expected.document
    assert np.array_equal(found.trace.raw, expected.trace.raw)


@pytest.mark.parametrize("window", [0, -1, 257])
def test_windows_that_cannot_be(decoder, window):
    with pytest.raises(GenerationError) as refused:
        make_engine(decoder, window=window)
    assert tells(refused.value, f"window: is {window} ... use 1 to 256, or 'auto'")


@torch.inference_mode()
def probabilities(decoder, serializer: Serializer, document: Document, plan) -> np.ndarray:
    """The probability of each picture, of codes 0 and 1 in raster order as digits: multiplied out of the decoder's
    logits, without a cache."""
    grid_size, start = serializer.num_codes, serializer.vocabulary.image.start
    found = np.ones(2**grid_size)
    pictures = np.array(list(product(range(2), repeat=grid_size)))
    mixed_Nc2 = torch.zeros(len(pictures), grid_size, 2, dtype=torch.float64)
    for stream in plan.streams:
        prompt = serializer.prompt(document, (), stream.variant)
        begun = np.broadcast_to(prompt.tokens, (len(pictures), len(prompt.tokens)))
        tokens = np.concatenate([begun, start + pictures[:, :-1]], axis=1)
        cells = np.concatenate([prompt.cells, np.arange(grid_size - 1)])
        hidden = decoder.hidden_states(
            torch.from_numpy(tokens).long(),
            cells_BT=torch.from_numpy(np.broadcast_to(cells, tokens.shape).copy()).long(),
        )
        logits = decoder.logits(hidden[:, len(prompt.tokens) - 1 :], serializer.vocabulary.image)
        mixed_Nc2 += stream.weight * logits.double()
    shares = mixed_Nc2.softmax(-1).numpy()
    for place in range(grid_size):
        found *= np.take_along_axis(shares[:, place], pictures[:, place : place + 1], axis=1)[:, 0]
    return found


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(12_000, marks=pytest.mark.slow),
        pytest.param(112_000, marks=pytest.mark.extended),
    ],
)
def test_many_draws_have_the_decoders_distribution(number):
    """Pictures of nine codes, each 0 or 1, with guidance: how often each of the 512 comes, by chi-square."""
    grid = (3, 3)
    vocabulary = CM3LeonVocabulary(num_text=4 + len(LETTERS), num_image=2, num_sentinels=8)
    serializer = Serializer(vocabulary, LetterTokenizer(), grid)
    torch.manual_seed(5)
    config = CM3LeonConfig(num_layers=1, d_model=16, num_heads=1, context_length=32)
    decoder = config.build(vocabulary, SDPAAttentionConfig().build(), grid).eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    sampler = CFGSamplerConfig(guidance_scale=1.5, top_p=1.0, plausible_top_p=1.0).build()
    engine = Engine(
        decoder, serializer, sampler, vocabulary, EngineOptions(max_rows=8192, window=6)
    )
    document = (Text("ab"), ImageHole())
    expected = number * probabilities(decoder, serializer, document, sampler.plan("image"))
    assert expected.sum() == pytest.approx(number)
    counted = np.zeros(512)
    for begin in range(0, number, 4000):
        asked = [Request(document, seed=seed) for seed in range(begin, begin + 4000)]
        for one in engine.complete(asked):
            counted[int("".join(map(str, one.document[1].codes)), 2)] += 1
    often = expected >= 5
    cells = [(np.append(of[often], of[~often].sum())) for of in (counted, expected)]
    statistic = ((cells[0] - cells[1]) ** 2 / cells[1]).sum()
    assert statistic < chi2.isf(1e-4, df=often.sum())
