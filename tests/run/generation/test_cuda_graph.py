"""Captured steps draw the same tokens as ordinary steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cm3core.document import Codes, Text
from cm3plugins.decoders.cm3leon.model import CM3LeonDecoder
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3run.generation.engine import Request
from engine_parts import APPLE, GRID, REQUESTS, VOCABULARY, WARM, make_decoder, make_engine


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
