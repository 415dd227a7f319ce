"""Pinned npm packages, and fetching them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cm3core.errors import DataError


@dataclass(frozen=True)
class NpmPackage:
    """One pinned package.

    Args:
        name: npm name, with its scope.
        version: exact version.
        sha256: SHA-256 of the tarball that ``npm pack`` writes.
    """

    name: str
    version: str
    sha256: str

    @property
    def tarball(self) -> str:
        """File name that ``npm pack`` gives: ``@scope/name`` becomes ``scope-name-version.tgz``."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def spec(self) -> str:
        """What ``npm pack`` is asked for."""
        return f"{self.name}@{self.version}"


def author_and_address(text: str) -> tuple[str, str]:
    """The two parts of what a set's record names, "" for one that is not there.

    >>> author_and_address("Ann, Bob, https://example.org/set"), author_and_address("Ann, Bob")
    (('Ann, Bob', 'https://example.org/set'), ('Ann, Bob', ''))
    """
    author, _, address = text.rpartition(", ")
    if "://" in address:
        return author, address
    return ("", text) if "://" in text.partition(" ")[0] else (text, "")


def fetch_tarballs(folder: Path, packages: Sequence[NpmPackage]) -> None:
    """Download the pinned packages that `folder` lacks, through ``npm pack``.

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
            f"{missing[0].tarball} and {len(missing) - 1} more are not there, and npm is not "
            "installed to fetch them",
            "install npm, or put the tarballs there yourself and give the folder with --tarballs",
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
