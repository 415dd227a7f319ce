"""The attention kit: the oracle passes, and each law fails for a backend that is wrong in just that
way.

Legend: B rows, T queries, S keys, H query heads, K key heads, D head dimension.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cm3kits.attention import AttentionContract, DenseAttention
from kit_mutants import assert_covers, assert_law_fails, cases


class TestRight(AttentionContract):
    def make(self) -> DenseAttention:
        return DenseAttention()


class PlanIsOff(DenseAttention):
    def plan(self, **sizes: Any) -> Any:
        return 1

    def attend(self, q_BTHD: Tensor, *others: Tensor, plan: Any = None, **options: Any) -> Tensor:
        return super().attend(q_BTHD if plan is None else q_BTHD + plan, *others, **options)


class PlanForgetsStarts(DenseAttention):
    def plan(self, **sizes: Any) -> Any:
        return "causal"

    def attend(
        self, *qkv: Tensor, plan: Any = None, kv_start_BT: Tensor | None = None, **options: Any
    ) -> Tensor:
        return super().attend(*qkv, kv_start_BT=None if plan else kv_start_BT, **options)


class NaNForPadding(DenseAttention):
    def attend(
        self, q_BTHD: Tensor, *others: Tensor, kv_start_BT: Tensor | None = None, **options: Any
    ) -> Tensor:
        out = super().attend(q_BTHD, *others, kv_start_BT=kv_start_BT, **options)
        if kv_start_BT is not None and options.get("offset_B") is None:
            blind_BT = kv_start_BT > torch.arange(q_BTHD.shape[1])
            out = out.masked_fill(blind_BT[:, :, None, None], torch.nan)
        return out


class MeanForPadding(NaNForPadding):
    def attend(self, q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, **options: Any) -> Tensor:
        out = super().attend(q_BTHD, k_BSKD, v_BSKD, **options)
        return torch.where(out.isnan(), v_BSKD.mean(), out)


class NaNGradients(DenseAttention):
    """Padding divided by nothing and put right afterwards: the output is zero, its gradient no
    number."""

    def attend(
        self, q_BTHD: Tensor, *others: Tensor, kv_start_BT: Tensor | None = None, **options: Any
    ) -> Tensor:
        out = super().attend(q_BTHD, *others, kv_start_BT=kv_start_BT, **options)
        if kv_start_BT is None or options.get("offset_B") is not None:
            return out
        blind = (kv_start_BT > torch.arange(q_BTHD.shape[1]))[:, :, None, None]
        visible = ~blind + 0 * q_BTHD
        return torch.where(blind, 0, out * (visible / visible))


class OneOffsetForAll(DenseAttention):
    def attend(self, *qkv: Tensor, offset_B: Tensor | None = None, **options: Any) -> Tensor:
        return super().attend(
            *qkv,
            offset_B=None if offset_B is None else offset_B.max().expand_as(offset_B),
            **options,
        )


class ForgetsScale(DenseAttention):
    def attend(self, *qkv: Tensor, scale: float | None = None, **options: Any) -> Tensor:
        return super().attend(*qkv, **options)


class SeesTheFuture(DenseAttention):
    def attend(
        self, q_BTHD: Tensor, *others: Tensor, offset_B: Tensor | None = None, **options: Any
    ) -> Tensor:
        offset_B = torch.zeros(len(q_BTHD), dtype=torch.int64) if offset_B is None else offset_B
        return super().attend(q_BTHD, *others, offset_B=offset_B + 1, **options)


class WrongHeads(DenseAttention):
    """Grouped heads in turn, in place of side by side."""

    def attend(self, q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, **options: Any) -> Tensor:
        group = q_BTHD.shape[2] // k_BSKD.shape[2]
        return super().attend(
            q_BTHD, k_BSKD.repeat(1, 1, group, 1), v_BSKD.repeat(1, 1, group, 1), **options
        )


class Doubles(DenseAttention):
    def attend(self, *qkv: Tensor, **options: Any) -> Tensor:
        return super().attend(*qkv, **options).double()


class KeysGetNoGradient(DenseAttention):
    def attend(self, q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, **options: Any) -> Tensor:
        return super().attend(
            q_BTHD, k_BSKD + 0 * k_BSKD.detach() - (k_BSKD - k_BSKD.detach()), v_BSKD, **options
        )


class WritesOnQueries(DenseAttention):
    def attend(self, q_BTHD: Tensor, *others: Tensor, **options: Any) -> Tensor:
        out = super().attend(q_BTHD, *others, **options)
        q_BTHD.data.mul_(0.5)
        return out


class WritesOnOffsets(DenseAttention):
    def attend(
        self,
        *qkv: Tensor,
        offset_B: Tensor | None = None,
        kv_start_BT: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        out = super().attend(*qkv, offset_B=offset_B, kv_start_BT=kv_start_BT, **options)
        for tensor in (offset_B, kv_start_BT):
            if tensor is not None:
                tensor += 1
        return out


class KnowsLongStartsOnly(DenseAttention):
    def attend(self, *qkv: Tensor, kv_start_BT: Tensor | None = None, **options: Any) -> Tensor:
        known = kv_start_BT is not None and kv_start_BT.dtype == torch.int64
        return super().attend(*qkv, kv_start_BT=kv_start_BT if known else None, **options)


class BelievesInContiguousInputs(DenseAttention):
    def attend(self, q_BTHD: Tensor, *others: Tensor, **options: Any) -> Tensor:
        packed = torch.as_strided(
            q_BTHD, q_BTHD.shape, torch.empty(q_BTHD.shape, device="meta").stride()
        )
        return super().attend(packed, *others, **options)


class LooksAtUnreadSlots(DenseAttention):
    def attend(self, q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, **options: Any) -> Tensor:
        return super().attend(q_BTHD, k_BSKD, v_BSKD, **options) + 1e-7 * v_BSKD.sum()


MUTANTS = {
    "a_plan_changes_nothing": [PlanIsOff, PlanForgetsStarts],
    "a_query_that_sees_nothing_gives_zeros": [NaNForPadding, MeanForPadding],
    "cached_rows_equal_the_oracle": [OneOffsetForAll, SeesTheFuture],
    "equals_the_oracle": [ForgetsScale, SeesTheFuture, WrongHeads, Doubles],
    "gradients_of_padding_are_finite": [NaNGradients],
    "gradients_equal_the_oracles": [KeysGetNoGradient],
    "inputs_are_not_written_to": [WritesOnQueries, WritesOnOffsets],
    "starts_of_32_bits_and_strided_inputs": [KnowsLongStartsOnly, BelievesInContiguousInputs],
    "unseen_keys_change_nothing": [LooksAtUnreadSlots],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_backend_fails(law: str, wrong: type[DenseAttention]) -> None:
    assert_law_fails(AttentionContract, law, {"make": lambda self: wrong()})


def test_every_law_has_a_mutant() -> None:
    assert_covers(AttentionContract, MUTANTS)
