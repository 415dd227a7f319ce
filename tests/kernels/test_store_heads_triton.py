"""store_heads' kernel, interpreted (or on CUDA with `-m gpu`), against float64."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cm3kernels import HeadNorms, Turn, store_heads
from profiles import examples

pytest.importorskip("triton", reason="Triton is not installed: pip install 'cm3leon[triton]'")

triton_ops = import_module("cm3kernels.store_heads.triton")
RunGuarded = Callable[[str], "subprocess.CompletedProcess[str]"]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
EPS = 1e-5
#: What may be done to heads, as names in the tests' parameters.
NORMS = ("none", "layer", "layer with bias", "rms")


def exact_norm(x: Tensor, norms: HeadNorms) -> Tensor:
    """In float64, x [M, H + K, D]."""
    if norms.centred:
        x = x - x.mean(-1, keepdim=True)
    normed = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * norms.weight.double()
    return normed if norms.bias is None else normed + norms.bias.double()


def exact_turn(x: Tensor, angles: Tensor) -> Tensor:
    """Pairs (d, d + D/2) as complex numbers, turned by angles [M, D/2]."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def moved(norms: HeadNorms, device: str) -> HeadNorms:
    bias = None if norms.bias is None else norms.bias.to(device)
    return HeadNorms(norms.weight.to(device), bias, norms.centred, norms.eps)


def check(
    tokens: int,
    heads: tuple[int, int],
    dim: int,
    *,
    dtype: torch.dtype,
    norm: str = "none",
    turns: bool = False,
    biased: bool = False,
    device: str,
    apart: int = 0,
    seed: int = 0,
) -> None:
    """Slots in any order, a pool whose memory is head by head, and no other slot touched."""
    generator = torch.Generator().manual_seed(seed)
    num_heads, key_heads = heads
    columns = (num_heads + 2 * key_heads) * dim
    whole = torch.full((tokens, columns + apart), float("nan"))
    whole[:, :columns] = torch.randn(tokens, columns, generator=generator) * 2 + 0.5
    qkv = whole.to(dtype).to(device)[:, :columns]
    bias = torch.randn(columns, generator=generator).to(dtype) if biased else None
    weights = torch.rand(2, num_heads + key_heads, dim, generator=generator) + 0.5
    shift = weights[1] if norm == "layer with bias" else None
    norms = HeadNorms(weights[0], shift, norm != "rms", EPS) if norm != "none" else None
    angles = torch.rand(tokens, dim // 2, generator=generator, dtype=torch.float64) * 7
    turn = [one.repeat(1, 2).float().to(device) for one in (angles.cos(), angles.sin())]
    slots = torch.randperm(tokens + 3, generator=generator)[:tokens]
    keys, values = torch.full((2, key_heads, tokens + 3, dim), 7.0, dtype=dtype).to(device)
    keys, values = keys.transpose(0, 1), values.transpose(0, 1)
    q = store_heads(
        qkv,
        keys,
        values,
        slots.to(device),
        bias=None if bias is None else bias.to(device),
        norms=None if norms is None else moved(norms, device),
        turn=Turn(*turn) if turns else None,
        implementation="triton",
    )
    exact = qkv.cpu().double() if bias is None else qkv.cpu().double() + bias.double()
    exact = exact.view(tokens, -1, dim)
    prepared, expected_values = exact.split([num_heads + key_heads, key_heads], dim=1)
    if norms is not None:
        prepared = exact_norm(prepared, norms)
    if turns:
        prepared = exact_turn(prepared, angles)
    parts = (*prepared.split([num_heads, key_heads], dim=1), expected_values)
    same = norms is None and not turns and not biased
    for found, expected in zip((q, keys.cpu()[slots], values.cpu()[slots]), parts, strict=True):
        assert found.dtype == dtype
        assert found.shape == expected.shape
        error = (found.cpu().double() - expected).abs() / (1 + expected.abs())
        assert error.max() <= (0 if same else TOLERANCE[dtype]), error.max()
    others = sorted(set(range(tokens + 3)) - set(slots.tolist()))
    assert (keys[others] == 7).all()
    assert (values[others] == 7).all()


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="its tensors are on the CPU, where kernels are interpreted"
)
@settings(max_examples=examples(6), deadline=None)
@given(
    tokens=st.integers(1, 2),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    half_dim=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    norm=st.sampled_from(NORMS),
    turns=st.booleans(),
    biased=st.booleans(),
    apart=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_any_heads(
    tokens: int, heads: tuple[int, int], half_dim: int, dtype: torch.dtype, **options: Any
) -> None:
    """One to three query heads on each key head."""
    group, key_heads = heads
    check(
        tokens, (group * key_heads, key_heads), 2 * half_dim, dtype=dtype, device="cpu", **options
    )


@pytest.mark.parametrize("dim", [32, 64, 80, 96, 128])
@pytest.mark.parametrize(("norm", "turns"), [("none", False), ("layer with bias", True)])
def test_head_dimensions_of_recipes(device: str, dim: int, norm: str, turns: bool) -> None:
    check(2, (4, 4), dim, dtype=torch.bfloat16, norm=norm, turns=turns, device=device)


def test_an_odd_head_dimension(device: str) -> None:
    check(2, (2, 1), 5, dtype=torch.float32, norm="layer", device=device)


def test_a_narrower_cache(device: str) -> None:
    """Products in float32, keys in bfloat16: each number is rounded once, to the nearest."""
    qkv = torch.randn(2, 3 * 16, generator=torch.Generator().manual_seed(0)).to(device)
    keys, values = torch.zeros(2, 2, 1, 16, dtype=torch.bfloat16, device=device)
    slots = torch.tensor([0, 1], device=device)
    q = store_heads(qkv, keys, values, slots, implementation="triton")
    for found, part in zip((q, keys, values), qkv.view(2, 3, 16).unbind(1), strict=True):
        assert torch.equal(found[:, 0], part.bfloat16())


def test_no_tokens(device: str) -> None:
    keys = torch.zeros(2, 1, 4, device=device)
    slots = torch.zeros(0, dtype=torch.int64, device=device)
    q = store_heads(
        torch.zeros(0, 12, device=device), keys, keys.clone(), slots, implementation="triton"
    )
    assert q.shape == (0, 1, 4)


@pytest.mark.slow
def test_op_contract() -> None:
    """PyTorch's own check of a custom operator."""
    keys, values = torch.zeros(5, 2, 8), torch.zeros(5, 2, 8)
    slots = torch.tensor([4, 1])
    turn = torch.ones(2, 8), torch.zeros(2, 8)
    for extra in (
        (None, None, None, False, 1.0, None, None),
        (torch.ones(48), torch.ones(4, 8), torch.ones(4, 8), True, 1e-5, *turn),
    ):
        torch.library.opcheck(
            torch.ops.cm3.store_heads.default,
            (torch.randn(2, 48), keys, values, slots, *extra),
        )


@pytest.mark.parametrize(
    ("dim", "dtype", "message"),
    [
        (
            160,
            torch.float32,
            "the head dimension is 160, but the kernel supports at most 128; next: "
            "implementation='auto'",
        ),
        (
            8,
            torch.float64,
            "the tensor is torch.float64, but the kernels support float32, bfloat16 and float16; "
            "next: cast it, or implementation='auto'",
        ),
    ],
)
def test_refusals(dim: int, dtype: torch.dtype, message: str) -> None:
    """torch computes what the kernel refuses."""
    keys, values = torch.zeros(2, 2, 1, dim, dtype=dtype)
    given = torch.ones(1, 3 * dim, dtype=dtype), keys, values, torch.tensor([1])
    text = f"store_heads: implementation 'triton' can't run here: {message}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        store_heads(*given, implementation="triton")
    store_heads(*given)
    assert keys[:, 0, 0].tolist() == [0.0, 1.0]


@pytest.mark.slow
def test_no_access_outside_the_tensors(run_guarded: RunGuarded) -> None:
    """A guard page after, then before, every tensor: five heads in blocks of four, a padded head dimension."""
    done = run_guarded("""
from cm3kernels import HeadNorms, Turn, store_heads
for side in ("after", "before"):
    qkv, bias = guarded(torch.randn(2, 15 * 6), side), guarded(torch.randn(15 * 6), side)
    norms = HeadNorms(*(guarded(torch.randn(10, 6), side) for _ in range(2)))
    turn = Turn(*(guarded(torch.randn(2, 6), side) for _ in range(2)))
    slots = guarded(torch.tensor([2, 0]), side)
    found = []
    for name in ("triton", "reference"):
        keys, values = (guarded(torch.zeros(3, 5, 6), side) for _ in range(2))
        extra = {"bias": bias, "norms": norms, "turn": turn, "implementation": name}
        q = store_heads(qkv, keys, values, slots, **extra)
        found.append((q, keys, values))
    torch.testing.assert_close(*found)
""")
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_every_configuration_is_compiled_ahead_of_time() -> None:
    flags = ("BIASED", "NORMS", "CENTRES", "SHIFTS", "TURNS")
    checked = {
        (
            entry.constexprs["D"],
            entry.types["qkv_ptr"],
            tuple(flag for flag in flags if entry.constexprs[flag]),
        )
        for entry in triton_ops.aot_entries()
    }
    norm = ("NORMS", "CENTRES")
    kinds = [(), norm, ("TURNS",), (*norm, "SHIFTS", "TURNS"), ("NORMS", "TURNS")]
    assert checked == {
        (dim, dtype, kind)
        for dim in triton_ops.HEAD_DIMS
        for dtype in ("*bf16", "*fp32")
        for kind in (*kinds, ("BIASED", "TURNS"))
    }


@pytest.mark.gpu
def test_a_captured_graph_follows_the_slots() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    qkv = torch.randn(2, 3 * 8 * 64, device="cuda").bfloat16()
    keys, values = torch.zeros(2, 10, 8, 64, device="cuda").bfloat16()
    slots = torch.tensor([0, 5], device="cuda")
    store_heads(qkv, keys, values, slots, implementation="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        store_heads(qkv, keys, values, slots, implementation="triton")
    for _ in range(4):
        slots += 1
        graph.replay()
    for row, part in enumerate(qkv.view(2, 3, 8, 64)):
        assert torch.equal(keys[5 * row : 5 * row + 5], part[1].expand(5, 8, 64))
        assert torch.equal(values[5 * row : 5 * row + 5], part[2].expand(5, 8, 64))
