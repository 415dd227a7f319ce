"""Data set `tuxpaint`: the kit on the installed stamps, stamps by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3core.document import text_of
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.datasets.tuxpaint import STAMPS, TuxPaintSourceConfig
from messages import tells
from picture_files import found, picture, write


@pytest.mark.skipif(not Path(STAMPS).is_dir(), reason="apt install tuxpaint-stamps-default")
class TestInstalledStamps(DocumentSourceContract):
    max_examples = 3

    def make(self) -> DocumentSource:
        return TuxPaintSourceConfig(split="valid", language="de").build()


def test_stamps_by_hand(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "animals/owl.png": picture(1),
            "animals/owl.txt": "An owl.\nde.utf8=Eine Eule.\n",
            "animals/owl_mirror.png": b"",
            "animals/ant.png": picture(2),
            "animals/ant.txt": "An ant.\n",
            "symbols/a.png": picture(3),
            "symbols/a.txt": "A",
        },
    )
    source = TuxPaintSourceConfig(path=str(tmp_path), split="all").build()
    assert [(source.id(i), text_of(source.document(i))) for i in range(len(source))] == [
        ("animals/ant", "An ant."),
        ("animals/owl", "An owl."),
    ]
    german = TuxPaintSourceConfig(
        path=str(tmp_path), split="all", language="de", symbols=True
    ).build()
    assert list(german.texts()) == ["Eine Eule."]
    assert found(german, tmp_path) == [
        ("animals/ant.txt", "has no caption in 'de'", "choose another dataset.language"),
        ("symbols/a.txt", "has no caption in 'de'", "choose another dataset.language"),
    ]


def test_stamps_that_are_not_installed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        TuxPaintSourceConfig(path=str(tmp_path / "stamps")).build()
    assert tells(caught.value, f"dataset.path {tmp_path}/stamps: there is no such folder; Tux")
