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

#: The gate of a precision that was asked for: the largest mean divergence from the exact
#: distributions, in nats a token, and the smallest share of most probable tokens that stay the same
#: where the exact distribution is sure of them: its best two differ by more than `SURE` nats.
MOST_DIVERGENCE, LEAST_SAME, SURE = 0.05, 0.98, 0.5
#: The largest divergence of a precision that nobody asked for. The bundled models' int8 is at 0.0009 to
#: 0.0015, their bf16 at 0.0001 to 0.0002.
MOST_UNASKED = 0.01
#: Tokens of a sequence that are read.
MOST_TOKENS = 160
#: Logits that are compared at once.
MOST_LOGITS = 2**22


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
        """The gate of a precision that was asked for."""
        return self.divergence <= MOST_DIVERGENCE and self.same_where_sure >= LEAST_SAME

    @property
    def passes_unasked(self) -> bool:
        """The gate of one that "auto" takes."""
        return self.passes and self.divergence <= MOST_UNASKED

    def __str__(self) -> str:
        return (
            f"{self.divergence:.4f} nats a token from the exact predictions, "
            f"{self.same_where_sure:.1%} of sure tokens the same"
        )


class Reference:
    """What a decoder's exact arrangement predicts for some documents: read once, for any number of others.

    Args:
        exact: the arrangement to compare with.
        sequences: documents that no arrangement was made for; the first `MOST_TOKENS` of each are read.
        vocabulary: image codes are predicted among image codes, everything else among all ids.
    """

    def __init__(
        self, exact: InferenceDecoder, sequences: Sequence[TokenSequence], vocabulary: Vocabulary
    ) -> None:
        self._exact, self._sequences, self._vocabulary = exact, sequences, vocabulary
        self._hidden = self._read_by(exact)

    @torch.inference_mode()
    def agreement(self, other: InferenceDecoder) -> Agreement:
        """Compare another arrangement of the same decoder, with fewer bits."""
        divergence, same, sure_same, sure, number = 0.0, 0, 0, 0, 0
        image = self._vocabulary.image
        predicted = zip((image, None), self._hidden, self._read_by(other), strict=True)
        for ids, exact_NE, other_NE in predicted:
            if not len(exact_NE):
                continue
            # a few at a time: of some models one position has 180,000 ids
            size = max(1, MOST_LOGITS // (self._vocabulary.size if ids is None else len(image)))
            for exact_nE, other_nE in zip(exact_NE.split(size), other_NE.split(size), strict=True):
                exact_nR = self._exact.logits(exact_nE, ids).float().log_softmax(1)
                other_nR = other.logits(other_nE, ids).float().log_softmax(1)
                best_n2 = exact_nR.topk(2).values
                sure_n = best_n2[:, 0] - best_n2[:, 1] > SURE
                same_n = exact_nR.argmax(1) == other_nR.argmax(1)
                # ids that can't follow are -inf in both
                gap_nR = torch.where(exact_nR > -torch.inf, exact_nR - other_nR, 0.0)
                divergence += float((exact_nR.exp() * gap_nR).sum())
                same, sure = same + int(same_n.sum()), sure + int(sure_n.sum())
                sure_same += int((same_n & sure_n).sum())
                number += len(exact_nE)
        # nothing to compare: nothing is known
        if number == 0:
            return Agreement(float("inf"), 0.0, 0.0, 0)
        return Agreement(
            divergence / number, same / number, sure_same / sure if sure else 1.0, number
        )

    @torch.inference_mode()
    def _read_by(self, decoder: InferenceDecoder) -> tuple[Tensor, Tensor]:
        """Hidden states [N, E] behind which a code comes, and those behind which anything else does."""
        before_code, before_other = [], []
        for sequence in self._sequences:
            hidden_TE = _hidden(decoder, sequence)
            is_code_T = torch.from_numpy(sequence.cells[1:MOST_TOKENS] >= 0).to(hidden_TE.device)
            before_code.append(hidden_TE[is_code_T])
            before_other.append(hidden_TE[~is_code_T])
        if not before_code:
            return torch.empty(0, 1), torch.empty(0, 1)
        return torch.cat(before_code), torch.cat(before_other)


def _hidden(decoder: InferenceDecoder, sequence: TokenSequence) -> Tensor:
    """Hidden states [T, E] of all but the last of the tokens that are read."""
    tokens_1T, cells_1T = (
        torch.from_numpy(values[: MOST_TOKENS - 1].astype("int64"))[None].to(decoder.device)
        for values in (sequence.tokens[:-1], sequence.cells[:-1])
    )
    cache = decoder.allocate_cache(1, tokens_1T.shape[1])
    return decoder.hidden_states(tokens_1T, cells_BT=cells_1T, cache=cache)[0]
