"""`causal`: the sequence unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm3core.document import MaskedSequence, TokenSequence
from cm3core.interfaces.objective import MaskingObjective
from cm3plugins.objectives.base import LossWeightsConfig

if TYPE_CHECKING:
    import numpy as np

    from cm3core.vocab import Vocabulary


@dataclass(kw_only=True)
class CausalObjectiveConfig(LossWeightsConfig):
    """Plain next-token prediction; nothing is masked.

    A model trained this way can't fill holes; it can only continue documents.
    """

    def build(self, vocabulary: Vocabulary) -> CausalObjective:
        return CausalObjective(self, vocabulary)


class CausalObjective(MaskingObjective):
    """Plain next-token prediction."""

    max_added_tokens = 0

    def __init__(self, config: CausalObjectiveConfig, vocabulary: Vocabulary) -> None:
        self.config, self.vocabulary = config, vocabulary

    def _mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        weights = self.config.weights_of(sequence, self.vocabulary)
        return MaskedSequence(sequence.tokens, sequence.cells, weights)
