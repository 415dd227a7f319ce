"""`table`: the true forms of what others write, and what is skipped with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cm3core.errors import DataError, RecipeError
from cm3core.images import save_png
from cm3core.interfaces import TaskSource
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.datasets.table import TableSourceConfig
from cm3plugins.tasks.bundled import CaptionConfig, EditConfig, StructureConfig
from messages import tells


def picture(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(path, np.full((4, 4, 3), grey, np.uint8))


def table(path: Path, **keys):
    keys.setdefault("cache_dir", str(path.parent / "cache"))
    return TableSourceConfig(path=str(path), split="all", **keys).build()


def imagefolder(folder: Path) -> Path:
    for place in range(3):
        picture(folder / f"{place}.png", place)
    path = folder / "metadata.csv"
    path.write_text('file_name,text\n0.png,a bell\n1.png,"a ""red"", key"\n2.png,a lock\n')
    return path


COLUMNS = {"image": "file_name", "caption": "text"}


def test_imagefolder(tmp_path: Path) -> None:
    source = table(imagefolder(tmp_path), columns=COLUMNS)
    assert len(source) == 3
    record = source.record(1)
    assert record["caption"] == 'a "red", key'
    assert record["image"].load()[0, 0].tolist() == [1, 1, 1]
    document = TaskSource(source, CaptionConfig().build()).document(1)
    assert document[2].text == 'a "red", key'


def test_controlnet_pairs(tmp_path: Path) -> None:
    """fill50k: JSON lines in a file called prompt.json."""
    for place in range(2):
        picture(tmp_path / "source" / f"{place}.png", 0)
        picture(tmp_path / "target" / f"{place}.png", 9)
    lines = [
        {
            "source": f"source/{place}.png",
            "target": f"target/{place}.png",
            "prompt": f"circle {place}",
        }
        for place in range(2)
    ]
    (tmp_path / "prompt.json").write_text("\n".join(map(json.dumps, lines)))
    source = table(
        tmp_path / "prompt.json",
        columns={"condition": "source", "caption": "prompt", "image": "target"},
        pictures=["condition", "image"],
        constants={"feature": "canny edge features"},
    )
    document = TaskSource(source, StructureConfig().build()).document(0)
    assert document[0].text == "Make high quality image from canny edge features"
    assert [document[1].load()[0, 0, 0], document[3].load()[0, 0, 0]] == [0, 9]
    assert document[3].response


def test_edits_in_a_list_with_alternatives(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 0)
    picture(tmp_path / "b.png", 9)
    row = {"img_id": 7, "source_img": "a.png", "instruction": ["x", "y"], "target_img": "b.png"}
    (tmp_path / "edits.json").write_text(json.dumps([row, 5]))
    source = table(
        tmp_path / "edits.json",
        columns={"source": "source_img", "instruction": "instruction", "target": "target_img"},
        pictures=["source", "target"],
        id_column="img_id",
    )
    assert source.id(0) == "7"
    assert [one.cause for one in source.skipped] == ["is a number, not an object"]
    tuned = TaskSource(source, EditConfig().build())
    drawn = {tuned.document(0, np.random.default_rng(seed))[2].text for seed in range(20)}
    assert drawn == {"x", "y"}


def test_tabs(tmp_path: Path) -> None:
    """With a byte order mark and CRLF, as spreadsheets write them; commas need no quotes."""
    imagefolder(tmp_path)
    path = tmp_path / "t.tsv"
    path.write_bytes(b"\xef\xbb\xbffile_name\ttext\r\n0.png\ta bell, red\r\n1.png\ta\tb\r\n")
    source = table(path, columns=COLUMNS)
    assert [source.record(place)["caption"] for place in range(len(source))] == ["a bell, red"]
    [bad] = source.skipped
    assert (bad.place, bad.cause) == (f"{path}, line 3", "has 3 fields, but the header has 2")
    assert bad.next_step == "quote texts that contain tabs"


def test_a_column_twice(tmp_path: Path) -> None:
    """Which of the two is meant can't be known."""
    path = imagefolder(tmp_path)
    path.write_text("file_name,text,text\n0.png,one,two\n")
    with pytest.raises(DataError) as error:
        table(path, columns=COLUMNS)
    assert tells(error.value, f"{path}, line 1: has two columns 'text'")
    assert len(table(path, columns={"image": "file_name"})) == 1  # it is not asked for


def test_a_column_that_there_is_not(tmp_path: Path) -> None:
    path = imagefolder(tmp_path)
    with pytest.raises(DataError) as error:
        table(path, columns=COLUMNS | {"image": "file"})
    assert tells(error.value, f"{path}: has no column 'file' ... 'image' ... file_name")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "file,words\n0.png,a\n"),
        ("a.tsv", "file\twords\n0.png\ta\n"),
        ("a.json", '[5, {"file": "0.png", "words": "a"}]'),
        ("a.jsonl", '{"file": "0.png", "words": "a"}\n'),
    ],
)
def test_columns_to_map_are_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RecipeError) as error:
        TableSourceConfig(path=str(tmp_path / name)).check()
    assert tells(error.value, "dataset.columns: is empty ... dataset.columns")


def test_a_number_that_is_none_is_empty(tmp_path: Path) -> None:
    picture(tmp_path / "0.png", 0)
    rows = [{"image": "0.png", "n": number} for number in (1, 2.5, float("nan"))]
    (tmp_path / "n.json").write_text(json.dumps(rows))
    source = table(tmp_path / "n.json", columns={"image": "image", "caption": "n"})
    assert [source.record(place)["caption"] for place in range(len(source))] == ["1", "2.5"]
    assert [one.cause for one in source.skipped] == ["its column 'n' is empty, not a text"]


def test_an_object_of_records(tmp_path: Path) -> None:
    """One message, not one for each line."""
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"data": [{"image": "0.png", "text": "a"}]}, indent=1))
    with pytest.raises(DataError) as error:
        table(path, columns={"image": "image", "caption": "text"})
    assert tells(error.value, f"{path}: is a single object, not a list of records")


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ("0.png,", "its column 'text' is empty, not a text"),
        ("9.png,a", "there is no such file"),
        ("0.png", "its column 'text', needed for the field 'caption', is empty"),
        ("0.png,a cat, asleep", "has 3 fields, but the header has 2"),
        ("http://x/0.png,a", "'image' is an address: 'http://x/0.png'"),
    ],
)
def test_bad_records_are_skipped_with_their_reason(tmp_path: Path, row: str, cause: str) -> None:
    path = imagefolder(tmp_path)
    path.write_text(path.read_text() + row + "\n")
    source = table(path, columns=COLUMNS)
    assert len(source) == 3
    [bad] = source.skipped
    assert bad.place.startswith(f"{path}, line 5")
    assert cause in bad.cause


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"columns": {}}, "dataset.columns: is empty"),
        (
            {"columns": {"caption": "text"}},
            "dataset.pictures: lists the field 'image', which has no",
        ),
        (
            {"columns": COLUMNS, "constants": {"caption": "x"}},
            "dataset.constants.caption: is also a column",
        ),
    ],
)
def test_what_is_refused(keys, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        TableSourceConfig(path="x.csv", **keys).check()
    assert str(error.value).startswith(message)


class TestContract(DocumentSourceContract):
    max_examples = 5

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        type(self).path = imagefolder(tmp_path)

    def make(self):
        return table(type(self).path, columns=COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "file_name;text\n0.png;a bell\n1.png;a red, key\n",
            "a.csv, line 1: its columns are separated by semicolons, not commas\n"
            "  next: save it with commas",
        ),
        (
            "a.csv",
            "file_name\ttext\n0.png\ta bell\n",
            "a.csv, line 1: its columns are separated by tabs, not commas\n"
            "  next: name it .tsv, or save it with commas",
        ),
        (
            "a.tsv",
            "file_name|text\n0.png|a bell\n",
            "a.tsv, line 1: its columns are separated by bars, not tabs\n  next: save it with tabs",
        ),
    ],
)
def test_another_separator_is_said_once(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    imagefolder(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as raised:
        table(tmp_path / name, columns=COLUMNS)
    assert str(raised.value) == f"{tmp_path}/{message}"


def test_a_column_whose_name_has_a_semicolon(tmp_path: Path) -> None:
    picture(tmp_path / "0.png", 1)
    (tmp_path / "a.csv").write_text("file_name;text\n0.png\n")
    assert len(table(tmp_path / "a.csv", columns={"image": "file_name;text"})) == 1


def test_the_rows_of_one_picture_are_in_one_split(tmp_path: Path) -> None:
    """By the bytes of its file, whatever its name; and a picture's first row stays where it is without the others.
    With ids 2, 3, ... and a half held out, rows of one picture fell apart before."""
    for place in range(8):
        picture(tmp_path / f"{place}.png", place)
        picture(tmp_path / f"copy-{place}.png", place)
    names = [f"{place}.png" for place in range(8)] * 3 + [f"copy-{place}.png" for place in range(8)]
    path = tmp_path / "several.csv"

    def split_ids(rows: list[str], split: str) -> list[str]:
        lines = [f"{name},text {number}\n" for number, name in enumerate(rows)]
        path.write_text("file_name,text\n" + "".join(lines))
        source = TableSourceConfig(
            path=str(path),
            split=split,
            valid=0.5,
            columns=COLUMNS,
            cache_dir=str(tmp_path / "cache"),
        ).build()
        return [source.id(index) for index in range(len(source))]

    once, valid = split_ids(names[:8], "valid"), split_ids(names, "valid")
    assert 0 < len(once) < 8
    assert valid == [str(int(name) + 8 * turn) for turn in range(4) for name in once]
    assert len(split_ids(names, "train")) == 32 - len(valid)
    source = table(path, columns=COLUMNS)
    assert [source.group(index) for index in range(32)] == [
        str(2 + place) for place in range(8)
    ] * 4


def test_an_edit_is_with_what_shows_either_of_its_pictures(tmp_path: Path) -> None:
    for place in range(4):
        picture(tmp_path / f"{place}.png", place)
    rows = [("0", "1"), ("2", "3"), ("1", "2"), ("3", "0")]
    path = tmp_path / "edits.json"
    path.write_text(json.dumps([{"s": f"{a}.png", "t": f"{b}.png"} for a, b in rows]))
    source = table(path, columns={"source": "s", "target": "t"}, pictures=["source", "target"])
    # the third shares a picture with the first, and the fourth with the second before it does with the first
    assert [source.group(index) for index in range(4)] == ["0", "1", "0", "1"]
