"""The folder that `cm3 complete` writes: a file for each thing, all candidates, the licences and the report.

    bell-off.svg                  the best candidate, as a file of the set
    candidates/bell-off-1.svg     all of them, the best first
    adapted/bell-off.svg          a version of the thing in the set's form, made without a model
    sheet.png                     documents and candidates, a row for each thing
    report.json                   how each was made and judged
    LICENSES                      the documents that each adapts

The report is written after each thing, so an interrupted call goes on where it was. It says which files are results; whether
one of them may be replaced or deleted is not read from it, but decided by `cm3core.outputs`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cm3core.errors import CM3Error, FileError
from cm3core.files import held_folder, make_folder, open_regular, write_bytes, write_text
from cm3core.outputs import OutputFolder
from cm3run.attribution import Credit, credit_in, licences_text
from cm3run.picture_files import file_names

REPORT, SHEET, LICENCES = "report.json", "sheet.png", "LICENSES"
CANDIDATES, ADAPTED = "candidates", "adapted"
#: Form of the report; a report in another form is replaced.
FORM = 1
_MOST_BYTES = 1 << 26
_FILE = re.compile(r"((candidates|adapted)/)?[^/\\]{1,250}\.svg")
_NO_MODEL = " (changed in size, lines and paint, by no model)"

Entry = dict[str, Any]


class Results:
    """The report and the files of a folder.

    Args:
        folder: exists, and is held by `results_folder`.
        settings: what the results depend on; results of other settings are replaced.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._own = OutputFolder(folder)
        self.settings = json.loads(json.dumps(settings))
        before = _read(folder / REPORT) if self._own.is_own(REPORT) else {}
        is_same = before.get("settings") == self.settings
        #: Thing -> its entry in the report.
        self.entries: dict[str, Entry] = {}
        #: Number of things of an earlier call with other settings, which are replaced.
        self.num_replaced = 0
        for entry in before.get("things", ()):
            if is_same and self._is_whole(entry):
                self.entries[entry["name"]] = entry
            else:
                self.num_replaced += 1
        self._writing: list[str] = []
        #: Further facts for the report.
        self.notes: dict[str, Any] = {}
        self._gone = set(_files(before)) - set(_files({"things": list(self.entries.values())}))

    def _is_whole(self, entry: Entry) -> bool:
        return all((self.folder / name).is_file() for name in _files({"things": [entry]}))

    def refuse_foreign(self, stems: Sequence[str]) -> None:
        """Raise `FileError` if somebody else's files have the names of these results."""
        self._own.refuse(*_names_of(stems))

    def clear(self) -> None:
        """Remove the files of an earlier call with other settings; those that were changed since stay."""
        for name in self._gone:
            self._own.remove(name)
        self._gone = set()

    def add(self, entry: Entry, files: Mapping[str, str]) -> None:
        """Write a thing's files, then the report."""
        self.clear()
        self._writing = sorted(files)
        self.write()  # an interruption leaves files that the next call knows
        for name, text in files.items():
            make_folder((self.folder / name).parent)
            write_text(self.folder / name, text)
        for name in set(_files({"things": [self.entries.get(entry["name"], {})]})) - set(files):
            self._own.remove(name)
        self._writing = []
        self.entries[entry["name"]] = entry
        self.write()

    def write(self) -> None:
        """Write the report and the licences."""
        things = list(self.entries.values())
        report: dict[str, Any] = {"form": FORM, "settings": self.settings, "things": things}
        report |= self.notes
        if self._writing:
            report["writing"] = self._writing
        write_text(self.folder / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        credited = [
            (one["file"] + remark, [credit_in(own) for own in one["credits"]])
            for entry in things
            for one, remark in ((entry, ""), (entry.get("adapted") or {}, _NO_MODEL))
            if one.get("file")
        ]
        write_text(self.folder / LICENCES, licences_text(credited))

    def picture(self, name: str, content: bytes) -> Path:
        """Write a picture; return its path."""
        path = self.folder / name
        write_bytes(path, content)
        return path


@contextmanager
def results_folder(folder: Path, own: Path | None, names: Sequence[str]) -> Iterator[None]:
    """Context in which no other command completes into the folder.

    Args:
        folder: made if it is missing.
        own: the set's folder, which must not be it or around it; None: the set has none.
        names: of the things.

    Raises:
        FileError: the folder is not writable, is inside the set's folder, or has somebody else's files under the names of
            results.
    """
    if own is not None and folder.absolute().resolve().is_relative_to(own.resolve()):
        raise FileError(
            str(folder),
            f"is inside the set {own}, which would then have the results, too",
            "name a folder elsewhere (-o)",
        )
    place = OutputFolder(folder, REPORT, SHEET, LICENCES)
    # now, before a model is opened; `Results` checks what the report makes of these names
    known = {entry["name"] for entry in _read(folder / REPORT).get("things", ())}
    place.refuse(*_names_of(file_names([name for name in names if name not in known])))
    busy = CM3Error(
        str(folder),
        "another process is completing a set into this folder",
        "wait for it, or name another folder (-o)",
    )
    with held_folder(folder, busy):
        yield


def _names_of(stems: Sequence[str]) -> list[str]:
    """The files of things, as patterns."""
    return [
        name
        for stem in stems
        for name in (f"{stem}.svg", f"{CANDIDATES}/{stem}-[0-9]*.svg", f"{ADAPTED}/{stem}.svg")
    ]


def _read(path: Path) -> dict[str, Any]:
    """An earlier report; {} if there is none that can be used."""
    try:
        with open_regular(path) as file:
            content = file.read(_MOST_BYTES)
        report = json.loads(content)
        if report["form"] != FORM:
            return {}
        for entry in report["things"]:
            if not isinstance(entry["name"], str):
                return {}
            for credit in (*entry["credits"], *(entry.get("adapted") or {}).get("credits", ())):
                credit_in(credit)
        list(_files(report))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    return dict(report)


def _files(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files that a report names, as far as they are names of files in the folder."""
    every = list(report.get("writing", ()))
    for entry in report.get("things", ()):
        every += [entry.get("file"), *(one["file"] for one in entry.get("candidates", ()))]
        every.append((entry.get("adapted") or {}).get("file"))
    for name in every:
        if isinstance(name, str) and _FILE.fullmatch(name) and ".." not in name:
            yield name


def credits_json(credits: list[Credit]) -> list[dict[str, Any]]:
    """Credits as they stand in the report."""
    return [one.as_json() for one in credits]
