"""silu_gate: by hand, what is refused, and its kernel, interpreted (or on CUDA with `-m gpu`), against float64."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3kernels import silu_gate
from profiles import examples

pytest.importorskip("triton", reason="Triton is not installed: pip install 'cm3leon[triton]'")

RunGuarded = Callable[[str], "subprocess.CompletedProcess[str]"]
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def check(x: torch.Tensor) -> None:
    out = silu_gate(x, implementation="triton")
    gate, up = x.cpu().double().chunk(2, dim=1)
    exact = gate / (1 + (-gate).exp()) * up
    assert (out.dtype, out.shape) == (x.dtype, exact.shape)
    error = (out.cpu().double() - exact).abs() / (1 + exact.abs())
    assert error.max() <= TOLERANCE[x.dtype], error.max()


def test_by_hand(device: str) -> None:
    """silu(log 3) is log 3 * 3/4; silu of large numbers is they or nothing."""
    x = torch.tensor([[1.0986123, 0.0, 1e4, -1e4, 4.0, 5.0, 6.0, 7.0]], device=device)
    for implementation in ("triton", "reference"):
        out = silu_gate(x, implementation=implementation)
        torch.testing.assert_close(out.cpu(), torch.tensor([[3.2958369, 0.0, 6e4, 0.0]]))


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="its tensors are on the CPU, where kernels are interpreted"
)
@settings(max_examples=examples(10), deadline=None)
@given(
    rows=st.integers(1, 3),
    width=st.integers(1, 2100),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    apart=st.integers(0, 2),
)
def test_any_width(rows: int, width: int, dtype: torch.dtype, apart: int) -> None:
    whole = torch.full((rows, 2 * width + apart), float("nan"))
    generator = torch.Generator().manual_seed(width)
    whole[:, : 2 * width] = torch.randn(rows, 2 * width, generator=generator) * 3
    check(whole.to(dtype)[:, : 2 * width])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(2, 3),
            "gate_up is [2, 3] torch.float32 with strides [3, 1], must be floating [rows, 2 * "
            "width], the last stride 1",
        ),
        (
            torch.zeros(2, 4, requires_grad=True),
            "gate_up requires a gradient, which this op doesn't have; next: call it under "
            "torch.no_grad()",
        ),
    ],
)
def test_what_is_refused(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape('silu_gate: ' + message)}$"):
        silu_gate(x)


@pytest.mark.slow
def test_op_contract() -> None:
    """PyTorch's own check of a custom operator."""
    import_module("cm3kernels.silu_gate.triton")  # registers it
    torch.library.opcheck(torch.ops.cm3.silu_gate.default, (torch.randn(2, 8),))


@pytest.mark.slow
def test_no_access_outside_the_tensors(run_guarded: RunGuarded) -> None:
    done = run_guarded("""
from cm3kernels import silu_gate
for side in ("after", "before"):
    x = guarded(torch.randn(3, 74), side)
    ours, theirs = (silu_gate(x, implementation=name) for name in ("triton", "reference"))
    torch.testing.assert_close(ours, theirs)
""")
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.gpu
def test_a_recipe_s_width() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    check(torch.randn(2, 2 * 11_008, device="cuda").bfloat16())
