"""`cm3 bench decode`: who draws right is timed, what a step must read is counted right, an
interrupted run keeps what it has."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cm3apps.benchmarks import measure
from cm3apps.benchmarks import runner as kernels_runner
from cm3apps.benchmarks.decode import baselines, engine, plain, report, runner, workload
from cm3apps.benchmarks.decode.sizes import EXTENTS, SIZES, Extent, Size
from cm3apps.benchmarks.decode.workload import Setup, decode_case
from cm3apps.benchmarks.ops.guided_sample import GUIDANCE
from cm3core.cli.main import main
from cm3core.generation.engine import Engine
from cm3core.interfaces.benchmark import Case, Inputs, Verdict, Where
from cm3plugins.samplers.config import CFGSamplerConfig

MINI = Size("mini", 2, 64, 2, 96, num_codes=32)
CPU = torch.device("cpu")
SETUP = Setup(MINI, 128, CPU, torch.float32, 1)
EXTENT = Extent("mini", (1, 2), (6,), 3, 24, seconds=0.0, max_runs=3)
LIMITS = {"copy_bytes_per_s": 1e9, "matmul_flop_per_s": 1e9, "matmul": "1^3 float32"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The command sets torch's threads for its process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command on the smallest of everything."""
    monkeypatch.setitem(SIZES, "mini", MINI)
    monkeypatch.setitem(EXTENTS, "quick", EXTENT)
    monkeypatch.setitem(runner.READ_BYTES, "cpu", 2**20)
    monkeypatch.setattr(kernels_runner, "ceilings", lambda where, stopwatch: dict(LIMITS))
    monkeypatch.setattr(kernels_runner, "stopwatch_for", lambda where: measure.CPUStopwatch(0.0, 3))


# ---- what is drawn, and what it must read


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
        one for one in plain.plain_loops(SETUP, engine.RandomModel(SETUP)) if one.name == name
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


def test_parts_of_a_step(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Every column of every provider."""
    arguments = ["bench", "decode", "--parts", "--quick", "--size", "mini", "--threads", "1"]
    assert main([*arguments, "--batch", "1", "--providers", "engine", "engine-bf16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.replace("|", " ").split() for line in lines if line.startswith("  engine")]
    assert [row[:2] for row in rows] == [["engine", "1"], ["engine-bf16", "1"]]
    for row in rows:
        numbers = [float(value) for value in row[2:]]
        assert len(numbers) == 9
        assert min(numbers) >= 0
        assert numbers[7] > 0
    assert main([*arguments, "--providers", "janus"]) == 2
    assert "none of the providers is our engine" in capsys.readouterr().err


# ---- the gate


@pytest.fixture(scope="module")
def ours() -> engine.EngineProvider:
    return engine.engines(SETUP)[0]


@pytest.mark.parametrize(
    "provider", runner.all_providers(SETUP), ids=lambda provider: provider.name
)
def test_everybody_passes_the_gate_and_draws_what_was_asked(
    provider: engine.DecodeProvider, monkeypatch: pytest.MonkeyPatch
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
                other.decoder, made.serializer, made.sampler, made.vocabulary, num_threads=1
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


# ---- the run


class Fake(engine.DecodeProvider):
    """Draws zeros, or does something else at the calls that `acts` names."""

    trunk_parameters = 1

    def __init__(
        self, name: str, log: list[str], acts: dict[int, Any] | None = None, verdict: Any = None
    ) -> None:
        super().__init__(SETUP)
        self.name, self.log, self.acts, self.verdict, self.calls = name, log, acts or {}, verdict, 0

    def verify(self) -> Verdict:
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict or Verdict(0, 0, "of 1 wrong")

    def warm_up(self, case: Case) -> None:
        self.log.append(f"{self.name} warms up")

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Tensor]:
        def draw() -> Tensor:
            self.calls += 1
            self.log.append(self.name)
            act = self.acts.get(
                self.calls,
                torch.zeros(case.parameters["batch"], case.parameters["tokens"], dtype=torch.int64),
            )
            if isinstance(act, BaseException):
                raise act
            assert isinstance(act, Tensor)
            return act

        return draw


def benchmark(providers: list[Fake], extent: Extent = EXTENT) -> runner.Benchmark:
    made = runner.Benchmark(
        SETUP,
        providers,
        Where(CPU, "cpu", "quick"),
        extent,
        dict(LIMITS),
        stopwatch=measure.CPUStopwatch(0.0, 1),
    )
    made.gate()
    return made


def test_providers_take_turns_until_each_had_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """`slow` takes 30 seconds a run and has had its time after one; the others have three runs at
    most."""
    log: list[str] = []
    clock = {"now": 0.0}
    made = benchmark(
        [Fake("a", log), Fake("slow", log), Fake("b", log)], replace(EXTENT, seconds=20.0)
    )

    def now() -> float:
        clock["now"] += {"slow": 30.0}.get(log[-1], 1.0)
        return clock["now"]

    monkeypatch.setattr(made, "_now", now)
    rows = made.part("compare", [(provider, decode_case(SETUP, 6)) for provider in made.providers])
    assert log == [
        "a warms up",
        "slow warms up",
        "b warms up",
        "a",
        "slow",
        "b",
        "a",
        "b",
        "a",
        "b",
    ]
    assert [len(row["seconds"]["runs"]) for row in rows] == [3, 1, 3]
    assert rows[2]["seconds"]["median"] == pytest.approx(1.0)
    assert rows[2]["tokens_per_s"] == pytest.approx(6.0)
    assert rows[2]["ms_per_step"] == pytest.approx(1e3 / 6)


def test_who_is_wrong_or_fails_gets_no_time() -> None:
    log: list[str] = []
    outside = torch.full((1, 6), MINI.num_codes)
    made = benchmark(
        [
            Fake("fine", log),
            Fake("wrong", log, verdict=Verdict(3, 0, "of 64 greedy tokens unlike")),
            Fake("broken", log, verdict=RuntimeError("no such\nkernel")),
            Fake("short", log, {1: torch.zeros(1, 5)}),
            Fake("outside", log, {1: outside}),
            Fake("late", log, {2: MemoryError("none left")}),
        ]
    )
    made.extent = replace(EXTENT, seconds=60.0)
    rows = made.part("compare", [(provider, decode_case(SETUP, 6)) for provider in made.providers])
    told = [(row["provider"], row["status"], row.get("reason")) for row in rows]
    assert told == [
        ("fine", "ok", None),
        ("wrong", "wrong", "3 of 64 greedy tokens unlike: not timed"),
        ("broken", "failed", "RuntimeError: no such"),
        ("short", "wrong", "codes [1, 5], must be [1, 6] and in range: not timed"),
        ("outside", "wrong", "codes [1, 6], must be [1, 6] and in range: not timed"),
        ("late", "failed", "MemoryError: none left"),
    ]
    assert ["seconds" in row for row in rows] == [True, False, False, False, False, True]
    assert "late" in report.table(report.completed(rows, LIMITS | {"read_bytes_per_s": 1e9}))
    assert not {"wrong", "broken"} & set(log)


def test_a_variant_that_the_machine_refuses_says_why() -> None:
    case, where = decode_case(SETUP, 6), Where(CPU, "cpu", "quick")
    provider = engine.EngineProvider(
        "x", SETUP, engine.Variant({"precision": "int7"}), engine.RandomModel(SETUP)
    )
    assert provider.enabled(case, where) == "'int7' is not known"
    half = engine.EngineProvider(
        "x", replace(SETUP, dtype=torch.bfloat16), engine.VARIANTS["engine-bf16"], provider.model
    )
    assert half.enabled(case, where) == "is the engine as it is"


def test_shares_of_the_floor_and_ratios_by_hand() -> None:
    row = {
        "part": "compare",
        "case": "c",
        "dtype": "float32",
        "floor_bytes_per_step": 4e6,
        "status": "ok",
        "seconds": {"median": 1.0, "p20": 1.0, "p80": 1.0, "runs": [1.0], "method": "wall clock"},
    }
    rows = [
        row | {"provider": "engine", "tokens_per_s": 30.0, "ms_per_step": 8.0},
        row | {"provider": "janus", "tokens_per_s": 10.0, "ms_per_step": 24.0},
    ]
    ours, theirs = report.completed(rows, {"read_bytes_per_s": 1e9, "copy_bytes_per_s": 2e9})
    assert (ours["of_read"], ours["of_copy"], ours["engine_x"]) == (
        pytest.approx(0.5),
        pytest.approx(0.25),
        1.0,
    )
    assert (theirs["of_read"], theirs["engine_x"]) == (pytest.approx(1 / 6), pytest.approx(3.0))
    janus = next(line for line in report.table([ours, theirs]).splitlines() if "janus" in line)
    assert janus.split() == [
        "janus",
        "1.00",
        "1.00-1.00",
        "1",
        "10.0",
        "24.00",
        "17%",
        "8%",
        "3.00",
    ]


def test_command_measures_all_parts(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(
        engine.VARIANTS, "engine-other", engine.Variant({"precision": "bf16"}, weight_bytes=2)
    )
    out = tmp_path / "decode.json"
    assert (
        main(
            [
                "bench",
                "decode",
                "--quick",
                "--size",
                "mini",
                "--providers",
                "engine",
                "engine-other",
                "janus",
                "llamagen",
                "llamagen-compiled",
                "--threads",
                "1",
                "-o",
                str(out),
            ]
        )
        == 0
    )
    document = json.loads(out.read_text())
    environment, ceilings, rows = document["environment"], document["ceilings"], document["results"]
    assert document["format"] == 1
    assert environment["decoder"] == {
        "name": "mini",
        "num_layers": 2,
        "width": 64,
        "num_heads": 2,
        "d_ff": 96,
        "num_codes": 32,
        "trunk_parameters": 57344,
    }
    assert {"torch", "transformers"} <= set(environment["packages"])
    assert len(environment["load"]) == 2
    assert ceilings["read_bytes_per_s"] > 0
    compared = [
        (row["case"], row["provider"], row["status"]) for row in rows if row["part"] == "compare"
    ]
    assert compared == [
        (f"batch {batch}, 6 tokens", name, "not run" if name == "llamagen-compiled" else "ok")
        for batch in (1, 2)
        for name in ("engine", "engine-other", "janus", "llamagen", "llamagen-compiled")
    ]
    assert [(row["case"], row["provider"]) for row in rows if row["part"] == "candidates"] == [
        (f"{number} of one prompt, 6 tokens", name)
        for number in (1, 3)
        for name in ("engine", "engine-other")
    ]
    needed = {"part", "case", "parameters", "provider", "dtype", "status"}
    timed = {
        "seconds",
        "floor_bytes_per_step",
        "tokens_per_s",
        "ms_per_step",
        "of_read",
        "of_copy",
        "trunk_parameters",
    }
    for row in rows:
        assert needed <= set(row)
        assert timed <= set(row) if row["status"] == "ok" else "reason" in row
    first, other = rows[:2]
    assert first["seconds"]["method"] == "processor time"
    assert first["floor_bytes_per_step"] == workload.least_bytes(MINI, first["parameters"], 4, 4)
    # keys and values stay float32
    assert other["floor_bytes_per_step"] == workload.least_bytes(MINI, first["parameters"], 2, 4)
    assert first["of_read"] == pytest.approx(
        first["floor_bytes_per_step"] / (first["ms_per_step"] / 1e3) / ceilings["read_bytes_per_s"]
    )
    assert rows[2]["engine_x"] == pytest.approx(first["tokens_per_s"] / rows[2]["tokens_per_s"])
    one, many = (row for row in rows if row["part"] == "candidates" and row["provider"] == "engine")
    assert many["ratio_to_one"] == pytest.approx(
        many["seconds"]["median"] / one["seconds"]["median"]
    )
    (length,) = [row for row in rows if row["part"] == "length" and row["provider"] == "engine"]
    assert length["points"][-1][0] == 24
    assert length["points"] == sorted(length["points"])
    anew, kept = (
        row for row in rows if row["part"] == "conversation" and row["provider"] == "engine"
    )
    assert [row["parameters"]["keep"] for row in (anew, kept)] == [False, True]
    assert kept["speedup"] == pytest.approx(anew["seconds"]["median"] / kept["seconds"]["median"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "decode-length.png",
        "decode-speed.png",
        "decode.json",
    ]
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in tmp_path.glob("*.png"))
    printed = capsys.readouterr()
    assert "compare: batch 2, 6 tokens (float32)" in printed.out
    assert (
        "llamagen-compiled  not run: compiling takes ten seconds on a CPU: in the full run only"
        in printed.out
    )
    assert "times one" in printed.out
    assert (
        "engine: 0 of 64 greedy tokens differ from a recomputation without a cache" in printed.err
    )


def test_interrupted_run_keeps_what_it_has(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    fakes = [Fake("first", log), Fake("second", log, {2: KeyboardInterrupt()})]
    monkeypatch.setattr(runner, "all_providers", lambda setup: fakes)
    out = tmp_path / "decode.json"
    assert main(["bench", "decode", "--quick", "--size", "mini", "-o", str(out)]) == 130
    rows = json.loads(out.read_text())["results"]
    assert [(row["case"], row["provider"], row["status"], row.get("reason")) for row in rows] == [
        ("batch 1, 6 tokens", "first", "ok", None),
        ("batch 1, 6 tokens", "second", "ok", None),
        ("batch 2, 6 tokens", "first", "ok", None),
        ("batch 2, 6 tokens", "second", "not run", "interrupted"),
    ]
    assert (tmp_path / "decode-speed.png").exists()


def test_without_transformers_the_engine_is_measured_alone(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "transformers" else found(name, *rest),
    )
    assert (
        main(
            [
                "bench",
                "decode",
                "--quick",
                "--size",
                "mini",
                "--batch",
                "1",
                "--providers",
                "engine",
                "janus",
            ]
        )
        == 0
    )
    assert "janus              not run: transformers is not installed" in capsys.readouterr().out


def test_a_provider_that_fails_is_in_the_exit_code(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes = [Fake("fails", [], {1: RuntimeError("boom")}), Fake("fine", [])]
    monkeypatch.setattr(runner, "all_providers", lambda setup: fakes)
    assert main(["bench", "decode", "--quick", "--size", "mini", "--batch", "1"]) == 1
    assert capsys.readouterr().err.endswith("\n1 of 2 results are wrong or failed\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--device", "cuda"],
            "cm3 bench decode --device cuda: there is no CUDA device, or torch was built without "
            "CUDA\n"
            "  next: use --device cpu",
        ),
        (
            ["--size", "100M"],
            "cm3 bench decode --size: no size is called '100M'\n  next: did you mean '100m'?",
        ),
        (
            ["--providers", "engine", "januss"],
            "cm3 bench decode --providers: no provider is called 'januss'\n"
            "  next: did you mean 'janus'?",
        ),
        (
            ["--batch", "1", "0"],
            "cm3 bench decode: argument --batch: is '0', must be a whole number from 1 to 65,536\n"
            "  next: see `cm3 bench decode --help`",
        ),
        (
            ["--tokens", "1"],
            "cm3 bench decode: argument --tokens: is '1', must be a whole number from 2 to 1,048,576\n"
            "  next: see `cm3 bench decode --help`",
        ),
        (
            ["--threads", "0"],
            "cm3 bench decode: argument --threads: is '0', must be a whole number from 1 to 4,096\n"
            "  next: see `cm3 bench decode --help`",
        ),
    ],
)
def test_wrong_options_are_told(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "decode", *options]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_the_command_line_imports_no_torch() -> None:
    script = (
        "import sys, argparse\nfrom cm3apps.benchmarks.command import configure\n"
        "configure(argparse.ArgumentParser())\nprint('torch' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


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
