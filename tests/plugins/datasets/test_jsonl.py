"""Data set `jsonl`: the kit, records by hand, every kind of bad line with its exact message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm3core.document import Image, Text
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource, SkippedRecord
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.datasets.jsonl import JSONLSourceConfig
from messages import tells
from picture_files import picture, write
from profiles import examples


class TestJSONL(DocumentSourceContract):
    root: Path
    pytestmark = pytest.mark.usefixtures("samples")
    max_examples = examples(5)

    def make(self) -> DocumentSource:
        return JSONLSourceConfig(path=str(self.root / "all.jsonl"), split="all").build()


def jsonl(path: Path, **keys: Any) -> Any:
    return JSONLSourceConfig(path=str(path), **{"split": "all", **keys}).build()


def test_jsonl_by_hand(tmp_path: Path) -> None:
    lines = [
        {"id": "rex", "text": "Rex", "image": "p/a.png", "license": "CC0"},
        {"text": ["x", "y"], "image": "b.png"},
        {
            "segments": [
                {"text": "first"},
                {"image": "b.png"},
                {"image": "p/a.png"},
                {"text": "end"},
            ]
        },
    ]
    write(
        tmp_path,
        {
            "p/a.png": picture(1),
            "b.png": picture(2),
            "all.jsonl": "\n\n".join(map(json.dumps, lines)) + "\n",
        },
    )
    source = jsonl(tmp_path / "all.jsonl")
    assert source.skipped == []
    assert [source.id(i) for i in range(3)] == ["rex", "b.png", "segments-39bf612eea86"]
    kinds = [[type(segment) for segment in source.document(i)] for i in range(3)]
    assert kinds == [[Text, Image], [Text, Image], [Text, Image, Image, Text]]
    assert source.document(2)[2].key == source.document(0)[1].key


@pytest.mark.parametrize(
    ("line", "place", "cause", "next_step"),
    [
        (
            '{"text": "x"}',
            "",
            "has no 'image'",
            'write {"text": ..., "image": ...} or {"segments": [...]}',
        ),
        (
            '{"image": "a.png"}',
            "",
            "has no 'text'",
            'write {"text": ..., "image": ...} or {"segments": [...]}',
        ),
        (
            '{"text": "x", "image": 3}',
            "",
            "'image' is a number, not a path",
            "use the picture's path relative to the file",
        ),
        (
            '{"text": "x", "image": ""}',
            "",
            "'image' is empty",
            "use the picture's path relative to the file",
        ),
        (
            '{"text": "x", "image": "https://x.org/a.png"}',
            "",
            "'image' is an address: 'https://x.org/a.png'",
            "download the picture and use its path; addresses are not fetched",
        ),
        (
            '{"text": "x", "image": "no.png"}',
            ": image {root}/no.png",
            "there is no such file",
            "correct the path, or remove the record",
        ),
        (
            '{"text": null, "image": "a.png"}',
            "",
            "a caption is null, not a text",
            "write it in quotes, or a list of texts",
        ),
        (
            '{"text": ["x", true], "image": "a.png"}',
            "",
            "a caption is a boolean, not a text",
            "write it in quotes, or a list of texts",
        ),
        (
            '{"text": " ", "image": "a.png"}',
            "",
            "the caption is empty",
            "write one, or remove the record",
        ),
        (
            '{"id": 7, "text": "x", "image": "a.png"}',
            "",
            "'id' is a number, not a name",
            "use a text, or leave it out",
        ),
        (
            '{"id": "one", "text": "x", "image": "a.png"}',
            "",
            "its id 'one' is also the id of {root}/all.jsonl:1",
            "give each record a unique id",
        ),
        ('{"segments": []}', "", "'segments' is empty", "add at least one, or remove the record"),
        (
            '{"segments": {}}',
            "",
            "'segments' is an object, not a list",
            'write {"text": ..., "image": ...} or {"segments": [...]}',
        ),
        (
            '{"segments": [{"text": "x"}], "text": "x"}',
            "",
            "has 'segments' and 'text'",
            'write {"text": ..., "image": ...} or {"segments": [...]}',
        ),
        (
            '{"segments": [{"text": "x"}, {"txt": "y"}]}',
            " segments[1]",
            "is not an object with either 'text' or 'image'",
            'write {"text": ...} or {"image": ...}',
        ),
        ("NaN", "", "is a number, not an object", 'write {"text": ..., "image": ...}'),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, place: str, cause: str, next_step: str) -> None:
    good = '{"id": "one", "text": "x", "image": "a.png"}\n'
    path = write(tmp_path, {"a.png": picture(1), "all.jsonl": good + line}) / "all.jsonl"
    source = jsonl(path)
    assert len(source) == 1
    place, cause = (part.replace("{root}", str(tmp_path)) for part in (place, cause))
    assert source.skipped == [SkippedRecord(f"{path}:2{place}", cause, next_step)]


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        jsonl(tmp_path / "no.jsonl")
    assert tells(caught.value, f"dataset.path {tmp_path}/no.jsonl: there is no such file")


def test_pictures_outside_the_folder_are_skipped_unless_allowed(tmp_path: Path) -> None:
    write(tmp_path, {"out.png": picture(0), "in/a.png": picture(1)})
    (tmp_path / "in" / "link.png").symlink_to("../out.png")
    inside = str(tmp_path / "in" / "a.png")
    names = ["a.png", "../in/a.png", inside, "../out.png", str(tmp_path / "out.png"), "link.png"]
    lines = [json.dumps({"text": "t", "image": name}) for name in names]
    path = write(tmp_path, {"in/all.jsonl": "\n".join(lines)}) / "in" / "all.jsonl"
    source = jsonl(path)
    assert [source.id(i) for i in range(len(source))] == names[:3]
    assert [record.place.partition(": ")[0] for record in source.skipped] == [
        f"{path}:{number}" for number in (4, 5, 6)
    ]
    assert {(record.cause, record.next_step) for record in source.skipped} == {
        (
            f"is outside the data set's folder {tmp_path / 'in'}",
            "copy it into the folder, or set dataset.allow_outside=true if you trust the data set",
        )
    }
    assert len(jsonl(path, allow_outside=True)) == len(names)
