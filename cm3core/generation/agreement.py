"""How much an arrangement with fewer bits changes a decoder's predictions: the gate that it has to pass.

Both read the same sequences; at every position the distributions of the next token are compared.
Legend: T tokens, E width, R ids, n positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cm3core.document import TokenSequence
    from cm3core.interfaces.decoder import InferenceDecoder
    from cm3core.vocab import Vocabulary

#: The gate: the largest mean divergence from the exact distributions, in nats a token, and the
#: smallest share of most probable tokens that stay the same where the exact distribution is sure of
#: them: its best two differ by more than `SURE` nats.
MOST_DIVERGENCE, LEAST_SAME, SURE = 0.05, 0.98, 0.5
#: Tokens of a sequence that are read.
MOST_TOKENS = 160


@dataclass(frozen=True)
class Agreement:
    """An arrangement compared with the exact one.

    Args:
        divergence: mean Kullback-Leibler divergence KL(exact, other) of next tokens, in nats.
        same: share of positions whose most probable token is the same.
        same_where_sure: the same, of positions where the exact distribution is sure.
        num: positions.
    """

    divergence: float
    same: float
    same_where_sure: float
    num: int

    @property
    def passes(self) -> bool:
        """The gate."""
        return self.divergence <= MOST_DIVERGENCE and self.same_where_sure >= LEAST_SAME

    def __str__(self) -> str:
        return (
            f"{self.divergence:.4f} nats a token from the exact predictions, "
            f"{self.same_where_sure:.1%} of sure tokens the same"
        )


@torch.inference_mode()
def agreement(
    exact: InferenceDecoder,
    other: InferenceDecoder,
    sequences: Sequence[TokenSequence],
    vocabulary: Vocabulary,
) -> Agreement:
    """Compare two arrangements of one decoder.

    Args:
        exact: the one to be compared with.
        other: with fewer bits.
        sequences: documents that neither was made for; the first `MOST_TOKENS` of each are read.
        vocabulary: image codes are predicted among image codes, everything else among all ids.
    """
    divergence, same, sure_same, sure, number = 0.0, 0, 0, 0, 0
    for sequence in sequences:
        hidden = [_hidden(one, sequence) for one in (exact, other)]
        is_code_n = torch.from_numpy(sequence.cells[1:MOST_TOKENS] >= 0)
        for ids, chosen_n in ((vocabulary.image, is_code_n), (None, ~is_code_n)):
            places_n = chosen_n.nonzero()[:, 0]
            if not len(places_n):
                continue
            exact_nR, other_nR = (
                decoder.logits(hidden_TE[places_n.to(hidden_TE.device)], ids).float().log_softmax(1)
                for decoder, hidden_TE in zip((exact, other), hidden, strict=True)
            )
            best_n2 = exact_nR.topk(2).values
            sure_n = best_n2[:, 0] - best_n2[:, 1] > SURE
            same_n = exact_nR.argmax(1) == other_nR.argmax(1)
            # ids that can't follow are -inf in both
            gap_nR = torch.where(exact_nR > -torch.inf, exact_nR - other_nR, 0.0)
            divergence += float((exact_nR.exp() * gap_nR).sum())
            same, sure = same + int(same_n.sum()), sure + int(sure_n.sum())
            sure_same += int((same_n & sure_n).sum())
            number += len(places_n)
    # nothing to compare: nothing is known
    if number == 0:
        return Agreement(float("inf"), 0.0, 0.0, 0)
    return Agreement(divergence / number, same / number, sure_same / sure if sure else 1.0, number)


def _hidden(decoder: InferenceDecoder, sequence: TokenSequence) -> Tensor:
    """Hidden states [T, E] of all but the last of the tokens that are read."""
    tokens_1T, cells_1T = (
        torch.from_numpy(values[: MOST_TOKENS - 1].astype("int64"))[None].to(decoder.device)
        for values in (sequence.tokens[:-1], sequence.cells[:-1])
    )
    cache = decoder.allocate_cache(1, tokens_1T.shape[1])
    return decoder.hidden_states(tokens_1T, cells_BT=cells_1T, cache=cache)[0]
