"""`causal`: the sequence as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core.document import MaskedSequence, TokenSequence
from cm3core.interfaces.objective import MaskingObjective
from cm3core.sequence import loss_weights

if TYPE_CHECKING:
    import numpy as np

    from cm3core.vocab import Vocabulary
    from cm3plugins.objectives.config import CausalObjectiveConfig


class CausalObjective(MaskingObjective):
    """Plain next-token prediction."""

    max_added_tokens = 0

    def __init__(self, config: CausalObjectiveConfig, vocabulary: Vocabulary) -> None:
        self.config, self.vocabulary = config, vocabulary

    def _mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        weights = loss_weights(
            sequence,
            self.vocabulary,
            self.config.retrieved_loss_weight,
            self.config.text_loss_weight,
        )
        return MaskedSequence(sequence.tokens, sequence.cells, weights)
