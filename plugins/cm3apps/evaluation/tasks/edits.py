"""The task `edits`: pictures and instructions in the format of ImgEdit-Bench (PKU-YuanGroup/ImgEdit, Benchmark/Basic).

FILE.json    {"1082": {"id": "animal/000342021.jpg", "prompt": "Change ...", "edit_type": "adjust"}, ...}
IMAGES/      the pictures, by their ids
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from cm3apps.evaluation.tasks.base import Sample, Task, known_keys
from cm3core.errors import DataError
from cm3core.images import open_image


def open_edits(
    values: Mapping[str, Any], *, size: int | None, data: Path | None, model: Any, registry: Any
) -> Task:
    """An edit for each entry of the file, in its order."""
    keys = known_keys("edits", values)
    if data is None or not data.is_dir():
        raise DataError(
            "this protocol" if data is None else str(data),
            "needs the benchmark's folder",
            f"give the folder of its pictures and of {keys['file']} (--data)",
        )
    path = data / keys["file"]
    samples = []
    for key, row in _rows(path).items():
        picture = data / keys["images"] / row["id"]
        if not picture.is_file():
            raise DataError(
                f"{path}, edit {key}",
                f"names {str(picture)!r}, which is not there",
                "complete the pictures, or name their folder (task.images of a protocol of your own)",
            )
        load = partial(open_image, picture)
        target = {"metadata": {**row, "key": key}}
        samples.append(Sample(key, row["prompt"], load, f"edit:{row['id']}", target=target))
    if not samples:
        raise DataError(str(path), "has no edits", "name the benchmark's file")
    return Task("edits", "edits", samples, {name: keys[name] for name in ("file", "judge")})


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    """Key -> the entry of each edit."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        for key, row in rows.items():
            place = PurePosixPath(row["id"])
            assert isinstance(row["prompt"], str)
            assert row["prompt"].strip()
            assert not place.is_absolute()
            assert ".." not in place.parts
            assert PurePosixPath(key).name == key, "it names a file"
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            str(path), f"can't be read ({error})", "name its folder (--data)"
        ) from error
    except (
        *(ValueError, KeyError, TypeError, AttributeError),
        *(AssertionError, RecursionError),
    ) as error:
        raise DataError(
            str(path),
            "is not a file of edits",
            'write {"KEY": {"id": "FOLDER/NAME.jpg", "prompt": "...", "edit_type": "..."}}',
        ) from error
    found: dict[str, dict[str, Any]] = rows
    return found
