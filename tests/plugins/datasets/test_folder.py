"""Data set `folder`: the kit, every form of captions, every kind of bad file or row with its exact
message."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cm3core.document import Image, Text
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.datasets.folder import FolderSourceConfig
from messages import tells
from picture_files import folder, found, picture, write
from profiles import examples


class TestFolder(DocumentSourceContract):
    root: Path
    pytestmark = pytest.mark.usefixtures("samples")
    max_examples = examples(5)

    def make(self) -> DocumentSource:
        return FolderSourceConfig(path=str(self.root / "folder"), split="all").build()


def test_folder_by_hand(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b.jpg": picture(1, "JPEG"),
            "b.txt": "\ufeffa bee\n\n  another bee \n",
            "x/a.webp": picture(2, "WEBP"),
            "x/a.txt": "a wasp",
            "README.txt": "not a caption",
            ".hidden/c.png": b"",
            "x/.d.png": b"",
        },
    )
    source = folder(tmp_path)
    assert [source.id(i) for i in range(len(source))] == ["b.jpg", "x/a.webp"]
    assert source.skipped == []
    text, image = source.document(0)
    assert text == Text("a bee")
    assert isinstance(image, Image)
    assert image.load().shape == (9, 12, 3)
    assert {source.document(0, np.random.default_rng(seed))[0].text for seed in range(20)} == {
        "a bee",
        "another bee",
    }
    assert list(source.texts()) == ["a bee", "another bee", "a wasp"]


TABLE = 'image,text\nb.png,a bee\nx/a.png,"a wasp, asleep"\nb.png,another bee\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", TABLE),
        ("captions.csv", "\ufeff" + TABLE.replace("\n", "\r\n")),
        (
            "captions.tsv",
            "extra\ttext\timage\n1\ta bee\t./b.png\n\n2\ta wasp, asleep\tx/a.png\n3\tanother "
            "bee\tb.png\n",
        ),
        ("captions.json", '{"b.png": ["a bee", "another bee"], "x/a.png": "a wasp, asleep"}'),
        (
            "captions.json",
            '[{"image": "b.png", "text": ["a bee", "another bee"]}, {"image": "x/a.png", "text": "a wasp, asleep"}]',
        ),
        (
            "captions.jsonl",
            '{"image": "b.png", "text": ["a bee", "another bee"]}\n{"image": "x/a.png", "text": "a wasp, asleep"}\n',
        ),
    ],
)
def test_captions_files(tmp_path: Path, name: str, content: str) -> None:
    write(tmp_path, {"b.png": picture(1), "x/a.png": picture(2), name: content})
    source = folder(tmp_path)
    assert source.skipped == []
    assert list(source.texts()) == ["a bee", "another bee", "a wasp, asleep"]
    assert [source.id(i) for i in range(2)] == ["b.png", "x/a.png"]


def test_bad_files_of_a_folder(tmp_path: Path) -> None:
    png, jpeg = picture(0), picture(0, "JPEG", (64, 64))
    damaged = bytearray(png)
    damaged[-20] ^= 1
    write(tmp_path, {name + ".txt": "a text" for name in ("0", "1", "2", "3", "4", "5", "7")})
    write(
        tmp_path,
        {
            "0.png": png,
            "1.png": b"",
            "2.png": b"<html>404</html>",
            "3.png": png[:-30],
            "4.png": bytes(damaged),
            "5.jpg": jpeg[:-300],
            "6.png": png,
            "7.heic": b"",
            "8.png": png,
            "8.txt": " \n",
            "9.png": png,
            "9.txt": b"\xff",
        },
    )
    source = folder(tmp_path)
    assert len(source) == 1
    kinds = "PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM"
    advice = "write NAME.txt next to each NAME.png, or one captions.csv with the header image,text"
    assert found(source, tmp_path) == [
        ("1.png", "is empty (0 bytes)", "replace or remove it"),
        ("2.png", "is not a picture", f"convert it to one of {kinds}"),
        (
            "3.png",
            "is truncated: the last chunk of a PNG (IEND) is missing",
            "replace or remove it",
        ),
        ("4.png", "is damaged: wrong checksum of chunk IDAT at byte 33", "replace or remove it"),
        ("5.jpg", "is truncated: the end marker of the JPEG is missing", "replace or remove it"),
        ("6.png", "has no caption: there is no 6.txt next to it", advice),
        ("7.heic", "pictures of type .heic are not supported", "convert it to PNG or JPEG"),
        ("8.txt", "the caption is empty", "write one, or remove the record"),
        ("9.txt", "is not UTF-8 (byte 0)", "save it as UTF-8"),
    ]


def test_bad_rows_of_a_captions_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.png": picture(0),
            "b.png": picture(1),
            "c.png": picture(2),
            "captions.jsonl": "\n".join(
                [
                    '{"image": "a.png", "text": "fine"}',
                    "{",
                    "[]",
                    '{"image": "b.png", "text": 3}',
                    '{"text": "x"}',
                    '{"image": null, "text": "x"}',
                    '{"image": "gone.png", "text": "x"}',
                    r'{"image": "a.png", "text": "\ud800"}',
                ]
            ),
        },
    )
    source = folder(tmp_path)
    assert list(source.texts()) == ["fine"]
    where = "captions.jsonl"
    assert found(source, tmp_path) == [
        (
            f"{where}:2",
            "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 "
            "(char 1)",
            "correct the line",
        ),
        (f"{where}:3", "is a list, not an object", 'write {"text": ..., "image": ...}'),
        (
            f"{where}:4",
            "a caption is a number, not a text",
            "write it in quotes, or a list of texts",
        ),
        (f"{where}:5", "has no 'image'", "give each row 'image' and 'text'"),
        (f"{where}:6", "'image' is null, not a path", "write the picture's path inside the folder"),
        (
            f"{where}:8",
            "the caption is not valid Unicode",
            "remove the lone surrogate (\\ud800 to \\udfff)",
        ),
        ("c.png", f"has no caption: it is not in {where}", f"add a row to {where}"),
        (
            f"{where}:7",
            f"there is no picture 'gone.png' in {tmp_path}",
            "correct the path, or remove the row",
        ),
    ]


def test_rows_of_another_length(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"a.png": picture(0), "captions.csv": "image,text\na.png,red, round\na.png,fine\n"},
    )
    source = folder(tmp_path)
    assert found(source, tmp_path) == [
        (
            "captions.csv:2",
            "has 3 fields, but the header has 2",
            "quote captions that contain commas",
        )
    ]
    assert len(source) == 1


@pytest.mark.parametrize(
    ("files", "cause", "next_step"),
    [
        ({}, "there is no such folder", "correct dataset.path"),
        (
            {"pictures/note.md": "x"},
            "holds no picture (.png, .jpg, .jpeg, .webp, .gif, .bmp, .tif, .tiff)",
            "correct dataset.path",
        ),
        (
            {"pictures/0.tar": ""},
            "holds no picture (.png, .jpg, .jpeg, .webp, .gif, .bmp, .tif, .tiff)",
            "read its tars: dataset=webdataset dataset.path={pictures}",
        ),
        (
            {"pictures/m.jsonl": ""},
            "holds no picture (.png, .jpg, .jpeg, .webp, .gif, .bmp, .tif, .tiff)",
            "name the manifest: dataset=jsonl dataset.path={pictures}/m.jsonl",
        ),
        (
            {"pictures/t.parquet": ""},
            "holds no picture (.png, .jpg, .jpeg, .webp, .gif, .bmp, .tif, .tiff)",
            "read its tables: dataset=table dataset.path={pictures} "
            "dataset.columns='{{image: COLUMN, caption: COLUMN}}'",
        ),
        (
            {
                "pictures/a.png": picture(),
                "pictures/captions.csv": "",
                "pictures/captions.json": "",
            },
            "holds captions.json and captions.csv",
            "keep one captions file",
        ),
        (
            {"pictures/manifest.json": "{}", "pictures/train-000000.tar": ""},
            "holds no picture (.png, .jpg, .jpeg, .webp, .gif, .bmp, .tif, .tiff)",
            "read its token shards: dataset=tokens dataset.path={pictures}",
        ),
        # Hugging Face's imagefolder, whole and by splits; a table of any other name
        *(
            (
                {"pictures/a.png": picture(), f"pictures/{name}": "file_name,words\n"},
                "no picture in it has a caption in a .txt next to it",
                f"read {{pictures}}/{name}: dataset=table dataset.path={{pictures}}/{name} "
                f"dataset.columns='{{{{image: {column}, caption: COLUMN}}}}'",
            )
            for name, column in (
                ("metadata.csv", "file_name"),
                ("train/metadata.jsonl", "file_name"),
                ("labels.csv", "COLUMN"),
            )
        ),
    ],
)
def test_folders_that_are_refused(
    tmp_path: Path, files: dict[str, bytes | str], cause: str, next_step: str
) -> None:
    path = write(tmp_path, files) / "pictures"
    with pytest.raises(DataError) as caught:
        folder(path)
    assert str(caught.value) == f"dataset.path {path}: {cause}\n  next: " + next_step.format(
        pictures=path
    )


def test_captions_file_without_a_header(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(), "captions.csv": "a.png,a text\n"})
    with pytest.raises(DataError) as caught:
        folder(tmp_path)
    assert tells(caught.value, f"{tmp_path}/captions.csv:1: the header has ... 'image' ... 'text'")


def test_captions_file_with_a_column_twice(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(), "captions.tsv": "image\ttext\ttext\na.png\ta\tb\n"})
    with pytest.raises(DataError, match=r"captions\.tsv:1: has two columns 'text'"):
        folder(tmp_path)


def test_a_picture_that_is_named_twice_is_not_given_the_last_caption(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(), "captions.json": '{"a.png": "a bee", "a.png": "a wasp"}'})
    with pytest.raises(DataError) as caught:
        folder(tmp_path)
    assert tells(caught.value, f"{tmp_path}/captions.json: has the key 'a.png'")


def test_a_line_with_a_key_twice_is_skipped(tmp_path: Path) -> None:
    lines = (
        '{"image": "a.png", "text": "a bee", "text": "a wasp"}\n{"image": "b.png", "text": "x"}\n'
    )
    write(tmp_path, {"a.png": picture(), "b.png": picture(1), "captions.jsonl": lines})
    source = folder(tmp_path)
    assert list(source.texts()) == ["x"]
    assert source.skipped[0].cause == "has the key 'text' twice in one object"


def test_special_and_endless_files_are_skipped_without_being_read(tmp_path: Path) -> None:
    """A link to a device never ends, a pipe blocks, and a sparse file is as large as it likes."""
    names = ["device", "huge", "long", "pipe"]
    write(tmp_path, {f"{name}.txt": "a bee" for name in names} | {"long.png": picture(0)})
    (tmp_path / "device.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.png")
    for name, size in (("huge.png", 6 << 30), ("long.txt", 1 << 30)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    special = (
        "is a device, a pipe or a socket, not a regular file",
        "use a regular file instead",
    )
    assert found(folder(tmp_path, allow_outside=True), tmp_path) == [
        ("device.png", *special),
        (
            "huge.png",
            "has 6,442,450,944 bytes, but a picture may have at most 268,435,456",
            "reduce its size first",
        ),
        (
            "long.txt",
            "has 1073741824 bytes, above the limit of 1048576 for a caption",
            "shorten or remove it",
        ),
        ("pipe.png", *special),
    ]


def test_a_picture_that_became_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    source = folder(write(tmp_path, {"a.png": picture(0), "a.txt": "a bee"}))
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="not a regular file"):
        source.document(0)[1].load()


def test_links_out_of_the_folder_are_skipped_unless_allowed(tmp_path: Path) -> None:
    """A data set may come from anybody: a caption must not be a link to the reader's own files."""
    write(tmp_path, {"secret.txt": "a secret", "other.png": picture(1)})
    write(tmp_path / "in", {"a.png": picture(0), "b.txt": "a bee", "c.png": picture(2)})
    write(tmp_path / "in", {"real/d.txt": "a dog", "d.png": picture(3)})
    (tmp_path / "in" / "a.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "in" / "b.png").symlink_to("../other.png")
    (tmp_path / "in" / "c.txt").symlink_to("b.txt")
    (tmp_path / "in" / "d.txt").symlink_to("real/d.txt")
    (tmp_path / "link").symlink_to("in")
    for root in (tmp_path / "in", tmp_path / "link"):
        source = folder(root)
        assert list(source.texts()) == ["a bee", "a dog"]
        reason = (
            "is outside the data set's folder in",
            "copy it into the folder, or set dataset.allow_outside=true if you trust the data set",
        )
        assert found(source, tmp_path) == [
            (f"{root.name}/a.txt", *reason),
            (f"{root.name}/b.png", *reason),
        ]
        assert len(folder(root, allow_outside=True)) == 4


def test_a_captions_file_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"captions.csv": "image,text\na.png,a bee\n", "in/a.png": picture(0)})
    (tmp_path / "in" / "captions.csv").symlink_to("../captions.csv")
    with pytest.raises(DataError, match="is outside the data set's folder"):
        folder(tmp_path / "in")
    assert len(folder(tmp_path / "in", allow_outside=True)) == 1
