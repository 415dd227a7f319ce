"""Attention by xformers' memory-efficient attention. CUDA only.

Newer versions get it from the package mslk. Plain causal rows and packed documents use the biases
that its fast kernels support; a cache and retrieved documents use a dense bias. Legend: B rows, T
queries, S keys, H query heads, K key heads, D head dimension.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cm3core.errors import MissingPackageError
from cm3core.interfaces.attention import AttentionBackend
from cm3kernels.attention import cast_by_autocast
from cm3kernels.attention.plan import segments, visible_mask

MODULES = ("mslk.attention.fmha", "xformers.ops.fmha")
#: The kernels load a dense bias in vectors of this many elements.
ALIGNMENT = 8


def load_fmha(modules: Sequence[str] = MODULES) -> Any:
    """Return the first of these modules that can be imported.

    Raises:
        MissingPackageError: no module can be imported; the error has the reason for each.
    """
    reasons = []
    for name in modules:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            # OSError: a library needed by its extension is missing
            reasons.append(f"{name}: {error}")
    raise MissingPackageError(
        "attention 'xformers'",
        "; ".join(reasons),
        "pip install 'cm3leon[xformers]' next to a CUDA build of torch, "
        "or use `attention: sdpa`, which runs everywhere",
    )


@dataclass(frozen=True)
class XFormersPlan:
    """An xformers bias, and whether it needs the tokens of all rows joined in one row."""

    bias: Any
    joined: bool


class XFormersAttention(AttentionBackend):
    """See `AttentionBackend`; a plan is the bias.

    The lengths of packed documents are read on the host, once per plan.

    Args:
        fmha: the module, from `load_fmha`.
    """

    def __init__(self, fmha: Any) -> None:
        self.fmha = fmha

    def plan(
        self,
        *,
        num_queries: int,
        num_keys: int,
        kv_start_BT: Tensor | None = None,
        offset_B: Tensor | None = None,
    ) -> XFormersPlan:
        biases = importlib.import_module(f"{self.fmha.__name__}.attn_bias")
        if kv_start_BT is None and offset_B is None:
            return XFormersPlan(biases.LowerTriangularMask(), joined=False)
        lengths = (
            segments(kv_start_BT.cpu()) if kv_start_BT is not None and offset_B is None else None
        )
        if lengths is not None:
            assert kv_start_BT is not None
            documents = biases.BlockDiagonalCausalMask.from_seqlens(
                list(lengths), device=kv_start_BT.device
            )
            return XFormersPlan(documents, joined=True)
        return XFormersPlan(
            visible_mask(num_queries, num_keys, kv_start_BT, offset_B), joined=False
        )

    def attend(
        self,
        q_BTHD: Tensor,
        k_BSKD: Tensor,
        v_BSKD: Tensor,
        *,
        kv_start_BT: Tensor | None = None,
        offset_B: Tensor | None = None,
        scale: float | None = None,
        plan: XFormersPlan | None = None,
    ) -> Tensor:
        if plan is None:
            plan = self.plan(
                num_queries=q_BTHD.shape[1],
                num_keys=k_BSKD.shape[1],
                kv_start_BT=kv_start_BT,
                offset_B=offset_B,
            )
        q_BTHD, k_BSKD, v_BSKD = cast_by_autocast(q_BTHD, k_BSKD, v_BSKD)
        B, T, H, D = q_BTHD.shape
        # Not all of its kernels have a backward for grouped heads: repeat them.
        tensors = [
            q_BTHD,
            *(
                x.repeat_interleave(H // x.shape[2], dim=2) if x.shape[2] < H else x
                for x in (k_BSKD, v_BSKD)
            ),
        ]
        if plan.joined:
            tensors = [x.reshape(1, B * T, H, D) for x in tensors]
        bias, empty_B1T1 = plan.bias, None
        if isinstance(bias, Tensor):
            empty_B1T1 = ~bias.any(-1, keepdim=True)
            bias = dense_bias(bias, H, q_BTHD.dtype)
        out = self.fmha.memory_efficient_attention(*tensors, attn_bias=bias, scale=scale)
        assert isinstance(out, Tensor)
        out_BTHD = out.view(B, T, H, D)
        # A softmax over -inf alone becomes zeros, as in the other backends.
        return (
            out_BTHD
            if empty_B1T1 is None
            else out_BTHD.masked_fill(empty_B1T1.transpose(1, 2), 0.0)
        )


def dense_bias(mask_B1TS: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
    """[B, H, T, S] of 0 and -inf, rows aligned for the kernels.

    A row that sees nothing is all 0, never all -inf.
    """
    B, _, T, S = mask_B1TS.shape
    padded = -(-S // ALIGNMENT) * ALIGNMENT
    bias_B1TS = torch.zeros(B, 1, T, padded, dtype=dtype, device=mask_B1TS.device)[..., :S]
    bias_B1TS.masked_fill_(~mask_B1TS & mask_B1TS.any(-1, keepdim=True), -torch.inf)
    return bias_B1TS.expand(B, num_heads, T, S)
