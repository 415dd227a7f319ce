"""Runs every command that writes where its files are somebody else's.

    python -m tests.fuzz.plant
    python -m tests.fuzz.plant --each --command "memory build"

`fuzzing.planting` says what is checked. Exit code 1: something was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

import fuzzing.process  # noqa: F401  # before any library


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.plant",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--each", action="store_true", help="take one name at a time; slower (default: all at once)"
    )
    parser.add_argument(
        "--command", action="append", help="only this one; may be given several times"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE.json", help="write what happened there"
    )
    options = parser.parse_args()
    from fuzzing import base
    from fuzzing.planting import plant_all
    from fuzzing.writers import WRITERS

    root = Path(os.path.realpath(tempfile.mkdtemp(prefix="cm3-plant-")))
    os.environ["XDG_STATE_HOME"] = str(root / "state")
    try:
        (root / "base").mkdir()
        shared = base.make(root / "base")
        chosen = [(name, WRITERS[name]) for name in options.command or WRITERS]
        found = plant_all(chosen, shared, root, each=options.each)
        if options.report is not None:
            options.report.write_text(json.dumps([asdict(one) for one in found]))
        return 1 if any(one.wrong or not one.written for one in found) else 0
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
