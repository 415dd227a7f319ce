"""Attention backends' configs: `sdpa` (torch's fused kernels) and `reference` (plain tensor algebra). No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm3core.interfaces.attention import AttentionConfig

if TYPE_CHECKING:
    from cm3core.interfaces.attention import AttentionBackend


@dataclass(kw_only=True)
class SDPAAttentionConfig(AttentionConfig):
    """`torch.nn.functional.scaled_dot_product_attention`: flash kernels on CPU and GPU, forward and backward. The default."""

    def build(self) -> AttentionBackend:
        """The backend; runs wherever torch runs."""
        from cm3plugins.attention.sdpa import SDPAAttention

        return SDPAAttention()


@dataclass(kw_only=True)
class ReferenceAttentionConfig(AttentionConfig):
    """Every score in memory, float32 or wider inside: slow, plain, the meaning of all others."""

    def build(self) -> AttentionBackend:
        """The backend; runs wherever torch runs."""
        from cm3plugins.attention.reference import ReferenceAttention

        return ReferenceAttention()
