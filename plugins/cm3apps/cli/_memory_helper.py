"""A process that shares the work of `cm3 memory build --processes`.

It is given the command's arguments as a line of JSON, and ends when its input does: with the process
that started it, however that ends. If it fails, its output is the error, for that process to report: both
may fail of the same, and that is said once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from argparse import Namespace
from pathlib import Path
from typing import TextIO

from cm3apps.cli._memory_build import help_building
from cm3apps.cli._memory_processes import PATHS

#: Of an error; a pipe that nobody reads yet takes more.
MAX_LETTERS = 4096


def _main() -> int:
    from cm3apps.cli._failures import failure_of

    told = _own_output()
    values = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    args = Namespace(**values)
    for name in PATHS:
        setattr(args, name, Path(values[name]))
    args.plugin = [Path(path) for path in values["plugin"]]
    try:
        help_building(args, (args.share, args.processes))
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # sorted out below, as in `cm3apps.cli.main`
        failure = failure_of(error)
        if failure is None:
            raise
        with told:
            told.write(str(failure)[:MAX_LETTERS])
        return 2
    return 0


def _own_output() -> TextIO:
    """The output, which is for errors alone: what is printed from now on, by a plugin too, goes nowhere."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123  # a device
        os.dup2(nowhere.fileno(), 1)
    return told


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_main())
