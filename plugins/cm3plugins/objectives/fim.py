"""`fim`: one random span of each sequence is moved behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core.document import MaskedSequence, TokenSequence
from cm3core.interfaces.objective import MaskingObjective
from cm3core.sequence import TOKENS_PER_SPAN, loss_weights, move_spans
from cm3plugins.objectives.spans import SpanList, draw_spans

if TYPE_CHECKING:
    import numpy as np

    from cm3core.vocab import Vocabulary
    from cm3plugins.objectives.config import FIMObjectiveConfig


class FIMObjective(MaskingObjective):
    """Fill in the middle with one span inside one segment."""

    max_added_tokens = TOKENS_PER_SPAN

    def __init__(self, config: FIMObjectiveConfig, vocabulary: Vocabulary) -> None:
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
        room = max_length - len(sequence) >= TOKENS_PER_SPAN
        spans: SpanList = []
        if (
            rng.random() < self.config.fim_rate
            and room
            and any(len(span) for span in sequence.segments)
        ):
            while not spans:  # an empty candidate, or one on a <break>, is drawn again
                spans = draw_spans(sequence, 1, rng)
        return move_spans(
            sequence, spans, weights, self.vocabulary, sentinel_loss=self.config.mask_sentinel_loss
        )
