"""One tarball that a user gives: which set it is, under which rules and licence, and its drawings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from cm3core.errors import DataError
from cm3core.files import sha256_file
from cm3plugins.datasets.icons.described import set_of_package, version_of
from cm3plugins.datasets.icons.read import Drawing, drawings_of_set, read_tarball, stated_licence
from cm3plugins.datasets.icons.sets import PERMITTED_LICENCES, IconSet, all_sets
from cm3plugins.datasets.icons.trusted_svg import fault


@dataclass(frozen=True)
class UserSet:
    """A set that was read.

    Args:
        icon_set: its rules and facts, with the version and checksum of the tarball.
        drawings: those that may be drawn.
        unknown_styles: endings and beginnings that stay words of the names.
        refused: ids that are not drawn -> why.
        num_left_out: icons that the rules leave out: logos, other sizes, hidden ones.
    """

    icon_set: IconSet
    drawings: list[Drawing]
    unknown_styles: list[str]
    refused: dict[str, str]
    num_left_out: int


def read_set(path: Path, *, any_version: bool, licences: Collection[str]) -> UserSet:
    """Read one tarball.

    Args:
        path: of the tarball.
        any_version: read a bundled set by its rules, whatever its version and checksum.
        licences: SPDX names that are permitted besides `PERMITTED_LICENCES`.

    Raises:
        DataError: the tarball can't be used.
    """
    if not path.is_file():
        raise DataError(
            str(path), "is no file", "run npm pack @iconify-json/SET, and name its file"
        )
    files = read_tarball(path)
    licence, sha256 = stated_licence(files), sha256_file(path)
    if licence is None or licence not in {*PERMITTED_LICENCES, *licences}:
        for_own_use = f", or for your own use: --allow-licence {licence}" if licence else ""
        raise DataError(
            str(path),
            f"its licence is {licence or 'not stated'}, which is not permitted",
            f"use sets under {', '.join(PERMITTED_LICENCES)}{for_own_use}",
        )
    pinned = all_sets().get(files["icons.json"]["prefix"])
    unknown: list[str] = []
    if pinned is None:
        icon_set, unknown = set_of_package(files, sha256, licence)
    else:
        version = version_of(files)
        if sha256 != pinned.sha256 and not any_version:
            cause = (
                f"is {pinned.name} {version}; the one that is known is {pinned.version}"
                if version != pinned.version
                else f"is {pinned.name} {version} with another checksum: {sha256}, "
                f"expected {pinned.sha256}"
            )
            raise DataError(
                str(path),
                cause,
                f"run npm pack {pinned.package.spec}, or read it all the same: --any-version",
            )
        icon_set = replace(pinned, version=version, sha256=sha256, licence=licence)
    read = list(drawings_of_set(icon_set, files))
    refused = {drawing.id: why for drawing in read if (why := fault(drawing.svg)) is not None}
    return UserSet(
        icon_set,
        [drawing for drawing in read if drawing.id not in refused],
        unknown,
        refused,
        len(files["icons.json"]["icons"]) - len(read),
    )
