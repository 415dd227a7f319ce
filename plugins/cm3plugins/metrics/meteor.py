"""METEOR in two forms, which give different numbers and have different names.

meteor_exact_stem   in Python: the formula of Banerjee and Lavie 2005 (alpha 0.9, beta 3, gamma 0.5) with
                    the stages "exact" and "stem" (Porter's); no synonyms and no paraphrases. The same as
                    nltk's `meteor_score` with that stemmer and an empty WordNet
meteor              METEOR 1.5 (Denkowski and Lavie 2014) by its own jar, as COCO's evaluation runs it: stages
                    exact, stem, synonym and paraphrase, function words weighted

Both are of captions' words (`caption_words`) and printed times 100.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3core.errors import DataError, MissingPackageError
from cm3core.interfaces.metric import Score
from cm3plugins.metrics.captions import CaptionMetric, Words
from cm3plugins.metrics.collecting import mean_score
from cm3plugins.metrics.java import run_java

_ALPHA, _BETA, _GAMMA = 0.9, 3.0, 0.5
#: Separates the parts of a line that the jar reads.
_BAR = " ||| "


class ExactStemMetric(CaptionMetric):
    """METEOR of the stages exact and stem: the best of a sample's references."""

    def __init__(self) -> None:
        super().__init__()
        self._stem = porter_stemmer()

    def _value(self, sample: Mapping[str, Any]) -> float:  # type: ignore[override]  # one number each
        words, references = super()._value(sample)
        return 100 * max(meteor_exact_stem(words, one, self._stem) for one in references)

    def _result(self) -> Sequence[Score]:
        return [mean_score("meteor_exact_stem", self.values, higher_is_better=True)]


class JarMetric(CaptionMetric):
    """METEOR 1.5 of the whole set, which is no mean of its samples' scores.

    Args:
        jar: meteor-1.5.jar, with data/paraphrase-en.gz beside it.
    """

    def __init__(self, jar: Path) -> None:
        super().__init__()
        self._jar = jar

    def _result(self) -> Sequence[Score]:
        samples = list(self.values.values())
        lines = [
            _BAR.join(["SCORE", *map(" ".join, references), " ".join(words)])
            for words, references in samples
        ]
        statistics = self._answers(lines, len(lines))
        *_, whole = self._answers([_BAR.join(["EVAL", *statistics])], len(lines) + 1)
        try:
            value = float(whole)
        except ValueError as error:
            raise _unlike(self._jar, whole) from error
        return [Score("meteor", 100 * value, len(samples), higher_is_better=True)]

    def _answers(self, lines: Sequence[str], num: int) -> list[str]:
        """What the jar answers to some lines, `num` lines."""
        options = ["-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(self._jar.resolve())]
        output = run_java(
            [*options, "-", "-", "-stdio", "-l", "en", "-norm"], "\n".join(lines) + "\n"
        )
        answers = output.splitlines()
        if len(answers) != num:
            raise _unlike(self._jar, f"{len(answers)} lines")
        return answers


def meteor_exact_stem(words: Words, reference: Words, stem: Callable[[str], str]) -> float:
    """METEOR of a caption and one reference, 0 to 1.

    >>> round(meteor_exact_stem("a dog sat".split(), "the dog sat down".split(), lambda word: word), 4)
    0.4808
    """
    pairs = _aligned(words, reference, stem)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(words), len(pairs) / len(reference)
    mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
    steps = itertools.pairwise(pairs)
    num_chunks = 1 + sum((b[0] - a[0], b[1] - a[1]) != (1, 1) for a, b in steps)
    penalty: float = _GAMMA * (num_chunks / len(pairs)) ** _BETA
    return mean * (1 - penalty)


def _aligned(words: Words, reference: Words, stem: Callable[[str], str]) -> list[tuple[int, int]]:
    """Positions of words that match, in the caption's order: first the equal ones, then those of equal
    stems; of several the last ones match each other."""
    pairs: dict[int, int] = {}
    for form in (str, stem):
        places: dict[str, list[int]] = defaultdict(list)
        taken = set(pairs.values())
        for place, word in enumerate(reference):
            if place not in taken:
                places[form(word)].append(place)
        for place in reversed(range(len(words))):
            if place not in pairs and (found := places.get(form(words[place]))):
                pairs[place] = found.pop()
    return sorted(pairs.items())


def porter_stemmer() -> Callable[[str], str]:
    """Porter's stemmer.

    Raises:
        MissingPackageError: `snowballstemmer` is not installed.
    """
    try:
        import snowballstemmer
    except ModuleNotFoundError as error:
        raise MissingPackageError.extra("metric 'meteor'", "snowballstemmer", "captions") from error
    stem: Callable[[str], str] = snowballstemmer.stemmer("porter").stemWord
    return stem


def _unlike(jar: Path, found: str) -> DataError:
    return DataError(
        str(jar),
        f"answered {found[:80]!r}, which METEOR 1.5 does not",
        "use the meteor-1.5.jar of https://www.cs.cmu.edu/~alavie/METEOR or of pycocoevalcap",
    )
