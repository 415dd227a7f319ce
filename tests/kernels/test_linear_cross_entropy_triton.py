"""linear_cross_entropy's kernel, interpreted (or on CUDA with `-m gpu`), against autograd in
float64."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from profiles import examples

pytest.importorskip("triton", reason="Triton is not installed: pip install 'cm3leon[triton]'")

from cm3kernels import linear_cross_entropy
from cm3kernels.linear_cross_entropy.triton import BLOCK, _num_chunk_rows

RunGuarded = Callable[[str], "subprocess.CompletedProcess[str]"]
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
#: Relative error of losses and gradients. In half precision the gradient of the logits is rounded,
#: the logits are not.
TOLERANCE = {torch.float32: (1e-6, 3e-6), torch.float16: (1e-6, 1e-3), torch.bfloat16: (1e-6, 6e-3)}


def batch(
    num: int, vocab: int, device: str = "cpu", *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    hidden, head = (
        torch.randn(rows, 16, generator=generator).to(dtype).to(device).requires_grad_()
        for rows in (num, vocab)
    )
    targets = torch.randint(vocab, (num,), generator=generator)
    weights = torch.randint(0, 3, (num,), generator=generator) * 0.5
    return (
        hidden,
        head,
        targets.to(device),
        weights.to(device),
        torch.randint(4, (num,), generator=generator).to(device),
    )


def results(batch: Batch, implementation: str, **options: Any) -> tuple[Tensor, ...]:
    """Loss, sums, gradients of 3 * loss."""
    loss, sums = linear_cross_entropy(*batch, implementation=implementation, **options)
    return (loss, sums, *torch.autograd.grad(3 * loss, batch[:2]))


def in_float64(batch: Batch, **options: Any) -> tuple[Tensor, ...]:
    hidden, head = (tensor.detach().cpu().double().requires_grad_() for tensor in batch[:2])
    targets, weights, groups = (tensor.cpu() for tensor in batch[2:])
    return results((hidden, head, targets, weights, groups), "reference", **options)


def check(batch: Batch, **options: Any) -> None:
    expected = in_float64(
        batch, **{name: value for name, value in options.items() if name != "chunk_bytes"}
    )
    for place, (ours, theirs) in enumerate(
        zip(results(batch, "triton", **options), expected, strict=True)
    ):
        error = (ours.cpu().double() - theirs).norm()
        # A loss far below its logits, each of which is a few units large, has their rounding error.
        assert error <= TOLERANCE[batch[0].dtype][place >= 2] * theirs.norm() + 4e-6, (place, error)


@pytest.mark.parametrize("vocab", [1, 7, 64, BLOCK, BLOCK + 1])
def test_vocabularies_and_tiles(device: str, vocab: int) -> None:
    """Also with several tiles, the last of one id, which has the largest logit of token 0."""
    hidden, head, targets, weights, groups = batch(5, vocab, device)
    head.data[-1] = 2 * hidden.data[0]
    weights[0] = 1.0
    check((hidden, head, targets, weights, groups), z_loss=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_in_chunks(device: str, dtype: torch.dtype) -> None:
    """Three chunks, the last one shorter."""
    bytes_each = 4 if dtype == torch.float32 else 6
    check(batch(14, 300, device, dtype=dtype), z_loss=0.01, chunk_bytes=300 * bytes_each * 6)


def test_autocast_multiplies_in_its_dtype_and_keeps_gradients_in_float32(device: str) -> None:
    """Parameters in float32, products in bfloat16; logits and the head's gradient are accumulated
    in float32."""
    data = batch(20, 200, device)
    with torch.autocast(device, torch.bfloat16):
        ours = results(data, "triton")
    rounded = in_float64((*(tensor.detach().bfloat16() for tensor in data[:2]), *data[2:]))
    assert [tensor.dtype for tensor in ours] == [torch.float32] * 4
    for place, (mine, theirs) in enumerate(zip(ours, rounded, strict=True)):
        error = (mine.cpu().double() - theirs).norm() / theirs.norm()
        assert error < (1e-6 if place < 2 else 3e-3), (place, error)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="its tensors are on the CPU, where kernels are interpreted"
)
@settings(max_examples=examples(8))
@given(
    num=st.integers(0, 6),
    vocab=st.integers(1, 40),
    chunk_rows=st.integers(1, 8),
    z_loss=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 99),
)
def test_any_shape(num: int, vocab: int, chunk_rows: int, z_loss: float, seed: int) -> None:
    check(batch(num, vocab, seed=seed), z_loss=z_loss, chunk_bytes=4 * vocab * chunk_rows)


def test_tokens_of_weight_zero_change_nothing(device: str) -> None:
    """Not even with invalid hidden state, target and group; nor when no token is left."""
    hidden, head, targets, _, groups = batch(3, 50, device)
    hidden.data[1] = math.nan
    targets[1], groups[1] = -100, 77
    for weights in (torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3)):
        loss, sums, grad_hidden, grad_head = results(
            (hidden, head, targets, weights.to(device), groups), "triton", z_loss=0.1
        )
        assert sums[:, 1].sum() == weights.sum()
        assert torch.isfinite(grad_head).all()
        assert grad_hidden[1].abs().max() == 0
        assert (loss == 0) == (weights.sum() == 0)
        assert torch.isfinite(loss)


def test_huge_logits(device: str) -> None:
    hidden = torch.tensor([[1e4], [1e4]], device=device, requires_grad=True)
    head = torch.tensor([[1e4], [-1e4], [1e4]], device=device, requires_grad=True)
    data = (
        hidden,
        head,
        torch.tensor([0, 1], device=device),
        torch.tensor([1.0, 0.0], device=device),
        torch.zeros(2, dtype=torch.int64, device=device),
    )
    loss, _, _, grad_head = results(data, "triton")
    assert loss.item() == pytest.approx(math.log(2.0))
    torch.testing.assert_close(grad_head.cpu(), torch.tensor([[-1.5e4], [0.0], [1.5e4]]))


def test_same_bits_every_time_and_for_any_chunk(device: str) -> None:
    """Losses do not depend on chunks at all; the head's gradient is accumulated chunk by chunk."""
    data = batch(9, 100, device)
    first, again, chunked = (
        results(data, "triton", chunk_bytes=size) for size in (None, None, 4 * 100 * 4)
    )
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert torch.equal(first[1], chunked[1])
    torch.testing.assert_close(first, chunked)


def test_out_of_range_on_a_device_is_nan_and_not_wrong(device: str) -> None:
    """The operator checks nothing of what `linear_cross_entropy` refuses on a CPU."""
    hidden, head, _, _, _ = batch(2, 10, device)
    for target in (-1, 10, 2**40):
        loss, nll, _, _ = torch.ops.cm3.linear_cross_entropy(
            hidden,
            head,
            torch.tensor([target, 0], device=device),
            torch.ones(2, device=device),
            0.0,
            torch.float32,
            1 << 20,
            True,
        )
        assert torch.isnan(loss)
        assert torch.isnan(nll).tolist() == [True, False]


def test_loss_alone(device: str) -> None:
    data = batch(5, 30, device)
    with torch.no_grad():
        loss, sums = linear_cross_entropy(*data, implementation="triton")
    assert not loss.requires_grad
    torch.testing.assert_close(
        (loss, sums), tuple(linear_cross_entropy(*data, implementation="reference"))
    )


def test_op_contract(device: str) -> None:
    """PyTorch's own check of a custom operator, and a graph without breaks through forward and
    backward."""
    hidden, head, targets, weights, _ = batch(5, 30, device)
    for with_gradient in (True, False):
        operands = (
            *((hidden, head) if with_gradient else (hidden.detach(), head.detach())),
            targets,
            weights,
            0.1,
            torch.float32,
            4 * 30 * 3,
            with_gradient,
        )
        torch.library.opcheck(torch.ops.cm3.linear_cross_entropy.default, operands)

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        out = torch.ops.cm3.linear_cross_entropy(
            hidden.tanh(), head, targets, weights, 0.1, torch.float32, 4 * 30 * 3, True
        )
        return 2 * out[0]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(hidden, head), (hidden, head))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(hidden, head), (hidden, head)), expected
    )


def test_a_gradient_of_the_gradient_is_refused(device: str) -> None:
    hidden, head, *rest = batch(3, 5, device)
    loss, _ = linear_cross_entropy(hidden, head, *rest, implementation="triton")
    upstream = torch.ones((), device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(loss, hidden, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_chunks_are_whole_tiles_of_matrix_products() -> None:
    assert _num_chunk_rows(66_048, torch.bfloat16, 1 << 30) == 2688
    assert _num_chunk_rows(66_048, torch.float32, 1 << 30) == 3968
    assert _num_chunk_rows(66_048, torch.float32, 1) == 1
    assert _num_chunk_rows(10, torch.float32, 4 * 10 * 60) == 60


@pytest.mark.parametrize("name", ["hidden_NE", "head_VE"])
def test_float64_is_refused(device: str, name: str) -> None:
    names = ("hidden_NE", "head_VE", "targets_N", "weights_N", "groups_N")
    arguments = dict(zip(names, batch(3, 5, device), strict=True))
    arguments[name] = arguments[name].double()
    with pytest.raises(
        ValueError,
        match=f"^linear_cross_entropy: {name} is torch.float64, 'triton' supports float32, "
        "float16, bfloat16; next: implementation='reference'$",
    ):
        linear_cross_entropy(**arguments, implementation="triton")


def test_no_access_outside_the_tensors(run_guarded: RunGuarded) -> None:
    """The kernel on logits, gradient, targets, weights and results next to guard pages; 70 ids are
    not a multiple of any tile."""
    done = run_guarded("""
from cm3kernels.linear_cross_entropy.triton import _loss_kernel
for side in ("after", "before"):
    values = torch.randn(3, 70), torch.zeros(3, 70), torch.ones(3)
    logits, grad, weights = (guarded(x, side) for x in values)
    values = torch.tensor([0, 69, 2**40]), torch.zeros(3), torch.zeros(3)
    targets, nll, log_z = (guarded(x, side) for x in values)
    _loss_kernel[(3,)](
        logits, grad, targets, weights, nll, log_z, 0.0, 70, 70, 70, WITH_GRADIENT=True, BLOCK=64
    )
    torch.testing.assert_close(log_z, logits.logsumexp(1))
    target = torch.nn.functional.one_hot(targets[:2], 70)
    torch.testing.assert_close(grad[:2], logits.softmax(1)[:2] - target)
""")
    assert done.returncode == 0, (done.returncode, done.stderr)
