"""add_norm's kernel, interpreted (or on CUDA with `-m gpu`), against float64."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cm3kernels import add_norm
from cm3kernels.dispatch import LARGEST_WIDTH
from profiles import examples

pytest.importorskip("triton", reason="Triton is not installed: pip install 'cm3leon[triton]'")

triton_ops = import_module("cm3kernels.add_norm.triton")
RunGuarded = Callable[[str], "subprocess.CompletedProcess[str]"]
#: Largest difference of a normalised number near 1 that is due to the dtype's rounding.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


def check(
    x: Tensor, added: Tensor | None, dtype: torch.dtype, weight: Tensor | None = None
) -> None:
    """The sum has the bits of torch's, since both round once; the norm is that of float64. With a weight it is by the root
    mean square, without one a layer norm."""
    centred = weight is None
    total, normed = add_norm(
        x, added, weight=weight, centred=centred, dtype=dtype, implementation="triton"
    )
    wide = x.float() if added is None else x.float() + added.float()
    assert torch.equal(total, wide.to(x.dtype))
    assert (normed.dtype, normed.shape) == (dtype, x.shape)
    exact = total.cpu().double()
    exact = exact - exact.mean(1, keepdim=True) if centred else exact
    exact = exact / (exact.square().mean(1, keepdim=True) + 1e-5).sqrt()
    exact = exact if weight is None else exact * weight.cpu().double()
    error = (normed.cpu().double() - exact).abs() / (1 + exact.abs())
    assert error.max() <= TOLERANCE[dtype], error.max()


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="its tensors are on the CPU, where kernels are interpreted"
)
@settings(max_examples=examples(12), deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 1100)),
    dtypes=st.tuples(DTYPES, DTYPES, DTYPES),
    adds=st.booleans(),
    weighs=st.booleans(),
    apart=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_any_width_and_dtypes(
    shape: tuple[int, int],
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    adds: bool,
    weighs: bool,
    apart: int,
    seed: int,
) -> None:
    """Rows may be apart in memory; between them is NaN."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = shape
    both = torch.full((2, rows, width + apart), float("nan"))
    both[:, :, :width] = torch.randn(2, rows, width, generator=generator) * 3 + 1
    x, added = (one[:, :width] for one in (both[0].to(dtypes[0]), both[1].to(dtypes[1])))
    weight = torch.randn(width, generator=generator) if weighs else None
    check(x, added if adds else None, dtypes[2], weight)


@pytest.mark.parametrize("width", [255, 257, 1536, 4096])
def test_widths_of_recipes(device: str, width: int) -> None:
    """A residual stream in float32 and products in bfloat16, as by default on CUDA."""
    torch.manual_seed(0)
    x, added = torch.randn(2, width), torch.randn(2, width).bfloat16()
    weight = torch.rand(width).to(device)
    for one in (None, weight):
        check(x.to(device), added.to(device), torch.bfloat16, one)


def test_a_mean_far_from_zero_and_rows_without_variance(device: str) -> None:
    """The variance is of the centred row: as a difference of squares, it would be lost at a mean of 1,000."""
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) + 1000
    x[1] = 5.0
    x[2] = 0.0
    _, normed = add_norm(x.to(device), implementation="triton")
    torch.testing.assert_close(
        normed.cpu(), torch.nn.functional.layer_norm(x.double(), (40,)).float(), rtol=0, atol=2e-3
    )
    assert normed[1:].abs().max() == 0


def test_no_rows(device: str) -> None:
    total, normed = add_norm(
        torch.zeros(0, 8, device=device), torch.zeros(0, 8, device=device), implementation="triton"
    )
    assert total.shape == normed.shape == (0, 8)


@pytest.mark.slow
def test_op_contract() -> None:
    """PyTorch's own check of a custom operator, and a graph without breaks."""
    x, added = torch.randn(2, 20), torch.randn(2, 20)
    for branch in (added, None):
        torch.library.opcheck(
            torch.ops.cm3.add_norm.default,
            (x, branch, torch.ones(20), False, torch.bfloat16, 1e-5),
        )
    compiled = torch.compile(
        lambda one, two: add_norm(one, two, implementation="triton")[1] * 2,
        fullgraph=True,
        backend="aot_eager",
    )
    torch.testing.assert_close(
        compiled(x, added), add_norm(x, added, implementation="reference")[1] * 2
    )


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(1, LARGEST_WIDTH + 1),
            f"the width is {LARGEST_WIDTH + 1}, but the kernel supports at most {LARGEST_WIDTH}; "
            "next: implementation='auto'",
        ),
        (
            torch.zeros(1, 8, dtype=torch.float64),
            "the tensor is torch.float64, but the kernels support float32, bfloat16 and float16; "
            "next: cast it, or implementation='auto'",
        ),
    ],
)
def test_refusals(x: Tensor, message: str) -> None:
    """torch computes what the kernel refuses."""
    text = f"add_norm: implementation 'triton' can't run here: {message}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        add_norm(x, implementation="triton")
    assert add_norm(x)[1].shape == x.shape


@pytest.mark.slow
def test_no_access_outside_the_tensors(run_guarded: RunGuarded) -> None:
    done = run_guarded("""
from cm3kernels import add_norm
for side in ("after", "before"):
    x, added = (guarded(torch.randn(3, 37), side) for _ in range(2))
    ours, theirs = (add_norm(x, added, implementation=name) for name in ("triton", "reference"))
    torch.testing.assert_close(ours, theirs)
    weight = guarded(torch.randn(37), side)
    add_norm(x, weight=weight, centred=False, implementation="triton")
""")
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_every_configuration_is_compiled_ahead_of_time() -> None:
    """Whatever the width."""
    checked = {
        (
            *(entry.constexprs[name] for name in ("BLOCK", "ADDS", "CENTRES", "WEIGHS")),
            entry.num_warps,
        )
        for entry in triton_ops.aot_entries()
    }
    blocks = {triton_ops.block_of(width) for width in range(1, LARGEST_WIDTH + 1)}
    assert checked == {
        (block, adds, centred, not centred, triton_ops.num_warps_of(block))
        for block in blocks
        for adds in (True, False)
        for centred in (True, False)
    }


@pytest.mark.gpu
def test_a_captured_graph_follows_its_inputs() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x = torch.randn(2, 4096, device="cuda")
    added = torch.randn(2, 4096, device="cuda").bfloat16()
    check(x, added, torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = add_norm(x, added, dtype=torch.bfloat16, implementation="triton")
    for _ in range(3):
        added.normal_()
        graph.replay()
        expected = add_norm(x, added, dtype=torch.bfloat16, implementation="reference")
        torch.testing.assert_close(found, expected)
