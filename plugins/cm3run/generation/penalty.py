"""The penalty on repeated ids: logits of what a request has read or drawn are made smaller.

Keskar et al. 2019 (CTRL, arXiv:1909.05858), section 4.1, as transformers' `RepetitionPenaltyLogitsProcessor`:
a logit above zero is divided by the penalty, one below multiplied. Legend: n requests of a group, g
their stream rows, R ids of the legal slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cm3core.document import BoolArray, IntArray

if TYPE_CHECKING:
    from cm3run.generation.row import ActiveRequest


@dataclass(eq=False)
class RepetitionPenalty:
    """What is penalised in the rows of a group, and by how much.

    Args:
        factor_g1: float32; the penalty of each stream row's request.
        owner_g: int64; the request of each stream row.
        seen_nR: bool; the ids that each request has read or drawn.
    """

    factor_g1: Tensor
    owner_g: Tensor
    seen_nR: Tensor

    @classmethod
    def of(
        cls,
        rows: Sequence[ActiveRequest],
        owners: Sequence[int],
        ids: range,
        device: torch.device,
    ) -> RepetitionPenalty | None:
        """The penalty of requests; None if none has one.

        Args:
            rows: the requests.
            owners: for each stream row, its request among them.
            ids: the slice.
        """
        factors = np.array([row.plan().repetition_penalty for row in rows], np.float32)
        if (factors == 1).all():
            return None
        seen_nR: BoolArray = np.zeros((len(rows), len(ids)), np.bool_)
        for place, row in enumerate(rows):
            tokens = seen_by(row)
            seen_nR[place, tokens[(tokens >= ids.start) & (tokens < ids.stop)] - ids.start] = True
        owner_g = np.asarray(owners, np.int64)
        return cls(
            torch.from_numpy(factors[owner_g][:, None]).to(device),
            torch.from_numpy(owner_g).to(device),
            torch.from_numpy(seen_nR).to(device),
        )

    def penalised(self, logits_gR: Tensor) -> Tensor:
        """The logits [g, R] after the penalty; those given stay as they are."""
        smaller_gR = torch.where(
            logits_gR > 0, logits_gR / self.factor_g1, logits_gR * self.factor_g1
        )
        return torch.where(self.seen_nR[self.owner_g], smaller_gR, logits_gR)

    def add(self, index_n: Tensor) -> None:
        """Take in what each request has drawn, as places in the slice."""
        self.seen_nR[torch.arange(len(index_n), device=index_n.device), index_n] = True


def seen_by(row: ActiveRequest) -> IntArray:
    """Ids int32 that a request has read, in the prompt that shows most, or drawn."""
    prompt = row.prompts[row.local[row.plan().reference]].tokens
    drawn = [np.asarray(row.grammar.current, np.int32), *row.grammar.contents]
    return np.concatenate([prompt, *drawn]).astype(np.int32)
