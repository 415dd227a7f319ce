"""The attention kernels against the float64 reference: interpreted on the CPU at small tiles,
compiled and larger on CUDA."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_cases import Case, assert_equal, start_of
from attention_cases import small_tiles as small_tiles  # the fixture
from cm3kernels.attention import (
    attention,
    configs,
)
from cm3kernels.attention.configs import Launch

#: Heads and head dimension never interact in a kernel, so the interpreter, at a second a case,
#: covers each value of both, not each pair; some more pairs are slow tests.
MATRIX = [(64, (2, 2)), (96, (4, 2)), (128, (4, 1))]
MORE = [
    pytest.param(D, heads, "cpu", marks=pytest.mark.slow)
    for D, heads in ((64, (4, 2)), (64, (4, 1)), (128, (2, 2)))
]
ON_CUDA = [
    pytest.param(D, heads, "cuda", marks=pytest.mark.gpu)
    for D in (64, 96, 128)
    for heads in ((2, 2), (4, 2), (4, 1))
]


@pytest.mark.parametrize("layout", ["none", "packed", "retrieved"])
@pytest.mark.parametrize(
    ("D", "heads", "device"),
    [*((*case, "cpu") for case in MATRIX), *MORE, *ON_CUDA],
    indirect=["device"],
)
def test_equals_the_reference(
    D: int, heads: tuple[int, int], layout: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    T = 35 if device == "cpu" else 1000
    monkeypatch.setattr(
        configs, "INTERPRETED", Launch(16, 32, 4, 1) if D == 96 else Launch(32, 16, 4, 1)
    )
    case = Case.random(1 if device == "cpu" else 2, T, heads, D, start_of(layout, T), device)
    assert_equal(case.run("triton", torch.float32), case.run("reference", torch.float64), 4e-6)


@pytest.mark.parametrize("layout", ["none", "one token each", "padded"])
@pytest.mark.parametrize("T", [1, 15, 16, 17, 31, 33, 64])
def test_edges(T: int, layout: str, device: str) -> None:
    """Tokens around a tile's edge; documents of one token; queries that see nothing."""
    case = Case.random(1, T, (1, 1), 32, start_of(layout, T) if T > 6 else None, device)
    assert_equal(case.run("triton", torch.float32), case.run("reference", torch.float64), 4e-6)


def test_documents_of_exactly_one_tile_and_rows_of_their_own(device: str) -> None:
    starts = torch.stack([torch.arange(48) // 16 * 16, torch.zeros(48, dtype=torch.int64)])
    case = Case.random(2, 48, (1, 1), 32, starts, device)
    assert_equal(case.run("triton", torch.float32), case.run("reference", torch.float64), 4e-6)


def test_queries_that_see_nothing_have_no_gradient(device: str) -> None:
    case = Case.random(1, 40, (1, 1), 32, start_of("padded", 40), device)
    out, lse, grad_q, *_ = case.run("triton", torch.float32)
    blind = torch.tensor([0, 1, 35, 36, 37, 38, 39], device=device)
    assert not out[:, blind].any()
    assert lse[:, :, blind].isneginf().all()
    assert not grad_q[:, blind].any()
    # The gradient that arrives for an lse of -inf is often NaN: exp(lse - other_lse) and the like.
    tensors = [x.detach().float().requires_grad_() for x in (case.q, case.k, case.v)]
    out, lse = attention(*tensors, kv_start=case.kv_start, return_lse=True, implementation="triton")
    upstream = torch.where(lse.isneginf(), math.nan, 1.0)
    grads = torch.autograd.grad((out, lse), tensors, (torch.ones_like(out), upstream))
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0][:, blind].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_error_is_at_most_twice_that_of_torchs_function(
    dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in `dtype`, compared with float64 on the same, rounded inputs."""
    monkeypatch.setattr(configs, "INTERPRETED", Launch(32, 32, 4, 1))
    T = 64 if device == "cpu" else 1024
    case = Case.random(1, T, (2, 2), 64, None, device)
    case.q, case.k, case.v = (x.to(dtype).double() for x in (case.q, case.k, case.v))
    results = {}
    kinds = (
        ("ours", dtype, "triton"),
        ("torch", dtype, "sdpa"),
        ("exact", torch.float64, "reference"),
    )
    for name, kind, implementation in kinds:
        tensors = [x.to(kind).requires_grad_() for x in (case.q, case.k, case.v)]
        out = attention(*tensors, implementation=implementation)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(
            device, dtype
        )
        results[name] = [out, *torch.autograd.grad(out, tensors, weight.to(kind))]
    for ours, torchs, exact in zip(
        results["ours"], results["torch"], results["exact"], strict=True
    ):
        error, allowed = ((x.double() - exact).square().mean().sqrt() for x in (ours, torchs))
        assert error <= 2 * allowed + 1e-7, (dtype, float(error), float(allowed))


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_huge_logits(scale: float, device: str) -> None:
    """Weights of nearly one key, sums far from overflow: no NaN, and the error of float32's own
    scores."""
    case = Case.random(1, 40, (1, 1), 32, start_of("packed", 40), device)
    tensors = [x.float() for x in (case.q, case.k, case.v)]
    exact = attention(
        *(x.double() for x in tensors),
        kv_start=case.kv_start,
        scale=scale,
        implementation="reference",
    )
    errors = [
        (
            attention(*tensors, kv_start=case.kv_start, scale=scale, implementation=name).double()
            - exact
        )
        .abs()
        .max()
        for name in ("triton", "sdpa")
    ]
    assert errors[0] <= 4 * errors[1] + 1e-5, errors


def test_gradients_are_those_of_the_function() -> None:
    """gradcheck in float64, which the kernels support in the interpreter: also of lse, grouped
    heads, packed rows."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 17, h, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for h in (2, 1, 1)
    )
    kv_start = start_of("retrieved", 17)
    assert kv_start is not None

    def both(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return attention(
            *tensors, kv_start=kv_start[None], return_lse=True, implementation="triton"
        )

    assert torch.autograd.gradcheck(both, (q, k, v), fast_mode=True, check_undefined_grad=False)


@pytest.mark.slow
@settings(
    max_examples=6,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_any_starts_any_tiles_any_strides(data: st.DataObject) -> None:
    """kv_start need not increase, and may be outside the row; tensors may be slices of larger
    ones."""
    T, D = (
        data.draw(st.integers(1, 40), label="T"),
        data.draw(st.sampled_from([8, 24, 32, 40]), label="D"),
    )
    heads = data.draw(st.sampled_from([(1, 1), (2, 1)]), label="heads")
    tile = data.draw(st.sampled_from([(16, 16), (16, 32), (32, 16)]), label="tile")
    starts = data.draw(st.lists(st.integers(-40, T + 1), min_size=T, max_size=T), label="kv_start")
    case = Case.random(1, T, heads, D, torch.tensor(starts, dtype=torch.int32), "cpu")
    wide = torch.full((1, heads[0], T + 2, D + 3), math.nan, dtype=torch.float64).transpose(1, 2)[
        :, 1:-1, :, 2:-1
    ]
    case.q = wide.copy_(case.q)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "INTERPRETED", Launch(*tile, 4, 1))
        assert_equal(case.run("triton", torch.float32), case.run("reference", torch.float64), 4e-6)
