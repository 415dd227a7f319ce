"""Cross entropy of a linear head in chunks of rows: the vendor's matrix products, with one kernel
between them.

A chunk's logits are computed in float32, the kernel turns them into losses and their gradient, and
two more products give the gradients of the hidden states and the head. No product is computed
twice, and no sum depends on the order of programs: the same bits every time. Why not one streaming
kernel: README.md in this folder.

Legend: N tokens, R tokens of a chunk, E model dimension, V ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from cm3kernels._host import device_of, require
from cm3kernels.linear_cross_entropy.reference import group_sums

if TYPE_CHECKING:
    from cm3kernels.aot import AotEntry

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
#: Default for the most bytes of one chunk's logits and their gradient: 2,700 rows at 66k ids, so
#: that the head's gradient is accumulated seldom enough.
CHUNK_BYTES = 1 << 30
#: Chunks are multiples of this many rows, the tile of matrix products.
ROW_MULTIPLE = 128
#: Ids that the kernel reads at once, and its number of warps.
BLOCK, NUM_WARPS = 4096, 8
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _loss_kernel(
    logits_ptr,
    grad_ptr,
    targets_ptr,
    weights_ptr,
    nll_ptr,
    log_z_ptr,
    z_loss,
    num_ids,
    logits_row,
    grad_row,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: nll and log Z; and the gradient of weight * (nll + z_loss * (log Z)^2), which may
    overwrite the logits."""
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(weights_ptr + row)
    # via an integer: the interpreter keeps comparisons of floats as floats
    counts = tl.where(weight != 0, 1, 0) == 1
    target = tl.load(targets_ptr + row)
    logits = logits_ptr + row * logits_row
    # Read before anything is overwritten. A target that is not an id makes the loss NaN, not wrong.
    target_logit = tl.load(
        logits + target, mask=counts & (target >= 0) & (target < num_ids), other=float("nan")
    ).to(tl.float32)

    largest = float("-inf")
    total = 0.0
    for first in range(0, tl.where(counts, num_ids, 0), BLOCK):
        index = first + tl.arange(0, BLOCK)
        x = tl.load(logits + index, mask=index < num_ids, other=float("-inf")).to(tl.float32)
        new_largest = tl.maximum(largest, tl.max(x, 0))
        safe = tl.where(new_largest == float("-inf"), 0.0, new_largest)  # nothing finite so far
        total = total * tl.exp2((largest - safe) * LOG2_E) + tl.sum(tl.exp2((x - safe) * LOG2_E), 0)
        largest = new_largest
    largest = tl.where(counts, largest, 0.0)
    total = tl.where(counts, total, 1.0)
    log_total = tl.log(total)
    log_z = largest + log_total
    # Not log_z - target_logit: where both are huge, the loss is the difference of the small parts.
    tl.store(nll_ptr + row, tl.where(counts, (largest - target_logit) + log_total, 0.0))
    tl.store(log_z_ptr + row, log_z)  # 0 for a token of weight 0

    if WITH_GRADIENT:
        # d nll = p - onehot; d (log Z)^2 = 2 log Z p. For a token of weight 0 everything is:
        # exp2(-inf) * 0 - 0.
        scale = weight * (1.0 + 2.0 * z_loss * log_z) / total
        for first in range(0, num_ids, BLOCK):
            index = first + tl.arange(0, BLOCK)
            inside = index < num_ids
            x = tl.load(logits + index, mask=inside & counts, other=float("-inf")).to(tl.float32)
            grad = tl.exp2((x - largest) * LOG2_E) * scale - tl.where(index == target, weight, 0.0)
            tl.store(
                grad_ptr + row * grad_row + index, grad.to(grad_ptr.dtype.element_ty), mask=inside
            )


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, accumulated and returned in float32."""
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _num_chunk_rows(num_ids: int, dtype: torch.dtype, chunk_bytes: int) -> int:
    """Rows of a chunk: float32 logits, and their gradient in memory of its own unless it is
    float32, too, and overwrites them."""
    rows = chunk_bytes // (num_ids * (4 + (0 if dtype == torch.float32 else dtype.itemsize)))
    return max(1, rows // ROW_MULTIPLE * ROW_MULTIPLE if rows >= ROW_MULTIPLE else rows)


@torch.library.custom_op("cm3::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden_NE: Tensor,
    head_VE: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    z_loss: float,
    dtype: torch.dtype,
    chunk_bytes: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, nll of each token, and the loss's gradients with respect to hidden states and head
    (empty if not needed)."""
    # `dtype` is that of the products' factors; everything else is float32
    with torch.autocast(hidden_NE.device.type, enabled=False), device_of(hidden_NE):
        return _in_chunks(
            hidden_NE, head_VE, targets_N, weights_N, z_loss, dtype, chunk_bytes, with_gradient
        )


def _in_chunks(
    hidden_NE: Tensor,
    head_VE: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    z_loss: float,
    dtype: torch.dtype,
    chunk_bytes: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_tokens, num_ids = hidden_NE.shape[0], head_VE.shape[0]
    head, targets_N, weights_N = head_VE.to(dtype), targets_N.contiguous(), weights_N.contiguous()
    nll_N, log_z_N = hidden_NE.new_empty(2, num_tokens, dtype=torch.float32)
    grad_hidden = torch.empty(
        hidden_NE.shape if with_gradient else 0, dtype=hidden_NE.dtype, device=hidden_NE.device
    )
    grad_head = torch.zeros(
        head_VE.shape if with_gradient else 0, dtype=torch.float32, device=head_VE.device
    )
    chunk = _num_chunk_rows(num_ids, dtype, chunk_bytes)
    for start in range(0, num_tokens, chunk):
        part = slice(start, min(start + chunk, num_tokens))
        # The contents of a token of weight 0 stay out of the products: 0 * NaN is NaN.
        hidden_RE = torch.where(weights_N[part, None] != 0, hidden_NE[part], 0.0).to(dtype)
        logits_RV = _product(hidden_RE, head.T)
        grad_RV = (
            logits_RV
            if dtype == torch.float32 or not with_gradient
            else torch.empty_like(logits_RV, dtype=dtype)
        )
        _loss_kernel[(len(logits_RV),)](
            logits_RV,
            grad_RV,
            targets_N[part],
            weights_N[part],
            nll_N[part],
            log_z_N[part],
            z_loss,
            num_ids,
            logits_RV.stride(0),
            grad_RV.stride(0),
            WITH_GRADIENT=with_gradient,
            BLOCK=min(BLOCK, triton.next_power_of_2(num_ids)),
            num_warps=NUM_WARPS,
        )
        if with_gradient:
            grad_hidden[part] = (
                grad_RV @ head if dtype == hidden_NE.dtype else _product(grad_RV, head)
            )
            grad_head += _product(grad_RV.T, hidden_RE)
    loss = (weights_N * (nll_N + z_loss * log_z_N.square())).sum()
    return loss, nll_N, grad_hidden, grad_head.to(head_VE.dtype)


@_linear_cross_entropy.register_fake
def _(
    hidden_NE: Tensor,
    head_VE: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    z_loss: float,
    dtype: torch.dtype,
    chunk_bytes: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = [
        like.new_empty(like.shape if with_gradient else 0) for like in (hidden_NE, head_VE)
    ]
    return (
        weights_N.new_empty(()),
        weights_N.new_empty(hidden_NE.shape[0]),
        gradients[0],
        gradients[1],
    )


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    assert inputs[-1], "autograd needs a gradient that the forward did not compute"
    ctx.save_for_backward(*output[2:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_loss: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
    grad_hidden, grad_head = ctx.saved_tensors
    return (
        (grad_hidden * grad_loss).to(grad_hidden.dtype),
        (grad_head * grad_loss).to(grad_head.dtype),
        *[None] * 6,
    )


_linear_cross_entropy.register_autograd(
    once_differentiable(_backward), setup_context=_setup_context
)


def linear_cross_entropy_triton(
    hidden_NE: Tensor,
    head_VE: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    groups_N: Tensor,
    *,
    num_groups: int,
    z_loss: float,
    dtype: torch.dtype,
    chunk_bytes: int | None,
) -> tuple[Tensor, Tensor]:
    """See `cm3kernels.linear_cross_entropy`."""
    for name, given in (
        ("hidden_NE", hidden_NE.dtype),
        ("head_VE", head_VE.dtype),
        ("autocast", dtype),
    ):
        require(
            given in DTYPES,
            "linear_cross_entropy",
            f"{name} is {given}, 'triton' supports float32, float16, bfloat16; next: "
            "implementation='reference'",
        )
    with_gradient = torch.is_grad_enabled() and (hidden_NE.requires_grad or head_VE.requires_grad)
    weights_N = weights_N.float()
    loss, nll_N, _, _ = _linear_cross_entropy(
        hidden_NE,
        head_VE,
        targets_N,
        weights_N,
        z_loss,
        dtype,
        CHUNK_BYTES if chunk_bytes is None else chunk_bytes,
        with_gradient,
    )
    return loss, group_sums(nll_N, weights_N, groups_N, num_groups)


def aot_entries() -> list[AotEntry]:
    """With and without gradient; the gradient in the products' dtype (float16 compiles to the same
    code as bfloat16)."""
    from cm3kernels.aot import ARCHS, AotEntry

    pointers = ("logits_ptr", "grad_ptr", "targets_ptr", "weights_ptr", "nll_ptr", "log_z_ptr")
    sizes = ("num_ids", "logits_row", "grad_row")
    entries = []
    for name, dtype, with_gradient in (
        ("bf16", "bf16", True),
        ("fp32", "fp32", True),
        ("no_gradient", "fp32", False),
    ):
        types = (
            dict(
                zip(
                    pointers, ("*fp32", f"*{dtype}", "*i64", "*fp32", "*fp32", "*fp32"), strict=True
                )
            )
            | {"z_loss": "fp32"}
            | dict.fromkeys(sizes, "i32")
        )
        entries.append(
            AotEntry(
                f"linear_cross_entropy.loss.{name}",
                _loss_kernel,
                types,
                {"WITH_GRADIENT": with_gradient, "BLOCK": BLOCK},
                (*pointers, *sizes),
                NUM_WARPS,
                3,
                dict.fromkeys(ARCHS, ("LDG.E.128", "MUFU.EX2")),
                ARCHS,
            )
        )
    return entries
