"""The matrix of swaps from the command line.

    python -m tests.matrix --alone                       every component alone
    python -m tests.matrix --pairs --seed 3 --part 1/4   a quarter of the combinations that contain all pairs of two kinds
    python -m tests.matrix --all --jsonl cells.jsonl     both; one line of JSON for each cell
    python -m tests.matrix --only sampler=cfg --all      the cells with this component
    python -m tests.matrix --read cells.jsonl            the summary of an earlier run

Exit code 1: a cell broke a law.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swapping.plan import Cell

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
for variable, value in {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}.items():
    os.environ.setdefault(variable, value)
os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))


def main() -> int:
    """See the module."""
    options = _options()
    from swapping.report import breaks_a_law, grouped, groups, read_rows, row_of, summary, write_row

    if options.read:
        rows = read_rows(options.read)
        print(summary(rows), grouped(rows), sep="\n\n")
        return int(breaks_a_law(rows))

    from swapping.cells import run_cell, shrunk
    from swapping.ingredients import Kitchen
    from swapping.plan import alone, pairs

    folder = Path(tempfile.mkdtemp(prefix="cm3-matrix-"))
    kitchen = Kitchen(folder)
    rows = []
    try:
        cells: Iterator[Cell] = itertools.chain(
            () if options.pairs else alone(kitchen),
            () if options.alone else pairs(kitchen, options.seed),
        )
        if options.only:
            cells = (one for one in cells if options.only in {f"{s.kind}={s.name}" for s in one})
        number, of = options.part
        cells = itertools.islice(itertools.islice(cells, number - 1, None, of), options.most)
        print(f"seed {options.seed}", flush=True)
        known: set[tuple[str, str]] = set()
        with Path(options.jsonl or os.devnull).open("a", encoding="utf-8") as file:
            for place, cell in enumerate(cells, start=1):
                result = run_cell(cell, kitchen)
                rows.append(row_of(result))
                write_row(rows[-1], file)
                print(f"{place} {' '.join(map(str, cell))}: {result.kind}", flush=True)
                ways = {(command, text) for command, _, text in groups(rows[-1:])}
                if len(cell) > 1 and not ways <= known:
                    rows.append(row_of(shrunk(result, kitchen)))
                    write_row(rows[-1], file)
                    print(f"  because of {' '.join(rows[-1]['swaps'])}", flush=True)
                known |= ways
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(summary(rows), grouped(rows), sep="\n\n")
    return int(breaks_a_law(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--alone", action="store_true", help="each component alone")
    which.add_argument("--pairs", action="store_true", help="combinations that contain all pairs")
    which.add_argument("--all", action="store_true", help="both (default)")
    parser.add_argument("--seed", type=int, default=0, help="of the combinations (default: 0)")
    parser.add_argument("--only", metavar="KIND=NAME", help="only cells with this component")
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="I/M", help="a part of them")
    parser.add_argument("--most", type=int, default=None, metavar="N", help="at most so many")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="append a line for each cell")
    parser.add_argument("--read", type=Path, nargs="+", metavar="FILE", help="run nothing")
    return parser.parse_args()


def _part(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    return int(number), int(of)


if __name__ == "__main__":
    sys.exit(main())
