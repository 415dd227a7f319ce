"""What `cm3 start` finds in a folder, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cm3apps.start.survey import SVG_SIZE, Survey, reader_of, scripts_of
from cm3core.errors import DataError
from cm3core.images import png_bytes
from messages import tells
from picture_files import picture, write

BAR = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 1"><rect width="2" height="1"/></svg>'


def drawn(top: int, left: int, side: int, *, colour: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    """An L of three squares on a white page of 40 x 30 pixels."""
    page = np.full((30, 40, 3), 255, np.uint8)
    page[top : top + 2 * side, left : left + side] = colour
    page[top + side : top + 2 * side, left : left + 2 * side] = colour
    return png_bytes(page)


def blank(level: int) -> bytes:
    return png_bytes(np.full((20, 20, 3), level, np.uint8))


def test_what_is_found(tmp_path: Path) -> None:
    files = {
        "a.png": drawn(2, 2, 8),
        "copy of a.png": drawn(2, 2, 8),
        "moved.png": drawn(10, 20, 8),
        "red.png": drawn(2, 2, 8, colour=(255, 0, 0)),
        "white.png": blank(255),
        "grey.png": blank(99),
        "noise.jpg": picture(1, "JPEG", (64, 48)),
        "broken.png": b"no picture",
        "сова.png": picture(2),
    }
    survey = Survey.of(reader_of(write(tmp_path, files)), 0.25)
    assert len(survey) == 8
    assert [Path(one.place).name for one in survey.skipped] == ["broken.png"]
    assert [Path(one).name for one in survey.blank] == ["grey.png", "white.png"]
    assert survey.num_copies == 1
    assert survey.looks == [2]  # a and moved; the copy has the same bytes
    assert survey.size_in_words == "12 x 9 to 64 x 48 pixels, median 40 x 30"
    assert survey.scripts == {"LATIN": 7, "CYRILLIC": 1}
    assert survey.words["a"] == 2
    alike = {one.id: group for one, group in zip(survey.records, survey.groups, strict=True)}
    assert alike["a.png"] == alike["copy of a.png"] == alike["moved.png"] != alike["red.png"]
    splits = survey.split(survey.groups)
    assert survey.num_valid == splits.count("valid")
    across, held = survey.num_across
    assert 0 <= across <= held <= 8


@pytest.mark.parametrize(
    ("files", "name", "keys", "reason"),
    [
        ({"a.png": b"", "a.txt": "x"}, "folder", {}, "from .txt files beside 1 pictures"),
        (
            {"a.png": b"", "b.png": b"", "a.txt": "x"},
            "folder",
            {"names_as_captions": True},
            "from .txt files beside 1 pictures; from file and folder names where none is written",
        ),
        ({"a.png": b"", "captions.csv": "image,text\n"}, "folder", {}, "from captions.csv"),
        (
            {"a.svg": BAR},
            "folder",
            {"names_as_captions": True, "svg_size": SVG_SIZE},
            f"from file and folder names where none is written; SVG files are drawn at {SVG_SIZE} pixels",
        ),
        (
            {"a.png": b"", "a.txt": "A frog.\nde.utf8=Ein Frosch.\n"},
            "tuxpaint",
            {},
            "the first line of each .txt, which holds a caption in each language, as Tux Paint's do",
        ),
        (
            {"a.png": b"", "metadata.csv": "file_name,text\na.png,x\n"},
            "table",
            {"columns": {"caption": "text", "image": "file_name"}},
            "from metadata.csv",
        ),
    ],
)
def test_which_data_set_reads_it(
    tmp_path: Path, files: dict[str, bytes | str], name: str, keys: dict[str, object], reason: str
) -> None:
    reader = reader_of(write(tmp_path, files))
    assert (reader.name, reader.keys, reader.reason) == (name, keys, reason)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_metadata_is_read(tmp_path: Path, form: str) -> None:
    row = {"file_name": "a.png", "text": "an L"}
    text = "file_name,text\na.png,an L\n" if form == "csv" else json.dumps(row) + "\n"
    write(tmp_path, {"a.png": drawn(2, 2, 8), f"metadata.{form}": text})
    survey = Survey.of(reader_of(tmp_path), 0.05)
    assert survey.captions == ["an L"]
    assert survey.sizes == [(40, 30)]


def test_drawings_have_the_size_that_they_are_drawn_at(tmp_path: Path) -> None:
    survey = Survey.of(reader_of(write(tmp_path, {"bar.svg": BAR})), 0.05)
    assert survey.sizes == [(SVG_SIZE, SVG_SIZE)]
    assert survey.blank == []


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        reader_of(tmp_path / "nowhere")
    assert tells(caught.value, "... is no folder ... give the folder of your pictures")
    write(tmp_path, {"a.png": b"no picture"})
    with pytest.raises(DataError) as caught:
        Survey.of(reader_of(tmp_path), 0.05)
    assert tells(caught.value, "... no picture can be read: is not a picture ...")


def test_scripts() -> None:
    assert set(scripts_of("1 2 !")) == set()
    assert set(scripts_of("Eule: フクロウ")) == {"LATIN", "KATAKANA"}
