"""A process that serves requests does not grow with their number."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3run.generation.prepare import NUM_PLANS
from engine_parts import REQUESTS, make_decoder, make_engine

SCRIPT = Path(__file__).parents[2] / "fixtures" / "many_requests.py"


@pytest.mark.slow
def test_an_engine_forgets_the_samplers_of_its_requests() -> None:
    """Each call of a model makes its own, which may hold tensors."""
    settings = CFGSamplerConfig(guidance_scale=2.0)
    engine = make_engine(make_decoder(), settings)
    made = []
    for seed in range(3 * NUM_PLANS):
        sampler = settings.build()
        made.append(weakref.ref(sampler))
        assert engine.fits(type(REQUESTS[0])(REQUESTS[0].document, seed=seed, sampler=sampler))
    del sampler
    gc.collect()
    assert sum(reference() is not None for reference in made) <= NUM_PLANS
    assert engine.batch_size > 0, "the engine's own sampler is known whatever came between"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], marks=pytest.mark.extended),
        pytest.param(["--async"], marks=pytest.mark.slow),
    ],
    ids=["sync", "async"],
)
def test_thousands_of_requests_leave_resident_memory_flat(options: list[str]) -> None:
    shown = subprocess.run(
        [sys.executable, SCRIPT, "2000", *options], capture_output=True, text=True, check=True
    ).stdout
    curve = [float(line.split()[1]) for line in shown.splitlines()]
    assert len(curve) == 21
    assert curve[-1] - curve[5] < 12, f"MiB at every hundredth request: {curve}"
