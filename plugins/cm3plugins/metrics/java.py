"""Programs in Java that some metrics of captions are defined by. None comes with cm3leon."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cm3core.errors import DataError, MissingPackageError

_MOST_SHOWN = 200


def run_java(arguments: Sequence[str], given: str = "", *, folder: Path | None = None) -> str:
    """What a Java program prints.

    Args:
        arguments: of `java`.
        given: its input.
        folder: in which it runs.

    Raises:
        MissingPackageError: there is no Java.
        DataError: it failed; its last words are quoted.
    """
    java = shutil.which("java")
    if java is None:
        raise MissingPackageError(
            "java", "is not installed", "install a Java runtime (Debian: default-jre-headless)"
        )
    done = subprocess.run(
        [java, *arguments],
        input=given,
        cwd=folder,
        capture_output=True,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        raise DataError(
            f"java {' '.join(arguments)}"[:_MOST_SHOWN],
            f"failed: {_reason(done.stderr) or f'exit code {done.returncode}'}",
            "see the program's own instructions",
        )
    return done.stdout


def _reason(printed: str) -> str:
    """What a program that failed printed last, without the places in its code: the innermost cause."""
    lines = [line.strip() for line in printed.splitlines()]
    told = [line for line in lines if line and not line.startswith(("at ", "... "))]
    causes = [line for line in told if line.startswith(("Caused by: ", "Exception in "))]
    return " ".join(causes[-1:] or told)[-_MOST_SHOWN:]


def check_jar(path: Path, key: str, step: str) -> None:
    """Raise `DataError` unless a program's file is there."""
    if not path.is_file():
        raise DataError(f"metric.{key} {path}", "there is no such file", step)
