"""The server draws in two threads at once: every bundled sampler draws there what it draws alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cm3core.document import ImageHole, Text
from cm3core.interfaces import ModelParts
from cm3core.plugins import load_registry
from cm3kits._threads import at_once
from cm3kits.tiny import example_parts
from cm3run.generation.engine import Request
from cm3run.model import AsyncEngine
from engine_parts import GRID, REQUESTS, VOCABULARY, make_decoder, make_engine

#: Different documents, and one document several times, as of candidates.
ASKED = [
    *REQUESTS,
    *(Request((Text("a cab"), ImageHole()), seed=seed) for seed in range(4)),
]
#: With what they do more of.
KEYS = {"patch_knn": {"share": 0.6}, "mixture": {"cd_k_share": 0.4}}


@pytest.fixture(scope="module")
def decoder():
    return make_decoder()


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelParts:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    known = example_parts(
        grid=GRID, num_codes=len(VOCABULARY.image), first_code=VOCABULARY.image.start
    )
    return ModelParts(known.image_tokenizer, VOCABULARY, lambda: known.memory)


@pytest.mark.parametrize("name", load_registry().names("sampler"))
def test_two_sessions_draw_what_one_draws(name: str, decoder, parts: ModelParts) -> None:
    sampler = load_registry().config_class("sampler", name)(**KEYS.get(name, {})).build_for(parts)
    asked = [replace(one, sampler=sampler) for one in ASKED]
    alone = [make_engine(decoder, sampler).complete([one])[0] for one in asked]

    async def main():
        engine = make_engine(decoder, sampler, max_rows=40)
        async with AsyncEngine(engine, num_sessions=2) as coroutines:
            return await asyncio.gather(*map(coroutines.complete, asked))

    done = asyncio.run(main())
    assert [one.document for one in done] == [one.document for one in alone]
    assert [one.log_probability for one in done] == pytest.approx(
        [one.log_probability for one in alone], abs=1e-4
    )


@pytest.mark.parametrize("name", load_registry().names("sampler"))
def test_two_threads_build_one(name: str, parts: ModelParts) -> None:
    """Two first requests of a sampler come at once; what it opens is opened once."""
    config = load_registry().config_class("sampler", name)()
    one, other = at_once(*[partial(config.build_for, parts)] * 2)
    assert one.plan("image") == other.plan("image")
    assert one.draws_with(other)
