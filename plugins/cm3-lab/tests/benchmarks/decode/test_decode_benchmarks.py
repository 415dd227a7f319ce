"""`cm3 bench decode`: who draws right is timed, and what a step must read is counted right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import CM3Error
from cm3lab.benchmarks.decode import baselines, engine, runner, workload
from cm3lab.benchmarks.decode.sizes import SIZES, Size
from cm3lab.benchmarks.decode.workload import Setup, decode_case
from cm3lab.benchmarks.kernels.ops.guided_sample import GUIDANCE
from cm3plugins.samplers.cfg import CFGSamplerConfig
from cm3run.benchmarks import BenchmarkRegistry, DecodeProvider
from cm3run.generation.engine import Engine, EngineOptions
from decode_bench import CPU, MINI, SETUP
from messages import tells


def test_bytes_of_a_step_by_hand() -> None:
    """Width 2, one layer, three codes: 32 weights in the layer, 6 in the head; two table rows of 2
    for each stream; a token is 4 numbers in the cache; prompts are 64 and 3 tokens."""
    size = Size("x", 1, 2, 1, 4, num_codes=3)
    one = {"batch": 1, "candidates": 1, "tokens": 3}
    assert workload.step_bytes(size, one, 1, 1, 1) == 46 + 4 * (67 + 2 * 1)
    assert workload.step_bytes(size, one, 1, 4, 2) == 4 * 46 + 2 * 4 * (67 + 2 * 1)
    assert workload.least_bytes(size, one, 1, 1) == (46 + (46 + 4 * 69) + (46 + 4 * 71)) / 3
    assert (
        workload.least_bytes(size, one | {"batch": 2, "tokens": 2}, 1, 1)
        == (54 + (54 + 4 * (134 + 4))) / 2
    )
    assert (
        workload.least_bytes(size, one | {"candidates": 2, "tokens": 2}, 1, 1)
        == (54 + (54 + 4 * (67 + 4))) / 2
    )
    assert decode_case(replace(SETUP, size=size), 3).num_bytes == 4 * (3 * 46 + 4 * (69 + 71))


@given(st.integers(1, 5000))
def test_grids_hold_exactly_the_tokens(tokens: int) -> None:
    rows, columns = workload.grid_of(tokens)
    assert rows * columns == tokens
    assert rows <= columns
    assert not any(tokens % between == 0 for between in range(rows + 1, int(tokens**0.5) + 1))


@given(st.lists(st.integers(1, 50), min_size=1, unique=True).map(sorted), st.integers(1, 20))
def test_a_thinned_curve_keeps_its_end_and_its_distance(tokens: list[int], distance: int) -> None:
    kept = [drawn for drawn, _ in runner.thinned([(drawn, 0.0) for drawn in tokens], distance)]
    assert kept[-1] == tokens[-1]
    assert all(b - a >= distance for a, b in zip([0, *kept], kept[:-1], strict=False))
    assert all(
        b - a < 2 * distance or b in kept
        for a, b in zip([0, *tokens], tokens, strict=False)
        if b - a >= distance
    )


def test_prompts_are_equally_long_and_unlike() -> None:
    case = decode_case(SETUP, 6, batch=8)
    texts = workload.prompts_of(case)
    assert len(set(texts)) == len({text[0:2] for text in texts}) == 8
    serializer = engine.RandomModel(SETUP).serializer(6)
    streams = [stream.variant for stream in engine.sampler().plan("image").streams]
    lengths = [
        [len(serializer.prompt(request.document, variant=variant)) for variant in streams]
        for request in engine.requests_of(case)
    ]
    assert lengths == [[workload.PROMPT_TOKENS, workload.UNCONDITIONAL_TOKENS]] * 8
    assert len(set(workload.prompts_of(decode_case(SETUP, 6, candidates=3)))) == 1
    assert (
        len({request.seed for request in engine.requests_of(decode_case(SETUP, 6, candidates=3))})
        == 3
    )


@pytest.mark.parametrize("name", SIZES)
def test_baselines_have_as_many_parameters_in_the_trunk(name: str) -> None:
    """Counted on modules without memory; theirs have normalisation weights besides."""
    setup = Setup(SIZES[name], 128, torch.device("meta"), torch.float32, 1)
    ours, *theirs = [
        provider.trunk_parameters
        for provider in (engine.engines(setup)[0], *baselines.baselines(setup))
    ]
    assert ours == SIZES[name].trunk_parameters
    assert all(abs(number - ours) <= 0.02 * ours for number in theirs), (ours, theirs)


@pytest.mark.parametrize("name", ["plain", "plain-bf16"])
def test_the_plain_loop_is_the_decoder(name: str) -> None:
    """Its greedy codes are those of the decoder without a cache; a wrong cache is seen."""
    (loop,) = [
        one for one in baselines.plain_loops(SETUP, engine.RandomModel(SETUP)) if one.name == name
    ]
    assert loop.verify().passed
    assert loop.trunk_parameters == SETUP.size.trunk_parameters
    case = decode_case(SETUP, 6, batch=2)
    codes = loop.prepare(case, {})()
    assert codes.shape == (2, 6)
    assert int(codes.max()) < SETUP.size.num_codes
    conditional, unconditional = loop.prompts(case).chunk(2)
    differs = (conditional != unconditional).sum(1)
    assert differs.tolist() == [workload.PROMPT_TOKENS - 2] * 2
    forward = loop.forward
    loop.forward = lambda ids, length, cache: forward(ids, max(0, length - 1), cache)  # type: ignore[method-assign]  # one code late
    assert not loop.verify().passed


@pytest.fixture(scope="module")
def ours() -> engine.EngineProvider:
    return engine.engines(SETUP)[0]


@pytest.mark.parametrize(
    "provider", runner.all_providers(SETUP), ids=lambda provider: provider.name
)
def test_everybody_passes_the_gate_and_draws_what_was_asked(
    provider: DecodeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    # compiling takes half a minute
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    verdict = provider.verify()
    assert verdict.passed, verdict
    case = decode_case(SETUP, 6, batch=2)
    provider.warm_up(case)
    codes = provider.prepare(case, {})()
    assert (codes.shape, codes.dtype, codes.device) == ((2, 6), torch.int64, CPU)
    assert 0 <= int(codes.min()) <= int(codes.max()) < MINI.num_codes
    assert len(codes.unique()) > 2


class Faulty(engine.EngineProvider):
    """Draws by an engine that something is wrong with."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault, SETUP, engine.Variant(), engine.RandomModel(SETUP))

    def engine(self, tokens: int, pictures: int, temperature: float = 1.0) -> Engine:
        made = super().engine(tokens, pictures, temperature)
        if self.name == "no guidance":
            made.preparer.sampler = CFGSamplerConfig(guidance_scale=1.0, temperature=0.0).build()
        elif self.name == "not greedy":
            made.preparer.sampler = engine.sampler(1.0)
        else:
            other = engine.RandomModel(SETUP)
            with torch.no_grad():
                next(
                    weight
                    for name, weight in other.decoder.named_parameters()
                    if name.endswith("1.k_proj.weight")
                ).mul_(-1)
            made = Engine(
                other.decoder,
                made.serializer,
                made.sampler,
                made.vocabulary,
                EngineOptions(num_threads=1),
            )
        return made


@pytest.mark.parametrize("fault", ["no guidance", "not greedy", "wrong keys in one layer"])
def test_the_gate_sees_what_is_wrong(fault: str) -> None:
    verdict = Faulty(fault).verify()
    assert not verdict.passed
    assert verdict.error > 3
    assert verdict.what == "of 64 greedy tokens differ from a recomputation without a cache"


def test_baselines_out_of_range_or_stuck_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = baselines.LlamaGenProvider(SETUP)
    for codes, error in (
        (torch.arange(64).view(2, 32), 32.0),
        (torch.zeros(2, 32), None),
        (torch.arange(31)[None], None),
    ):
        monkeypatch.setattr(provider, "draw", lambda *arguments, codes=codes: codes)
        verdict = provider.verify()
        assert not verdict.passed
        assert error is None or verdict.error == error


def test_the_llamagen_loop_is_guided_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all but the most probable code filtered away it is greedy, and equals a recomputation
    without a cache."""
    monkeypatch.setattr(workload, "TOP_P", 1e-9)
    provider = baselines.LlamaGenProvider(SETUP)
    case = decode_case(SETUP, 12, batch=2)
    drawn = provider.prepare(case, {})()
    model, head = provider.modules
    ids = provider.prompt_ids(case)
    hidden_ids = ids.clone()
    hidden_ids[:, 1:-1] = baselines.PAD
    codes = drawn[:, :-1] + baselines.NUM_TEXT
    with torch.inference_mode():
        seen, unseen = (
            head(model(torch.cat([prompt, codes], 1)).last_hidden_state[:, 63:])
            for prompt in (ids, hidden_ids)
        )
    assert torch.equal((unseen + GUIDANCE * (seen - unseen)).argmax(-1), drawn)


def test_janus_cache_is_as_long_as_this_picture_needs() -> None:
    """transformers keeps the longest length it has seen, and attention reads all of it."""
    provider = baselines.JanusProvider(SETUP)
    lengths: set[int] = set()

    def look(module: object, args: object, options: dict[str, Any]) -> None:
        lengths.update(
            value.layers[0].max_cache_len for value in options.values() if hasattr(value, "layers")
        )

    provider.model.model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    for tokens in (12, 6):
        lengths.clear()
        provider.prepare(decode_case(SETUP, tokens), {})()
        assert lengths == {workload.PROMPT_TOKENS + tokens}


def test_a_conversation_that_is_kept_draws_the_same() -> None:
    """Both ways answer the same questions with the same pictures."""
    setup = replace(SETUP, context=400)
    [ours, *_] = [one for one in engine.engines(setup) if one.name == "engine"]
    case = decode_case(setup, 6)
    case = replace(case, parameters={**case.parameters, "pictures": 10})
    anew, kept = (ours.replying(case, keep) for keep in (False, True))
    anew()  # the question of which `kept` was made
    for _ in range(2):
        assert torch.equal(anew(), kept())


def test_plugins_add_providers() -> None:
    """Each is made for the run's setup, behind ours; names are unique."""
    from decode_bench import Fake

    class Mine(Fake):
        name = "mine"

        def __init__(self, setup: Setup) -> None:
            DecodeProvider.__init__(self, setup)

    registry = BenchmarkRegistry()
    registry.add_decoder(Mine)
    *ours, mine = runner.all_providers(SETUP, registry.decoders)
    assert [one.name for one in ours] == [one.name for one in runner.all_providers(SETUP)]
    assert (type(mine), mine.setup) == (Mine, SETUP)
    registry.add_decoder(Mine)
    with pytest.raises(CM3Error) as error:
        runner.all_providers(SETUP, registry.decoders)
    assert tells(error.value, "provider 'mine': cm3 bench decode already has a provider")
