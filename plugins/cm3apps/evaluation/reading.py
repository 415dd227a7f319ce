"""Finished evaluations: reading, printing and comparing them, also with published figures; and the exchange with other
benchmarks: pictures in the formats of their scorers, and the scorers' result files.

    geneval        00000/{metadata.jsonl, grid.png, samples/0000.png}
    dpg            NAME.png: the picture four times in a grid of 2 x 2
    t2i-compbench  samples/PROMPT_000000.png
    adm-npz        one file, `arr_0` uint8 [N, H, W, 3], for ADM's evaluator
    hub            .eval_results YAML of the Hugging Face Hub
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cm3apps.evaluation.evaluating import FORMAT
from cm3core.errors import DataError, FileError
from cm3core.files import atomic_path, new_place, write_text
from cm3core.images import open_image, save_png
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


_LIST = "samples.jsonl"


def export(what: str, folder: Path, out: Path) -> Path:
    """Write an evaluation's pictures or scores for another benchmark; return the path.

    Raises:
        DataError: the folder has no finished evaluation with pictures.
        FileError: the path exists.
    """
    if out.exists():
        raise FileError(str(out), "already exists and is not overwritten", "name another path (-o)")
    if what == "hub":
        write_text(out, hub_yaml(read_scores(folder)))
        return out
    rows = _rows(folder)
    if what == "adm-npz":
        pictures = [open_image(folder / row["picture"]) for row in rows]
        if len({one.shape for one in pictures}) != 1:
            raise DataError(str(folder), "has pictures of several sizes", "scale them to one first")
        with atomic_path(out) as temporary, temporary.open("wb") as file:
            np.savez(file, arr_0=np.stack(pictures))
        return out
    writers: dict[str, Callable[[Path, Path, Sequence[Mapping[str, Any]]], None]] = {
        "geneval": _geneval,
        "dpg": _dpg,
        "t2i-compbench": _compbench,
    }
    with new_place(out) as place:
        place.mkdir()
        writers[what](folder, place, rows)
        place.rename(out)
    return out


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / _LIST
    if not path.is_file():
        raise DataError(
            str(path), "there is no such file", "name the folder of a finished evaluation"
        )
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = [row for row in rows if (folder / row["picture"]).is_file() and row["prompt"]]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(str(path), f"has a damaged line ({error})", "evaluate again") from error
    if not found or len(found) < len(rows):
        raise DataError(
            str(folder), f"has {len(found)} pictures of {len(rows)} samples", "evaluate again"
        )
    return found


def _geneval(folder: Path, out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A folder per prompt, with the pictures of all its samples."""
    by_prompt: dict[str, list[Any]] = defaultdict(list)
    metadata: dict[str, Any] = {}
    for row in rows:
        prompt = row["prompt"]
        by_prompt[prompt].append(open_image(folder / row["picture"]))
        metadata.setdefault(prompt, row.get("metadata", {"prompt": prompt}))
    for number, (prompt, pictures) in enumerate(by_prompt.items()):
        own = out / f"{number:05d}"
        for place, pixels in enumerate(pictures):
            save_png(own / "samples" / f"{place:04d}.png", pixels)
        save_png(own / "grid.png", np.concatenate(pictures, axis=1))
        write_text(own / "metadata.jsonl", json.dumps(metadata[prompt]) + "\n")


def _dpg(folder: Path, out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Four samples of a prompt, or one sample four times, in a grid named by the sample's key."""
    by_prompt: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_prompt[row["prompt"]].append(row)
    for own in by_prompt.values():
        pictures = [open_image(folder / row["picture"]) for row in own]
        four = (pictures * 4)[:4]
        grid = np.concatenate([np.concatenate(four[:2], 1), np.concatenate(four[2:], 1)])
        name = (
            own[0]["key"].rpartition("/")[0] or own[0]["key"]
        )  # without the number of the picture
        save_png(out / f"{_file_name(name)}.png", grid)


def _compbench(folder: Path, out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    for place, row in enumerate(rows):
        name = f"{_file_name(row['prompt'])}_{place:06d}.png"
        save_png(out / "samples" / name, open_image(folder / row["picture"]))


def _file_name(text: str) -> str:
    """A text as a file name, which T2I-CompBench's scorer splits at the last underscore."""
    return re.sub(r"[/\\\0\n]", " ", text).strip(". ")[:200] or "sample"


def hub_yaml(scores: Mapping[str, Any]) -> str:
    """Scores in the Hub's format: a list of {dataset, value, notes}."""
    import yaml

    entries = [
        {
            "dataset": {"id": scores["protocol"]["name"], "task_id": row["name"]},
            "value": row["value"],
            "notes": f"cm3leon, measurement {row['hash']}, n={row['num']}",
        }
        for row in scores["scores"]
        if "skipped" not in row
    ]
    return str(yaml.safe_dump(entries, sort_keys=False))


def import_scores(what: str, path: Path) -> list[tuple[str, str]]:
    """(name, value) of each score from another benchmark's scorer.

    Raises:
        DataError: the file is missing or has another format.
    """
    if not path.is_file():
        raise DataError(str(path), "there is no such file", "name the scorer's file")
    readers = {
        "geneval": _from_geneval,
        "dpg": _from_dpg,
        "t2i-compbench": _from_compbench,
        "adm": _from_adm,
    }
    try:
        found = readers[what](path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise DataError(
            str(path),
            f"is not a file of {what}'s scorer ({type(error).__name__}: {error})",
            "name the scorer's file",
        ) from error
    if not found:
        raise DataError(str(path), f"has no scores of {what}", "name the scorer's file")
    return [(name, f"{value:.4g}") for name, value in found.items()]


def _from_geneval(text: str) -> dict[str, float]:
    """results.jsonl of evaluate_images.py: the mean of each tag, and the mean of these means."""
    right: dict[str, list[bool]] = defaultdict(list)
    for line in text.splitlines():
        row = json.loads(line)
        right[row["tag"]].append(bool(row["correct"]))
    means = {f"geneval {tag}": float(np.mean(values)) for tag, values in sorted(right.items())}
    return {**means, "geneval": float(np.mean(list(means.values())))} if means else {}


def _from_dpg(text: str) -> dict[str, float]:
    """The printed output of compute_dpg_bench.py."""
    return {
        f"dpg {name.strip()}": float(value)
        for name, value in re.findall(r"^\s*([\w \-]+?)\s*[:=]\s*([\d.]+)\s*$", text, re.MULTILINE)
    }


def _from_compbench(text: str) -> dict[str, float]:
    """vqa_result.json of BLIP-VQA: a list of {"question_id", "answer"}; the score is their mean."""
    values = [float(row["answer"]) for row in json.loads(text)]
    return {"t2i-compbench": float(np.mean(values))} if values else {}


def _from_adm(text: str) -> dict[str, float]:
    """The printed output of evaluator.py."""
    names = {
        "Inception Score": "is",
        "FID": "fid-adm",
        "sFID": "sfid-adm",
        "Precision": "precision-adm",
        "Recall": "recall-adm",
    }
    found = re.findall(
        r"^(Inception Score|FID|sFID|Precision|Recall):\s*([-\d.eE]+)\s*$", text, re.MULTILINE
    )
    return {names[name]: float(value) for name, value in found}
