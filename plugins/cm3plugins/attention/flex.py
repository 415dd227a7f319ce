"""Attention by torch's FlexAttention.

The visibility rule is a function; a block mask is built from it once for all layers.

Legend: B rows, T queries, S keys, H query heads, K key heads, D head dimension.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from cm3core.interfaces.attention import AttentionBackend
from cm3kernels.attention import cast_by_autocast
from cm3plugins.attention.refusals import no_backward


class FlexAttention(AttentionBackend):
    """See `AttentionBackend`; a plan is the block mask."""

    def plan(
        self,
        *,
        num_queries: int,
        num_keys: int,
        kv_start_BT: Tensor | None = None,
        offset_B: Tensor | None = None,
    ) -> BlockMask | None:
        known = kv_start_BT if offset_B is None else offset_B
        if known is None:  # nor is the device: `attend` builds the plain causal mask
            return None
        return block_mask(num_queries, num_keys, kv_start_BT, offset_B, known.device)

    def attend(
        self,
        q_BTHD: Tensor,
        k_BSKD: Tensor,
        v_BSKD: Tensor,
        *,
        kv_start_BT: Tensor | None = None,
        offset_B: Tensor | None = None,
        scale: float | None = None,
        plan: BlockMask | None = None,
    ) -> Tensor:
        q_BTHD, k_BSKD, v_BSKD = cast_by_autocast(q_BTHD, k_BSKD, v_BSKD)
        device = q_BTHD.device
        if device.type == "cpu":
            if torch.is_grad_enabled() and any(x.requires_grad for x in (q_BTHD, k_BSKD, v_BSKD)):
                raise no_backward()
            # It rejects parameters even if no gradients are needed.
            q_BTHD, k_BSKD, v_BSKD = (x.detach() for x in (q_BTHD, k_BSKD, v_BSKD))
        if plan is None:
            T, S = q_BTHD.shape[1], k_BSKD.shape[1]
            plan = (
                _causal_mask(T, device)
                if kv_start_BT is None and offset_B is None
                else block_mask(T, S, kv_start_BT, offset_B, device)
            )
        q_BHTD, k_BKSD, v_BKSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD))
        out = _function(device.type)(
            q_BHTD,
            k_BKSD,
            v_BKSD,
            block_mask=plan,
            scale=scale,
            enable_gqa=q_BHTD.shape[1] != k_BKSD.shape[1],
        )
        assert isinstance(out, Tensor)
        return out.transpose(1, 2)


@cache
def _function(device: str) -> Callable[..., Any]:
    """FlexAttention, compiled on CUDA; uncompiled on the CPU, without its warning about that."""
    if device != "cpu":
        return torch.compile(flex_attention, dynamic=False)

    def uncompiled(*args: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            return flex_attention(*args, **options)

    return uncompiled


@cache
def _causal_mask(num_tokens: int, device: torch.device) -> BlockMask:
    return block_mask(num_tokens, num_tokens, None, None, device)


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
