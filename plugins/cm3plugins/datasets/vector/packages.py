"""Pinned npm packages: fetching them, and the command line that rebuilds a corpus' data files from them."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cm3core.errors import CM3Error, DataError


@dataclass(frozen=True)
class NpmPackage:
    """One pinned package.

    Args:
        name: npm name, with its scope.
        version: exact version.
        sha256: SHA-256 of the tarball written by ``npm pack``.
    """

    name: str
    version: str
    sha256: str

    @property
    def tarball(self) -> str:
        """File name from ``npm pack``: ``@scope/name`` becomes ``scope-name-version.tgz``."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def spec(self) -> str:
        """The argument of ``npm pack``."""
        return f"{self.name}@{self.version}"


def fetch_tarballs(folder: Path, packages: Sequence[NpmPackage]) -> None:
    """Download the pinned packages missing in `folder` with ``npm pack``.

    Raises:
        DataError: npm is missing or fails.
    """
    missing = [package for package in packages if not (folder / package.tarball).is_file()]
    if not missing:
        return
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            str(folder),
            f"{missing[0].tarball} and {len(missing) - 1} more are missing, and npm is not "
            "installed to fetch them",
            "install npm, or put the tarballs in a folder and pass it as --tarballs",
        )
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", "--silent", *(package.spec for package in missing)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(
            "npm pack",
            f"failed with status {done.returncode}: {reason}",
            "check the network and npm's registry",
        )


Rebuild = Callable[[Path, Path, bool], int]
"""(folder of tarballs, output folder, whether only to check) -> exit status."""


def rebuild_main(
    corpus: str, assets: Path, rebuild: Rebuild, arguments: Sequence[str] | None
) -> int:
    """Run ``python -m cm3plugins.datasets.CORPUS.build``; returns the exit status.

    Args:
        corpus: ``emoji`` or ``icons``.
        assets: the package's own folder of data files.
        rebuild: does the work.
        arguments: command line; None: that of the process.
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
        help="folder of tarballs; npm pack fetches missing ones into it",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=assets,
        help="folder to write to (default: the package's own assets)",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the output folder differs"
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
