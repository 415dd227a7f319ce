"""A process that shares the work of `cm3 memory build --processes`.

It is given the command's arguments as a line of JSON, and ends when its input does: with the process
that started it, however that ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: Arguments that are paths, and those that a helper needs besides.
_PATHS = ("out",)
_VALUES = (
    "target", "overrides", "embedder", "image_tokenizer", "model", "device", "shard_size",
    "id_prefix", "part", "processes",
)  # fmt: skip


def helpers_of(args: Namespace) -> list[Callable[[], subprocess.Popen[bytes]]]:
    """What starts the other processes of a build."""
    return [
        lambda share=share: _start(args, share)  # type: ignore[misc]
        for share in range(1, args.processes)
    ]


def _start(args: Namespace, share: int) -> subprocess.Popen[bytes]:
    values: dict[str, Any] = {name: getattr(args, name) for name in _VALUES}
    values |= {name: str(getattr(args, name)) for name in _PATHS}
    values |= {"plugin": [str(path) for path in args.plugin], "share": share}
    process = subprocess.Popen(
        [sys.executable, "-m", "cm3core.cli._memory_helper"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # what it imports is what is imported here
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(values).encode() + b"\n")
    process.stdin.flush()
    return process


def _main() -> int:
    from cm3core.cli._failures import failure_of, print_error
    from cm3core.cli._memory_build import help_building

    values = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    args = Namespace(**values)
    for name in _PATHS:
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
