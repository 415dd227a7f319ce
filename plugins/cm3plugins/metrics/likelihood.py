"""Metrics of a model's own probabilities: nats per token, and choices among answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from cm3core.errors import DataError
from cm3core.interfaces.metric import Group, Metric, Score
from cm3plugins.metrics.collecting import ValueMetric, mean_score


class NatsMetric(ValueMetric):
    """-log p of all tokens of a modality, divided by their number."""

    def __init__(self, modality: Literal["image", "text"]) -> None:
        super().__init__()
        self._modality = modality
        self.needs: tuple[Group, ...] = ((f"{modality}_nats", f"{modality}_tokens"),)  # type: ignore[misc]  # of this instance

    def _value(self, sample: Mapping[str, Any]) -> tuple[float, int]:
        nats, tokens = (sample[name] for name in self.needs[0])
        if tokens < 1:
            raise DataError("a sample", f"has no {self._modality} tokens", "leave it out")
        return float(nats), int(tokens)

    def _result(self) -> Sequence[Score]:
        nats, tokens = np.array(list(self.values.values()), np.float64).T
        value = float(nats.sum() / tokens.sum())
        # standard error of a ratio of sums, from the residuals of its samples
        spread = None
        if len(nats) > 1:
            residuals = nats - value * tokens
            spread = float(residuals.std(ddof=1) / np.sqrt(len(nats)) / tokens.mean())
        return [Score(f"{self._modality}_nats", value, len(nats), False, spread)]


class HeldOutLossMetric(ValueMetric):
    """-log p per image token of each document, after the documents retrieved for it."""

    needs: ClassVar[tuple[Group, ...]] = (("retrieved_image_nats", "image_tokens"),)

    def _value(self, sample: Mapping[str, Any]) -> float:
        nats, tokens = (sample[name] for name in self.needs[0])
        if tokens < 1:
            raise DataError("a sample", "has no image tokens", "leave it out")
        return float(nats) / int(tokens)

    def _result(self) -> Sequence[Score]:
        return [mean_score("image_loss", self.values, higher_is_better=False)]


class ChoiceMetric(ValueMetric):
    """How often the right answer has the highest score, and its mean reciprocal rank."""

    needs: ClassVar[tuple[Group, ...]] = (("choices", "answers"),)

    def _value(self, sample: Mapping[str, Any]) -> tuple[float, float]:
        scores, right = np.asarray(sample["choices"], np.float64), int(sample["answers"])
        if not 0 <= right < len(scores):
            raise DataError(
                "a sample's answer", f"is {right} of {len(scores)} choices", "correct the number"
            )
        better, equal = int((scores > scores[right]).sum()), int((scores == scores[right]).sum())
        # ties count as in random order
        ranks = np.arange(better + 1, better + equal + 1)
        return float((ranks == 1).mean()), float((1 / ranks).mean())

    def _result(self) -> Sequence[Score]:
        return [
            mean_score(
                name, {i: 100 * own[place] for i, own in self.values.items()}, higher_is_better=True
            )
            for place, name in enumerate(("choice_accuracy", "choice_mrr"))
        ]


class CodebookMetric(Metric):
    """Use of image codes: the share of the codebook in use, and the perplexity of the codes' frequencies."""

    needs: ClassVar[tuple[Group, ...]] = (("codes",),)

    def __init__(self, codebook_size: int) -> None:
        self._counts = np.zeros(codebook_size, np.int64)
        self._num = 0

    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        for codes in columns["codes"]:
            values = np.asarray(codes).ravel()
            if values.size and not 0 <= values.min() <= values.max() < len(self._counts):
                raise DataError(
                    "codes",
                    f"are {values.min()} to {values.max()}, but the codebook has {len(self._counts)}",
                    "set codebook_size to the image tokenizer's",
                )
            self._counts += np.bincount(values, minlength=len(self._counts))
        self._num += len(indices)

    def _merge(self, other: CodebookMetric) -> None:
        self._counts += other._counts
        self._num += other._num

    def _result(self) -> Sequence[Score]:
        share = self._counts[self._counts > 0] / max(1, self._counts.sum())
        return [
            Score("codebook_usage", float((self._counts > 0).mean()), self._num, True),
            Score(
                "codebook_perplexity",
                float(np.exp(-(share * np.log(share)).sum())),
                self._num,
                True,
            ),
        ]
