"""Copies: drawings of one thing that are nearly the same but for place, size and small details, in sets of one origin or
in variants that hardly differ.

With closed splits they share a content key, so a copy of an icon is never prepended to it: a model that is given one
learns to copy, and nothing else. The bundled corpus has them in `assets/copies.json.xz`, which `copies_build.py` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from cm3core.arguments import CountOrZero
from cm3core.errors import DataError
from cm3plugins.datasets.vector.files import compress, unpack_lines
from cm3run.json_text import parse_json

FILE = "copies.json.xz"


class _Form(TypedDict):
    data_sha256: str
    groups: list[list[CountOrZero]]


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
    values = parse_json(lines[0], str(path), next_step, form=_Form)
    if values["data_sha256"] != data_sha256:
        raise DataError(str(path), "belongs to other data than the corpus beside it", next_step)
    for steps in values["groups"]:
        place = 0
        for step in steps:
            place += step
            copies[place] = steps[0]
    return copies
