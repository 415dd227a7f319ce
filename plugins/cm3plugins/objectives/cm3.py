"""`cm3`: causal masking.

Moves a Poisson number of spans, one whole segment, or a box of a picture to the end of the
sequence.

Sources: CM3leon paper section 2.2 (no span crosses <break>), CM3 paper section 2;
facebookresearch/metaseq `cm3_dataset.py`, branch scaling_racm3, without its mistakes: masking works
on one sequence, before packing, and uses fewer spans if the context has no room for three more
tokens per span, so no sentinel, span or end token is ever truncated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.document import MaskedSequence, TokenSequence
from cm3core.interfaces import check_value
from cm3core.interfaces.objective import MaskingObjective
from cm3core.sequence import TOKENS_PER_SPAN, move_spans
from cm3plugins.objectives.base import LossWeightsConfig, SpanList, draw_box, draw_spans

if TYPE_CHECKING:
    import numpy as np

    from cm3core.vocab import Vocabulary


@dataclass(kw_only=True)
class CM3ObjectiveConfig(LossWeightsConfig):
    """Causal masking (CM3).

    CM3leon paper section 2.2; metaseq `cm3_dataset.py`, branch scaling_racm3.

    Args:
        lambda_spans: mean of the Poisson number of random spans in a sequence (metaseq
            `cm3_lambda_sentinel_tokens`).
        max_spans: maximum number of spans in a sequence (CM3 paper: 16); also limited by the number
            of sentinels and by the room in the context. It also limits the holes of a prompt:
            inpainting merges the holes of larger regions.
        segment_mask_probability: probability of masking one whole segment of the query document instead
            of random spans. Random spans hide a whole caption in 0.003% of sequences, but guidance and
            captioning need hidden captions (metaseq `cm3_percent_full_document_rotation`, default
            there 0).
        text_segment_share: probability that the masked segment is a text, if the query document has
            both.
        box_mask_probability: probability of masking a box of codes in one of the query document's pictures,
            one span per row, instead of random spans. Inpainting needs this form, which random spans
            almost never take. Not in the paper. Boxes are at most `max_spans` rows high, and lower if the
            context has no room.
        mask_sentinel_loss: whether predicting a sentinel counts (metaseq: yes; CM3 paper: no).
        hide_response: probability of masking all responses of a document's task instead of anything else.
            Only in this form does a model learn an answer written before its picture from the picture.
            Responses that end the document are never masked: they are predicted in their place. Documents
            without a task have no responses.
    """

    masks_spans: ClassVar[bool] = True
    masks_retrieved: ClassVar[bool] = True  # random spans cover the whole sequence
    lambda_spans: float = 1.0
    max_spans: int = 16
    segment_mask_probability: float = 0.3
    text_segment_share: float = 0.7
    box_mask_probability: float = 0.1
    mask_sentinel_loss: bool = True
    hide_response: float = 0.5

    def offers(self) -> Mapping[str, bool]:
        """As many holes as `max_spans`."""
        return {"holes": self.max_spans > 0, "several_holes": self.max_spans > 1}

    def check(self) -> None:
        super().check()
        check_value(
            "objective.lambda_spans",
            self.lambda_spans,
            0 <= self.lambda_spans <= 100,
            "use 0..100; the paper uses 1",
        )
        check_value(
            "objective.max_spans",
            self.max_spans,
            0 <= self.max_spans <= 512,
            "use 0..512; the CM3 paper uses 16",
        )
        for key in (
            "segment_mask_probability",
            "text_segment_share",
            "box_mask_probability",
            "hide_response",
        ):
            check_value(
                f"objective.{key}",
                getattr(self, key),
                0 <= getattr(self, key) <= 1,
                "use a probability, 0..1",
            )
        rest = 1 - self.segment_mask_probability
        check_value(
            "objective.box_mask_probability",
            self.box_mask_probability,
            self.box_mask_probability <= rest,
            f"use at most {rest:g}, so that both probabilities with objective.segment_mask_probability sum to at most 1",
        )

    def build(self, vocabulary: Vocabulary) -> CM3Objective:
        return CM3Objective(self, vocabulary)


class CM3Objective(MaskingObjective):
    """Causal masking.

    Random spans cover the whole sequence; whole segments and boxes come from the query document.
    """

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
        spans = self._hidden_responses(sequence, rng, max_spans)
        if not spans:
            spans = self._draw(sequence, rng, max_spans)
        weights = self.config.weights_of(sequence, self.vocabulary)
        return move_spans(
            sequence, spans, weights, self.vocabulary, sentinel_loss=self.config.mask_sentinel_loss
        )

    def _hidden_responses(
        self, sequence: TokenSequence, rng: np.random.Generator, max_spans: int
    ) -> SpanList:
        """Return the responses before the end, or none; draws no random number if there are none."""
        inside = [
            (span.start, span.stop)
            for span in sequence.responses
            if len(span) and span.stop < len(sequence) - 1
        ]
        if not inside or rng.random() >= self.config.hide_response or len(inside) > max_spans:
            return []
        return inside

    def _draw(self, sequence: TokenSequence, rng: np.random.Generator, max_spans: int) -> SpanList:
        """Draw one segment, one box, or random spans."""
        choice, segment, box = (
            rng.random(),
            self.config.segment_mask_probability,
            self.config.box_mask_probability,
        )
        if choice < segment:
            return self._draw_segment(sequence, rng) if max_spans else []
        if choice < segment + box:
            return draw_box(sequence, max_spans, rng)
        return draw_spans(sequence, min(int(rng.poisson(self.config.lambda_spans)), max_spans), rng)

    def _draw_segment(self, sequence: TokenSequence, rng: np.random.Generator) -> SpanList:
        """Draw one whole non-empty segment of the query document; none if all are empty.

        Draws the modality first, then the segment uniformly.
        """
        segments = [span for span in sequence.segments[sequence.query_segment :] if len(span)]
        wanted = "text" if rng.random() < self.config.text_segment_share else "image"
        choice = [span for span in segments if span.modality == wanted] or segments
        if not choice:
            return []
        span = choice[int(rng.integers(len(choice)))]
        return [(span.start, span.stop)]
