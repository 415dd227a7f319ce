"""How many of the framework's files a run enters: what a reader has to open who follows it.

    python tests/architecture/walks.py

Each walk is a real run in a process of its own, traced by `sys.setprofile`. A file counts when one of its functions is
called, and a crossing when a function of one file calls a function of another; what modules and classes do while they are
imported counts for neither. docs/architecture.md has the table, and `test_walks.py` holds it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGES = (
    "cm3core",
    "cm3run",
    "cm3kits",
    "cm3plugins",
    "cm3apps",
    "cm3icons",
    "cm3serve",
    "cm3kernels",
    "cm3lab",
)
MODEL = "bundled:emoji64"
FIXTURES = Path(__file__).parents[1] / "fixtures"


@dataclass
class Trace:
    """The files that a run enters, and how often it goes from one to another."""

    folders: tuple[str, ...]
    counts: bool = False
    files: set[str] = field(default_factory=set)
    crossings: int = 0
    _importing: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what happens inside, in every thread that was started since `begin`."""
        self.counts = True
        try:
            yield
        finally:
            self.counts = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return"):
            return
        code, thread = frame.f_code, threading.get_ident()
        if code.co_name == "_find_and_load" and code.co_filename.startswith("<frozen importlib"):
            self._importing[thread] += 1 if event == "call" else -1
        elif (
            self.counts and event == "call" and not self._importing[thread] and self._is_ours(code)
        ):
            self.files.add(code.co_filename)
            caller = frame.f_back
            if caller is not None and self._is_ours(caller.f_code):
                self.crossings += caller.f_code.co_filename != code.co_filename

    def _is_ours(self, code: CodeType) -> bool:
        """Whether it is a function of ours, and not the body of a class."""
        return bool(code.co_flags & CO_OPTIMIZED) and code.co_filename.startswith(self.folders)


def begin() -> Trace:
    """Trace this thread, and all that are started from here on."""
    specs = [find_spec(package) for package in PACKAGES]
    trace = Trace(
        tuple(
            f"{folder}/"
            for spec in specs
            if spec is not None
            for folder in spec.submodule_search_locations or ()
        )
    )
    threading.setprofile(trace)
    sys.setprofile(trace)
    return trace


def picture(trace: Trace) -> None:
    """One picture of a bundled model with its defaults, after another one."""
    import cm3core

    model = cm3core.load(MODEL)
    model.generate("red apple", seed=1)
    with trace.counting():
        model.generate("green apple", seed=2)


def request(trace: Trace) -> None:
    """`POST /v1/images/generations`, after another one."""
    import cm3core

    sys.path.append(str(FIXTURES))
    from toy_server import served

    with served({"emoji": lambda: cm3core.load(MODEL)}) as server:
        server.post(prompt="red apple", seed=1)
        with trace.counting():
            assert server.post(prompt="green apple", seed=2).status_code == 200


def training(trace: Trace) -> None:
    """`cm3 train tiny`, twenty steps."""
    from cm3apps.cli.main import main

    with tempfile.TemporaryDirectory() as folder, trace.counting():
        assert main(["train", "tiny", "train.steps=20", "-o", f"{folder}/run", "--quiet"]) == 0


def recipe(trace: Trace) -> None:
    """`cm3 recipe check tiny`."""
    from cm3apps.cli.main import main

    with trace.counting():
        assert main(["recipe", "check", "tiny"]) == 0


WALKS: dict[str, Callable[[Trace], None]] = {
    "picture": picture,
    "request": request,
    "training": training,
    "recipe": recipe,
}


def walk(name: str) -> dict[str, Any]:
    """Walk in a process of its own. Returns the names of the `files`, sorted, and the number of `crossings`."""
    done = subprocess.run(
        [sys.executable, __file__, name],
        capture_output=True,
        text=True,
        # as on a CPU that compiled code doesn't know
        env={**os.environ, "OMP_NUM_THREADS": "1", "CM3_NATIVE": "0"},
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the walk {name!r} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        traced = begin()
        WALKS[sys.argv[1]](traced)
        print(json.dumps({"files": sorted(traced.files), "crossings": traced.crossings}))
    else:
        for walked in WALKS:
            found = walk(walked)
            print(f"| {walked} | {len(found['files'])} | {found['crossings']:,} |", flush=True)
