"""The files that other benchmarks' own scorers write, and the scores in them.

Each reader computes what the scorer's own summary prints of the same files; docs/evaluation.md lists the scorers and the
commits at which this was tried (tests/apps/evaluation/test_official_scorers.py). Beyond what they print, a score of the
whole benchmark is given only if none of its parts is missing.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cm3core.errors import DataError

#: How far rounding takes a sum of probabilities past 1: the step of bfloat16 there. float16 and float32 have smaller ones.
ROUNDING = 2.0**-7
#: ImgEdit-Bench: the kinds of edits of basic_edit.json.
IMGEDIT = (
    *("action", "add", "adjust", "background", "compose"),
    *("extract", "remove", "replace", "style"),
)
#: GEdit-Bench: the kinds of edits, whose means are averaged (GEdit-Bench/calculate_statistics.py).
GEDIT = (
    *("background_change", "color_alter", "material_alter", "motion_change", "ps_human"),
    *("style_change", "subject-add", "subject-remove", "subject-replace", "text_change"),
    "tone_transfer",
)


@dataclass(frozen=True)
class Imported:
    """A score by another benchmark's scorer.

    `value` has the scorer's own scale. `counted` says of how many pictures, prompts or edits it is, if the file tells.
    """

    name: str
    value: float
    counted: str = ""


@dataclass(frozen=True)
class Wise:
    """An edition of WISE (PKU-YuanGroup/WISE).

    categories: category -> its last prompt's id, and its weight in the score of all.
    weights: what the judge scores, from 0 to `highest`, and the weight of each.
    """

    name: str
    categories: Mapping[str, tuple[int, float]]
    weights: Mapping[str, float]
    highest: int

    @property
    def num(self) -> int:
        return max(last for last, _ in self.categories.values())

    def category(self, number: int) -> tuple[str, int]:
        """The category of a prompt, and how many prompts it has."""
        first = 1
        for name, (last, _) in self.categories.items():
            if first <= number <= last:
                return name, last - first + 1
            first = last + 1
        raise ValueError(f"there is no prompt {number} in {self.name}, which has 1 to {self.num}")


#: The first WISE (WISE_legacy/README.md and Calculate.py) and the one that replaced it (README.md, calculate_verified.py).
WISE = (
    Wise(
        "wise",
        {
            "cultural": (400, 0.4),
            "time": (567, 0.167),
            "space": (700, 0.133),
            "biology": (800, 0.1),
            "physics": (900, 0.1),
            "chemistry": (1000, 0.1),
        },
        {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1},
        highest=2,
    ),
    Wise(
        "wise-verified",
        {
            "cultural": (400, 0.4),
            "time": (520, 0.12),
            "space": (640, 0.12),
            "biology": (760, 0.12),
            "physics": (880, 0.12),
            "chemistry": (1000, 0.12),
        },
        {"score": 1.0},
        highest=1,
    ),
)


def import_scores(what: str, path: Path) -> list[Imported]:
    """The scores in a file, or in a folder of files, of another benchmark's scorer.

    Raises:
        DataError: the file is missing or has another format.
    """
    try:
        found = _READERS[what]([one.read_text(encoding="utf-8") for one in _files(what, path)])
        for one in found:
            if not math.isfinite(one.value):
                raise ValueError(f"{one.name} is {one.value}")
    except (
        *(ValueError, KeyError, TypeError, AttributeError, IndexError),
        *(ArithmeticError, RecursionError, csv.Error),
    ) as error:
        raise DataError(
            str(path),
            f"is not a file of {what}'s scorer ({type(error).__name__}: {error})",
            "name the scorer's file",
        ) from error
    if not found:
        raise DataError(str(path), f"has no scores of {what}", "name the scorer's file")
    return found


def _files(what: str, path: Path) -> list[Path]:
    """The file; the scorer's files in a folder."""
    patterns = {"wise": "*.jsonl", "gedit": "*_gpt_score.csv"}
    found = [path]
    if what in patterns and path.is_dir():
        found = sorted(path.glob(patterns[what]))
        # GEdit-Bench: a file a kind of edit, which its summary reads, and one that repeats them all
        parts = [one for one in found if not one.name.endswith("_combined_gpt_score.csv")]
        found = parts or found
    if not found or not all(one.is_file() for one in found):
        raise DataError(str(path), "there is no such file", "name the scorer's file")
    return found


def _mean(values: Iterable[float]) -> float:
    """Added in their order, as the scorers do."""
    given = [*values]
    return sum(given) / len(given)


def _within(values: Iterable[Any], low: float, high: float) -> bool:
    """Whether numbers are in a range, or past its end by rounding. NaN is not."""
    slack = ROUNDING * (high - low)
    return all(low - slack <= float(value) <= high + slack for value in values)


def _lines(texts: Iterable[str]) -> list[dict[str, Any]]:
    """The objects of JSON lines."""
    return [json.loads(line) for text in texts for line in text.split("\n") if line.strip()]


def _from_geneval(texts: Sequence[str]) -> list[Imported]:
    """results.jsonl of evaluate_images.py: the mean of each tag, and the mean of these means (summary_scores.py)."""
    right: dict[str, list[bool]] = defaultdict(list)
    for row in _lines(texts):
        if not isinstance(row["correct"], bool):
            raise ValueError(f"correct is {row['correct']!r}")
        right[row["tag"]].append(row["correct"])
    means = [Imported(f"geneval {tag}", _mean(own), f"n={len(own)}") for tag, own in right.items()]
    total = [Imported("geneval", _mean(one.value for one in means))] if means else []
    return sorted(means, key=lambda one: one.name) + total


def _from_dpg(texts: Sequence[str]) -> list[Imported]:
    """The printed output of compute_dpg_bench.py, or its results.txt, whose last lines repeat it: the mean of each
    category, of two levels, and the score, in percent."""
    found: dict[str, float] = {}
    level = ""
    for line in "\n".join(texts).splitlines():
        if heading := re.fullmatch(r"(L[12]) category scores:", line):
            level = f" {heading[1]}"
        elif category := re.fullmatch(r"\t(.+): (\S+)", line):
            found[f"dpg{level} {category[1]}"] = float(category[2])
        elif total := re.fullmatch(r"DPG-Bench score: (\S+)", line):
            found["dpg"] = float(total[1])
    return [Imported(name, value) for name, value in found.items()] if "dpg" in found else []


def _from_compbench(texts: Sequence[str]) -> list[Imported]:
    """vqa_result.json of each of its scorers: a list of {"question_id", "answer"}; the score is their mean."""
    values = [float(row["answer"]) for row in json.loads(*texts)]
    return [Imported("t2i-compbench", _mean(values), f"n={len(values)}")] if values else []


def _from_wise(texts: Sequence[str]) -> list[Imported]:
    """Lines of gpt_eval.py or, for WISE_Verified, of vllm_eval.py: the WiScore of each category, 0 to 1, and, if every
    prompt has a score, their weighted sum. The keys of the lines tell which it is."""
    rows = _lines(texts)
    if not rows:
        return []
    edition = next((one for one in WISE if one.weights.keys() <= rows[0].keys()), None)
    if edition is None:
        raise ValueError("a line has neither the scores of WISE nor the score of WISE_Verified")
    scores: dict[str, dict[int, float]] = {name: {} for name in edition.categories}
    sizes: dict[str, int] = {}
    for row in rows:
        number, given = int(row["prompt_id"]), [float(row[name]) for name in edition.weights]
        if not all(one in range(edition.highest + 1) for one in given):
            raise ValueError(
                f"prompt {number} has the scores {given}, which are 0 to {edition.highest}: "
                "if the judge did not answer, run the scorer again without this line"
            )
        category, size = edition.category(number)
        if number in scores[category]:
            raise ValueError(f"prompt {number} is scored twice")
        weighted = sum(
            one * each for one, each in zip(given, edition.weights.values(), strict=True)
        )
        scores[category][number] = weighted / edition.highest
        sizes[category] = size
    found = [
        Imported(f"{edition.name} {name}", _mean(own.values()), _part(len(own), sizes[name]))
        for name, own in scores.items()
        if own
    ]
    if len(rows) < edition.num:
        return found
    parts = [edition.categories[name][1] * _mean(own.values()) for name, own in scores.items()]
    return [*found, Imported(edition.name, sum(parts), f"n={len(rows)}")]


def _part(num: int, whole: int) -> str:
    return f"n={num}" if num == whole else f"n={num} of {whole}"


def _from_imgedit(texts: Sequence[str]) -> list[Imported]:
    """The file of step2_typescore.py: the mean of each kind of edit, 1 to 5; and, which it does not print, the mean of
    these means, if none is missing."""
    means = {name: float(value) for name, value in sorted(json.loads(*texts).items())}
    # the judge is asked for 1 to 5, but a 0 counts, too
    if not _within(means.values(), 0, 5):
        raise ValueError("a score is not 0 to 5")
    found = [Imported(f"imgedit {name}", value) for name, value in means.items()]
    total = [Imported("imgedit", _mean(means.values()))] if means.keys() == {*IMGEDIT} else []
    return found + total


def _from_geneval2(texts: Sequence[str]) -> list[Imported]:
    """The --output_file of evaluation.py: the probability of each right answer, a list a prompt. Soft-TIFA is the mean over
    the prompts of their arithmetic or geometric means, in percent. The file of `--method tifa` has the integers 0 and 1,
    and that of `vqascore` one number a prompt."""
    lists = json.loads(*texts)
    values = [value for one in lists for value in one]
    numbers = all(isinstance(value, int | float) for value in values)
    if not all(lists) or not numbers or not _within(values, 0, 1):
        raise ValueError("a prompt has no list of numbers of 0 to 1")
    if not lists:
        return []
    if all(isinstance(value, int) for value in values):
        methods = {"tifa": _mean}
    elif all(len(one) == 1 for one in lists):
        methods = {"vqascore": _mean}
    else:
        methods = {"soft-tifa am": _mean, "soft-tifa gm": _geometric}
    return [
        # the mean of rounded sums may itself be past the end
        Imported(f"geneval2 {name}", min(100.0, 100 * _mean(map(mean, lists))), f"n={len(lists)}")
        for name, mean in methods.items()
    ]


def _geometric(values: Iterable[float]) -> float:
    """The geometric mean; one impossible answer makes it 0."""
    with np.errstate(divide="ignore"):  # log 0 is meant
        return float(np.exp(np.mean(np.log([*values]))))


def _from_gedit(texts: Sequence[str]) -> list[Imported]:
    """CSV files of test_gedit_score.py: scores of 0 to 10 for semantics and quality, whose geometric mean is the overall
    one. Their means over each kind of edit and, once all kinds are there, the means of these (calculate_statistics.py);
    `intersection`: of the pictures with an instruction in both languages. An edit that an interrupted run scored twice
    counts twice, as there."""
    scores: dict[tuple[str, str], list[tuple[float, float, bool]]] = defaultdict(list)
    for row in (row for text in texts for row in csv.DictReader(io.StringIO(text))):
        kind = PurePosixPath(row["edited_image"]).parts[-3]
        pair = float(row["sementics_score"]), float(row["quality_score"])
        if kind not in GEDIT or not _within(pair, 0, 10):
            raise ValueError(f"{row['edited_image']} is not an edit with scores of 0 to 10")
        in_both = {"True": True, "False": False}[row["intersection_exist"]]
        scores[row["instruction_language"], kind].append((*pair, in_both))
    found: list[Imported] = []
    for language in sorted({language for language, _ in scores}):
        own = {kind: scores[language, kind] for kind in GEDIT if (language, kind) in scores}
        both = {kind: [one for one in rows if one[2]] for kind, rows in own.items()}
        found += _gedit_means(f"gedit {language}", own)
        found += _gedit_means(f"gedit {language} intersection", both)
    return found


def _gedit_means(
    name: str, own: Mapping[str, Sequence[tuple[float, float, bool]]]
) -> list[Imported]:
    """The overall mean of each kind; of all kinds together, each score."""
    means = {
        kind: np.mean([(a, b, math.sqrt(max(a * b, 0))) for a, b, _ in rows], axis=0)
        for kind, rows in own.items()
        if rows
    }
    found = [
        Imported(f"{name} {kind}", float(one[2]), f"n={len(own[kind])}")
        for kind, one in means.items()
    ]
    if len(means) < len(GEDIT):
        return found
    parts = zip(
        ("semantics", "quality", "overall"), np.mean([*means.values()], axis=0), strict=True
    )
    num = sum(map(len, own.values()))
    return found + [Imported(f"{name} {part}", float(value), f"n={num}") for part, value in parts]


def _from_adm(texts: Sequence[str]) -> list[Imported]:
    """The printed output of evaluator.py."""
    names = {
        "Inception Score": "is",
        "FID": "fid-adm",
        "sFID": "sfid-adm",
        "Precision": "precision-adm",
        "Recall": "recall-adm",
    }
    pattern = rf"^({'|'.join(names)}): (\S+)\s*$"
    found = re.findall(pattern, "\n".join(texts), re.MULTILINE)
    return [Imported(names[name], float(value)) for name, value in found]


_READERS = {
    "geneval": _from_geneval,
    "dpg": _from_dpg,
    "t2i-compbench": _from_compbench,
    "adm": _from_adm,
    "wise": _from_wise,
    "imgedit": _from_imgedit,
    "geneval2": _from_geneval2,
    "gedit": _from_gedit,
}
