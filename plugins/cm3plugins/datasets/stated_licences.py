"""A picture's licence, source and attribution, as stated in files.

A record's own keys come first; then `PICTURE.license` next to the picture; then the nearest `LICENSE`,
`LICENSE.txt` or `LICENSE.md` of its folder and its parents, up to the data set's. Only lines of the REUSE
specification (https://reuse.software/spec-3.3) in these files count, since a licence's text alone does
not state its files:

    SPDX-License-Identifier: CC-BY-4.0
    SPDX-FileCopyrightText: 2024 Rex
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cm3core.errors import DataError
from cm3core.interfaces.dataset import Provenance
from cm3plugins.datasets.file_source import (
    MAX_TEXT_BYTES,
    check_inside,
    is_unicode,
    read_utf8,
    type_name,
)

#: Names of files with the licence of a folder's pictures; the first that exists is used.
FOLDER_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
_SPELLINGS = ("licence", "license")
_LICENCE = re.compile(r"SPDX-License-Identifier:[ \t]*(.+)")
_COPYRIGHT = re.compile(r"SPDX-FileCopyrightText:[ \t]*(.+)")


def stated(place: str, values: dict[str, Any]) -> Provenance:
    """Return the provenance in a record's keys `licence` (or `license`), `source` and `attribution`.

    Raises:
        DataError: a value is not a non-empty text, or both spellings are given and differ.
    """
    given = {key: values[key] for key in (*_SPELLINGS, "source", "attribution") if key in values}
    for key, value in given.items():
        if not isinstance(value, str) or not value.strip() or not is_unicode(value):
            raise DataError(
                place,
                f"{key!r} is {type_name(value)}, not a non-empty text",
                "use a text, such as an SPDX name for the licence, or leave it out",
            )
    licences = {given.pop(key) for key in _SPELLINGS if key in given}
    if len(licences) > 1:
        raise DataError(
            place, f"states two licences: {' and '.join(sorted(licences))}", "keep one of the keys"
        )
    return Provenance(**given, **({"licence": licences.pop()} if licences else {}))


class LicenceFiles:
    """The licence files of a folder and of its subfolders, each read once.

    Args:
        folder: folder of the data set.
        inside: folder that links must stay inside; None: no limit.
    """

    def __init__(self, folder: Path, inside: Path | None) -> None:
        self._folder, self._inside = folder, inside
        self._known: dict[Path, Provenance] = {}

    def of(self, name: str) -> Provenance:
        """Return the provenance stated in files for the picture with this path inside the folder.

        Raises:
            DataError: a file can't be read as text, is outside, or states two licences.
        """
        path = self._folder / name
        own = path.with_name(f"{path.name}.license")
        return self._read(own) if own.is_file() else self._of_folder(path.parent)

    def _of_folder(self, folder: Path) -> Provenance:
        if folder not in self._known:
            found = Provenance()
            for name in FOLDER_FILES:
                if found == Provenance() and (folder / name).is_file():
                    found = self._read(folder / name)
            if found == Provenance() and folder != self._folder:
                found = self._of_folder(folder.parent)
            self._known[folder] = found
        return self._known[folder]

    def _read(self, path: Path) -> Provenance:
        check_inside(path, self._inside, str(path))
        text = read_utf8(path, str(path), MAX_TEXT_BYTES)
        licences = list(dict.fromkeys(one.strip() for one in _LICENCE.findall(text)))
        if len(licences) > 1:
            raise DataError(
                str(path),
                f"states {len(licences)} licences: {', '.join(licences)}",
                "write one SPDX expression, such as MIT OR Apache-2.0",
            )
        people = ", ".join(dict.fromkeys(one.strip() for one in _COPYRIGHT.findall(text)))
        return Provenance(licences[0], "", people) if licences else Provenance(attribution=people)
