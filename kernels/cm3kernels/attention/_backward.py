"""The attention kernels' backward pass, without atomics: every sum has one order, so equal inputs
give equal bits.

With w the weights, g the gradient of the output, and delta = sum over the head dimension of g * out
- (gradient of lse):

    grad_v = w^T g    d = w * (g v^T - delta)    grad_q = scale * d k    grad_k = scale * d^T q

Three launches: `delta_kernel` here, then `_grad_keys.grad_keys_kernel` and
`_grad_queries.grad_queries_kernel`. The last two both recompute w from the scores and lse: seven
products instead of five are the price of having no atomics. Legend: `_tiles.py`.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Arguments of kernels are what Triton makes of them; its decorator has no types.

from __future__ import annotations

import triton
import triton.language as tl

from cm3kernels.attention._tiles import load_tile


@triton.jit(do_not_specialize=["T"])
def delta_kernel(
    out_ptr,
    grad_ptr,
    lse_ptr,
    grad_lse_ptr,
    delta_ptr,
    g_row,
    g_token,
    g_head,
    T,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Grid (tiles of queries, H, B). delta [B, H, T]."""
    inner: tl.constexpr = tl.float64 if WIDE else tl.float32
    first = tl.program_id(0) * BLOCK_Q
    head, num_heads = tl.program_id(1), tl.num_programs(1)
    row = tl.program_id(2).to(tl.int64)
    query = first + tl.arange(0, BLOCK_Q)
    out_ptr += (row * T * num_heads + head) * HEAD_DIM
    grad_ptr += row * g_row + head.to(tl.int64) * g_head
    out = load_tile(
        out_ptr, first, num_heads * HEAD_DIM, query < T, BLOCK_Q, HEAD_DIM, BLOCK_D, True
    )
    grad = load_tile(grad_ptr, first, g_token, query < T, BLOCK_Q, HEAD_DIM, BLOCK_D, True)
    delta = tl.sum(out.to(inner) * grad.to(inner), 1)
    at = (row * num_heads + head) * T + query
    if HAS_GRAD_LSE:
        # A query that sees nothing has no lse to differentiate, whatever the gradient of its -inf.
        lse = tl.load(lse_ptr + at, mask=query < T, other=0.0)
        delta -= tl.where(
            lse == float("-inf"), 0.0, tl.load(grad_lse_ptr + at, mask=query < T, other=0.0)
        )
    tl.store(delta_ptr + at, delta, mask=query < T)
