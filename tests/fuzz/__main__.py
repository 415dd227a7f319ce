"""Hostile inputs to everything that reads files, arguments and requests, from a seed.

    python -m tests.fuzz --minutes 60 --seed 7                        all categories in turn
    python -m tests.fuzz --seed 7 --category tars --case 123          one case again, with what it printed
    python -m tests.fuzz --replay fuzz-failures/tars-7-123            a saved input again

`fuzzing.sandbox` has the laws, `fuzzing.running` the categories. Exit code 1: a case broke a law.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

import fuzzing.process  # noqa: F401  # before any library


def main() -> int:
    """See the module."""
    options = _options()
    from fuzzing import running
    from fuzzing.case import saved
    from fuzzing.limits import Limits
    from fuzzing.sandbox import Sandbox

    root = Path(tempfile.mkdtemp(prefix="cm3-fuzz-"))
    try:
        box = Sandbox(root, Limits(seconds=options.seconds_per_case))
        running.prepared(box)
        categories = options.category or list(running.GENERATORS)
        if options.replay or options.case is not None:
            if options.replay:
                case = saved(options.replay)
            else:
                case = running.generate(categories[0], options.seed, options.case, box.base)
            result = box.run(case)
            print(
                f"{case}\n{result.output}\noutcome {result.outcome}; broken: {result.broken or 'nothing'}"
            )
            return 1 if result.broken else 0
        numbers = itertools.count() if options.cases is None else iter(range(options.cases))
        report = running.run(
            box, categories, options.seed, numbers, options.minutes * 60, options.out
        )
        print(report.table())
        return 1 if report.failures else 0
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="length of the run (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="same seed, same cases (default: %(default)s)"
    )
    parser.add_argument(
        "--category", action="append", help="only this one; may be given several times"
    )
    parser.add_argument("--cases", type=int, help="at most as many of each category")
    parser.add_argument("--case", type=int, help="only the case of this number, of one category")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="only the case saved there")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fuzz-failures"),
        metavar="FOLDER",
        help="where inputs of failures are saved (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds-per-case",
        type=float,
        default=20.0,
        help="until a case counts as hanging (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
