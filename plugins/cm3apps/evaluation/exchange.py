"""An evaluation's pictures and scores in the formats that other benchmarks' scorers read.

geneval        00000/{metadata.jsonl, grid.png, samples/0000.png}
dpg            NAME.png: the picture four times in a grid of 2 x 2
t2i-compbench  samples/PROMPT_000000.png
wise           1.png, ...: named by the prompts' ids, also for WISE_Verified
geneval2       000000.png, ..., and image_paths.json: {prompt: path}
imgedit        KEY.png
gedit          fullset/KIND/LANGUAGE/{KEY.png, KEY_SRCIMG.png}
adm-npz        one file, `arr_0` uint8 [N, H, W, 3], for ADM's evaluator
hub            .eval_results YAML of the Hugging Face Hub
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cm3apps.evaluation.reading import read_scores
from cm3apps.evaluation.tasks.gedit import JUDGED, edits_of
from cm3core.errors import DataError, FileError
from cm3core.files import atomic_path, new_place, write_text
from cm3core.images import open_image, save_png

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
        if "tag" not in row.get("metadata", {}):
            raise DataError(
                str(folder),
                f"has no objects of GenEval for the prompt {prompt[:60]!r}",
                "evaluate by the protocol geneval-v1, with evaluation_metadata.jsonl as --data",
            )
        by_prompt[prompt].append(open_image(folder / row["picture"]))
        metadata.setdefault(prompt, row["metadata"])
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
    """The scorers take what is before the first underscore for the prompt, and the number after the last one."""
    for place, row in enumerate(rows):
        prompt = _file_name(row["prompt"]).replace("_", " ")
        name = f"{prompt}_{place:06d}.png"
        save_png(out / "samples" / name, open_image(folder / row["picture"]))


def _wise(folder: Path, out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Pictures named by the ids of their prompts, the first picture of each."""
    for row in rows:
        number = row.get("metadata", {}).get("prompt_id")
        if not isinstance(number, int):
            raise DataError(
                str(folder),
                f"has no id of WISE for the prompt {row['prompt'][:60]!r}",
                "evaluate by the protocol wise-verified-v1 or wise-v1",
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
    """A text as the beginning of a file's name: its last full stop stays, because scorers read prompts from names."""
    name = re.sub(r"[/\\\0\n]", " ", text).strip().lstrip(".")
    return (
        name.encode()[:200].decode(errors="ignore") or "sample"
    )  # what remains of a cut character


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
