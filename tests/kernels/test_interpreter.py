"""The interpreter as our tests use it: correct for bfloat16, an error where it would be wrong, and
a guard page stops a bad read."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install 'cm3leon[triton]'")

import triton
import triton.language as tl

# Loaded by conftest.py in this folder.
from interpreter_bf16 import rounded_bits

RunGuarded = Callable[[str], "subprocess.CompletedProcess[str]"]


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    index = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out_ptr + index, tl.dot(tl.load(a_ptr + index), tl.load(b_ptr + index)))


@triton.jit
def round_kernel(x_ptr, out_ptr, N: tl.constexpr):
    index = tl.arange(0, N)
    tl.store(out_ptr + index, tl.load(x_ptr + index).to(tl.bfloat16))


@triton.jit
def refused_kernel(x_ptr, out_ptr, N: tl.constexpr, OPERATION: tl.constexpr):
    index = tl.arange(0, N)
    x = tl.load(x_ptr + index)
    if OPERATION == "add":
        y = x + x
    elif OPERATION == "multiply":
        y = x * x
    elif OPERATION == "compare":
        y = tl.where(x > x, x, x)
    elif OPERATION == "negative":
        y = -x
    elif OPERATION == "from int":
        y = index.to(tl.bfloat16)
    elif OPERATION == "from float64":
        y = x.to(tl.float32).to(tl.float64).to(tl.bfloat16)
    else:
        y = tl.where(index < 3, x, x.to(tl.float32).to(tl.bfloat16))  # moves bits: allowed
    tl.store(out_ptr + index, y)


@triton.jit
def promoted_kernel(x_ptr, out_ptr, N: tl.constexpr):
    tl.store(out_ptr, tl.max(tl.load(x_ptr + tl.arange(0, N)), 0))


@triton.jit
def sum_kernel(x_ptr, out_ptr, N: tl.constexpr):
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, N)), 0).to(tl.float32))


@triton.jit
def copy_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (index < n) if MASKED else (index < n + BLOCK)
    tl.store(out_ptr + index, tl.load(x_ptr + index, mask=inside, other=0.0), mask=index < n)


def test_bf16_dot_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(32, 32, generator=generator).bfloat16() for _ in range(2))
    out = torch.empty(32, 32)
    dot_kernel[(1,)](a, b, out, N=32)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=0, atol=1e-5)


def test_rounding_is_torchs() -> None:
    """Random bits (every exponent, subnormals, infinities, NaN), and exact ties."""
    bits = torch.randint(
        -(2**31),
        2**31 - 1,
        (4096 - 6,),
        dtype=torch.int64,
        generator=torch.Generator().manual_seed(1),
    )
    ties = torch.tensor(
        [1.00390625, 1.01171875, -1.00390625, float("inf"), float("-inf"), float("nan")]
    )
    x = torch.cat([bits.to(torch.int32).view(torch.float32), ties])
    out = torch.empty(len(x), dtype=torch.bfloat16)
    round_kernel[(1,)](x, out, N=len(x))
    torch.testing.assert_close(out, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    # to even: down, up
    assert [hex(value) for value in rounded_bits(ties[:2].numpy())] == ["0x3f80", "0x3f82"]


@pytest.mark.parametrize(
    "operation", ["add", "multiply", "compare", "negative", "from int", "from float64"]
)
def test_arithmetic_on_bf16_bits_is_refused(operation: str) -> None:
    x = torch.ones(16, dtype=torch.bfloat16)
    with pytest.raises(Exception, match="cast to float32 in the kernel first"):
        refused_kernel[(1,)](x, torch.empty_like(x), N=16, OPERATION=operation)


@triton.jit
def scalar_mask_kernel(x_ptr, out_ptr, n, N: tl.constexpr):
    index = tl.arange(0, N)
    inside = (index < n) & (n > 3)
    tl.store(out_ptr + index, tl.load(x_ptr + index, mask=inside, other=0.0), mask=inside)


def test_a_mask_may_be_of_a_block_and_a_scalar() -> None:
    """Which the interpreter of Triton 3.9 refuses on its own."""
    for n, expected in ((5, [1.0] * 5 + [7.0] * 3), (3, [7.0] * 8)):
        out = torch.full((8,), 7.0)
        scalar_mask_kernel[(1,)](torch.ones(8), out, n, N=8)
        assert out.tolist() == expected


def test_sum_of_bf16_is_refused() -> None:
    with pytest.raises(Exception, match="cast to float32 in the kernel first"):
        sum_kernel[(1,)](torch.ones(16, dtype=torch.bfloat16), torch.empty(1), N=16)


def test_moving_bf16_bits_is_allowed() -> None:
    x = torch.randn(16).bfloat16()
    out = torch.empty_like(x)
    refused_kernel[(1,)](x, out, N=16, OPERATION="none")
    assert torch.equal(out, x)


def test_what_triton_itself_widens_is_right() -> None:
    """The largest of a block is found in float32 by Triton's own rules. (Comparisons with a number
    are too, until Triton 3.9.)"""
    x = torch.tensor([-3.0, 0.25, 0.75, 2.0] * 4).bfloat16()
    out = torch.empty(1)
    promoted_kernel[(1,)](x, out, N=16)
    assert out.tolist() == [2.0]


def test_memory_is_poisoned() -> None:
    assert torch.empty(3).isnan().all()
    assert torch.ones(2).new_empty(3, dtype=torch.bfloat16).isnan().all()
    assert torch.empty_like(torch.ones(2, dtype=torch.float64)).isnan().all()
    assert torch.empty(2, dtype=torch.int32).tolist() == [2**31 - 1] * 2


GUARDED_COPY = """
import importlib.util
spec = importlib.util.spec_from_file_location("kernels_of_the_test", {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
x, out = guarded(torch.arange(100.0), {side!r}), guarded(torch.zeros(100), {side!r})
module.copy_kernel[(4,)](x, out, 100, BLOCK=32, MASKED={masked})
assert torch.equal(out, torch.arange(100.0))
print("survived")
"""


@pytest.mark.parametrize("side", ["after", "before"])
def test_masked_kernel_survives_the_guard_page(run_guarded: RunGuarded, side: str) -> None:
    done = run_guarded(GUARDED_COPY.format(path=__file__, side=side, masked=True))
    assert done.stdout == "survived\n", done.stderr


def test_read_past_the_tensor_ends_the_process(run_guarded: RunGuarded) -> None:
    done = run_guarded(GUARDED_COPY.format(path=__file__, side="after", masked=False))
    assert done.returncode == -signal.SIGSEGV, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""


def test_read_before_the_tensor_ends_the_process(run_guarded: RunGuarded) -> None:
    done = run_guarded(
        "import ctypes\nx = guarded(torch.zeros(4), 'before')\nctypes.string_at(x.data_ptr(), 16)\n"
        "print('read', flush=True)\nctypes.string_at(x.data_ptr() - 1, 1)\n"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "read\n"), done.stderr
