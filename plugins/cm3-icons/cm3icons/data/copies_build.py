"""Finds the copies among the bundled icons and writes their file (`copies.py`).

python -m cm3icons.data.copies_build
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cm3core.files import write_bytes
from cm3icons.data.copies import FILE, written
from cm3icons.data.corpus import IconCorpus
from cm3icons.data.sets import ASSETS
from cm3plugins.datasets.looks import Alike, Groups, Looks, cut_out
from cm3run.progress import make_bar

#: Least correlation of two copies (`looks.py`). Sheets show above it the same drawing with another detail or corner, and
#: below it drawings of one thing that two hands made.
LEAST = 0.9
#: No correlation is that high: only sharp looks are compared.
_NEVER = 2.0


def looks_of(corpus: IconCorpus) -> Looks:
    """Return the looks of all drawings."""
    pictures = corpus.pictures(64)
    bar = make_bar(range(len(corpus)), desc="looks", unit="icon")
    return Looks(np.stack([cut_out(pictures[index]) for index in bar]))


def grouped(words: Sequence[str], alike: Alike) -> list[list[int]]:
    """Return the groups of two or more drawings with the same words that are connected by likeness, as positions.

    Args:
        words: the thing that each drawing shows.
        alike: which drawings look like which.
    """
    joined = Groups(range(len(words)))
    for index, own in enumerate(words):
        for other in alike.to(index):
            if other < index and words[other] == own:
                joined.join(index, other)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(words)):
        groups[joined.first(index)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file of the bundled corpus; return the exit code."""
    parser = ArgumentParser(prog="python -m cm3icons.data.copies_build", description="Copies.")
    parser.add_argument("-o", "--out", type=Path, default=ASSETS / FILE, metavar="FILE")
    given = parser.parse_args(arguments)
    corpus = IconCorpus()
    groups = grouped(corpus.entries.words, looks_of(corpus).graph(LEAST, _NEVER))
    write_bytes(given.out, written(corpus.data_sha256, groups))
    print(f"{len(groups):,} groups of {sum(map(len, groups)):,} drawings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
