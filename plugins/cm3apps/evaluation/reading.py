"""Finished evaluations: reading, printing and comparing them, also with published figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3apps.evaluation.evaluating import FORMAT
from cm3core.errors import DataError
from cm3run.evaluation.protocol import differences

#: Comparisons of a score that are printed in its line; with more, they are in a table below.
_MOST_IN_LINE = 3
_MODEL = "the model"
#: Maximum number of differing keys that an error names.
_MOST_NAMED = 5
#: Zero-shot FID on COCO, lower is better (CM3leon paper, Table 1), with the known facts about each
#: measurement.
PAPER: tuple[tuple[str, float, str], ...] = (
    ("CM3leon-7B, 2 documents", 4.88, "best of 8"),
    ("Re-Imagen", 5.25, "retrieves"),
    ("CM3leon-7B, 1 document", 5.78, "best of 8"),
    ("CM3leon-760M, 2 documents", 6.61, "best of 8"),
    ("Parti", 7.23, ""),
    ("Muse", 7.88, ""),
    ("CM3leon-7B, no document", 10.82, "best of 8"),
    ("Stable Diffusion", 12.60, ""),
    ("CM3leon-350M, 2 documents", 14.20, "best of 8"),
)
#: The score and protocol to which these are comparable, as far as their measurement is known.
PAPER_SCORE = ("fid-pytorch", "coco30k-v1")


def read_scores(folder: Path) -> dict[str, Any]:
    """The scores.json of an evaluation's folder.

    Raises:
        DataError: it is missing or damaged.
    """
    path = folder / "scores.json" if folder.is_dir() else folder
    if not path.is_file():
        raise DataError(
            str(path), "there is no such file", "name the folder of a finished evaluation"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        assert values["format"] == FORMAT
        names = [one["name"] for one in values["scores"]]
        assert all(isinstance(name, str) for name in (*names, values["protocol"]["name"]))
        for one in values["scores"]:
            assert "skipped" in one or (
                (float(one["value"]) or True) and one["hash"] and one["measurement"]
            )
    except (OSError, ValueError, RecursionError, AssertionError, KeyError, TypeError) as error:
        raise DataError(
            str(path),
            f"is not of the format {FORMAT!r}",
            "name the folder of a finished evaluation",
        ) from error
    found: dict[str, Any] = values
    return found


def lines(scores: Mapping[str, Any]) -> list[str]:
    """A line per score: name, value, spread, number, protocol and hash; and a table of the scores with many comparisons."""
    protocol = scores["protocol"]["name"]
    rows = []
    for one in scores["scores"]:
        if "skipped" in one:
            rows.append((one["name"], "n/a", one["skipped"], ""))
            continue
        spread = "" if one.get("spread") is None else f" \u00b1 {one['spread']:.3g}"
        floor = one.get("real_against_real")
        arrow = "higher is better" if one["higher_is_better"] else "lower is better"
        note = f"n={one['num']}, {arrow}"
        if floor is not None:
            note += f", real against real {floor:.4g}"
        if not _in_table(one):
            for name, value in one.get("beside", {}).items():
                note += f", {name} {value:.4g}"
        if one.get("note"):
            note += f"; {one['note']}"
        rows.append((one["name"], f"{one['value']:.4g}{spread}", note, f"{protocol}#{one['hash']}"))
    return [*aligned(rows), *_table(scores)]


def _in_table(one: Mapping[str, Any]) -> bool:
    """Whether a score's comparisons are too many for its line."""
    return len(one.get("beside", {})) > _MOST_IN_LINE


def _table(scores: Mapping[str, Any]) -> list[str]:
    """A table of the scores with many comparisons: a row for the model, and one for each comparison."""
    own = [one for one in scores["scores"] if _in_table(one)]
    if not own:
        return []
    rows = [("", *(one["name"] for one in own))]
    rows.append((_MODEL, *(_cell(one["value"], one.get("spread")) for one in own)))
    for name in dict.fromkeys(name for one in own for name in one["beside"]):
        rows.append(
            (
                name,
                *(
                    _cell(one["beside"].get(name), one.get("beside_spread", {}).get(name))
                    for one in own
                ),
            )
        )
    return ["", *aligned(rows)]


def _cell(value: float | None, spread: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.3g}" if spread is None else f"{value:.3g} \u00b1 {spread:.2g}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns.

    >>> aligned([("a", "1"), ("bcd", "")])
    ['a    1', 'bcd']
    """
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def compare(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The scores of two evaluations side by side, then the differing keys of the models.

    Raises:
        DataError: they were measured differently; the error names the keys.
    """
    ours = {row["name"]: row for row in one["scores"] if "skipped" not in row}
    theirs = {row["name"]: row for row in other["scores"] if "skipped" not in row}
    common = [name for name in ours if name in theirs]
    if not common:
        raise DataError(
            "the two evaluations", "have no score of the same name", "evaluate both by one protocol"
        )
    unequal: dict[str, tuple[Any, Any]] = {}
    for name in common:
        if ours[name]["hash"] != theirs[name]["hash"]:
            unequal |= differences(one["measurement"], other["measurement"])
            unequal |= differences(ours[name]["measurement"], theirs[name]["measurement"])
    if unequal:
        shown = "; ".join(
            f"{key}: {_short(a)} and {_short(b)}"
            for key, (a, b) in list(unequal.items())[:_MOST_NAMED]
        )
        more = f", and {len(unequal) - _MOST_NAMED} more" if len(unequal) > _MOST_NAMED else ""
        raise DataError(
            "the two evaluations",
            f"were measured differently: {shown}{more}",
            "evaluate both by one protocol, with the same files",
        )
    rows = [("", _short(one["model"]["name"]), _short(other["model"]["name"]), "difference", "")]
    for name in common:
        a, b = ours[name], theirs[name]
        better = (b["value"] > a["value"]) == b["higher_is_better"] and a["value"] != b["value"]
        verdict = "equal" if a["value"] == b["value"] else "better" if better else "worse"
        rows.append(
            (
                name,
                f"{a['value']:.4g}",
                f"{b['value']:.4g}",
                f"{b['value'] - a['value']:+.4g} {verdict}",
                f"#{a['hash']}",
            )
        )
    differ = differences(one["model"], other["model"])
    return [
        *aligned(rows),
        "",
        "the models differ in:" if differ else "the models are the same",
        *aligned([(f"  {key}", _short(a), _short(b)) for key, (a, b) in differ.items()]),
    ]


def beside_paper(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Published FIDs on COCO, with our rows among them if they are comparable."""
    rows: list[tuple[float, str, str, str]] = [
        (value, name, f"{value:.2f}", note or "protocol partly unknown")
        for name, value, note in PAPER
    ]
    last = []
    for scores in evaluations:
        name, protocol = scores["model"]["name"], scores["protocol"]["name"]
        found = [
            row
            for row in scores["scores"]
            if row["name"] == PAPER_SCORE[0] and "skipped" not in row
        ]
        if found and protocol == PAPER_SCORE[1]:
            rows.append(
                (
                    found[0]["value"],
                    f"{name} (ours)",
                    f"{found[0]['value']:.2f}",
                    f"{protocol}#{found[0]['hash']}",
                )
            )
            continue
        names = ", ".join(row["name"] for row in scores["scores"] if "skipped" not in row)
        last.append((f"{name} (ours)", "n/a: other measure", f"{protocol}: {names or 'no score'}"))
    head = ("model", "FID-30k", "how it was measured")
    return aligned([head, *(row[1:] for row in sorted(rows)), *last])


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
