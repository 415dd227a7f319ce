"""Kind `attention`: the attention function that a decoder calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cm3core.interfaces.component import ComponentConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True)
class AttentionConfig(ComponentConfig):
    """Base of attention backends' configs."""

    kind: ClassVar[str] = "attention"

    #: Largest head dimension that the backend supports; checking a recipe with a larger one fails.
    #: None: any.
    largest_head_dim: ClassVar[int | None] = None
    #: Whether a decoder can be trained with it on some device; `check_training` says on which.
    has_gradients: ClassVar[bool] = True

    def offers(self) -> Mapping[str, bool]:
        """Gradients, unless `has_gradients` is False."""
        return {} if self.has_gradients else {"gradients": False}

    def for_device(self, device: str) -> AttentionConfig:
        """Return the config of the backend that runs on a device, such as "cuda".

        For configs that choose by device; the default is this one. Must stay light: no torch."""
        return self

    def check_training(self, device: str) -> None:
        """Raise `DeviceError` if a decoder can't be trained with it on a device, such as "cpu".

        Called first, before data is read. Must stay light: no torch."""

    def build(self) -> AttentionBackend:
        """Return the backend. Raises `PluginError` with the reason if it can't run here."""
        raise NotImplementedError

    def kept_bytes(self, rows: int, length: int, num_heads: int, itemsize: int) -> int:
        """Return the bytes that one call keeps for its backward pass, besides queries, keys,
        values and the result. The default, 0, suits fused kernels."""
        return 0


class AttentionBackend(ABC):
    """Attention with one visibility rule for training, packing, retrieval and cached decoding.

    Legend: B rows, T queries, S keys, H query heads, K key heads (H a multiple of K), D head
    dimension. Query i of row b is at key position offset[b] + i and sees the keys j with
    kv_start[b, i] <= j <= offset[b] + i.
    """

    #: Whether `attend` is softmax attention with exactly this rule. A decoder may
    #: then compute it in parts, so that keys shared by several rows are read once. If False, a
    #: cache keeps each row's keys separate and calls `attend`.
    is_plain_softmax: bool = False

    def plan(
        self,
        *,
        num_queries: int,
        num_keys: int,
        kv_start_BT: Tensor | None = None,
        offset_B: Tensor | None = None,
    ) -> Any:
        """Build data shared by all layers of one forward pass, such as a mask or a list of blocks.

        It is built once and passed to each `attend`. Optional: the default returns None, and `attend`
        must work without a plan."""
        return None

    @abstractmethod
    def attend(
        self,
        q_BTHD: Tensor,
        k_BSKD: Tensor,
        v_BSKD: Tensor,
        *,
        kv_start_BT: Tensor | None = None,
        offset_B: Tensor | None = None,
        scale: float | None = None,
        plan: Any = None,
    ) -> Tensor:
        """Return softmax(q k^T * scale) v, with the softmax over the visible keys.

        Args:
            q_BTHD, k_BSKD, v_BSKD: one floating dtype, last stride 1.
            kv_start_BT: int32 or int64; first key that each query sees. None: 0 (plain causal).
            offset_B: int64; key position of each row's first query. None: 0 for all rows, and
                S == T (no cache).
            scale: default 1/sqrt(D).
            plan: the result of `plan` for the same T, S, kv_start and offset, or None.

        Returns:
            [B, T, H, D], dtype of q; zeros for a query that sees no key; differentiable when
            `offset_B` is None.
        """
