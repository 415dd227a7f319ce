"""The attention kernels as an operator of torch: schema, compilation, refusals, every configuration."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_cases import Case, start_of
from attention_cases import small_tiles as small_tiles  # the fixture
from cm3kernels.aot import ARCHS
from cm3kernels.attention import (
    AttentionPlan,
    attention,
    configs,
)
from cm3kernels.attention.configs import Launch
from messages import tells

triton_ops = import_module("cm3kernels.attention.triton")


def samples(device: str) -> tuple[Any, ...]:
    case = Case.random(1, 20, (2, 1), 16, start_of("packed", 20), device)
    plan = AttentionPlan(20, 20, case.kv_start)
    q, k, v = (x.float().requires_grad_() for x in (case.q, case.k, case.v))
    shape = configs.launch("grad_keys", q)
    return (
        q,
        k,
        v,
        plan.narrow_start(),
        None,
        *(plan.query_tiles(shape.block_q, shape.block_k) or ()),
        0.25,
    )


@pytest.mark.slow
def test_opcheck(device: str) -> None:
    """Schema, fake tensors, autograd registration, compilation with dynamic shapes."""
    arguments = samples(device)
    torch.library.opcheck(torch.ops.cm3.attention.default, arguments)
    out, lse = torch.ops.cm3.attention(*arguments)
    q, k, v, start, _, tiles, counts, scale = (
        x.detach() if isinstance(x, Tensor) else x for x in arguments
    )
    torch.library.opcheck(
        torch.ops.cm3.attention_backward.default,
        (
            torch.randn_like(out),
            torch.randn_like(lse),
            q,
            k,
            v,
            out.detach(),
            lse.detach(),
            start,
            tiles,
            counts,
            scale,
        ),
    )


@pytest.mark.slow
def test_compiles_as_one_graph(device: str) -> None:
    case = Case.random(1, 20, (2, 1), 16, start_of("packed", 20), device)

    def loss(q: Tensor, k: Tensor, v: Tensor, kv_start: Tensor) -> Tensor:
        return attention(q * 2, k, v, kv_start=kv_start, implementation="triton").square().sum()

    compiled = torch.compile(
        loss, fullgraph=True, backend="aot_eager" if device == "cpu" else "inductor"
    )
    q, k, v = tensors = [x.float().requires_grad_() for x in (case.q, case.k, case.v)]
    assert case.kv_start is not None
    expected = torch.autograd.grad(loss(q, k, v, case.kv_start), tensors)
    for ours, eager in zip(
        torch.autograd.grad(compiled(*tensors, case.kv_start), tensors), expected, strict=True
    ):
        torch.testing.assert_close(ours, eager)


def test_no_rows_and_no_tokens(device: str) -> None:
    for shape in ((0, 3, 2, 8), (2, 0, 2, 8)):
        q = torch.zeros(shape, device=device, requires_grad=True)
        kv_start = torch.zeros(shape[:2], dtype=torch.int32, device=device)
        attention(q, q, q, kv_start=kv_start, implementation="triton").sum().backward()
        assert q.grad is not None


def refused(**changes: Any) -> str:
    arguments = {
        "q": torch.zeros(1, 2, 1, 8),
        "k": torch.zeros(1, 2, 1, 8),
        "v": torch.zeros(1, 2, 1, 8),
        **changes,
    }
    with pytest.raises((ValueError, RuntimeError)) as caught:
        attention(**arguments, implementation="triton")
    return str(caught.value)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    far = torch.empty(2**24 + 8, dtype=torch.float32, device="cpu").as_strided(
        (1, 2, 1, 8), (2**24, 2**24, 8, 1)
    )
    assert tells(
        refused(q=far), "attention: q's tokens are 16777216 ... under 16777216 ... q.contiguous"
    )
    wide = torch.zeros(1, 2, 1, 160)
    assert tells(
        refused(q=wide, k=wide, v=wide),
        "attention: implementation 'triton' can't ... is 160 ... at most 128",
    )
    many = torch.zeros(1).expand(2**16, 1, 1, 1)
    assert tells(refused(q=many, k=many, v=many), "attention: q is [65536, 1 ... 1 ... 1")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert tells(refused(), "attention: implementation 'triton' can't ... CPU")


def test_no_gradient_through_a_cache() -> None:
    q = torch.zeros(1, 2, 1, 8, requires_grad=True)
    out = attention(q, q, q, offset=torch.tensor([0]), implementation="triton")
    with pytest.raises(RuntimeError) as caught:
        out.sum().backward()
    assert tells(caught.value, "attention: the Triton kernels have no backward")


def test_every_configuration_is_compiled_ahead_of_time() -> None:
    """Everything that `launch` can return for the shipped head dimensions is in the budget, on the
    capability that gets it, with and without packed rows, and with grouped heads where they are a
    loop."""
    checked = {
        (
            entry.name.split(".")[1],
            entry.name.split(".")[2],
            entry.constexprs["HEAD_DIM"],
            arch,
            entry.constexprs["HAS_START"],
            entry.constexprs["GROUP"],
            Launch(
                entry.constexprs["BLOCK_Q"],
                entry.constexprs["BLOCK_K"],
                entry.num_warps,
                entry.num_stages,
                entry.constexprs["PRECISION"],
            ),
        )  # type: ignore[arg-type]  # constexprs are objects to the types, and int here
        for entry in triton_ops.aot_entries()
        if "BLOCK_K" in entry.constexprs
        for arch in entry.archs
    }
    for dtype, num_bytes in (("bf16", 2), ("fp32", 4)):
        for name in ("forward", "decode", "grad_keys", "grad_queries"):
            for D in (32, 64, 96, 128):
                for arch in ARCHS:
                    shape = configs.table(name, num_bytes, configs.block_d(D), capability=arch)
                    for packed in (True, False):
                        for group in (1, 8) if name == "grad_keys" else (1,):
                            assert (name, dtype, D, arch, packed, group, shape) in checked
