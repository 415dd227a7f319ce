"""`cm3 data export`: what is in the tars, reading them back, interruptions, and messages."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pictures

from cm3apps.cli import _data_export
from cm3apps.cli._data_export import sample
from cm3apps.cli.main import main
from cm3core.boxes import Boxes
from cm3core.document import Codes, Document, Image, text_of
from cm3core.errors import DataError
from cm3core.files import SUFFIX
from cm3core.interfaces.dataset import DocumentSource, Provenance
from cm3core.interfaces.task import Record
from cm3plugins.datasets.jsonl import JSONLSourceConfig
from cm3plugins.datasets.webdataset import WebDatasetSourceConfig
from cm3plugins.scenes.config import ScenesConfig
from messages import tells
from noisy_pictures import noisy_pictures
from picture_files import picture, write

NAMES = [f"{colour} {thing}" for colour in ("red", "blue") for thing in "abcdefgh"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = noisy_pictures(tmp_path, monkeypatch)
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 200, (8, 8, 3), np.uint8)
        (place / "sprites" / "noise").mkdir(parents=True, exist_ok=True)
        Pictures.fromarray(pixels).save(place / "sprites" / "noise" / f"{name}.png")
    return place


SCENES = ("dataset=scenes", "dataset.sprites=sprites", "dataset.num_scenes=20", "--quiet")


def export(*arguments: str) -> int:
    return main(["data", "export", *arguments])


def members(path: str | Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        assert all((one.mtime, one.uid, one.gid, one.uname) == (0, 0, 0, "") for one in tar)
        return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def pixels_of(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Pictures.open(io.BytesIO(content)))


def test_scenes_are_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    """Captions, pixels and licences are the same."""
    assert export("tiny", *SCENES, "-o", "out", "--shard-size", "8") == 0
    assert capsys.readouterr().out.startswith("out: split train: 20 records, ")
    assert list(files("out")) == [
        "export.json",
        *(f"scenes-00000{number}.tar" for number in range(3)),
    ]
    given = ScenesConfig(sprites="sprites", num_scenes=20).build()
    read = WebDatasetSourceConfig(path="out", split="all").build()
    assert read.skipped == []
    assert [read.id(index) for index in range(20)] == [f"{index:012d}" for index in range(20)]
    for index in range(20):
        one, other = given.record(index), read.record(index)
        assert one["caption"] == other["caption"]
        assert np.array_equal(one["image"].load(), other["image"].load())
        facts, kept = given.provenance(index), read.provenance(index)
        assert (facts.licence, facts.source) == (kept.licence, kept.source)
    values = json.loads(members("out/scenes-000000.tar")["000000000003.json"])
    assert values["id"] == "scene/train/3"
    assert values["caption"] == text_of(given.document(3))
    assert values["truth"] == json.loads(json.dumps(given.truth(3)))


def test_an_edit_has_two_pictures() -> None:
    assert export(*SCENES, "dataset.form=edit", "--num", "3", "-o", "out") == 0
    found = members("out/scenes-000000.tar")
    assert list(found)[:3] == [
        "000000000000.source.png",
        "000000000000.target.png",
        "000000000000.json",
    ]
    assert len(found) == 9
    source = ScenesConfig(sprites="sprites", num_scenes=20, form="edit").build()
    record = source.record(2)
    for name in ("source", "target"):
        read = pixels_of(found[f"000000000002.{name}.png"])
        assert np.array_equal(read, record[name].load())
    values = json.loads(found["000000000002.json"])
    assert values["instruction"] == record["instruction"]
    assert values["truth"]["kind"] == source.truth(2)["kind"]


def test_an_interrupted_export_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*SCENES, "--shard-size", "6")
    assert export(*arguments, "-o", "whole") == 0
    assert export(*arguments, "-o", "out") == 0
    (Path("out") / "scenes-000003.tar").unlink()
    # as a killed process leaves it
    left = Path("out") / f".scenes-000003.tar.0123abcd{SUFFIX}"
    left.mkdir()
    (left / "scenes-000003.tar").write_bytes(b"half")
    made: list[int] = []

    def counted(source: DocumentSource, index: int) -> Any:
        made.append(index)
        return sample(source, index)

    monkeypatch.setattr(_data_export, "sample", counted)
    assert export(*arguments, "-o", "out") == 0
    assert made == [18, 19]
    assert files("out") == files("whole")
    assert export(*arguments, "-o", "out") == 0
    assert made == [18, 19]


def test_ctrl_c_leaves_whole_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*SCENES, "--shard-size", "6")
    assert export(*arguments, "-o", "whole") == 0

    def interrupted(source: DocumentSource, index: int) -> Any:
        if index == 8:
            raise KeyboardInterrupt
        return sample(source, index)

    with monkeypatch.context() as patched:
        patched.setattr(_data_export, "sample", interrupted)
        assert export(*arguments, "-o", "out") == 130
    assert list(files("out")) == ["export.json", "scenes-000000.tar"]
    assert export(*arguments, "-o", "out") == 0
    assert files("out") == files("whole")


@pytest.mark.parametrize("other", ["dataset.seed=1", "--num=19", "--shard-size=7"])
def test_another_export_is_refused(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(*SCENES, "-o", "out") == 0
    before = files("out")
    assert export(*SCENES, "-o", "out", other) == 2
    assert tells(
        capsys.readouterr().err, "error: out/export.json: is that of other data or settings"
    )
    assert files("out") == before


def test_other_licences_are_another_export(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "pictures" / "4.png").unlink()
    assert export("pictures", "dataset.split=all", "--quiet", "-o", "out") == 0
    (place / "pictures" / "LICENSE").write_text("SPDX-License-Identifier: CC0-1.0\n")
    assert export("pictures", "dataset.split=all", "--quiet", "-o", "out") == 2
    assert tells(capsys.readouterr().err, "error: out/export.json: is that of other data")


def test_tars_of_others_stay(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place / "out", {"mine.tar": "mine"})
    assert export(*SCENES, "-o", "out") == 2
    assert tells(capsys.readouterr().err, "error: out: contains 'mine.tar' and no export.json")
    assert files("out") == {"mine.tar": b"mine"}


def test_a_changed_shard_stays(capsys: pytest.CaptureFixture[str]) -> None:
    assert export(*SCENES, "-o", "out") == 0
    (Path("out") / "scenes-000000.tar").write_bytes(b"changed")
    assert export(*SCENES, "-o", "out") == 2
    assert tells(
        capsys.readouterr().err, "error: out/scenes-000000.tar: is there already ... changed since"
    )
    assert (Path("out") / "scenes-000000.tar").read_bytes() == b"changed"


def broken(place: Path) -> str:
    """A manifest with a picture whose pixels can't be decoded, and one that is missing."""
    spoiled = bytearray(picture(2))
    at = spoiled.index(b"IDAT")
    end = at + 4 + int.from_bytes(spoiled[at - 4 : at], "big")
    spoiled[at + 4 : at + 36] = bytes(32)
    spoiled[end : end + 4] = zlib.crc32(spoiled[at:end]).to_bytes(4, "big")
    write(place / "b", {"0.png": picture(0), "1.png": bytes(spoiled)})
    records = [
        {"id": "good", "text": "one\nline", "image": "0.png", "licence": "MIT"},
        {"id": "bad", "text": "spoiled", "image": "1.png"},
        {"id": "gone", "text": "gone", "image": "2.png"},
    ]
    write(place / "b", {"all.jsonl": "\n".join(map(json.dumps, records))})
    return str(place / "b" / "all.jsonl")


def test_bad_records_are_left_out_and_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(broken(place), "dataset.split=all", "--quiet", "-o", "out") == 0
    said = capsys.readouterr().out
    assert "1 record, " in said
    assert "1 shard; left out: 1 unusable record" in said
    assert "the data set skips 1 bad record; 'cm3 data validate' lists them all" in said
    found = members("out/jsonl-000000.tar")
    assert list(found) == ["000000000000.png", "000000000000.txt", "000000000000.json"]
    assert found["000000000000.txt"] == b"one line"
    assert json.loads(found["000000000000.json"]) == {
        "caption": "one\nline",
        "id": "good",
        "licence": "MIT",
    }


def test_nothing_usable_leaves_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(broken(place))
    path.write_text(path.read_text().split("\n")[1])
    assert export(str(path), "dataset.split=all", "--quiet", "-o", "out") == 2
    assert tells(
        capsys.readouterr().err,
        "error: the data set: has no usable record (1 skipped; the first is",
    )
    assert not Path("out").exists()


def test_parts_without_names_are_numbered(place: Path) -> None:
    """A story's record has only its last picture, which would lose the others."""
    write(place / "s", {"0.png": picture(0), "1.png": picture(1)})
    parts = [{"text": "First"}, {"image": "0.png"}, {"text": "then"}, {"image": "1.png"}]
    write(place / "s", {"all.jsonl": json.dumps({"id": "story", "segments": parts})})
    source = JSONLSourceConfig(path=str(place / "s" / "all.jsonl"), split="all").build()
    found = dict(sample(source, 0))
    assert list(found) == [".image1.png", ".image3.png", ".json"]
    values = json.loads(found[".json"])
    assert (values["text0"], values["text2"]) == ("First", "then")


class Fields(DocumentSource):
    """One record with these fields."""

    def __init__(self, record: Record) -> None:
        self.fields = record

    def __len__(self) -> int:
        return 1

    def id(self, index: int) -> str:
        return "a/b.c"

    def _document(self, index: int, rng: object) -> Document:
        return ()

    def record(self, index: int, rng: object = None) -> Record:
        return self.fields

    def provenance(self, index: int) -> Provenance:
        return Provenance("MIT", title="A title")

    @property
    def fingerprint(self) -> str:
        return "f"


def some() -> Image:
    return Image("k", lambda: np.zeros((2, 2, 3), np.uint8))


def test_fields_by_hand() -> None:
    """Boxes are their text; a field with a name of the export's own gets another one."""
    boxes = Boxes((("bell", (0, 0, 50, 50)),), (100, 100))
    found = dict(sample(Fields({"title": "mine", "objects": boxes, "view": some()}), 0))
    assert list(found) == [".png", ".json"]
    assert json.loads(found[".json"]) == {
        "title_text": "mine",
        "objects": "bell at (0, 0) -> (128, 128)",
        "id": "a/b.c",
        "licence": "MIT",
        "title": "A title",
    }


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_caption_is_one_line(caption: str) -> None:
    """So that no reader takes its lines for several captions."""
    found = dict(sample(Fields({"caption": caption}), 0))
    assert json.loads(found[".json"])["caption"] == caption
    line = found.get(".txt", b"").decode()
    assert len(line.splitlines()) <= 1
    assert line.split() == caption.split()


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        ({}, "is empty"),
        ({"image": Codes(np.zeros(4, np.int32), (2, 2))}, "has its picture as codes"),
        ({"a.b": some(), "c": some()}, "has the field 'a.b', which can't be part of"),
        ({"caption": "\ud800"}, "holds half a character ('\\ud800'), which is not Unicode"),
    ],
)
def test_records_that_are_refused(record: Record, cause: str) -> None:
    with pytest.raises(DataError) as error:
        list(sample(Fields(record), 0))
    assert error.value.place == "document a/b.c"
    assert error.value.cause.startswith(cause)
