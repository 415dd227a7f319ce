"""Captured steps draw the same tokens as ordinary steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cm3core.document import Codes, ImageHole, MaskedText, Text, TextHole
from cm3plugins.decoders.cm3leon.model import CM3LeonDecoder
from cm3plugins.samplers.cfg import CFGSamplerConfig, TopPSamplerConfig
from cm3run.generation.engine import Finished, Request, TextGrown
from engine_parts import (
    APPLE,
    GRID,
    PEAR,
    REQUESTS,
    VOCABULARY,
    WARM,
    make_decoder,
    make_engine,
)


class ReplayedDecoder(CM3LeonDecoder):
    """Allows capturing on the CPU, where attention reads lengths on the host.

    A replay runs the whole step again.
    """

    def for_inference(self, precision: str = "auto"):
        arranged = super().for_inference(precision)
        arranged.on_cpu = False
        arranged.layout = replace(arranged.layout, on_cpu=False)
        return arranged


#: Weights that differ from draw to draw.
RISING = CFGSamplerConfig(guidance_scale=2.0, guidance_ramp="up", temperature=0.9)


def replaying(decoder, **options):
    """An engine whose captured work is run again by the CPU, and a list of what it captures."""
    replayed = ReplayedDecoder(decoder.config, VOCABULARY.size, decoder.backend, GRID)
    replayed.load_state_dict(decoder.state_dict())
    captured = []

    def again(step):
        step()
        captured.append(step)
        return step

    engine = make_engine(replayed.eval(), RISING, **options)
    engine.capture = again
    return engine, captured


def test_captured_steps_draw_the_same(decoder):
    """A step reads the same tensors each time: run again, it draws the tokens of an ordinary step."""
    engine, captured = replaying(decoder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cm3run.generation.batch.FEWEST_STEPS", 1)
        asked = [
            replace(REQUESTS[place], seed=seed) for place, seed in ((0, 1), (0, 2), (1, 3))
        ] + [Request((Text("a"), Codes(APPLE.codes, GRID, np.arange(6) >= 2)), seed=4)]
        found = engine.complete(asked)
    plain = make_engine(decoder, RISING).complete(asked)
    assert len(captured) >= 2  # once for all four, again when one has left
    assert [one.document for one in found] == [one.document for one in plain]
    assert [one.log_probability for one in found] == pytest.approx(
        [one.log_probability for one in plain], abs=1e-3
    )


#: Texts that end by their end token, a string, or their length, and after at least so many tokens.
TEXTS = [
    Request((PEAR, TextHole(40))),
    Request((Text("a cab"), TextHole(30, stop=("ab", "i")))),
    Request((TextHole(24, min_tokens=20), APPLE)),
    Request((PEAR, TextHole(28, min_tokens=3))),
]


def told(engine, asked):
    """Completions and the pieces of text of each request, joined; and how many steps these took."""
    session, steps = engine.open(), 0
    for request in asked:
        session.submit(request)
    found, texts = {}, [""] * len(asked)
    while session.busy:
        steps += 1
        for event in session.step():
            if isinstance(event, Finished):
                found[event.request] = event.completion
            elif isinstance(event, TextGrown):
                texts[event.request] += event.text
    return [found[place] for place in range(len(asked))], texts, steps


#: Hot, so that texts end.
HOT = {
    "guided": replace(RISING, text_guidance_scale=1.5, text_temperature=30.0).build(),
    "plain": TopPSamplerConfig(text_top_p=1.0, text_temperature=6.0).build(),
}


@pytest.mark.parametrize("sampler", HOT.values(), ids=HOT)
def test_captured_texts_are_the_same(decoder, sampler):
    """Drawn ahead and read later: what is drawn after the end of a text is dropped, and not counted."""
    engine, captured = replaying(decoder)
    asked = [replace(one, seed=seed, sampler=sampler) for one in TEXTS for seed in range(3)]
    found, texts, steps = told(engine, asked)
    plain, expected, plain_steps = told(make_engine(decoder), asked)
    assert captured
    assert steps < plain_steps / 2
    assert texts == expected
    for one, other in zip(found, plain, strict=True):
        assert (one.document, one.ends, one.num_tokens) == (
            other.document,
            other.ends,
            other.num_tokens,
        )
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-3)
    assert {end for one in found for end in one.ends} == {"end", "stop", "length"}


def test_texts_before_other_holes_and_after_leads_are_not_drawn_ahead(decoder):
    """What is drawn after their end could not be dropped with the request."""
    engine, captured = replaying(decoder)
    parts = [
        Request((TextHole(20), ImageHole())),
        Request((MaskedText(("a ", TextHole(20), " b", TextHole(20))), PEAR)),
    ]
    asked = [replace(one, seed=seed) for one in parts for seed in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cm3run.generation.batch.FEWEST_STEPS", 99)
        found = engine.complete(asked)
    assert captured == []
    plain = make_engine(decoder, RISING).complete(asked)
    assert [one.document for one in found] == [one.document for one in plain]


def test_a_text_that_is_drawn_again_is_told_once(decoder):
    """After a failure, a request draws again what it had told, in steps that end there."""
    engine, _ = replaying(decoder)
    asked = [replace(TEXTS[3], seed=seed) for seed in range(2)]
    session = engine.open()
    for request in asked:
        session.submit(request)
    events = [event for _ in range(3) for event in session.step()]
    session._set_apart(list(session._batch.rows), RuntimeError("boom"))
    while session.busy:
        events += session.step()
    plain = make_engine(decoder, RISING).complete(asked)
    for place, other in enumerate(plain):
        own = [event for event in events if event.request == place]
        [done] = [event.completion for event in own if isinstance(event, Finished)]
        assert done.document == other.document
        assert "".join(event.text for event in own if isinstance(event, TextGrown)) == next(
            segment.text for segment in done.document if isinstance(segment, Text)
        )


@pytest.mark.parametrize("window", [2, 5, 40])
def test_captured_windows_draw_the_same(decoder, window):
    """A pass over a window is captured once for a batch, its draws included; a window longer than what is left of a
    picture stays as long, so that it is not captured again."""
    engine, captured = replaying(decoder, window=window)
    asked = [replace(REQUESTS[place], seed=seed) for place, seed in ((0, 1), (0, 2), (1, 3))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cm3run.generation.batch.FEWEST_STEPS", 0)
        found = engine.complete(asked)
    plain = make_engine(decoder, RISING).complete(asked)
    assert [one.document for one in found] == [one.document for one in plain]
    assert [one.log_probability for one in found] == pytest.approx(
        [one.log_probability for one in plain], abs=1e-3
    )
    windows = [one for one in captured if one.__qualname__.startswith("CapturedWindow")]
    assert 1 <= len(windows) <= len(asked), "once for each batch"


@pytest.mark.gpu
def test_cuda_graphs_draw_what_steps_draw(decoder):
    asked = [replace(request, seed=seed) for seed in range(2) for request in REQUESTS]
    engines = [make_engine(make_decoder().cuda(), WARM) for _ in range(2)]
    engines[1].capture = None
    graphs, plain = (engine.complete(asked) for engine in engines)
    assert [one.document for one in graphs] == [one.document for one in plain]


@pytest.mark.gpu
@pytest.mark.parametrize("window", [4, 16])
def test_cuda_graphs_of_windows_draw_what_steps_draw(decoder, window):
    asked = [replace(request, seed=seed) for seed in range(2) for request in REQUESTS]
    graphs = make_engine(make_decoder().cuda(), WARM, window=window).complete(asked)
    plain = make_engine(make_decoder().cuda(), WARM).complete(asked)
    assert [one.document for one in graphs] == [one.document for one in plain]
