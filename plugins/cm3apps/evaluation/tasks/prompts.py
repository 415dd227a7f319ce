"""Task `prompts`: prompts of a benchmark's own files, whose pictures its own scorer judges.

FILE.jsonl    a line a prompt, {"prompt": ..., anything else}: GenEval's evaluation_metadata.jsonl
FILE.txt      a line a prompt: T2I-CompBench's examples/dataset/color_val.txt
FOLDER        a file NAME.txt a prompt: DPG-Bench's prompts
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cm3apps.evaluation.tasks.base import Sample, Task
from cm3apps.evaluation.tasks.keys import known_keys
from cm3core.errors import DataError


def open_prompts(
    values: Mapping[str, Any], *, size: int | None, data: Path | None, model: Any, registry: Any
) -> Task:
    """`repeat` pictures of each prompt."""
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
    return Task("prompts", "pictures", samples, {"repeat": keys["repeat"]})


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(name, line) of each prompt."""
    if path.is_dir():
        return [(one.stem, {"prompt": _text(one).strip()}) for one in sorted(path.glob("*.txt"))]
    if not path.is_file():
        raise DataError(
            str(path), "there is no such file", "give the file or folder of prompts (--data)"
        )
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
                f"{path}, line {place + 1}", "is no prompt", 'write {"prompt": "..."}'
            ) from error
        rows.append((f"{place:05d}", row))
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            str(path), f"can't be read as text ({error})", "replace the file"
        ) from error
