"""The benchmark itself: right results get a time, wrong ones none, and without a GPU the GPU's path
runs and times nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cm3core.errors import CM3Error
from cm3lab.benchmarks import machine as machines
from cm3lab.benchmarks import measure
from cm3lab.benchmarks.kernels import report, runner
from cm3run.benchmarks import BenchmarkRegistry, Case, Inputs, Provider, TorchProvider, directed
from kernel_bench import ROOFS, DoublingOp, DoublingProvider, at, doubling, machine
from messages import tells


@pytest.fixture
def op() -> DoublingOp:
    return doubling()


def one_case(op: DoublingOp) -> list[Case]:
    return op.cases(at("cpu", "quick"), directions=["forward"])


def test_only_right_results_get_a_time(op: DoublingOp) -> None:
    rows = runner.run_op(op, one_case(op), machine())
    assert [row["status"] for row in rows] == ["ok", "wrong", "failed", "wrong", "not run"]
    assert ["warm" in row for row in rows] == [True, False, False, False, False]
    assert rows[1]["reason"] == "relative error is 5.00e-04, limit 1e-06: not timed"
    assert rows[2]["reason"] == "RuntimeError: no such kernel"
    assert rows[3]["error"] is None
    assert rows[4]["reason"] == "is for another machine"
    right = rows[0]
    assert right["warm"]["p20"] <= right["warm"]["us"] <= right["warm"]["p80"]
    assert right["warm"]["us"] == min(right["warm"]["both_us"])
    assert right["peak_bytes"] >= 256  # the output
    assert right["speedup"] == 1
    assert op.calls(1) == 1
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize(
    ("num_bytes", "flop", "expected"),
    [
        # 500 bytes at 1 GB/s: 0.5 us, 600 operations at 2 GFLOP/s: 0.3 us; half and 30% of a microsecond
        (500, 600, {"binds": "memory", "us": 0.5, "fraction": 0.5}),
        (100, 600, {"binds": "compute", "us": 0.3, "fraction": 0.3}),
        (2000, 0, {"binds": "memory", "us": 2.0, "fraction": 2.0}),
    ],
)
def test_the_roof_by_hand(num_bytes: int, flop: int, expected: dict[str, Any]) -> None:
    case = Case("n=1", {"n": 1}, torch.float32, num_bytes, flop)
    found = runner.roof_of(case, ROOFS, 1e-6)
    assert found == {name: pytest.approx(value) for name, value in expected.items()}


def test_the_roof_is_of_the_cold_time_and_of_the_dtype(op: DoublingOp) -> None:
    (right, *_) = runner.run_op(op, one_case(op), machine(), providers=["right"])
    cold_s = right["cold"]["us"] * 1e-6
    assert right["roof"]["fraction"] == pytest.approx(512e-9 / cold_s)  # 64 numbers in and out
    assert right["bytes_per_s"] == pytest.approx(512 / cold_s)
    assert right["flop_per_s"] == pytest.approx(64 / cold_s)
    double = op.case({"n": 64, "kind": "plus"}, "float64", "forward")
    with pytest.raises(KeyError, match="float64"):  # another dtype's roof is never taken
        runner.roof_of(double, ROOFS, 1e-6)


def test_roofs_are_measured_for_every_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machines.COPY_BYTES, "cpu", 2**16)
    monkeypatch.setitem(machines.SIDES, "cpu", 32)
    dtypes = ["float32", "bfloat16", "float16", "int8"]
    found = machines.roofs(at("cpu", "quick"), measure.CPUStopwatch(0.0, 1), dtypes)
    assert list(found["flop_per_s"]) == dtypes
    assert found["copy_bytes_per_s"] > 0
    assert min(found["flop_per_s"].values()) > 0
    assert set(found["products"].values()) == {"32^3"}
    dry = machines.roofs(at("cuda", "dry"), measure.CPUStopwatch(0.0, 1))
    assert (dry["copy_bytes_per_s"], dry["flop_per_s"]) == (None, {"float32": None})


class SlowStopwatch(measure.CPUStopwatch):
    """Says a second for any call."""

    def time(self, calls: Any) -> measure.Timing:
        return measure.timing_of([1e6], "wall clock")


def test_a_slow_product_is_measured_on_small_matrices() -> None:
    device = torch.device("cpu")
    rate, side = machines.product_rate(SlowStopwatch(0.0, 1), device, 1024, torch.float32)
    assert (rate, side) == (2 * 256**3, 256)


def test_directions_by_hand() -> None:
    """y = x^2: the gradient of 3 at x = 5 is 30."""
    op = DoublingOp()
    shape = {"n": 1, "kind": "plus"}

    def run(direction: Any) -> Any:
        inputs: Inputs = {"x": torch.tensor([5.0], requires_grad=True), "grad": torch.tensor([3.0])}
        case = op.case(shape, "float32", direction)
        call = directed(op, case, inputs, lambda: inputs["x"] ** 2)
        return call(), call()  # a kept graph gives the same again

    assert [out.item() for out in run("forward")] == [25.0, 25.0]
    assert [one.item() for out in run("backward") for one in out] == [30.0, 30.0]
    assert [one.item() for out in run("both") for one in out] == [25.0, 30.0, 25.0, 30.0]
    costs = [
        (case.num_bytes, case.flop)
        for case in op.cases(at("cpu", "quick"), [shape], [], ["forward", "backward", "both"])
    ]
    assert costs == [(8, 1), (8, 1), (16, 2)]


def test_gradients_are_checked(op: DoublingOp) -> None:
    """Right forward, wrong gradient: not timed."""

    class Cut(Provider):
        name = "cut"

        def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
            return lambda: inputs["x"] + inputs["x"].detach()

    op.providers = [DoublingProvider("right", 2.0), Cut()]
    cases = op.cases(at("cpu", "quick"), [], [], ["forward", "backward", "both"])
    found = {
        (row["direction"], row["provider"]): row["status"]
        for row in runner.run_op(op, cases, machine())
    }
    assert found == {
        ("forward", "right"): "ok",
        ("forward", "cut"): "ok",
        ("backward", "right"): "ok",
        ("backward", "cut"): "wrong",
        ("both", "right"): "ok",
        ("both", "cut"): "wrong",
    }


def test_inputs_that_don_t_fit_fail_their_case_alone(
    op: DoublingOp, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = op.inputs

    def inputs(case: Case, *rest: Any) -> Inputs:
        if case.parameters["n"] == 9:
            raise RuntimeError("CUDA out of memory\nTried to allocate")
        return plain(case, *rest)

    monkeypatch.setattr(op, "inputs", inputs)
    shapes = [{"n": n, "kind": "plus"} for n in (9, 8)]
    cases = op.cases(at("cpu", "quick"), shapes, [], ["forward"])
    rows = runner.run_op(op, cases, machine(), providers=["right", "elsewhere"])
    assert [row["status"] for row in rows] == ["failed", "failed", "ok", "not run"]
    assert rows[0]["reason"] == "inputs and reference: RuntimeError: CUDA out of memory"


def test_table_says_all_and_compares_with_the_baseline(op: DoublingOp) -> None:
    rows = runner.run_op(op, one_case(op), machine())
    lines = report.table(rows).splitlines()
    assert lines[0] == "double n=64,kind=plus float32 forward"
    assert " 1.00 " in lines[2]  # the baseline itself
    assert "% memory" in lines[2]
    assert lines[4].split() == ["broken", "failed:", "RuntimeError:", "no", "such", "kernel"]
    assert lines[6] == "  not run: elsewhere (is for another machine)"


def test_dry_run_for_cuda_executes_and_times_nothing(op: DoublingOp) -> None:
    where = at("cuda", "dry")
    stopwatch = machines.stopwatch_for(where)
    assert isinstance(stopwatch, measure.CUDAStopwatch)
    cases = op.cases(where, [], ["float32"], ["forward"])
    rows = runner.run_op(op, cases, machine(where, stopwatch))
    assert [row["status"] for row in rows] == ["dry run", "wrong", "failed", "wrong", "not run"]
    assert not {"warm", "cold", "peak_bytes", "roof"} & set(rows[0])
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
    shapes = [{"n": n, "kind": "plus"} for n in range(1, 10)]
    cases = op.cases(at("cpu", "full"), shapes, [], ["forward"])
    rows = runner.run_op(op, cases, machine(at("cpu", "full"), measure.CPUStopwatch(0.0, 1)))
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


def test_a_function_is_a_provider() -> None:
    """`TorchProvider` needs no subclass: it calls the function with the inputs."""
    case = Case("case", {}, torch.float32, 1, 1)
    provider = TorchProvider("sum", lambda inputs: inputs["a"] + inputs["b"], compiled=False)
    assert provider.name == "sum"
    assert provider.prepare(case, {"a": 1, "b": 2})() == 3
    assert TorchProvider("sum", len, compiled=True).name == "sum compiled"
