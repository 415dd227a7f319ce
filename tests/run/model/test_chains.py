"""Chains side by side: one that fails ends alone."""

from __future__ import annotations

import pytest

from cm3run.generation.engine import Failed
from cm3run.model.jobs import Done, Step, run_chains
from engine_parts import REQUESTS, WARM, make_decoder, make_engine


def chain(raised=None):
    completion = yield Step(REQUESTS[0], 0)
    if raised is not None:
        raise raised
    return completion


@pytest.mark.parametrize(
    ("raised", "cause"),
    [
        (SystemExit(0), "SystemExit: 0"),
        (GeneratorExit(), "GeneratorExit"),
        (RuntimeError("own"), "RuntimeError: own"),
        (StopIteration(), "RuntimeError: generator raised StopIteration"),
    ],
)
def test_a_chain_that_raises_leaves_the_others(raised, cause):
    engine = make_engine(make_decoder(), WARM)
    ends = {one.request: one for one in run_chains(engine, [chain(), chain(raised), chain()])}
    assert isinstance(ends[1], Failed)
    assert ends[1].error.cause == cause
    alone = make_engine(make_decoder(), WARM).complete([REQUESTS[0]])[0]
    for number in (0, 2):
        assert isinstance(ends[number], Done)
        assert ends[number].result.document == alone.document
