"""The benchmark itself: right results get a time, wrong ones none, and without a GPU the GPU's path
runs and times nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cm3apps.cli.main import main
from cm3core.errors import CM3Error
from cm3lab.benchmarks import measure, report, runner
from cm3lab.benchmarks.ops import add
from cm3lab.benchmarks.ops.attention import AttentionOp, attention_case
from cm3lab.benchmarks.ops.guided_sample import chain
from cm3lab.benchmarks.ops.segment_decode import decode_case
from cm3run.benchmarks import (
    BenchmarkRegistry,
    Case,
    Inputs,
    Op,
    Provider,
    TorchProvider,
    Verdict,
    Where,
    relative_error,
)
from messages import tells

LIMITS = {"copy_bytes_per_s": 1e9, "matmul_flop_per_s": 1e9}


def at(target: str, size: Any) -> Where:
    return Where(torch.device("cpu"), target, size)


class DoublingProvider(Provider):
    def __init__(self, name: str, factor: float, reason: str | None = None) -> None:
        self.name, self.factor, self.reason, self.num_calls = name, factor, reason, 0

    def enabled(self, case: Case, where: Where) -> str | None:
        return self.reason

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        if self.factor == 0:
            raise RuntimeError("no such kernel\nand more lines")

        def call() -> torch.Tensor:
            self.num_calls += 1
            return inputs["x"] * self.factor

        return call


class DoublingOp(Op):
    """y = 2 x."""

    name, baseline = "double", "right"

    def calls(self, place: int) -> int:
        """How often the provider at that place was called."""
        provider = self.providers[place]
        assert isinstance(provider, DoublingProvider)
        return provider.num_calls

    def cases(self, where: Where) -> list[Case]:
        return [Case("n64", {"n": 64}, torch.float32, 512, 64)]

    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        return {"x": torch.randn(64, generator=torch.Generator().manual_seed(seed))}

    def expected(self, case: Case, inputs: Inputs) -> torch.Tensor:
        return 2 * inputs["x"].double()

    def gate(self, case: Case, expected: Any, output: Any) -> Verdict:
        return Verdict(relative_error(output, expected), 1e-6, "relative error")


@pytest.fixture
def op() -> DoublingOp:
    made = DoublingOp()
    made.providers = [
        DoublingProvider("right", 2.0),
        DoublingProvider("wrong", 2.001),
        DoublingProvider("broken", 0.0),
        DoublingProvider("nan", float("nan")),
        DoublingProvider("elsewhere", 2.0, "is for another machine"),
    ]
    return made


def test_only_right_results_get_a_time(op: DoublingOp) -> None:
    rows = runner.run_op(op, at("cpu", "quick"), measure.CPUStopwatch(0.0, 3), LIMITS)
    assert [row["status"] for row in rows] == ["ok", "wrong", "failed", "wrong", "not run"]
    assert ["warm" in row for row in rows] == [True, False, False, False, False]
    assert rows[1]["reason"] == "relative error is 5.00e-04, limit 1e-06: not timed"
    assert rows[2]["reason"] == "RuntimeError: no such kernel"
    assert rows[3]["error"] is None
    assert rows[4]["reason"] == "is for another machine"
    right = rows[0]
    assert right["warm"]["p20"] <= right["warm"]["us"] <= right["warm"]["p80"]
    assert right["warm"]["us"] == min(right["warm"]["both_us"])
    assert right["of_copy"] == pytest.approx(512 / (right["cold"]["us"] * 1e-6) / 1e9)
    assert right["of_matmul"] == pytest.approx(64 / (right["warm"]["us"] * 1e-6) / 1e9)
    assert right["peak_bytes"] >= 256  # the output
    assert op.calls(1) == 1
    json.dumps(rows, allow_nan=False)


def test_table_says_all_and_compares_with_the_baseline(op: DoublingOp) -> None:
    rows = runner.run_op(op, at("cpu", "quick"), measure.CPUStopwatch(0.0, 3), LIMITS)
    lines = report.table(rows, {"double": "right"}).splitlines()
    assert lines[0] == "double: n64 (float32)"
    assert " 1.00 " in lines[2]  # the baseline itself
    assert lines[4].split() == ["broken", "failed:", "RuntimeError:", "no", "such", "kernel"]


def test_dry_run_for_cuda_executes_and_times_nothing(op: DoublingOp) -> None:
    where = at("cuda", "dry")
    stopwatch = runner.stopwatch_for(where)
    assert isinstance(stopwatch, measure.CUDAStopwatch)
    rows = runner.run_op(op, where, stopwatch, runner.ceilings(where, stopwatch))
    assert [row["status"] for row in rows] == ["dry run", "wrong", "failed", "wrong", "not run"]
    assert not {"warm", "cold", "peak_bytes", "of_copy"} & set(rows[0])
    assert op.calls(0) >= 8  # gate, events, graph: warm and cold; memory


class TripledProvider(TorchProvider):
    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        return lambda: self.function(inputs)


@pytest.mark.slow
def test_a_compiled_provider_is_compiled_for_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past 8 shapes torch goes on uncompiled, with a warning: a time of eager code under the name
    of compiled code."""
    graphs: list[torch.Size] = []

    def backend(graph: Any, examples: list[torch.Tensor]) -> Any:
        graphs.append(examples[0].shape)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    op = DoublingOp()
    op.providers = [TripledProvider("torch", lambda inputs: inputs["x"] * 2, compiled=True)]
    monkeypatch.setattr(
        op,
        "cases",
        lambda where: [Case(f"n{n}", {"n": n}, torch.float32, 8 * n, n) for n in range(1, 10)],
    )
    monkeypatch.setattr(
        op, "inputs", lambda case, where, seed: {"x": torch.ones(case.parameters["n"])}
    )
    rows = runner.run_op(op, at("cpu", "full"), measure.CPUStopwatch(0.0, 1), LIMITS)
    assert [row["status"] for row in rows] == ["ok"] * 9
    assert graphs == [torch.Size([n]) for n in range(1, 10)]


class FakeCUDA(measure.AbsentCUDA):
    """Each call takes as long as the last one said; what is captured may be refused."""

    def __init__(self, milliseconds: float, capture_fails: bool = False) -> None:
        self.capture_fails, self.now, self.step = capture_fails, 0.0, milliseconds
        clock = self

        class Event(measure.AbsentCUDA.Event):
            def record(self) -> None:
                self.at = clock.now

            def elapsed_time(self, end: Any) -> float:
                return float(end.at - self.at)

        self.Event = Event  # type: ignore[misc]  # a clock that each test sets, in place of the class

    def CUDAGraph(self) -> Any:  # type: ignore[override]  # a function in place of the class: called the same way
        if self.capture_fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return SimpleNamespace(replay=lambda: self.advance(10))

    def advance(self, calls: int = 1) -> None:
        self.now += self.step * calls


@pytest.mark.parametrize(
    ("milliseconds", "fails", "method"),
    [
        (0.2, False, "events"),
        (0.01, False, "graph"),
        (0.01, True, "events (no graph: operation not permitted when stream is"),
    ],
)
def test_short_kernels_are_timed_in_a_graph(milliseconds: float, fails: bool, method: str) -> None:
    cuda = FakeCUDA(milliseconds, fails)
    timing = measure.CUDAStopwatch(0.01, 10, cuda).time([cuda.advance])
    assert tells(timing.method, method)
    assert timing.median == pytest.approx(milliseconds * 1e3)
    assert 10 <= timing.num_repetitions <= 1000


def test_cold_calls_take_the_inputs_in_turn() -> None:
    seen: list[int] = []
    measure.CPUStopwatch(0.0, 4).time([partial(seen.append, number) for number in range(3)])
    assert seen == [0, 1, 2, 0, 0, 1, 2, 0]  # warm-up, one to estimate, then four repetitions


def test_costs_by_hand() -> None:
    case = attention_case((1, 1, 2, 1), 1, False, torch.float32)
    # three visible pairs of four operations; q, k, v, out of two numbers
    assert (case.flop, case.num_bytes) == (12, 32)
    # two documents of two tokens
    assert attention_case((1, 1, 4, 1), 2, False, torch.float32).flop == 24
    assert attention_case((1, 1, 2, 1), 1, True, torch.float32).flop == 42
    # One image: keys 4 + 3 shared, 2 rows of 5 own; both streams attend to (4 + 5) and (3 + 5)
    # keys.
    assert decode_case((1, 4, 5, 1, 1, 1), torch.float32).flop == 4 * 17
    assert decode_case((1, 4, 5, 1, 1, 1), torch.float32).num_bytes == (2 * 17 + 4) * 4


def test_the_chain_filters_as_written() -> None:
    """c = (0, 1, 2, 3); guidance 3 on u = 0 triples it; the four probabilities are e^(3v) / Z:
    top-p 0.9 keeps the last alone."""
    inputs: Inputs = {
        "logits": torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]]),
        "rows": torch.tensor([[0, 1]]),
        "weights": torch.tensor([[3.0, -2.0]]),
        "alpha_n": None,
        "top_k_n": None,
        "top_p_n": torch.tensor([0.9]),
    }
    assert chain(inputs, torch.float64).tolist() == [[0.0, 0.0, 0.0, 1.0]]
    kept = chain({**inputs, "top_p_n": None}, torch.float64)
    assert kept.tolist() == [
        pytest.approx(torch.tensor([0.0, 3.0, 6.0, 9.0]).double().softmax(0).tolist())
    ]


def test_attention_gate_sees_a_wrong_mask() -> None:
    op, where = AttentionOp(), at("cpu", "dry")
    case = next(
        case
        for case in op.cases(where)
        if case.parameters["num_documents"] == 3 and case.parameters["backward"]
    )
    inputs = op.inputs(case, where, 0)
    expected = op.expected(case, inputs)
    right = next(provider for provider in op.providers if provider.name == "cm3/sdpa")
    assert op.gate(case, expected, right.prepare(case, inputs)()).passed
    assert not op.gate(case, expected, right.prepare(case, {**inputs, "kv_start": None})()).passed


def test_bundled_ops_have_their_baselines_and_plausible_cases() -> None:
    registry = BenchmarkRegistry()
    add(registry)
    assert sorted(registry.ops) == [
        "add_norm",
        "attention",
        "guided_sample",
        "linear_cross_entropy",
        "segment_decode",
        "silu_gate",
        "store_heads",
    ]
    for op in registry.ops.values():
        assert op.baseline in {provider.name for provider in op.providers}
        for where in (
            at("cpu", "quick"),
            at("cpu", "full"),
            at("cuda", "quick"),
            at("cuda", "full"),
            at("cuda", "dry"),
        ):
            names = [case.name for case in op.cases(where)]
            assert len(names) == len(set(names)) > 0
        assert len(op.cases(at("cuda", "quick"))) < len(op.cases(at("cuda", "full")))


def test_registry_refuses_a_name_that_is_taken_or_unknown() -> None:
    registry = BenchmarkRegistry()
    registry.add_op(DoublingOp())
    registry.add_provider("double", DoublingProvider("mine", 2.0))
    with pytest.raises(CM3Error, match="double already has a provider with this name"):
        registry.add_provider("double", DoublingProvider("mine", 2.0))
    with pytest.raises(CM3Error, match="another op has this name"):
        registry.add_op(DoublingOp())
    with pytest.raises(CM3Error) as caught:
        registry.add_provider("duble", DoublingProvider("mine", 2.0))
    assert tells(caught.value, "provider 'mine': there is no ... 'duble' ... 'double'")


MINE = """
from cm3core.hookspecs import hookimpl
from cm3run.benchmarks import Provider
from torch.nn.functional import cross_entropy, linear
import torch

CM3_API = 1

@hookimpl
def cm3_benchmarks():
    return {"mine": "cm3_plugin_file_mine:add"}

class Mine(Provider):
    name = "mine"

    def prepare(self, case, inputs):
        def call():
            losses = cross_entropy(linear(inputs["hidden"], inputs["head"]), inputs["targets"], reduction="none")
            loss = (losses * inputs["weights"]).sum()
            return (loss.detach(), *torch.autograd.grad(loss, (inputs["hidden"], inputs["head"])))
        return call

def add(registry):
    registry.add_provider("linear_cross_entropy", Mine())
"""


@pytest.mark.slow
def test_command_with_a_plugins_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--device cuda --dry-run` without a GPU: table, JSON and plots, with a provider that a
    plugin's file brings."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "mine.py").write_text(MINE)
    out = tmp_path / "dry.json"
    command = [
        "--plugin",
        str(tmp_path / "mine.py"),
        "bench",
        "kernels",
        "--device",
        "cuda",
        "--dry-run",
        "--op",
        "linear_cross_entropy",
        "--op",
        "guided_sample",
        "--provider",
        "mine",
        "--provider",
        "cm3/reference",
        "--provider",
        "torch",
        "--provider",
        "huggingface",
        "-o",
        str(out),
    ]
    assert main(command) == 0
    document = json.loads(out.read_text())
    assert document["environment"]["target"] == "cuda"
    assert document["ceilings"]["copy_bytes_per_s"] is None
    statuses = {(row["op"], row["provider"], row["status"]) for row in document["results"]}
    assert {
        ("linear_cross_entropy", "mine", "dry run"),
        ("linear_cross_entropy", "torch", "dry run"),
        ("guided_sample", "cm3/reference", "dry run"),
        ("guided_sample", "huggingface", "dry run"),
        ("guided_sample", "huggingface", "not run"),
    } <= statuses
    assert "failed" not in {row["status"] for row in document["results"]}
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "dry-guided_sample.png",
        "dry-linear_cross_entropy.png",
    ]
    assert "mine                       dry run, relative error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--device", "cuda"],
            "cm3 bench kernels --device cuda: there is no CUDA device, or torch was built "
            "without CUDA\n"
            "  next: use --device cpu, or --dry-run to run everything without one",
        ),
        (
            ["--op", "atention"],
            "cm3 bench kernels --op: no op is called 'atention'\n  next: did you mean 'attention'?",
        ),
        (
            ["--op", "attention", "--provider", "cm3/tritn"],
            "cm3 bench kernels --provider: no provider is called 'cm3/tritn'\n  next: did you "
            "mean 'cm3/triton'?",
        ),
        (
            ["--quick", "--dry-run"],
            "cm3 bench kernels: --quick and --dry-run can't be combined\n  next: leave one out",
        ),
        (
            ["--threads", "0"],
            "cm3 bench kernels: argument --threads: is '0', must be a whole number from 1 to 4,096\n"
            "  next: see `cm3 bench kernels --help`",
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
    assert main(["bench", "kernels", *options]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`timeout -s INT` in kernels/bench/on_gpu: the first op's JSON and plot are there, whole."""
    plain = runner.run_op

    def interrupted(op: Op, *args: Any, **options: Any) -> Any:
        if op.name == "linear_cross_entropy":
            raise KeyboardInterrupt
        return plain(op, *args, **options)

    monkeypatch.setattr(runner, "run_op", interrupted)
    out = tmp_path / "r.json"
    command = [
        "bench",
        "kernels",
        "--dry-run",
        "--op",
        "segment_decode",
        "--op",
        "linear_cross_entropy",
        "--provider",
        "cm3/torch",
    ]
    assert main([*command, "-o", str(out)]) == 130
    assert {row["op"] for row in json.loads(out.read_text())["results"]} == {"segment_decode"}
    assert [path.name for path in tmp_path.glob("*.png")] == ["r-segment_decode.png"]


def test_plots_are_pictures(op: DoublingOp, tmp_path: Path) -> None:
    where = at("cpu", "quick")
    rows = runner.run_op(op, where, measure.CPUStopwatch(0.0, 3), LIMITS)
    (path,) = report.write_plots(tmp_path / "r.json", rows, runner.environment(where))
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_function_is_a_provider() -> None:
    """`TorchProvider` needs no subclass: it calls the function with the inputs."""
    case = Case("case", {}, torch.float32, 1, 1)
    provider = TorchProvider("sum", lambda inputs: inputs["a"] + inputs["b"], compiled=False)
    assert provider.name == "sum"
    assert provider.prepare(case, {"a": 1, "b": 2})() == 3
    assert TorchProvider("sum", len, compiled=True).name == "sum compiled"
