"""A process that shares the work of `cm3 memory build --processes`.

It is given the command's arguments as a line of JSON, and ends when its input does: with the process
that started it, however that ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from argparse import Namespace
from pathlib import Path

from cm3core.cli._memory_build import help_building
from cm3core.cli._memory_processes import PATHS


def _main() -> int:
    from cm3core.cli._failures import failure_of, print_error

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
    except Exception as error:  # sorted out below, as in `cm3core.cli.main`
        failure = failure_of(error)
        if failure is None:
            raise
        print_error(failure, [])
        return 2
    return 0


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_main())
