"""Copies: drawings of one thing that are nearly the same but for place, size and small details, in sets of one origin or
in variants that hardly differ.

With closed splits they share a content key, so a copy of an icon is never prepended to it: a model that is given one
learns to copy, and nothing else. The bundled corpus has them in `assets/copies.json.xz`, which this module writes.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.errors import DataError
from cm3core.files import write_bytes
from cm3plugins.datasets.vector.files import compress, unpack_lines

if TYPE_CHECKING:
    from cm3plugins.datasets.icons.looks import Alike

FILE = "copies.json.xz"
#: Least correlation of two copies (`looks.py`). Sheets show above it the same drawing with another detail or corner, and
#: below it drawings of one thing that two hands made.
LEAST = 0.9
#: No correlation is that high: only sharp looks are compared.
_NEVER = 2.0


def grouped(words: Sequence[str], alike: Alike) -> list[list[int]]:
    """Return the groups of two or more drawings with the same words that are connected by likeness, as positions.

    Args:
        words: the thing that each drawing shows.
        alike: which drawings look like which.
    """
    first = list(range(len(words)))

    def found(place: int) -> int:
        while first[place] != place:
            first[place] = first[first[place]]
            place = first[place]
        return place

    for index, own in enumerate(words):
        for other in alike.to(index):
            if other < index and words[other] == own:
                one, two = sorted((found(index), found(other)))
                first[two] = one
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(words)):
        groups[found(index)].append(index)
    return [group for group in groups.values() if len(group) > 1]


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
        if values["data_sha256"] != data_sha256:
            raise DataError(str(path), "belongs to other data than the corpus beside it", next_step)
        for steps in values["groups"]:
            place = 0
            for step in steps:
                place += int(step)
                copies[place] = int(steps[0])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise DataError(str(path), "the file is damaged", next_step) from error
    return copies


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file of the bundled corpus; return the exit code."""
    from cm3plugins.datasets.icons.closed_build import looks_of
    from cm3plugins.datasets.icons.corpus import IconCorpus
    from cm3plugins.datasets.icons.sets import ASSETS

    parser = ArgumentParser(
        prog="python -m cm3plugins.datasets.icons.copies", description="Copies."
    )
    parser.add_argument("-o", "--out", type=Path, default=ASSETS / FILE, metavar="FILE")
    given = parser.parse_args(arguments)
    corpus = IconCorpus()
    groups = grouped(corpus.entries.words, looks_of(corpus).graph(LEAST, _NEVER))
    write_bytes(given.out, written(corpus.data_sha256, groups))
    print(f"{len(groups):,} groups of {sum(map(len, groups)):,} drawings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
