"""The exchange with other benchmarks: pictures in the formats of their scorers, and the scorers' result files.

geneval        00000/{metadata.jsonl, grid.png, samples/0000.png}
dpg            NAME.png: the picture four times in a grid of 2 x 2
t2i-compbench  samples/PROMPT_000000.png
wise           1.png, ...: named by the prompts' ids
geneval2       000000.png, ..., and image_paths.json: {prompt: path}
imgedit        KEY.png
gedit          fullset/KIND/LANGUAGE/{KEY.png, KEY_SRCIMG.png}
adm-npz        one file, `arr_0` uint8 [N, H, W, 3], for ADM's evaluator
hub            .eval_results YAML of the Hugging Face Hub
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cm3apps.evaluation.reading import read_scores
from cm3apps.evaluation.tasks.gedit import JUDGED, edits_of
from cm3core.errors import DataError, FileError
from cm3core.files import atomic_path, new_place, write_text
from cm3core.images import open_image, save_png

#: WISE: category -> its last prompt's id, and its weight in the score of all (PKU-YuanGroup/WISE, README.md and
#: Calculate.py).
WISE: Mapping[str, tuple[int, float]] = {
    "cultural": (400, 0.4),
    "time": (567, 0.167),
    "space": (700, 0.133),
    "biology": (800, 0.1),
    "physics": (900, 0.1),
    "chemistry": (1000, 0.1),
}
#: WISE: the judge's scores of 0 to 2, and their weights; and what it writes if the judge did not answer.
_WISE_SCORES: Mapping[str, float] = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}
_UNJUDGED = 999
#: GEdit-Bench: the kinds of edits, whose means are averaged (GEdit-Bench/calculate_statistics.py).
GEDIT = (
    *("background_change", "color_alter", "material_alter", "motion_change", "ps_human"),
    *("style_change", "subject-add", "subject-remove", "subject-replace", "text_change"),
    "tone_transfer",
)
_LIST = "samples.jsonl"


def export(what: str, folder: Path, out: Path, data: Path | None = None) -> Path:
    """Write an evaluation's pictures or scores for another benchmark; return the path.

    Args:
        what: the benchmark.
        folder: the evaluation's folder.
        out: the folder or file to write.
        data: the benchmark's own files, for gedit.

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
        "wise": _wise,
        "imgedit": _imgedit,
        "geneval2": partial(_geneval2, target=out),
        "gedit": partial(_gedit, data=data),
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


def _wise(folder: Path, out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Pictures named by the ids of their prompts, the first picture of each."""
    for row in rows:
        number = row.get("metadata", {}).get("prompt_id")
        if not isinstance(number, int):
            raise DataError(
                str(folder),
                f"has no id of WISE for the prompt {row['prompt'][:60]!r}",
                "evaluate by the protocol wise-v1",
            )
        if not (path := out / f"{number}.png").exists():
            save_png(path, open_image(folder / row["picture"]))


def _imgedit(folder: Path, out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Edited pictures, named by the keys of the edits."""
    for row in rows:
        if "edit_type" not in row.get("metadata", {}):
            raise DataError(
                str(folder),
                f"has no edit of ImgEdit in its sample {row['key'][:60]!r}",
                "evaluate by the protocol imgedit-v1",
            )
        save_png(out / f"{row['key']}.png", open_image(folder / row["picture"]))


def _geneval2(folder: Path, out: Path, rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """The first picture of each prompt; the scorer reads their paths, which are absolute."""
    paths: dict[str, str] = {}
    for row in rows:
        if "vqa_list" not in row.get("metadata", {}):
            raise DataError(
                str(folder),
                f"has no questions of GenEval 2 for the prompt {row['prompt'][:60]!r}",
                "evaluate by the protocol geneval2-v1",
            )
        prompt = row["metadata"]["prompt"]
        if prompt not in paths:
            name = f"{len(paths):06d}.png"
            save_png(out / name, open_image(folder / row["picture"]))
            paths[prompt] = str(target.absolute() / name)
    write_text(out / "image_paths.json", json.dumps(paths, indent=1) + "\n")


def _gedit(folder: Path, out: Path, rows: Sequence[Mapping[str, Any]], data: Path | None) -> None:
    """Edited pictures, each beside the picture that the judge compares it with, which is in the benchmark's data."""
    judged = {edit.name: edit for edit in edits_of(data)}
    for row in rows:
        told = row.get("metadata", {})
        name = tuple(told.get(key) for key in ("task_type", "instruction_language", "key"))
        if name not in judged:
            raise DataError(
                str(folder),
                f"has the sample {row['key'][:60]!r}, which is not an edit in {data}",
                "evaluate by the protocol gedit-en-v1 or gedit-cn-v1, and give its files (--data)",
            )
        kind, language, key = judged[name].name
        place = out / "fullset" / kind / language
        save_png(place / f"{key}.png", open_image(folder / row["picture"]))
        save_png(place / f"{key}_SRCIMG.png", judged[name].picture(JUDGED))


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
    kinds = {"wise": "*.jsonl", "gedit": "*_gpt_score.csv"}
    texts = sorted(path.glob(kinds[what])) if what in kinds and path.is_dir() else [path]
    if not texts or not all(one.is_file() for one in texts):
        raise DataError(str(path), "there is no such file", "name the scorer's file")
    readers = {
        "geneval": _from_geneval,
        "dpg": _from_dpg,
        "t2i-compbench": _from_compbench,
        "adm": _from_adm,
        "wise": _from_wise,
        "imgedit": _from_imgedit,
        "geneval2": _from_geneval2,
        "gedit": _from_gedit,
    }
    try:
        found = readers[what]("\n".join(one.read_text(encoding="utf-8") for one in texts))
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


def _from_wise(text: str) -> dict[str, float]:
    """Lines of gpt_eval.py, of one category or of all: the WiScore of each, 0 to 1; of all six, their weighted sum."""
    scores: dict[str, dict[int, float]] = {name: {} for name in WISE}
    for line in text.splitlines():
        if not line.strip():
            continue
        row = json.loads(line)
        number, given = int(row["prompt_id"]), [float(row[name]) for name in _WISE_SCORES]
        if _UNJUDGED in given:
            raise ValueError(f"the judge did not answer for prompt {number}: run gpt_eval.py again")
        if not all(0 <= one <= 2 for one in given) or not 1 <= number <= 1000:
            raise ValueError(f"prompt {number} has the scores {given}, which are 0 to 2")
        category = next(name for name, (last, _) in WISE.items() if number <= last)
        if number in scores[category]:
            raise ValueError(f"prompt {number} is scored twice")
        weighted = (one * each for one, each in zip(given, _WISE_SCORES.values(), strict=True))
        scores[category][number] = sum(weighted) / 2
    means = {name: float(np.mean([*own.values()])) for name, own in scores.items() if own}
    found = {f"wise {name}": value for name, value in means.items()}
    if len(means) == len(WISE):
        found["wise"] = sum(means[name] * weight for name, (_, weight) in WISE.items())
    return found


def _from_imgedit(text: str) -> dict[str, float]:
    """The file of step2_typescore.py: the mean of each type of edit, 1 to 5; and the mean of these means."""
    means = {f"imgedit {name}": float(value) for name, value in sorted(json.loads(text).items())}
    if not all(1 <= value <= 5 for value in means.values()):
        raise ValueError("a score is not 1 to 5")
    return {**means, "imgedit": float(np.mean([*means.values()]))} if means else {}


def _from_geneval2(text: str) -> dict[str, float]:
    """score_lists.json of evaluation.py: the probability of each right answer, a list a prompt. Soft-TIFA is the mean over
    the prompts of their arithmetic or geometric means, in percent; the file of `--method tifa` has 0 and 1 only, and that
    of `vqascore` one number a prompt."""
    lists = [np.array(one, float) for one in json.loads(text)]
    if not all(
        one.ndim == 1 and one.size and (one >= 0).all() and (one <= 1).all() for one in lists
    ):
        raise ValueError("a prompt has no list of numbers of 0 to 1")
    if not lists:
        return {}
    mean = 100 * float(np.mean([one.mean() for one in lists]))
    if all(one.size == 1 for one in lists):
        return {"geneval2 vqascore": mean}
    if all(value in (0.0, 1.0) for one in lists for value in one):
        return {"geneval2 tifa": mean}
    with np.errstate(divide="ignore"):  # one impossible answer: the geometric mean is 0
        geometric = [np.exp(np.log(one).mean()) for one in lists]
    return {
        "geneval2 soft-tifa am": mean,
        "geneval2 soft-tifa gm": 100 * float(np.mean(geometric)),
    }


def _from_gedit(text: str) -> dict[str, float]:
    """CSV files of test_gedit_score.py: scores of 0 to 10 for semantics and quality, whose geometric mean is the overall
    one. Their means over each kind of edit and, once all kinds are there, the means of these; `intersection`: of the
    pictures with an instruction in both languages."""
    scores: dict[tuple[str, str], dict[str, tuple[float, float, bool]]] = defaultdict(dict)
    for row in csv.DictReader(io.StringIO(text)):
        if row["edited_image"] == "edited_image":
            continue  # the head of the next file
        kind = PurePosixPath(row["edited_image"]).parts[-3]
        semantics, quality = float(row["sementics_score"]), float(row["quality_score"])
        if kind not in GEDIT or not (0 <= semantics <= 10 and 0 <= quality <= 10):
            raise ValueError(f"{row['edited_image']} is not an edit with scores of 0 to 10")
        # the file of all kinds repeats the rows of the others
        scores[row["instruction_language"], kind][row["edited_image"]] = (
            semantics,
            quality,
            row["intersection_exist"] == "True",
        )
    found: dict[str, float] = {}
    for language in sorted({language for language, _ in scores}):
        own = {
            kind: [*scores[language, kind].values()] for kind in GEDIT if (language, kind) in scores
        }
        for part, chosen in (
            ("", own),
            (
                " intersection",
                {kind: [one for one in rows if one[2]] for kind, rows in own.items()},
            ),
        ):
            found |= _gedit_means(f"gedit {language}{part}", chosen)
    return found


def _gedit_means(
    name: str, own: Mapping[str, Sequence[tuple[float, float, bool]]]
) -> dict[str, float]:
    """The overall mean of each kind; of all kinds together, each score."""
    means = {
        kind: np.mean([(a, b, math.sqrt(a * b)) for a, b, _ in rows], axis=0)
        for kind, rows in own.items()
        if rows
    }
    found = {f"{name} {kind}": float(one[2]) for kind, one in means.items()}
    if len(means) == len(GEDIT):
        total = np.mean([*means.values()], axis=0)
        parts = zip(("semantics", "quality", "overall"), total, strict=True)
        found |= {f"{name} {part}": float(value) for part, value in parts}
    return found


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
