"""A failed draw affects only its request, and its error names the sampler."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cm3core.errors import GenerationError
from cm3plugins.samplers.cfg import TopPSamplerConfig
from cm3run.generation.engine import Engine
from engine_parts import REQUESTS, SERIALIZER, VOCABULARY, WARM, Failing, boom, make_engine
from messages import tells

BREAKS = "request 1, engine_parts.Failing: breaks the law 'only_legal_ids_are_drawn': it drew"
REPORT = "  next: update the plugin, or report it to its author; `cm3 plugin check` tests all laws"


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (
            boom,
            "request 1: RuntimeError: boom ... CM3_TRACEBACK=1",
        ),
        (
            lambda tokens, seed_n: tokens.float(),
            f"{BREAKS} torch.float32 [1], not int64 [1]\n{REPORT}",
        ),
        (
            lambda tokens, seed_n: None,
            f"{BREAKS} NoneType, not int64 [1]\n{REPORT}",
        ),
    ],
)
def test_a_sampler_that_fails_for_one_request_fails_that_one(decoder, fails, message):
    sampler = Failing(WARM.build(), fails)
    asked = [
        replace(REQUESTS[place], seed=seed) for place, seed in ((0, 1), (0, 3), (1, 2), (4, 5))
    ]
    found = make_engine(decoder, sampler).complete(asked, on_error="return")
    expected = make_engine(decoder, WARM).complete(asked)
    assert isinstance(found[1], GenerationError)
    assert tells(found[1], message)
    assert [found[place].document for place in (0, 2, 3)] == [
        expected[place].document for place in (0, 2, 3)
    ]
    with pytest.raises(GenerationError) as error:
        make_engine(decoder, sampler).complete(asked)
    assert tells(error.value, message)
    assert error.value.__cause__ is not None


def test_an_illegal_id_fails_its_request_alone(decoder):
    def illegal(tokens, seed_n):
        return torch.where(seed_n == 3, 10**9, tokens)

    asked = [replace(REQUESTS[0], seed=seed) for seed in (1, 3, 2)]
    found = make_engine(decoder, Failing(WARM.build(), illegal)).complete(asked, on_error="return")
    expected = make_engine(decoder, WARM).complete([asked[0], asked[2]])
    assert [found[0].document, found[2].document] == [one.document for one in expected]
    assert tells(found[1], "request 1, sampler: drew <unused:1000000000> instead of image")


def test_a_sampler_that_draws_an_illegal_id_is_named(decoder):
    bad = TopPSamplerConfig().build()
    bad.draw = lambda logits_SR, rows, *_, **__: torch.full((len(rows),), VOCABULARY.break_)
    with pytest.raises(GenerationError, match="sampler: drew <break> instead of image"):
        Engine(decoder, SERIALIZER, bad, VOCABULARY).complete([REQUESTS[0]])
