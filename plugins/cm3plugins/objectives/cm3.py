"""`cm3`: causal masking. A Poisson number of spans, one whole segment, or a box of a picture is
moved behind the sequence.

Sources: CM3leon paper section 2.2 (no span crosses <break>), CM3 paper section 2;
facebookresearch/metaseq `cm3_dataset.py`, branch scaling_racm3, without what it gets wrong: masking
happens inside one sequence and before packing, with fewer spans where the context has no room for
three more tokens each, so no sentinel, span or end token is ever cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core.document import MaskedSequence, TokenSequence
from cm3core.interfaces.objective import MaskingObjective
from cm3core.sequence import TOKENS_PER_SPAN, loss_weights, move_spans
from cm3plugins.objectives.spans import SpanList, draw_box, draw_spans

if TYPE_CHECKING:
    import numpy as np

    from cm3core.vocab import Vocabulary
    from cm3plugins.objectives.config import CM3ObjectiveConfig


class CM3Objective(MaskingObjective):
    """Causal masking of random spans of the whole sequence, and of whole segments and boxes of the
    query document."""

    def __init__(self, config: CM3ObjectiveConfig, vocabulary: Vocabulary) -> None:
        self.config, self.vocabulary = config, vocabulary
        self._max_spans = min(config.max_spans, vocabulary.num_sentinels)

    @property
    def max_added_tokens(self) -> int:
        return TOKENS_PER_SPAN * self._max_spans

    def _mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        max_spans = min(self._max_spans, (max_length - len(sequence)) // TOKENS_PER_SPAN)
        choice, segment, box = (
            rng.random(),
            self.config.segment_mask_probability,
            self.config.box_mask_probability,
        )
        if choice < segment:
            spans = self._draw_segment(sequence, rng) if max_spans else []
        elif choice < segment + box:
            spans = draw_box(sequence, max_spans, rng)
        else:
            spans = draw_spans(
                sequence, min(int(rng.poisson(self.config.lambda_spans)), max_spans), rng
            )
        weights = loss_weights(
            sequence,
            self.vocabulary,
            self.config.retrieved_loss_weight,
            self.config.text_loss_weight,
        )
        return move_spans(
            sequence, spans, weights, self.vocabulary, sentinel_loss=self.config.mask_sentinel_loss
        )

    def _draw_segment(self, sequence: TokenSequence, rng: np.random.Generator) -> SpanList:
        """One whole segment of the query document that is not empty: modality first, then
        uniformly; none if all are empty."""
        segments = [span for span in sequence.segments[sequence.query_segment :] if len(span)]
        wanted = "text" if rng.random() < self.config.text_segment_share else "image"
        choice = [span for span in segments if span.modality == wanted] or segments
        if not choice:
            return []
        span = choice[int(rng.integers(len(choice)))]
        return [(span.start, span.stop)]
