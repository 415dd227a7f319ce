"""Licences that files state of pictures: rows, sidecars, folders; what contradicts itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource, Provenance
from cm3plugins.datasets.stated_licences import LicenceFiles, stated
from cm3plugins.datasets.webdataset import WebDatasetSourceConfig
from cm3run.training.data_notes import counted
from messages import tells
from picture_files import folder, picture, write, write_tar

CC_BY = "SPDX-License-Identifier: CC-BY-4.0\n"


def licences(source: DocumentSource) -> dict[str, Provenance]:
    return {source.id(i): source.provenance(i) for i in range(len(source))}


def test_files_beside_pictures(tmp_path: Path) -> None:
    """The nearest one counts, the picture's own first; a licence's text alone states nothing."""
    names = ("a", "x/b", "x/y/c", "x/y/d", "z/e")
    pictures = {f"{name}.png": picture(place) for place, name in enumerate(names)}
    texts = {f"{name}.txt": name for name in names}
    write(
        tmp_path,
        {
            **pictures,
            **texts,
            "LICENSE": f"# {CC_BY}SPDX-FileCopyrightText: 2024 Rex\nSPDX-FileCopyrightText: Ada\n",
            "x/LICENSE.txt": "The MIT licence, which says nothing of these files",
            "x/y/LICENSE.md": "<!-- SPDX-License-Identifier: CC0-1.0\n-->",
            "x/y/d.png.license": "SPDX-License-Identifier: MIT\n",
        },
    )
    rex = Provenance("CC-BY-4.0", "", "2024 Rex, Ada")
    assert licences(folder(tmp_path)) == {
        "a.png": rex,
        "x/b.png": rex,
        "x/y/c.png": Provenance("CC0-1.0"),
        "x/y/d.png": Provenance("MIT"),
        "z/e.png": rex,
    }
    assert counted(folder(tmp_path))[0]["documents"] == 3


def test_rows_come_before_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.png": picture(1),
            "b.png": picture(2),
            "c.png": picture(3),
            "LICENSE": CC_BY,
            "captions.csv": "image,text,license,source\na.png,a,MIT,web\na.png,also a,,\n"
            "b.png,b,,\nc.png,c,MIT,\nc.png,see,ISC,\n",
        },
    )
    source = folder(tmp_path)
    assert licences(source) == {
        "a.png": Provenance("MIT", "web"),
        "b.png": Provenance("CC-BY-4.0"),
        "c.png": Provenance("MIT"),
    }
    assert [(one.place, one.cause) for one in source.skipped] == [
        (
            f"{tmp_path / 'captions.csv'}:6",
            "states another licence, source or attribution for 'c.png' than an earlier row",
        )
    ]


def test_a_tars_json_states_them(tmp_path: Path) -> None:
    rows: dict[str, Any] = {
        "a": {"caption": "a", "licence": "MIT", "attribution": "me"},
        "b": {"license": "CC0-1.0"},
        "c": {"caption": "c"},
        "d": {"caption": "d", "licence": ["MIT"]},
    }
    members: dict[str, Any] = {}
    for place, (name, row) in enumerate(rows.items()):
        members |= {f"{name}.png": picture(place), f"{name}.json": json.dumps(row)}
    members |= {"b.txt": "b", "e.png": picture(9), "e.txt": "e", "e.json": "{"}
    path = write_tar(tmp_path / "0.tar", members)
    source = WebDatasetSourceConfig(path=str(path), split="all").build()
    assert licences(source) == {
        "a": Provenance("MIT", "", "me"),
        "b": Provenance("CC0-1.0"),
        "c": Provenance(),
        "e": Provenance(),
    }
    assert [one.cause for one in source.skipped] == ["'licence' is a list, not a non-empty text"]


def test_what_contradicts_itself() -> None:
    assert stated("x", {"licence": "MIT", "license": "MIT"}) == Provenance("MIT")
    with pytest.raises(DataError) as caught:
        stated("line 3", {"licence": "MIT", "license": "ISC"})
    assert tells(caught.value, "line 3: states two licences: ISC ... MIT")


def test_a_file_of_two_licences_or_outside(tmp_path: Path) -> None:
    inner = tmp_path / "data"
    write(inner, {"a.png": picture(1), "a.txt": "a", "LICENSE": f"{CC_BY}{CC_BY}"})
    assert LicenceFiles(inner, inner).of("a.png").licence == "CC-BY-4.0"
    (inner / "LICENSE").write_text(f"{CC_BY}SPDX-License-Identifier: MIT\n")
    [skipped] = folder(inner).skipped
    assert (skipped.place, skipped.cause, skipped.next_step) == (
        str(inner / "LICENSE"),
        "states 2 licences: CC-BY-4.0, MIT",
        "write one SPDX expression, such as MIT OR Apache-2.0",
    )
    (inner / "LICENSE").unlink()
    (tmp_path / "secret").write_text(CC_BY)
    (inner / "LICENSE").symlink_to(tmp_path / "secret")
    [skipped] = folder(inner).skipped
    assert "is outside the data set's folder" in skipped.cause
