"""Starting the processes of `cm3 memory build --processes`; what they run is `_memory_helper`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: Arguments that are paths, and those that a helper needs besides.
PATHS = ("out",)
_VALUES = (
    "target",
    "trust_endpoints",
    "overrides",
    "embedder",
    "image_tokenizer",
    "model",
    "device",
    "shard_size",
    "id_prefix",
    "part",
    "processes",
)


def helpers_of(args: Namespace) -> list[Callable[[], subprocess.Popen[bytes]]]:
    """What starts the other processes of a build."""
    return [
        lambda share=share: _start(args, share)  # type: ignore[misc]  # mypy infers no lambda with a default
        for share in range(1, args.processes)
    ]


def _start(args: Namespace, share: int) -> subprocess.Popen[bytes]:
    values: dict[str, Any] = {name: getattr(args, name) for name in _VALUES}
    values |= {name: str(getattr(args, name)) for name in PATHS}
    values |= {"plugin": [str(path) for path in args.plugin], "share": share}
    process = subprocess.Popen(
        # -P: not also what lies in the current folder, such as the data's own grp.py
        [sys.executable, "-P", "-m", "cm3apps.cli._memory_helper"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,  # for one line, see `_memory_helper`
        # what it imports is what is imported here
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(values).encode() + b"\n")
    process.stdin.flush()
    return process
