"""Configs of the bundled objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm3core.errors import RecipeError
from cm3core.interfaces.objective import ObjectiveConfig

if TYPE_CHECKING:
    from cm3core.vocab import Vocabulary
    from cm3plugins.objectives.causal import CausalObjective
    from cm3plugins.objectives.cm3 import CM3Objective
    from cm3plugins.objectives.fim import FIMObjective


@dataclass(kw_only=True)
class _LossWeights(ObjectiveConfig):
    """Shared: the ranges of the loss weights."""

    def check(self) -> None:
        for key in ("retrieved_loss_weight", "text_loss_weight"):
            _require(key, getattr(self, key), 0 <= getattr(self, key) < float("inf"), "0 or more")


def _require(key: str, value: float, holds: bool, wanted: str) -> None:
    if not holds:
        raise RecipeError(f"objective.{key}", f"is {value}", f"use {wanted}")


@dataclass(kw_only=True)
class CausalObjectiveConfig(_LossWeights):
    """Plain next token; nothing is masked. A model trained so can't fill holes: it only goes on."""

    def build(self, vocabulary: Vocabulary) -> CausalObjective:
        from cm3plugins.objectives.causal import CausalObjective

        return CausalObjective(self, vocabulary)


@dataclass(kw_only=True)
class CM3ObjectiveConfig(_LossWeights):
    """Causal masking (CM3; CM3leon paper section 2.2; metaseq `cm3_dataset.py`, branch
    scaling_racm3).

    Args:
        lambda_spans: mean of the Poisson number of random spans in a sequence (metaseq
            `cm3_lambda_sentinel_tokens`).
        max_spans: most spans in a sequence (CM3 paper: 16); also limited by the sentinels and by
            the room in the context.
        segment_mask_probability: probability that, instead of random spans, one whole segment of
            the query document is masked. Random spans hide a whole caption in 0.003% of sequences,
            and a hidden caption is what guidance and captioning need (metaseq
            `cm3_percent_full_document_rotation`, default there 0).
        text_segment_share: probability that the masked segment is a text, when the query document
            has both.
        box_mask_probability: probability that, instead of random spans, a box of codes of one of
            the query document's pictures is masked, a span for each of its rows: what in-painting
            asks for. Random spans almost never look like it. Not the paper's. Boxes are at most
            `max_spans` rows high, and fewer where the context has no room.
        mask_sentinel_loss: whether predicting a sentinel counts (metaseq: yes; CM3 paper: no).
    """

    lambda_spans: float = 1.0
    max_spans: int = 16
    segment_mask_probability: float = 0.3
    text_segment_share: float = 0.7
    box_mask_probability: float = 0.1
    mask_sentinel_loss: bool = True

    def check(self) -> None:
        super().check()
        _require(
            "lambda_spans",
            self.lambda_spans,
            0 <= self.lambda_spans <= 100,
            "0..100; the paper's is 1",
        )
        _require(
            "max_spans", self.max_spans, 0 <= self.max_spans <= 512, "0..512; the CM3 paper's is 16"
        )
        for key in ("segment_mask_probability", "text_segment_share", "box_mask_probability"):
            _require(key, getattr(self, key), 0 <= getattr(self, key) <= 1, "a probability, 0..1")
        rest = 1 - self.segment_mask_probability
        _require(
            "box_mask_probability",
            self.box_mask_probability,
            self.box_mask_probability <= rest,
            f"at most {rest:g}, what objective.segment_mask_probability leaves",
        )

    def build(self, vocabulary: Vocabulary) -> CM3Objective:
        from cm3plugins.objectives.cm3 import CM3Objective

        return CM3Objective(self, vocabulary)


@dataclass(kw_only=True)
class FIMObjectiveConfig(_LossWeights):
    """Fill in the middle: exactly one random span (metaseq `cm3_mode: fim`; Bavarian et al. 2022).

    Args:
        fim_rate: share of sequences that are masked; the others stay plain.
        mask_sentinel_loss: whether predicting a sentinel counts.
    """

    fim_rate: float = 1.0
    mask_sentinel_loss: bool = True

    def check(self) -> None:
        super().check()
        _require("fim_rate", self.fim_rate, 0 <= self.fim_rate <= 1, "a probability, 0..1")

    def build(self, vocabulary: Vocabulary) -> FIMObjective:
        from cm3plugins.objectives.fim import FIMObjective

        return FIMObjective(self, vocabulary)
