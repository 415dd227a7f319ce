"""The command line that rebuilds a corpus' data files from its pinned npm packages."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cm3core.errors import CM3Error

Rebuild = Callable[[Path, Path, bool], int]
"""(folder of tarballs, output folder, whether only to check) -> exit status."""


def rebuild_main(
    corpus: str, assets: Path, rebuild: Rebuild, arguments: Sequence[str] | None
) -> int:
    """Run ``python -m cm3plugins.datasets.CORPUS.build``; returns the exit status.

    Args:
        corpus: ``emoji`` or ``icons``.
        assets: the package's own folder of data files.
        rebuild: what is done.
        arguments: None: those of the process.
    """
    prog = f"python -m cm3plugins.datasets.{corpus}.build"
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"Rebuild the bundled {corpus.removesuffix('s')} corpus from the pinned npm packages.",
        epilog=f"example: {prog} --tarballs downloads/ --check",
    )
    parser.add_argument(
        "--tarballs",
        type=Path,
        help="folder of tarballs; what it lacks is fetched into it by npm pack",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=assets,
        help="folder to write to (default: the package's own assets)",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail when the output folder differs"
    )
    options = parser.parse_args(arguments)
    try:
        if options.tarballs is not None:
            return rebuild(options.tarballs, options.output, options.check)
        with tempfile.TemporaryDirectory() as folder:
            return rebuild(Path(folder), options.output, options.check)
    except CM3Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
