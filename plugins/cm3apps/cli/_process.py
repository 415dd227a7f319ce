"""What the console script arranges for the process: output that any terminal takes, and Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import MutableMapping
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

#: The framework's packages that warn users.
_OWN = ("cm3core", "cm3run", "cm3apps")


def prepare_output() -> None:
    """Write what the terminal's encoding lacks as escapes (`\\xe4`) instead of failing halfway.

    Captions, file names and labels have any characters, and a terminal may know only ASCII.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_own(path: Path) -> bool:
    """Whether a file belongs to the framework."""
    specs = [find_spec(package) for package in _OWN]
    return any(
        path.is_relative_to(folder)
        for spec in specs
        if spec is not None
        for folder in spec.submodule_search_locations or ()
    )


def plain_warnings() -> None:
    """Print the framework's own warnings as notes, like all else that a command says: whoever trains has no use
    for the file, the line and the code that gave them. Warnings of other packages keep these."""
    usual = warnings.formatwarning

    def formatted(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if category is UserWarning and _is_own(Path(filename)):
            return f"note: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = formatted


def calm_threads(environment: MutableMapping[str, str] | None = None) -> None:
    """Let torch's threads sleep soon where one has nothing to do, unless the user has decided that.

    OpenMP's (libgomp's) wait for the next operation in a loop of 300,000 turns, in which they take the core from the
    thread that all wait for: where other programs use the cores, two threads were 300 times slower than one. It reads
    this when torch is imported.
    """
    environment = os.environ if environment is None else environment
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = "1000"


class Interrupts:
    """Context that records Ctrl-C in `received`, and raises KeyboardInterrupt as usual.

    Afterwards Ctrl-C ends the process at once, without a traceback from the interpreter's exit.
    """

    def __init__(self) -> None:
        self.received = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.default_int_handler(number, frame)

    def __enter__(self) -> Interrupts:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
            signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if signal.getsignal(signal.SIGINT) == self._receive:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
