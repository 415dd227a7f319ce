"""The task `prompts`: prompts from a benchmark's files, for pictures that the benchmark's own scorer judges.

FILE.jsonl    a line a prompt, {"prompt": ..., anything else}: GenEval's evaluation_metadata.jsonl,
              GenEval 2's geneval2_data.jsonl
FILE.txt      a line a prompt: T2I-CompBench's examples/dataset/color_val.txt
FILE.json     a list of {"prompt_id": 1, "Prompt": ...}: WISE's data_verified/natural_science_verified.json
FOLDER        a file NAME.txt a prompt: DPG-Bench's prompts; or such lists, but for NAME_rewrite.json: WISE's
              data_verified, or WISE_legacy/data
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3apps.evaluation.tasks.base import Sample, Task, known_keys
from cm3core.errors import DataError


def open_prompts(
    values: Mapping[str, Any], *, size: int | None, data: Path | None, model: Any, registry: Any
) -> Task:
    """`repeat` pictures per prompt."""
    keys = known_keys("prompts", values)
    if data is None:
        raise DataError(
            "this protocol", "needs the benchmark's prompts", "give their file or folder (--data)"
        )
    rows = _rows(data)
    if not rows:
        raise DataError(str(data), "holds no prompts", "name the benchmark's file of prompts")
    samples = [
        Sample(f"{key}/{number}", str(row["prompt"]), target={"key": key, "metadata": row})
        for key, row in rows
        for number in range(keys["repeat"])
    ]
    judge = {} if keys["judge"] is None else {"judge": keys["judge"]}
    return Task("prompts", "pictures", samples, {"repeat": keys["repeat"], **judge})


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(name, line) of each prompt."""
    if path.is_dir():
        lists = [one for one in sorted(path.glob("*.json")) if not one.stem.endswith("_rewrite")]
        if lists:
            return _of_lists(lists)
        return [(one.stem, {"prompt": _text(one).strip()}) for one in sorted(path.glob("*.txt"))]
    if not path.is_file():
        raise DataError(
            str(path), "there is no such file", "give the file or folder of prompts (--data)"
        )
    if path.suffix == ".json":
        return _of_lists([path])
    lines = _text(path).splitlines()
    if path.suffix != ".jsonl":
        return [
            (f"{place:05d}", {"prompt": line.strip()})
            for place, line in enumerate(lines)
            if line.strip()
        ]
    rows = []
    for place, line in enumerate(lines):
        try:
            row = json.loads(line)
            assert isinstance(row["prompt"], str)
        except (ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
            raise DataError(
                f"{path}, line {place + 1}", "is not a prompt", 'write {"prompt": "..."}'
            ) from error
        rows.append((f"{place:05d}", row))
    return rows


def _of_lists(paths: Sequence[Path]) -> list[tuple[str, dict[str, Any]]]:
    """WISE's prompts, in the order of their ids."""
    found: dict[int, dict[str, Any]] = {}
    for path in paths:
        try:
            rows = json.loads(_text(path))
            own = [(row["prompt_id"], {**row, "prompt": row["Prompt"].strip()}) for row in rows]
            assert isinstance(rows, list)
            assert all(type(number) is int for number, _ in own)
        except (
            *(ValueError, KeyError, TypeError, AttributeError),
            *(AssertionError, RecursionError),
        ) as error:
            raise DataError(
                str(path), "is not a list of prompts", 'write [{"prompt_id": 1, "Prompt": "..."}]'
            ) from error
        for number, row in own:
            # WISE_Verified's merge.json repeats the other files
            if found.get(number, row) != row:
                raise DataError(
                    str(path),
                    f"has another prompt {number} than a file before it",
                    "give the files of one edition",
                )
            found[number] = row
    return [(str(number), row) for number, row in sorted(found.items())]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            str(path), f"can't be read as text ({error})", "replace the file"
        ) from error
