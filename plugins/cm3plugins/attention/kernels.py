"""Attention by an implementation of `cm3kernels.attention`: `auto`, `sdpa`, `triton` or `reference`."""

from __future__ import annotations

from torch import Tensor

from cm3core.interfaces.attention import AttentionBackend
from cm3kernels.attention import AttentionPlan, attention


class KernelAttention(AttentionBackend):
    """See `AttentionBackend`.

    Tensors that the implementation doesn't support raise the op's `ValueError`.

    Args:
        implementation: "auto" or a name in `cm3kernels.attention.IMPLEMENTATIONS`.
    """

    def __init__(self, implementation: str) -> None:
        self.implementation = implementation
        # the reference is for comparison: it computes everything itself
        self.is_plain_softmax = implementation != "reference"

    def plan(
        self,
        *,
        num_queries: int,
        num_keys: int,
        kv_start_BT: Tensor | None = None,
        offset_B: Tensor | None = None,
    ) -> AttentionPlan:
        return AttentionPlan(num_queries, num_keys, kv_start_BT, offset_B)

    def attend(
        self,
        q_BTHD: Tensor,
        k_BSKD: Tensor,
        v_BSKD: Tensor,
        *,
        kv_start_BT: Tensor | None = None,
        offset_B: Tensor | None = None,
        scale: float | None = None,
        plan: AttentionPlan | None = None,
    ) -> Tensor:
        return attention(
            q_BTHD,
            k_BSKD,
            v_BSKD,
            kv_start=kv_start_BT,
            offset=offset_B,
            scale=scale,
            plan=plan,
            implementation=self.implementation,
        )
