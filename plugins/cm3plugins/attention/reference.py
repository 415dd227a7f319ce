"""Attention by `cm3kernels`' reference: the meaning of every other backend."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cm3core.interfaces.attention import AttentionBackend
from cm3kernels import attention


class ReferenceAttention(AttentionBackend):
    """See `AttentionBackend`."""

    def attend(self, q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, *, kv_start_BT: Tensor | None = None,
               offset_B: Tensor | None = None, scale: float | None = None, plan: Any = None) -> Tensor:
        return attention(q_BTHD, k_BSKD, v_BSKD, kv_start=kv_start_BT, offset=offset_B, scale=scale,
                         implementation="reference")
