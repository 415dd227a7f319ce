"""`fim`: moves one random span of each sequence to its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.document import MaskedSequence, TokenSequence
from cm3core.interfaces import check_value
from cm3core.interfaces.objective import MaskingObjective
from cm3core.sequence import TOKENS_PER_SPAN, move_spans
from cm3plugins.objectives.base import LossWeightsConfig, SpanList, draw_spans

if TYPE_CHECKING:
    import numpy as np

    from cm3core.vocab import Vocabulary


@dataclass(kw_only=True)
class FIMObjectiveConfig(LossWeightsConfig):
    """Fill in the middle: exactly one random span (metaseq `cm3_mode: fim`; Bavarian et al. 2022).

    Args:
        fim_rate: fraction of sequences to mask; the others stay unchanged.
        mask_sentinel_loss: whether predicting a sentinel counts.
    """

    masks_spans: ClassVar[bool] = True
    masks_retrieved: ClassVar[bool] = True  # random spans cover the whole sequence
    fim_rate: float = 1.0
    mask_sentinel_loss: bool = True

    def offers(self) -> Mapping[str, bool]:
        """One hole."""
        return {"holes": True, "several_holes": False}

    def check(self) -> None:
        super().check()
        check_value(
            "objective.fim_rate", self.fim_rate, 0 <= self.fim_rate <= 1, "use a probability, 0..1"
        )

    def build(self, vocabulary: Vocabulary) -> FIMObjective:
        return FIMObjective(self, vocabulary)


class FIMObjective(MaskingObjective):
    """Fill in the middle with one span inside one segment."""

    max_added_tokens = TOKENS_PER_SPAN

    def __init__(self, config: FIMObjectiveConfig, vocabulary: Vocabulary) -> None:
        self.config, self.vocabulary = config, vocabulary

    def _mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        weights = self.config.weights_of(sequence, self.vocabulary)
        room = max_length - len(sequence) >= TOKENS_PER_SPAN
        spans: SpanList = []
        if (
            rng.random() < self.config.fim_rate
            and room
            and any(len(span) for span in sequence.segments)
        ):
            while not spans:  # redraw candidates that are empty or on a <break>
                spans = draw_spans(sequence, 1, rng)
        return move_spans(
            sequence, spans, weights, self.vocabulary, sentinel_loss=self.config.mask_sentinel_loss
        )
