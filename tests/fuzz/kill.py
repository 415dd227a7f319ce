"""Kills every command that writes at random moments, from a seed, and repeats it.

    python -m tests.fuzz.kill --seed 7 --kills 20
    python -m tests.fuzz.kill --seed 7 --command "memory build"

`fuzzing.writers` lists the commands, `fuzzing.killing` says what is checked. Exit code 1: something was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

import fuzzing.process  # noqa: F401  # before any library


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.kill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="same seed, same moments (default: %(default)s)"
    )
    parser.add_argument(
        "--kills", type=int, default=4, help="of each command (default: %(default)s)"
    )
    parser.add_argument(
        "--command", action="append", help="only this one; may be given several times"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE.json", help="write what happened there"
    )
    options = parser.parse_args()
    from fuzzing import base
    from fuzzing.killing import disturb_all
    from fuzzing.writers import WRITERS

    root = Path(os.path.realpath(tempfile.mkdtemp(prefix="cm3-kill-")))
    os.environ["XDG_STATE_HOME"] = str(root / "state")
    try:
        (root / "base").mkdir()
        shared = base.make(root / "base")
        chosen = [(name, WRITERS[name]) for name in options.command or WRITERS]
        outcomes = disturb_all(chosen, shared, root, options.seed, options.kills)
        if options.report is not None:
            options.report.write_text(json.dumps([vars(one) for one in outcomes]))
        return 1 if any(one.wrong or one.litter for one in outcomes) else 0
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
