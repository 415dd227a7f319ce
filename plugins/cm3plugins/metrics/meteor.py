"""METEOR in two forms with different names, whose numbers differ; and SPICE.

meteor_exact_stem   in Python: the formula of Banerjee and Lavie 2005 (alpha 0.9, beta 3, gamma 0.5) with
                    the stages "exact" and "stem" (Porter's); without synonyms and paraphrases. Equal to
                    nltk's `meteor_score` with that stemmer and an empty WordNet
meteor              METEOR 1.5 (Denkowski and Lavie 2014) from its own jar, as in COCO's evaluation: stages
                    exact, stem, synonym and paraphrase, weighted function words
spice               Anderson et al. 2016 (arXiv:1607.08822) from its own jar, which parses captions into scene graphs
                    with Stanford CoreNLP 3.6.0

All use the words of `captions.py` and are printed times 100. cm3leon includes no jar.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cm3core.errors import DataError, MissingPackageError
from cm3core.interfaces.metric import Group, Score
from cm3plugins.metrics.captions import CaptionMetric, Words
from cm3plugins.metrics.collecting import ValueMetric, mean_score

_MOST_SHOWN = 200


def run_java(arguments: Sequence[str], given: str = "", *, folder: Path | None = None) -> str:
    """Run a Java program and return its output.

    Args:
        arguments: arguments of `java`.
        given: standard input.
        folder: working directory.

    Raises:
        MissingPackageError: Java is not installed.
        DataError: the program failed; its last output is quoted.
    """
    java = shutil.which("java")
    if java is None:
        raise MissingPackageError(
            "java", "is not installed", "install a Java runtime (Debian: default-jre-headless)"
        )
    done = subprocess.run(
        [java, *arguments],
        input=given,
        cwd=folder,
        capture_output=True,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        raise DataError(
            f"java {' '.join(arguments)}"[:_MOST_SHOWN],
            f"failed: {_reason(done.stderr) or f'exit code {done.returncode}'}",
            "see the program's documentation",
        )
    return done.stdout


def _reason(printed: str) -> str:
    """The innermost cause of a program's failure: its last output, without stack frames."""
    lines = [line.strip() for line in printed.splitlines()]
    told = [line for line in lines if line and not line.startswith(("at ", "... "))]
    causes = [line for line in told if line.startswith(("Caused by: ", "Exception in "))]
    return " ".join(causes[-1:] or told)[-_MOST_SHOWN:]


def check_jar(path: Path, key: str, step: str) -> None:
    """Raise `DataError` unless a program's file exists."""
    if not path.is_file():
        raise DataError(f"metric.{key} {path}", "there is no such file", step)


_ALPHA, _BETA, _GAMMA = 0.9, 3.0, 0.5
#: Separates the parts of the jar's input lines.
_BAR = " ||| "


class ExactStemMetric(CaptionMetric):
    """METEOR with the stages exact and stem: the best score over a sample's references."""

    def __init__(self) -> None:
        super().__init__()
        self._stem = porter_stemmer()

    def _value(self, sample: Mapping[str, Any]) -> float:  # type: ignore[override]  # one number each
        words, references = super()._value(sample)
        return 100 * max(meteor_exact_stem(words, one, self._stem) for one in references)

    def _result(self) -> Sequence[Score]:
        return [mean_score("meteor_exact_stem", self.values, higher_is_better=True)]


class JarMetric(CaptionMetric):
    """METEOR 1.5 of the whole set, which is not the mean of its samples' scores.

    Args:
        jar: meteor-1.5.jar, next to data/paraphrase-en.gz.
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
        """Send lines to the jar and return its `num` output lines."""
        options = ["-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(self._jar.resolve())]
        output = run_java(
            [*options, "-", "-", "-stdio", "-l", "en", "-norm"], "\n".join(lines) + "\n"
        )
        answers = output.splitlines()
        if len(answers) != num:
            raise _unlike(self._jar, f"{len(answers)} lines")
        return answers


def meteor_exact_stem(words: Words, reference: Words, stem: Callable[[str], str]) -> float:
    """Compute METEOR of a caption and one reference, 0 to 1.

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
    """Return the positions of matching words, in the caption's order: equal words first, then equal stems. If
    several match, the last ones are paired."""
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
    """Return Porter's stemmer.

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
        f"answered {found[:80]!r}, which is not METEOR 1.5's format",
        "use the meteor-1.5.jar from https://www.cs.cmu.edu/~alavie/METEOR or pycocoevalcap",
    )


#: Files required in `lib` next to the jar; no package contains them.
PARSER = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_PARSER_IS = "http://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
_JAR_IS = "spice-1.0.jar with its folder lib, from pycocoevalcap or https://panderson.me/spice"


class SPICEMetric(ValueMetric):
    """Mean F-score of the scene graphs of a caption and its references; 0 for two empty graphs.

    Args:
        jar: spice-1.0.jar.
        memory_gb: maximum memory of Java, in GiB.
    """

    needs: ClassVar[tuple[Group, ...]] = (("texts", "references"),)

    def __init__(self, jar: Path, memory_gb: int) -> None:
        super().__init__()
        self._jar, self._memory_gb = jar, memory_gb

    def _value(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        if not sample["references"]:
            raise DataError("a sample", "has no reference captions", "leave it out")
        return {"test": sample["texts"], "refs": list(sample["references"])}

    def _result(self) -> Sequence[Score]:
        rows = [{"image_id": index, **own} for index, own in self.values.items()]
        with tempfile.TemporaryDirectory() as place:
            given, out = Path(place) / "given.json", Path(place) / "out.json"
            given.write_text(json.dumps(rows), encoding="utf-8")
            options = [f"-Xmx{self._memory_gb}G", "-jar", str(self._jar.resolve()), str(given)]
            # runs in the jar's folder, where it looks for its libraries
            run_java(
                [*options, "-out", str(out), "-subset", "-silent"],
                folder=self._jar.resolve().parent,
            )
            scores = self._read(out)
        return [mean_score("spice", scores, higher_is_better=True)]

    def _read(self, path: Path) -> dict[int, float]:
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            found = {int(row["image_id"]): row["scores"]["All"]["f"] for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(str(self._jar), "wrote no SPICE scores", f"use {_JAR_IS}") from error
        if sorted(found) != list(self.values):
            raise DataError(
                str(self._jar),
                f"scored {len(found)} of {len(self.values)} captions",
                f"use {_JAR_IS}",
            )
        return {index: 100 * _number(found[index]) for index in self.values}


def _number(value: object) -> float:
    number = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if number else 0.0  # type: ignore[arg-type]  # a number


def open_spice(jar: Path, memory_gb: int) -> SPICEMetric:
    """Return the metric after checking that everything it needs exists.

    Raises:
        DataError: the jar, or the parser in its folder lib, is missing.
    """
    check_jar(jar, "jar", f"get {_JAR_IS}")
    for name in PARSER:
        check_jar(
            jar.parent / "lib" / name,
            "jar",
            f"copy {' and '.join(PARSER)} from {_PARSER_IS} to {jar.parent / 'lib'}",
        )
    return SPICEMetric(jar, memory_gb)
