"""Attention by torch's FlexAttention, compiled: its Triton kernels, or those of FlashAttention 4 (backend FLASH). The
visibility rule is a function, from which the plan makes a block mask once for all layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from cm3kernels.attention.plan import AttentionPlan


def attention_flex(
    q: Tensor, k: Tensor, v: Tensor, *, plan: AttentionPlan, scale: float, return_lse: bool
) -> tuple[Tensor, None]:
    """See `cm3kernels.attention`; no lse."""
    return _attend(q, k, v, plan, scale, {}), None


def attention_flex_flash(
    q: Tensor, k: Tensor, v: Tensor, *, plan: AttentionPlan, scale: float, return_lse: bool
) -> tuple[Tensor, None]:
    """`attention_flex` with the backend FLASH."""
    return _attend(q, k, v, plan, scale, {"BACKEND": "FLASH"}), None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float, options: dict[str, Any]
) -> Tensor:
    out: Tensor = compiled()(
        *(x.transpose(1, 2) for x in (q, k, v)),
        block_mask=plan.once("blocks", lambda: block_mask_of(plan, q.device)),
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
        kernel_options=options,
    )
    return out.transpose(1, 2)


@cache
def compiled() -> Callable[..., Any]:
    """FlexAttention, compiled: once for each shape."""
    return torch.compile(flex_attention, dynamic=False)


def block_mask_of(plan: AttentionPlan, device: torch.device) -> BlockMask:
    """The block mask of a plan's visibility rule."""
    return block_mask(plan.num_queries, plan.num_keys, plan.kv_start, plan.offset, device)


def block_mask(
    num_queries: int,
    num_keys: int,
    kv_start_BT: Tensor | None,
    offset_B: Tensor | None,
    device: torch.device,
) -> BlockMask:
    """Block mask of the visibility rule for T queries and S keys; one row if all rows are the same."""
    tensor = kv_start_BT if offset_B is None else offset_B

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = key <= (query if offset_B is None else query + offset_B[row])
        return seen if kv_start_BT is None else seen & (key >= kv_start_BT[row, query])

    return create_block_mask(
        visible,
        None if tensor is None else len(tensor),
        None,
        num_queries,
        num_keys,
        device=str(device),
    )
