"""Configs of metrics of texts: captions and answers. `build` imports the implementations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cm3core.files import sha256_file, user_path
from cm3core.interfaces.metric import Metric, MetricConfig
from cm3core.interfaces.reach import READS, Outside


@dataclass(kw_only=True)
class BLEUConfig(MetricConfig):
    """BLEU of captions, over the whole set, times 100.

    Args:
        n: maximum length of n-grams.
    """

    version: ClassVar[int] = 2  # changed words: dashes, fractions, emoji and bare contractions
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"n": (1, 16)}
    n: int = 4

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.captions import BLEUMetric

        self.check()
        return BLEUMetric(self.n)


@dataclass(kw_only=True)
class CIDErConfig(MetricConfig):
    """CIDEr-D of captions, times 100; COCO's "CIDEr".

    Args:
        n: maximum length of n-grams.
        sigma: width of the length penalty.
    """

    version: ClassVar[int] = 2  # changed words: dashes, fractions, emoji and bare contractions
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"n": (1, 16), "sigma": (1e-3, 1e6)}
    n: int = 4
    sigma: float = 6.0

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.captions import CIDErMetric

        self.check()
        return CIDErMetric(self.n, self.sigma)


@dataclass(kw_only=True)
class ROUGEConfig(MetricConfig):
    """ROUGE-L of captions, times 100.

    Args:
        beta: weight of recall.
    """

    version: ClassVar[int] = 2  # changed words: dashes, fractions, emoji and bare contractions
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"beta": (1e-3, 1e3)}
    beta: float = 1.2

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.captions import ROUGEMetric

        self.check()
        return ROUGEMetric(self.beta)


@dataclass(kw_only=True)
class METEORConfig(MetricConfig):
    """METEOR of captions, times 100, in one of two forms.

    Without a jar the score is `meteor_exact_stem`: the formula of 2005 with the stages exact and stem, in
    Python (extra `captions`). With METEOR 1.5's jar it is `meteor`, as in COCO's evaluation, with synonyms
    and paraphrases, using Java. The two can't be compared.

    Args:
        jar: meteor-1.5.jar, next to data/paraphrase-en.gz, e.g. from pycocoevalcap; null: none.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "jar": Outside(READS, "a program, which Java runs"),
    }

    version: ClassVar[int] = 2  # changed words: dashes, fractions, emoji and bare contractions
    jar: str | None = None

    def build(self) -> Metric:
        """Return a metric without samples.

        Raises:
            DataError: there is no such jar.
            MissingPackageError: no jar is set, and `snowballstemmer` is not installed.
        """
        from cm3plugins.metrics.meteor import ExactStemMetric, JarMetric, check_jar

        self.check()
        if self.jar is None:
            return ExactStemMetric()
        jar = user_path(self.jar)
        check_jar(jar, "jar", "get meteor-1.5.jar with its folder data from pycocoevalcap")
        return JarMetric(jar)

    def protocol(self) -> dict[str, Any]:
        """Return the keys, with the jar's hash instead of its path."""
        jar = None if self.jar is None else sha256_file(user_path(self.jar))
        return super().protocol() | {"jar": jar}


@dataclass(kw_only=True)
class SPICEConfig(MetricConfig):
    """SPICE of captions, times 100, from its own jar, using Java.

    The jar needs Stanford CoreNLP 3.6.0 in its folder lib, which no package contains and which is not
    downloaded; if it is missing, the error says where to get it.

    Args:
        jar: spice-1.0.jar, e.g. from pycocoevalcap.
        memory_gb: maximum memory of Java, in GiB.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "jar": Outside(READS, "a program, which Java runs"),
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"memory_gb": (1, 1024)}
    jar: str
    memory_gb: int = 8

    def build(self) -> Metric:
        """Return a metric without samples.

        Raises:
            DataError: the jar, or CoreNLP next to it, is missing.
        """
        from cm3plugins.metrics.meteor import open_spice

        self.check()
        return open_spice(user_path(self.jar), self.memory_gb)

    def protocol(self) -> dict[str, Any]:
        """Return the keys, with the jar's hash instead of its path."""
        return super().protocol() | {"jar": sha256_file(user_path(self.jar))}


@dataclass(kw_only=True)
class VQAConfig(MetricConfig):
    """VQA accuracy with the official normalisation, as a percentage."""

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.vqa import VQAMetric

        return VQAMetric()


@dataclass(kw_only=True)
class ExactMatchConfig(MetricConfig):
    """Percentage of texts that equal one of their references, in lower case, without articles and without punctuation at
    the ends."""

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.matching import ExactMatchMetric

        return ExactMatchMetric()
