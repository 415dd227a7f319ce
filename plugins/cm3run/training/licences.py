"""Licences of what a model is trained on and retrieves from: counted, stored with the run, and refused where
the recipe does not list them (`train.licences`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cm3core.errors import CM3Error, DataError
from cm3core.files import write_text
from cm3core.interfaces.dataset import DocumentSource, Provenance
from cm3run.checkpoint.layout import PROVENANCE, provenance_file

_FORMAT = "cm3 provenance 1"


def counted(source: DocumentSource) -> list[dict[str, Any]]:
    """Each licence, source and attribution among the documents with their number, most first."""
    numbers = source.provenances()
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], str(item[0])))
    return [{**provenance.stated(), "documents": number} for provenance, number in ordered]


def licences_of(source: DocumentSource) -> dict[str, int]:
    """Licence -> number of documents that have it, most first."""
    numbers: Counter[str] = Counter()
    for provenance, number in source.provenances().items():
        numbers[provenance.licence] += number
    return dict(sorted(numbers.items(), key=lambda item: (-item[1], item[0])))


def check_licences(source: DocumentSource, allowed: Sequence[str]) -> None:
    """Raise `DataError` for the first document whose licence is not in the list; an empty list allows all.

    A licence that is not stated is "unknown"."""
    if not allowed or all(one.licence in allowed for one in source.provenances()):
        return
    for index in range(len(source)):
        licence = source.provenance(index).licence
        if licence not in allowed:
            raise DataError(
                f"document {source.id(index)!r}",
                f"has the licence {licence!r}; train.licences allows {', '.join(allowed)}",
                "leave such documents out of the data set, or add the licence to train.licences",
            )


def write_provenance(folder: Path, source: DocumentSource, memory: DocumentSource | None) -> None:
    """Write what a run is trained on, and what it retrieves from, to its folder."""
    values = {
        "format": _FORMAT,
        "trained_on": counted(source),
        "memory": None if memory is None else counted(memory),
    }
    write_text(folder / PROVENANCE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def of_documents(memory: DocumentSource, ids: Sequence[str]) -> dict[str, Provenance]:
    """Provenance of documents of a memory by their ids; those that it does not hold are left out."""
    wanted = set(ids)
    return {
        memory.id(index): memory.provenance(index)
        for index in range(len(memory))
        if memory.id(index) in wanted
    }


def stored_provenance(checkpoint: Path) -> dict[str, Any]:
    """What `write_provenance` wrote for the run of a checkpoint, or for that of an exported model; nothing where
    it is not there."""
    if (path := provenance_file(checkpoint)) is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CM3Error(str(path), f"is not JSON ({error})", "remove it") from error
    return found if isinstance(found, dict) else {}
