"""Evaluations of one protocol compared case by case: the same cases with the same seeds, so that their differences say more
than those of two means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from cm3apps.evaluation.reading import aligned, read_scores
from cm3core.errors import DataError
from cm3core.files import write_text
from cm3run.evaluation.paired import PairedResult, paired_test

#: In the folder of a comparison: its figures.
COMPARISON = "comparison.json"
FORMAT = "cm3 comparison 1"


@dataclass(frozen=True)
class Compared:
    """A score of one setting.

    Args:
        score: the score's name.
        setting: the value that was compared.
        num: cases that all settings have a value of; 0: the score is not a mean over cases.
        mean: over these cases; without any, the score itself.
        error: standard error of the mean; None: unknown.
        higher_is_better: of the score.
        paired: the difference from the first setting; None: it is the first, or there are no cases.
    """

    score: str
    setting: str
    num: int
    mean: float
    error: float | None
    higher_is_better: bool
    paired: PairedResult | None


def compared_scores(folders: Mapping[str, Path]) -> list[Compared]:
    """The scores of finished evaluations that were measured alike, each with its difference from the first.

    Args:
        folders: the evaluations, by setting.

    Raises:
        DataError: a file is missing or damaged.
    """
    read = {setting: read_scores(folder) for setting, folder in folders.items()}
    cases = {setting: _cases(folder) for setting, folder in folders.items()}
    found: list[Compared] = []
    rows = {
        setting: {one["name"]: one for one in scores["scores"] if "skipped" not in one}
        for setting, scores in read.items()
    }
    first, *others = folders
    for name, own in rows[first].items():
        if any(rows[one].get(name, {}).get("hash") != own["hash"] for one in others):
            continue
        values = {setting: cases[setting].get(name, {}) for setting in folders}
        common = sorted(set.intersection(*(set(one) for one in values.values())))
        for setting in folders:
            row = rows[setting][name]
            mine = np.array([values[setting][index] for index in common], np.float64)
            baseline = np.array([values[first][index] for index in common], np.float64)
            is_first = setting == first
            found.append(
                Compared(
                    name,
                    setting,
                    len(common),
                    float(mine.mean()) if common else float(row["value"]),
                    float(mine.std(ddof=1) / np.sqrt(len(mine))) if len(mine) > 1 else None,
                    bool(row["higher_is_better"]),
                    None if is_first or not common else paired_test(mine, baseline),
                )
            )
    return found


def paired_table(key: str, folders: Mapping[str, Path], *, only_paired: bool = False) -> list[str]:
    """A table of `compared_scores`; no lines if the evaluations have no score in common.

    Args:
        key: what was compared.
        folders: the evaluations, by setting.
        only_paired: leave out scores of all cases together, such as FID.
    """
    found = [one for one in compared_scores(folders) if one.num or not only_paired]
    if not found:
        return []
    first = next(iter(folders))
    rows = [("score", key, "n", "mean \u00b1 error", f"from {first} \u00b1 error", "p", "")]
    for one in found:
        is_first = one.setting == first
        note = "higher is better" if one.higher_is_better else "lower is better"
        rows.append(
            (
                one.score if is_first else "",
                one.setting,
                str(one.num) if is_first and one.num else "",
                _with_error(f"{one.mean:.4g}", one.error),
                "" if one.paired is None else _difference(one.paired),
                "" if one.paired is None else f"{one.paired.p_value:.2g}",
                "" if not is_first else note if one.num else f"{note}; of all cases together",
            )
        )
    return aligned(rows)


def _difference(paired: PairedResult) -> str:
    error = None if isnan(paired.standard_error) else paired.standard_error
    return _with_error(f"{paired.difference:+.4g}", error)


def _with_error(value: str, error: float | None) -> str:
    return value if error is None else f"{value} \u00b1 {error:.2g}"


def write_comparison(key: str, folders: Mapping[str, Path], path: Path) -> None:
    """Write `compared_scores` as JSON."""
    rows = [
        {name: _plain(value) for name, value in asdict(one).items()}
        for one in compared_scores(folders)
    ]
    result = {
        "format": FORMAT,
        "key": key,
        "test": "two-sided sign-flip permutation test of the mean difference from the first setting",
        "folders": {setting: folder.name for setting, folder in folders.items()},
        "scores": rows,
    }
    write_text(path, json.dumps(result, indent=1) + "\n")


def _plain(value: Any) -> Any:
    """A value as JSON; nan, of a single case's error, as None."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return None if isinstance(value, float) and isnan(value) else value


def _cases(folder: Path) -> dict[str, dict[int, float]]:
    """Score -> case -> its value, from samples.jsonl; nothing if there is no such file."""
    path = (folder if folder.is_dir() else folder.parent) / "samples.jsonl"
    if not path.is_file():
        return {}
    found: dict[str, dict[int, float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            for name, value in row.get("scores", {}).items():
                found.setdefault(name, {})[int(row["index"])] = float(value)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{path}, line {number}", "is damaged", "run the evaluation again"
            ) from error
    return found
