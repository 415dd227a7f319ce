"""Rollouts: sampled documents with the tokens they are made of, and log-probabilities of these tokens.

What sampling recorded and what `Policy.score` computes have the same form, so that one can be
subtracted from the other. Legend: B rollouts, P tokens of the longest, R ids of a legal slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cm3core.arguments import checked
from cm3core.errors import GenerationError

if TYPE_CHECKING:
    from cm3core.document import Document, IntArray
    from cm3core.interfaces.sampler import Sampler
    from cm3run.generation.events import Request


@dataclass(frozen=True, eq=False)
class Rollout:
    """A document with its holes filled, as a policy is asked about it.

    Args:
        request: what was asked for: its seed, and its document with every size decided.
        document: the same with each hole filled.
        contents: int32 ids of the vocabulary; each hole's tokens, end tokens not included.
        sampler: draws such documents.
        tokens: int32 [P]; the tokens with a choice, in order: contents, and end tokens of texts that
            could have gone on.
        raw, policy: float32 [P], recorded at sampling, see `TokenLogProbabilities`. None: it was not
            sampled here.
        support: for each token, the ids that the filters kept of its legal slice: `packbits` of bool
            [R]. None: not recorded.
    """

    request: Request
    document: Document
    contents: tuple[IntArray, ...]
    sampler: Sampler
    tokens: IntArray = field(repr=False)
    raw: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    policy: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    support: Sequence[npt.NDArray[np.uint8]] | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class TokenLogProbabilities:
    """Log-probabilities of the tokens of B rollouts, in nats, padded on the right with zeros.

    Args:
        raw_BP: float32; under the model: the conditional stream alone, at temperature 1, among the ids
            legal there. Their sum is `Completion.log_probability`.
        policy_BP: float32; under the sampling policy: guidance, temperature and filters, among the ids
            legal there. -inf for a token that the filters leave out.
        mask_BP: bool; where there is a token.
    """

    raw_BP: Tensor
    policy_BP: Tensor
    mask_BP: Tensor

    @cached_property
    def num_tokens_B(self) -> Tensor:
        """Number of tokens of each rollout, int64 [B]."""
        return self.mask_BP.sum(dim=1)

    @staticmethod
    def stacked(raw: Sequence[Tensor], policy: Sequence[Tensor]) -> TokenLogProbabilities:
        """Those of rollouts of different lengths, each [P]."""
        lengths_B = torch.tensor([len(own) for own in raw], device=raw[0].device)
        place_P = torch.arange(int(lengths_B.max()), device=raw[0].device)
        return TokenLogProbabilities(
            pad_sequence(list(raw), batch_first=True),
            pad_sequence(list(policy), batch_first=True),
            place_P < lengths_B[:, None],
        )


@checked(GenerationError)
def recorded(
    rollouts: Sequence[Rollout], device: torch.device | str = "cpu"
) -> TokenLogProbabilities:
    """What sampling recorded: the log-probabilities of the tokens under the weights of that time.

    Args:
        rollouts: at least one, all of `Policy.sample`.
        device: of the tensors.

    Raises:
        GenerationError: there is no rollout, or one that was not sampled here.
    """
    check_some(rollouts)
    raw: list[Tensor] = []
    policy: list[Tensor] = []
    for place, one in enumerate(rollouts):
        if one.raw is None or one.policy is None:
            raise GenerationError(
                f"rollout {place}",
                "was not sampled here, so nothing was recorded",
                "compute its log-probabilities with Policy.score",
            )
        raw.append(torch.from_numpy(one.raw).to(device))
        policy.append(torch.from_numpy(one.policy).to(device))
    return TokenLogProbabilities.stacked(raw, policy)


def check_some(rollouts: Sequence[Rollout]) -> None:
    """Raise `GenerationError` if there are none: there would be no tensors to return."""
    if not rollouts:
        raise GenerationError("rollouts", "are none", "give at least one")
