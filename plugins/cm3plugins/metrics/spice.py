"""SPICE (Anderson et al. 2016, arXiv:1607.08822) by its own jar, which parses captions into scene graphs with
Stanford CoreNLP 3.6.0."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cm3core.errors import DataError
from cm3core.interfaces.metric import Group, Score
from cm3plugins.metrics.collecting import ValueMetric, mean_score
from cm3plugins.metrics.java import check_jar, run_java

#: What must lie in `lib` beside the jar; no package contains them.
PARSER = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_PARSER_IS = "http://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
_JAR_IS = "spice-1.0.jar with its folder lib, of pycocoevalcap or https://panderson.me/spice"


class SPICEMetric(ValueMetric):
    """Mean F-score of the scene graphs of a caption and its references; of two empty graphs 0.

    Args:
        jar: spice-1.0.jar.
        memory_gb: for Java.
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
            # in the jar's folder: it looks for its libraries there
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
            raise DataError(str(self._jar), "wrote no scores of SPICE", f"use {_JAR_IS}") from error
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
    """The metric, once everything that it needs is known to be there.

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
