"""Op `attention`: validation and dispatch. Formula and shapes: README.md beside this file."""

from __future__ import annotations

from torch import Tensor

from cm3kernels._dispatch import Implementation, choose, require
from cm3kernels.attention.reference import attention_reference

IMPLEMENTATIONS = {"reference": Implementation(lambda: attention_reference)}


def attention(q: Tensor, k: Tensor, v: Tensor, *, kv_start: Tensor | None = None, offset: Tensor | None = None,
              scale: float | None = None, implementation: str = "auto") -> Tensor:
    """softmax(q k^T * scale, over the visible keys) v, where query i of row b sees kv_start[b, i] <= j <= offset[b] + i.

    Args:
        q: floating [B, T, H, D].
        k, v: the same dtype [B, S, K, D]; H a multiple of K (query head h reads key head h // (H / K)).
        kv_start: int32 or int64 [B, T]; None: 0.
        offset: int32 or int64 [B]; None: 0 for all, and then S == T.
        scale: default 1 / sqrt(D).
        implementation: "auto" or a name in `IMPLEMENTATIONS`.

    Returns:
        [B, T, H, D], dtype of q; zeros (and zero gradients) for a query that sees no key.

    Raises:
        ValueError: shapes or dtypes that don't fit, or an implementation that isn't there.
    """
    _check(q, k, v, kv_start, offset)
    return choose("attention", implementation, IMPLEMENTATIONS, q)(q, k, v, kv_start=kv_start, offset=offset, scale=scale)


def _check(q: Tensor, k: Tensor, v: Tensor, kv_start: Tensor | None, offset: Tensor | None) -> None:
    op = "attention"
    require(q.ndim == k.ndim == v.ndim == 4, op, "q, k and v are [rows, tokens, heads, head dimension]")
    require(q.dtype == k.dtype == v.dtype and q.is_floating_point(), op,
            f"q, k and v share one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    require(k.shape == v.shape, op, f"k is {list(k.shape)}, v is {list(v.shape)}")
    require(q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3], op,
            f"q {list(q.shape)} and k {list(k.shape)} differ in rows or head dimension")
    require(k.shape[2] > 0 and q.shape[2] % k.shape[2] == 0, op, f"{q.shape[2]} query heads on {k.shape[2]} key heads")
    require(offset is not None or q.shape[1] == k.shape[1], op,
            f"{q.shape[1]} queries on {k.shape[1]} keys need an offset")
    for name, tensor, shape in (("kv_start", kv_start, q.shape[:2]), ("offset", offset, q.shape[:1])):
        if tensor is not None:
            require(tensor.shape == shape and not tensor.is_floating_point(), op,
                    f"{name} is {list(tensor.shape)} {tensor.dtype}, must be integer {list(shape)}")
