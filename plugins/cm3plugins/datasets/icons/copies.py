"""Copies: drawings of one thing that are nearly the same but for place, size and small details, in sets of one origin or
in variants that hardly differ.

With closed splits they share a content key, so a copy of an icon is never prepended to it: a model that is given one
learns to copy, and nothing else. The bundled corpus has them in `assets/copies.json.xz`, which `copies_build.py` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3core.errors import DataError
from cm3plugins.datasets.vector.files import compress, unpack_lines

FILE = "copies.json.xz"


def written(data_sha256: str, groups: Iterable[Sequence[int]]) -> bytes:
    """Return the file's bytes: positions in the corpus, each but the first as its distance from the one before."""
    steps = [[b - a for a, b in zip([0, *group], group, strict=False)] for group in groups]
    return compress(json.dumps({"data_sha256": data_sha256, "groups": steps}) + "\n")


def read_copies(folder: Path, data_sha256: str, next_step: str) -> Mapping[int, int]:
    """Read the copies in a corpus folder: position -> position of the first of its group, for drawings with copies.

    Raises:
        DataError: the file can't be read, is damaged, or belongs to other data.
    """
    path = folder / FILE
    lines = unpack_lines(path, next_step)
    copies: dict[int, int] = {}
    try:
        values: Any = json.loads(lines[0])
        other = values["data_sha256"] != data_sha256
        for steps in values["groups"]:
            place = 0
            for step in steps:
                place += int(step)
                copies[place] = int(steps[0])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise DataError(str(path), "the file is damaged", next_step) from error
    if other:
        raise DataError(str(path), "belongs to other data than the corpus beside it", next_step)
    return copies
