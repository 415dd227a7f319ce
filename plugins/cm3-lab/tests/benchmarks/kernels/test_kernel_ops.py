"""The bundled ops: costs by hand, gates, and every op in every direction on tiny inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cm3core.errors import CM3Error
from cm3core.interfaces.attention import AttentionBackend, AttentionConfig
from cm3core.plugins import load_registry
from cm3lab.benchmarks.kernels import runner
from cm3lab.benchmarks.kernels.ops import add
from cm3lab.benchmarks.kernels.ops.attention import AttentionOp
from cm3lab.benchmarks.kernels.ops.backends import BackendProvider, add_backends
from cm3lab.benchmarks.kernels.ops.guided_sample import chain
from cm3run.benchmarks import BenchmarkRegistry, Inputs, Op
from kernel_bench import at, machine


def bundled() -> dict[str, Op]:
    registry = BenchmarkRegistry()
    add(registry)
    return registry.ops


@pytest.mark.parametrize(
    ("op", "shape", "dtype", "forward", "backward"),
    [
        # three visible pairs of four operations; q, k, v, out of two numbers; backward: those four and the gradient
        # of out, and three gradients; 2.5 times the operations
        ("attention", "B=1,H=1,T=2,D=1,documents=1", "float32", (32, 12), (64, 30)),
        # two documents of two tokens
        ("attention", "B=1,H=1,T=4,D=1,documents=2", "float32", (64, 24), (128, 60)),
        # one image: keys 4 + 3 shared, 2 rows of 5 own; both streams attend to (4 + 5) and (3 + 5) keys
        ("segment_decode", "N=1,P=4,L=5,H=1,K=1,D=1", "float32", ((2 * 17 + 4) * 4, 4 * 17), None),
        # 2 x 3 numbers: the stream in float32 and the branch in, the sum in float32 and its norm out
        ("add_norm", "M=2,E=3", "bfloat16", (6 * (4 + 2 + 4 + 2), 48), None),
        # two halves in, one out
        ("silu_gate", "M=2,F=3", "bfloat16", (6 * 2 * 3, 30), None),
        # heads of 1 query and 1 key: q, k, v in; q, k, v out
        ("store_heads", "M=1,H=1,K=1,D=2", "float32", (3 * 2 * 2 * 4, 8 * 2 * 2), None),
        # two rows of logits in, an id of eight bytes out
        ("guided_sample", "n=1,V=8,kind=cfg", "float32", (2 * 8 * 4 + 8, 0), None),
        # 2 tokens and 5 ids of 3 numbers; a product of 2 x 3 x 5, then two; gradients of both
        ("linear_cross_entropy", "N=2,E=3,V=5", "float32", (7 * 3 * 4, 60), (2 * 7 * 3 * 4, 120)),
        # a weight of 3 x 5 bytes; rows of 3 and of 5 float32
        ("few_rows", "M=2,K=3,V=5", "int8", (15 + 2 * 8 * 4, 60), None),
    ],
)
def test_costs_by_hand(
    op: str,
    shape: str,
    dtype: str,
    forward: tuple[int, int],
    backward: tuple[int, int] | None,
) -> None:
    one = bundled()[op]
    parts = (part.split("=") for part in shape.split(","))
    values = {key: one.keys[key].value(value) for key, value in parts}
    case = one.case(values, dtype, "forward")
    assert case.name == shape
    assert (case.num_bytes, case.flop) == forward
    assert ("backward" in one.directions) == (backward is not None)
    if backward is not None:
        case = one.case(values, dtype, "backward")
        assert (case.num_bytes, case.flop) == backward


@pytest.mark.parametrize("name", list(bundled()))
@pytest.mark.parametrize("interpreted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_op_is_right_in_every_direction_and_dtype(name: str, *, interpreted: bool) -> None:
    """On the smallest shape, what runs on a CPU without torch's compiler and other packages; kernels in Triton's
    interpreter, too."""
    op = bundled()[name]
    where = at("cpu", "dry")
    cases = op.cases(where, [op.shapes(where)[0]], list(op.limits), op.directions)
    chosen = [one.name for one in op.providers if interpreted or "triton" not in one.name]
    rows = runner.run_op(op, cases, machine(where), providers=chosen)
    assert {row["status"] for row in rows} <= {"dry run", "not run"}
    right = {row["provider"] for row in rows if row["status"] == "dry run"}
    assert {op.baseline, "torch chain"} & right
    ours = [row for row in rows if row["provider"].startswith("cm3/")]
    machine_lacks = all(str(row.get("reason")).startswith("it needs a CPU") for row in ours)
    assert machine_lacks or [one for one in right if one.startswith("cm3/")]
    assert len({(row["dtype"], row["direction"]) for row in rows}) == len(op.limits) * len(
        op.directions
    )


def test_defaults_are_plausible() -> None:
    for op in bundled().values():
        assert op.baseline in {provider.name for provider in op.providers}
        for where in (
            at("cpu", "quick"),
            at("cpu", "full"),
            at("cuda", "quick"),
            at("cuda", "full"),
            at("cuda", "dry"),
        ):
            for case in op.cases(where):
                assert list(case.parameters) == list(op.keys)
                assert op.refusal(case.parameters) is None
            names = [(case.name, case.dtype, case.direction) for case in op.cases(where)]
            assert len(names) == len(set(names))
        assert op.cases(at("cpu", "quick"))
        quick, full = op.shapes(at("cuda", "quick")), op.shapes(at("cuda", "full"))
        assert len(quick) < len(full) or op.name == "few_rows"


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
    case = op.cases(where, [{"B": 1, "H": 2, "T": 24, "D": 32, "documents": 3}])[0]
    inputs = op.inputs(case, where, 0)
    expected = op.expected(case, inputs)
    right = next(provider for provider in op.providers if provider.name == "cm3/sdpa")
    assert op.gate(case, expected, right.prepare(case, inputs)()).passed
    assert not op.gate(case, expected, right.prepare(case, {**inputs, "kv_start": None})()).passed


def test_gradients_of_the_forward_pass_are_not_timed_as_a_backward() -> None:
    """Its backward only scales them: a time of it would beat any roof."""
    op, where = bundled()["linear_cross_entropy"], at("cpu", "dry")
    cases = op.cases(where, [], [], ["backward", "both"])
    rows = runner.run_op(op, cases, machine(where), providers=["cm3/torch", "torch"])
    assert {(row["direction"], row["provider"]): row["status"] for row in rows} == {
        ("backward", "cm3/torch"): "not run",
        ("backward", "torch"): "dry run",
        ("both", "cm3/torch"): "dry run",
        ("both", "torch"): "dry run",
    }


def test_the_unshared_ones_are_compared_with_the_op() -> None:
    names = {provider.name for provider in bundled()["segment_decode"].providers}
    assert {"cm3/triton", "cm3/triton unshared", "cm3/torch unshared", "sdpa unshared"} <= names


class Halves(AttentionBackend):
    """Causal attention over documents, in plain torch."""

    def attend(self, q_BTHD: Any, k_BSKD: Any, v_BSKD: Any, **rest: Any) -> Any:
        T = q_BTHD.shape[1]
        scores = torch.einsum("bthd,bshd->bhts", q_BTHD, k_BSKD) * q_BTHD.shape[3] ** -0.5
        place = torch.arange(T)
        visible = place[None, :, None] >= place[None, None]
        if (starts := rest["kv_start_BT"]) is not None:
            visible = visible & (place[None, None] >= starts[:, :, None])
        scores = scores.masked_fill(~visible[:, None], float("-inf"))
        return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v_BSKD)


class HalvesConfig(AttentionConfig):
    largest_head_dim = 64

    def check_training(self, device: str) -> None:
        raise CM3Error("attention 'halves'", "can't train anywhere", "generate")

    def build(self) -> AttentionBackend:
        return Halves()


class NeedsConfig(AttentionConfig):
    def __init__(self, window: int) -> None:
        self.window = window


def with_plugin(**backends: type[AttentionConfig]) -> Any:
    """The registry with a plugin `theirs` that has these attention backends."""
    from cm3core.plugins.info import PluginInfo

    registry = load_registry()
    info = PluginInfo("theirs", "theirs", "theirs 1.0")
    registry.add(info, {"attention": dict(backends)}, {})
    return registry


def test_backends_of_plugins_are_timed_beside_ours() -> None:
    registry, benchmarks = with_plugin(halves=HalvesConfig, needs=NeedsConfig), BenchmarkRegistry()
    add(benchmarks)
    add_backends(benchmarks, registry)
    op = benchmarks.ops["attention"]
    added = [one.name for one in op.providers if isinstance(one, BackendProvider)]
    assert sorted(added) == ["cm3/flex", "cm3/xformers", "theirs/halves", "theirs/needs"]
    shapes = [{"B": 2, "H": 2, "T": 9, "D": D, "documents": 2} for D in (16, 80)]
    cases = op.cases(at("cpu", "quick"), shapes, ["float32"], ["forward", "both"])
    found = {
        (row["parameters"]["D"], row["direction"], row["provider"]): (
            row["status"],
            row.get("reason"),
        )
        for row in runner.run_op(op, cases, machine(), providers=added)
    }
    assert found[16, "forward", "theirs/halves"] == ("ok", None)
    assert found[16, "both", "theirs/halves"] == ("not run", "can't train anywhere")
    assert found[80, "forward", "theirs/halves"] == ("not run", "supports head dimensions up to 64")
    status, reason = found[16, "forward", "theirs/needs"]
    assert (status, "has no default config" in str(reason)) == ("not run", True)
    assert found[16, "forward", "cm3/xformers"][0] == "not run"
