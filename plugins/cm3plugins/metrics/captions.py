"""Metrics of captions, as COCO's evaluation computes them: BLEU-1 to BLEU-4 of the whole set (Papineni
et al. 2002), CIDEr-D (Vedantam et al. 2015, n = 4, sigma = 6) and ROUGE-L (Lin 2004, beta = 1.2).

The inverse document frequency of CIDEr is that of the references of the samples evaluated: another
choice of samples changes it. All are printed times 100, as papers do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from cm3core.errors import DataError
from cm3core.interfaces.metric import Group, Score
from cm3plugins.metrics.caption_words import caption_words
from cm3plugins.metrics.collecting import ValueMetric, mean_score

Words: TypeAlias = Sequence[str]
NGram: TypeAlias = tuple[str, ...]
#: The guards against division by zero of COCO's BLEU, which move the scores of very few samples.
_TINY, _SMALL = 1e-15, 1e-9


class CaptionMetric(ValueMetric):
    """Keeps the words of each caption and its references."""

    needs: ClassVar[tuple[Group, ...]] = (("texts", "references"),)

    def _value(self, sample: Mapping[str, Any]) -> tuple[Words, tuple[Words, ...]]:
        if not sample["references"]:
            raise DataError("a sample", "has no reference captions", "leave it out")
        return caption_words(sample["texts"]), tuple(map(caption_words, sample["references"]))


class BLEUMetric(CaptionMetric):
    """BLEU-1 to BLEU-`n`; the reference length is the closest one."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self._n = n

    def _result(self) -> Sequence[Score]:
        scores = [100 * value for value in bleu(list(self.values.values()), self._n)]
        num = len(self.values)
        return [Score(f"bleu_{k}", value, num, True) for k, value in enumerate(scores, start=1)]


class CIDErMetric(CaptionMetric):
    """CIDEr-D; the idf needs more than one sample to be anything but 0."""

    minimum = 2

    def __init__(self, n: int, sigma: float) -> None:
        super().__init__()
        self._n, self._sigma = n, sigma

    def _result(self) -> Sequence[Score]:
        values = self.values
        scores = cider_d(list(values.values()), self._n, self._sigma)
        own = dict(zip(values, (100 * score for score in scores), strict=True))
        return [mean_score("cider_d", own, higher_is_better=True)]


class ROUGEMetric(CaptionMetric):
    """ROUGE-L: best precision and best recall over the references."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self._beta = beta

    def _result(self) -> Sequence[Score]:
        own = {
            index: 100 * rouge_l(words, references, self._beta)
            for index, (words, references) in self.values.items()
        }
        return [mean_score("rouge_l", own, higher_is_better=True)]


def bleu(samples: Sequence[tuple[Words, Sequence[Words]]], n: int = 4) -> list[float]:
    """Corpus BLEU-1 to BLEU-n, 0 to 1."""
    correct, guessed = [0] * n, [0] * n
    length = reference_length = 0
    for words, references in samples:
        length += len(words)
        reference_length += min((abs(len(one) - len(words)), len(one)) for one in references)[1]
        for k in range(n):
            found = _ngrams(words, k + 1)
            most: Counter[NGram] = Counter()
            for one in references:
                most |= _ngrams(one, k + 1)
            guessed[k] += max(0, len(words) - k)
            correct[k] += (found & most).total()
    scores, product = [], 1.0
    for k in range(n):
        product *= (correct[k] + _TINY) / (guessed[k] + _SMALL)
        scores.append(product ** (1 / (k + 1)))
    ratio = (length + _TINY) / (reference_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return [score * brevity for score in scores]


def cider_d(
    samples: Sequence[tuple[Words, Sequence[Words]]], n: int = 4, sigma: float = 6.0
) -> list[float]:
    """CIDEr-D of each sample, 0 to 10."""
    num_documents: Counter[NGram] = Counter()
    for _, references in samples:
        num_documents.update({gram for one in references for gram in _all_ngrams(one, n)})
    log_num = math.log(len(samples))

    def vector(words: Words) -> list[dict[NGram, float]]:
        """Term frequency times inverse document frequency, for each length of n-grams."""
        weights: list[dict[NGram, float]] = [{} for _ in range(n)]
        for gram, count in _all_ngrams(words, n).items():
            rarity = log_num - math.log(max(1, num_documents[gram]))
            weights[len(gram) - 1][gram] = count * rarity
        return weights

    scores = []
    for words, references in samples:
        own, total = vector(words), 0.0
        for one in references:
            # lengths in bigrams, as COCO's code has them
            difference = max(0, len(words) - 1) - max(0, len(one) - 1)
            penalty = math.exp(-(difference**2) / (2 * sigma**2))
            total += penalty * sum(map(_clipped_cosine, own, vector(one))) / n
        scores.append(10 * total / len(references))
    return scores


def rouge_l(words: Words, references: Sequence[Words], beta: float = 1.2) -> float:
    """ROUGE-L of a sample, 0 to 1."""
    # COCO's code splits "" into one empty word
    words, references = words or ("",), [one or ("",) for one in references]
    common = [_longest_common(words, one) for one in references]
    precision = max(value / len(words) for value in common)
    recall = max(value / len(one) for value, one in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _clipped_cosine(own: Mapping[NGram, float], other: Mapping[NGram, float]) -> float:
    lengths = math.sqrt(sum(v * v for v in own.values()) * sum(v * v for v in other.values()))
    shared = sum(
        min(value, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, value in own.items()
    )
    return shared / lengths if lengths else shared


def _ngrams(words: Words, n: int) -> Counter[NGram]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _all_ngrams(words: Words, n: int) -> Counter[NGram]:
    return Counter(
        tuple(words[i : i + k]) for k in range(1, n + 1) for i in range(len(words) - k + 1)
    )


def _longest_common(a: Words, b: Words) -> int:
    """Length of the longest common subsequence.

    >>> _longest_common("abcd", "axcd")
    3
    """
    row = [0] * (len(b) + 1)
    for word in a:
        previous = 0
        for place, other in enumerate(b, start=1):
            above = row[place]
            row[place] = previous + 1 if word == other else max(above, row[place - 1])
            previous = above
    return row[-1]
