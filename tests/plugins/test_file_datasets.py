"""Data sets of a user's own files: the kit for each, every kind of bad record with its exact message, splits, keys."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pictures

from cm3core.document import Image, Text
from cm3core.errors import DataError, RecipeError
from cm3core.interfaces.dataset import DocumentSource, SkippedRecord
from cm3core.testing.dataset import DocumentSourceContract
from cm3plugins.datasets.emoji import EmojiSourceConfig
from cm3plugins.datasets.file_source import captions_of, split_of
from cm3plugins.datasets.folder import FolderSourceConfig
from cm3plugins.datasets.jsonl import JSONLSourceConfig
from cm3plugins.datasets.pictures import examine
from cm3plugins.datasets.tuxpaint import STAMPS, TuxPaintSourceConfig
from cm3plugins.datasets.webdataset import WebDatasetSourceConfig, expand_braces, shard_paths


def picture(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (12, 9)) -> bytes:
    """Bytes of a noisy picture file of (width, height) = `size`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Pictures.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_tar(path: Path, files: dict[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CM3_CACHE", str(folder))
    return folder


@pytest.fixture(scope="class")
def samples(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Six good records and a bad one in each form, for the kits."""
    root = tmp_path_factory.mktemp("samples")
    captions = {f"{i}": f"picture {i}\nnumber {i}\n" for i in range(6)}
    for i, text in captions.items():
        write(root / "folder", {f"a/{i}.png": picture(int(i)), f"a/{i}.txt": text})
    write(root / "folder", {"a/bare.png": picture(9)})
    lines: list[Any] = [{"text": text.split("\n"), "image": f"folder/a/{i}.png"} for i, text in captions.items()]
    lines.append({"segments": [{"text": "one"}, {"image": "folder/a/1.png"}, {"text": ["two", "zwei"]},
                               {"image": "folder/a/2.png"}]})
    lines.append({"text": "", "image": "folder/a/1.png"})
    write(root, {"all.jsonl": "\n".join(map(json.dumps, lines))})
    write_tar(root / "0.tar", {f"{i}.png": picture(int(i)) for i in captions} | {f"{i}.txt": text for i, text in captions.items()}
              | {"bare.png": picture(9)})
    request.cls.root = root


class TestFolder(DocumentSourceContract):
    root: Path
    pytestmark = pytest.mark.usefixtures("samples")
    max_examples = 10

    def make(self) -> DocumentSource:
        return FolderSourceConfig(path=str(self.root / "folder"), split="all").build()


class TestJSONL(DocumentSourceContract):
    root: Path
    pytestmark = pytest.mark.usefixtures("samples")
    max_examples = 10

    def make(self) -> DocumentSource:
        return JSONLSourceConfig(path=str(self.root / "all.jsonl"), split="all").build()


class TestWebDataset(DocumentSourceContract):
    root: Path
    pytestmark = pytest.mark.usefixtures("samples")
    max_examples = 10

    def make(self) -> DocumentSource:
        return WebDatasetSourceConfig(path=str(self.root / "{0..0}.tar"), split="all").build()


class TestEmoji(DocumentSourceContract):
    max_examples = 10

    def make(self) -> DocumentSource:
        return EmojiSourceConfig(concepts="quickstart", split="comp").build()


@pytest.mark.skipif(not Path(STAMPS).is_dir(), reason="apt install tuxpaint-stamps-default")
class TestInstalledStamps(DocumentSourceContract):
    max_examples = 3

    def make(self) -> DocumentSource:
        return TuxPaintSourceConfig(split="valid", language="de").build()


# --- folder


def folder(path: Path, **keys: Any) -> Any:
    return FolderSourceConfig(path=str(path), **{"split": "all", **keys}).build()


def test_folder_by_hand(tmp_path: Path) -> None:
    write(tmp_path, {"b.jpg": picture(1, "JPEG"), "b.txt": "\ufeffa bee\n\n  another bee \n", "x/a.webp": picture(2, "WEBP"),
                     "x/a.txt": "a wasp", "README.txt": "not a caption", ".hidden/c.png": b"", "x/.d.png": b""})
    source = folder(tmp_path)
    assert [source.id(i) for i in range(len(source))] == ["b.jpg", "x/a.webp"]
    assert source.skipped == []
    text, image = source.document(0)
    assert text == Text("a bee")
    assert isinstance(image, Image)
    assert image.load().shape == (9, 12, 3)
    assert {source.document(0, np.random.default_rng(seed))[0].text for seed in range(20)} == {"a bee", "another bee"}
    assert list(source.texts()) == ["a bee", "another bee", "a wasp"]


TABLE = "image,text\nb.png,a bee\nx/a.png,\"a wasp, asleep\"\nb.png,another bee\n"


@pytest.mark.parametrize(("name", "content"), [
    ("captions.csv", TABLE),
    ("captions.csv", "\ufeff" + TABLE.replace("\n", "\r\n")),
    ("captions.tsv", "extra\ttext\timage\n1\ta bee\t./b.png\n\n2\ta wasp, asleep\tx/a.png\n3\tanother bee\tb.png\n"),
    ("captions.json", '{"b.png": ["a bee", "another bee"], "x/a.png": "a wasp, asleep"}'),
    ("captions.json", '[{"image": "b.png", "text": ["a bee", "another bee"]}, {"image": "x/a.png", "text": "a wasp, asleep"}]'),
    ("captions.jsonl", '{"image": "b.png", "text": ["a bee", "another bee"]}\n{"image": "x/a.png", "text": "a wasp, asleep"}\n'),
])
def test_captions_files(tmp_path: Path, name: str, content: str) -> None:
    write(tmp_path, {"b.png": picture(1), "x/a.png": picture(2), name: content})
    source = folder(tmp_path)
    assert source.skipped == []
    assert list(source.texts()) == ["a bee", "another bee", "a wasp, asleep"]
    assert [source.id(i) for i in range(2)] == ["b.png", "x/a.png"]


def found(source: Any, root: Path) -> list[tuple[str, str, str]]:
    """Skipped records, with the test's folder cut out of them."""
    return [tuple(part.replace(str(root) + "/", "") for part in (record.place, record.cause, record.next_step))
            for record in source.skipped]


def test_bad_files_of_a_folder(tmp_path: Path) -> None:
    png, jpeg = picture(0), picture(0, "JPEG", (64, 64))
    damaged = bytearray(png)
    damaged[-20] ^= 1
    write(tmp_path, {name + ".txt": "a text" for name in ("0", "1", "2", "3", "4", "5", "7")})
    write(tmp_path, {"0.png": png, "1.png": b"", "2.png": b"<html>404</html>", "3.png": png[:-30], "4.png": bytes(damaged),
                     "5.jpg": jpeg[:-300], "6.png": png, "7.heic": b"", "8.png": png, "8.txt": " \n", "9.png": png,
                     "9.txt": b"\xff"})
    source = folder(tmp_path)
    assert len(source) == 1
    kinds = "PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM"
    advice = "write NAME.txt beside each NAME.png, or one captions.csv with the header image,text"
    assert found(source, tmp_path) == [
        ("1.png", "is empty (0 bytes)", "replace or remove it"),
        ("2.png", "is not a picture", f"convert it to one of {kinds}"),
        ("3.png", "is truncated: the last chunk of a PNG (IEND) is missing", "replace or remove it"),
        ("4.png", "is damaged: wrong checksum of chunk IDAT at byte 33", "replace or remove it"),
        ("5.jpg", "is truncated: the mark of a JPEG's end is missing", "replace or remove it"),
        ("6.png", "has no caption: there is no 6.txt beside it", advice),
        ("7.heic", "pictures of type .heic are not read", "convert it to PNG or JPEG"),
        ("8.txt", "the caption is empty", "write one, or remove the record"),
        ("9.txt", "is not UTF-8 (byte 0)", "save it as UTF-8"),
    ]


def test_bad_rows_of_a_captions_file(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(0), "b.png": picture(1), "c.png": picture(2), "captions.jsonl": "\n".join([
        '{"image": "a.png", "text": "fine"}', "{", "[]", '{"image": "b.png", "text": 3}', '{"text": "x"}',
        '{"image": null, "text": "x"}', '{"image": "gone.png", "text": "x"}', r'{"image": "a.png", "text": "\ud800"}'])})
    source = folder(tmp_path)
    assert list(source.texts()) == ["fine"]
    where = "captions.jsonl"
    assert found(source, tmp_path) == [
        (f"{where}:2", "is no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
         "correct the line"),
        (f"{where}:3", "is a list, not an object", 'write {"text": ..., "image": ...}'),
        (f"{where}:4", "a caption is a number, not a text", "write it in quotes, or a list of texts"),
        (f"{where}:5", "has no 'image'", "each row needs 'image' and 'text'"),
        (f"{where}:6", "'image' is null, not a path", "write the picture's path inside the folder"),
        (f"{where}:8", "the caption is not valid Unicode", "remove the lone surrogate (\\ud800 to \\udfff)"),
        ("c.png", f"has no caption: {where} does not name it", f"add a row to {where}"),
        (f"{where}:7", f"there is no picture 'gone.png' in {tmp_path}", "correct the path, or remove the row"),
    ]


def test_rows_of_another_length(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(0), "captions.csv": "image,text\na.png,red, round\na.png,fine\n"})
    source = folder(tmp_path)
    assert found(source, tmp_path) == [("captions.csv:2", "has 3 fields, the header has 2", "put captions with commas in quotes")]
    assert len(source) == 1


@pytest.mark.parametrize(("files", "cause", "next_step"), [
    ({}, "there is no such folder", "correct dataset.path"),
    ({"pictures/note.md": "x"}, "holds no picture (.png, .jpg, .jpeg, .webp, .gif, .bmp, .tif, .tiff)", "correct dataset.path"),
    ({"pictures/a.png": picture(), "pictures/captions.csv": "", "pictures/captions.json": ""},
     "holds captions.json and captions.csv", "keep one captions file"),
])
def test_folders_that_are_refused(tmp_path: Path, files: dict[str, bytes | str], cause: str, next_step: str) -> None:
    path = write(tmp_path, files) / "pictures"
    with pytest.raises(DataError) as caught:
        folder(path)
    assert str(caught.value) == f"dataset.path {path}: {cause}\n  next: {next_step}"


def test_captions_file_without_a_header(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(), "captions.csv": "a.png,a text\n"})
    with pytest.raises(DataError) as caught:
        folder(tmp_path)
    assert str(caught.value) == (f"{tmp_path}/captions.csv:1: the header has no column 'image' and 'text'\n"
                                 "  next: begin the file with a line such as image,text")


# --- what all share


def test_unknown_split_and_share(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        folder(tmp_path, split="vald")
    assert str(caught.value) == ("dataset.split: there is no split 'vald'; did you mean 'valid'?\n"
                                 "  next: use one of train, valid, all")
    with pytest.raises(RecipeError) as caught:
        folder(tmp_path, valid=5.0)
    assert str(caught.value) == "dataset.valid: is 5.0, a share is 0..1\n  next: use 0.05 for one record in twenty"


def test_splits_are_a_partition_and_stay(tmp_path: Path) -> None:
    names = [f"{i:03}" for i in range(60)]
    write(tmp_path, {f"{name}.png": picture(0) for name in names} | {f"{name}.txt": name for name in names})
    splits = {name: set(folder(tmp_path, split=name, valid=0.3).texts()) for name in ("train", "valid", "all")}
    assert splits["train"] | splits["valid"] == splits["all"] == set(names)
    assert not splits["train"] & splits["valid"]
    assert 8 <= len(splits["valid"]) <= 28  # 18 expected
    (tmp_path / "000.png").unlink()
    write(tmp_path, {"new.png": picture(0), "new.txt": "new"})
    assert set(folder(tmp_path, split="valid", valid=0.3).texts()) - {"new"} == splits["valid"] - {"000"}


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_keeps_its_records(name: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert split_of(name, 0.0) == "train"
    assert split_of(name, 1.0) == "valid"
    assert not (split_of(name, low) == "valid" and split_of(name, high) == "train")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_captions_are_stripped_and_never_empty(texts: list[str]) -> None:
    kept = [text.strip() for text in texts if text.strip()]
    if kept:
        assert captions_of(texts, "here") == tuple(kept)
    else:
        with pytest.raises(DataError, match="the caption is empty"):
            captions_of(texts, "here")


def test_keys_are_contents(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(1), "a.txt": "a", "b.png": picture(1), "b.txt": "b", "c.png": picture(2), "c.txt": "c"})
    keys = [folder(tmp_path).document(i)[1].key for i in range(3)]
    assert keys[0] == keys[1] != keys[2]
    before = folder(tmp_path).fingerprint
    write(tmp_path, {"a.png": picture(3)})
    assert folder(tmp_path).fingerprint != before


def test_a_picture_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.png": picture(1), "a.txt": "a"})
    first = folder(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read again"))
    assert folder(tmp_path).fingerprint == first.fingerprint


def test_undecodable_pixels_raise_once_and_are_skipped_then(tmp_path: Path) -> None:
    """The header and every checksum are right, the pixels are too few: only decoding can find it."""
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    data = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"\0" * 50)) + chunk(b"IEND", b""))
    write(tmp_path, {"a.png": data, "a.txt": "a", "b.png": picture(1), "b.txt": "b"})
    source = folder(tmp_path)
    assert len(source) == 2
    with pytest.raises(DataError) as caught:
        source.document(0)[1].load()
    assert caught.value.place == f"{tmp_path}/a.png"
    assert "can't be read as a picture" in caught.value.cause
    assert caught.value.next_step == "replace or remove it; from the next start on it is skipped"
    again = folder(tmp_path)
    assert len(again) == 1
    assert again.skipped == [SkippedRecord(f"{tmp_path}/a.png", caught.value.cause, "replace or remove it")]


def test_changed_and_removed_pictures(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(1), "a.txt": "a"})
    image = folder(tmp_path).document(0)[1]
    write(tmp_path, {"a.png": picture(2)})
    with pytest.raises(DataError) as caught:
        image.load()
    assert str(caught.value) == f"{tmp_path}/a.png: has changed since the data set was opened\n  next: start again"
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError) as caught:
        image.load()
    assert str(caught.value) == (f"{tmp_path}/a.png: can't be read any more: No such file or directory\n"
                                 "  next: put it back, or start again")


def test_damaged_index(tmp_path: Path, cache: Path) -> None:
    write(tmp_path, {"a.png": picture(1), "a.txt": "a"})
    index = write(cache, {"datasets/pictures-v1.sqlite": "no database " * 100}) / "datasets" / "pictures-v1.sqlite"
    with pytest.raises(DataError) as caught:
        folder(tmp_path)
    assert str(caught.value) == (f"{index}: the index of pictures can't be used: file is not a database\n"
                                 "  next: delete it, or set CM3_CACHE to a folder that can be written")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@given(data=st.data())
def test_truncation_is_seen_without_decoding(kind: str, data: st.DataObject) -> None:
    whole = picture(0, kind, (40, 30))
    assert examine(whole, "here") == (40, 30)
    length = data.draw(st.integers(0, len(whole) - (1 if kind != "GIF" else 2)))
    if kind == "GIF" and whole[:length].endswith(b";"):
        return  # one byte in 256 looks like the end
    with pytest.raises(DataError):
        examine(whole[:length], "here")


def test_a_thumbnail_is_not_the_end_of_a_jpeg() -> None:
    """EXIF holds a whole small JPEG with its own end mark; cut after it, the file is still truncated."""
    thumbnail = picture(1, "JPEG", (8, 8))
    segment = b"Exif\0\0" + thumbnail
    whole = picture(0, "JPEG", (64, 64))
    with_thumbnail = whole[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + whole[2:]
    assert examine(with_thumbnail, "here") == (64, 64)
    with pytest.raises(DataError, match="is truncated: the mark of a JPEG's end is missing"):
        examine(with_thumbnail[:-100], "here")


def test_hostile_size() -> None:
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data += struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    with pytest.raises(DataError, match="more than 64,000,000"):
        examine(data, "here")


# --- jsonl


def jsonl(path: Path, **keys: Any) -> Any:
    return JSONLSourceConfig(path=str(path), **{"split": "all", **keys}).build()


def test_jsonl_by_hand(tmp_path: Path) -> None:
    lines = [{"id": "rex", "text": "Rex", "image": "p/a.png", "license": "CC0"}, {"text": ["x", "y"], "image": "b.png"},
             {"segments": [{"text": "first"}, {"image": "b.png"}, {"image": "p/a.png"}, {"text": "end"}]}]
    write(tmp_path, {"p/a.png": picture(1), "b.png": picture(2), "all.jsonl": "\n\n".join(map(json.dumps, lines)) + "\n"})
    source = jsonl(tmp_path / "all.jsonl")
    assert source.skipped == []
    assert [source.id(i) for i in range(3)] == ["rex", "b.png", "segments-39bf612eea86"]
    kinds = [[type(segment) for segment in source.document(i)] for i in range(3)]
    assert kinds == [[Text, Image], [Text, Image], [Text, Image, Image, Text]]
    assert source.document(2)[2].key == source.document(0)[1].key


@pytest.mark.parametrize(("line", "place", "cause", "next_step"), [
    ('{"text": "x"}', "", "has no 'image'", 'write {"text": ..., "image": ...} or {"segments": [...]}'),
    ('{"image": "a.png"}', "", "has no 'text'", 'write {"text": ..., "image": ...} or {"segments": [...]}'),
    ('{"text": "x", "image": 3}', "", "'image' is a number, not a path", "write the picture's path, relative to the file"),
    ('{"text": "x", "image": ""}', "", "'image' is empty", "write the picture's path, relative to the file"),
    ('{"text": "x", "image": "https://x.org/a.png"}', "", "'image' is the address 'https://x.org/a.png'",
     "download the picture and write its path; nothing is fetched here"),
    ('{"text": "x", "image": "no.png"}', ": image {root}/no.png", "there is no such file",
     "correct the path, or remove the record"),
    ('{"text": null, "image": "a.png"}', "", "a caption is null, not a text", "write it in quotes, or a list of texts"),
    ('{"text": ["x", true], "image": "a.png"}', "", "a caption is a truth value, not a text",
     "write it in quotes, or a list of texts"),
    ('{"text": " ", "image": "a.png"}', "", "the caption is empty", "write one, or remove the record"),
    ('{"id": 7, "text": "x", "image": "a.png"}', "", "'id' is a number, not a name", "write a text, or leave it out"),
    ('{"id": "one", "text": "x", "image": "a.png"}', "", "its id 'one' is that of {root}/all.jsonl:1 too",
     "give each record an id of its own"),
    ('{"segments": []}', "", "'segments' is empty", "write at least one, or remove the record"),
    ('{"segments": {}}', "", "'segments' is an object, not a list", 'write {"text": ..., "image": ...} or {"segments": [...]}'),
    ('{"segments": [{"text": "x"}], "text": "x"}', "", "has 'segments' and 'text'",
     'write {"text": ..., "image": ...} or {"segments": [...]}'),
    ('{"segments": [{"text": "x"}, {"txt": "y"}]}', " segments[1]", "is not an object with either 'text' or 'image'",
     'write {"text": ...} or {"image": ...}'),
    ("NaN", "", "is a number, not an object", 'write {"text": ..., "image": ...}'),
])
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
    assert str(caught.value) == f"dataset.path {tmp_path}/no.jsonl: there is no such file\n  next: correct dataset.path"


# --- webdataset


def shards(path: Path | str, **keys: Any) -> Any:
    return WebDatasetSourceConfig(path=str(path), **{"split": "all", **keys}).build()


def test_tar_by_hand(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {"./a.png": picture(1), "./a.txt": "a bee", "x/b.c.jpg": b"",
                                          "x/b.jpg": picture(2, "JPEG"), "a.cls": "7",
                                          "x/b.json": '{"caption": ["one", "two"], "width": 3}'})
    source = shards(path)
    assert source.skipped == []
    assert [source.id(i) for i in range(2)] == ["a", "x/b"]
    assert list(source.texts()) == ["a bee", "one", "two"]
    with Pictures.open(io.BytesIO(picture(1))) as expected:
        assert np.array_equal(source.document(0)[1].load(), np.asarray(expected))


def test_keys_do_not_depend_on_where_a_picture_lies(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(1), "a.txt": "a"})
    write_tar(tmp_path / "0.tar", {"k.txt": "t", "k.png": picture(1)})
    assert shards(tmp_path / "0.tar").document(0)[1].key == folder(tmp_path).document(0)[1].key


def test_a_tar_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "0.tar", {"a.png": picture(1), "a.txt": "a"})
    first = shards(path)
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("the tar was read again"))
    assert shards(path).fingerprint == first.fingerprint


def test_bad_records_of_a_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {
        "ok.png": picture(0), "ok.txt": "fine", "bare.png": picture(1), "text.txt": "alone", "two.png": picture(2),
        "two.jpg": picture(3),
        "two.txt": "t", "j1.png": picture(4), "j1.json": "{", "j2.png": picture(5), "j2.json": "{}", "cut.png": picture(6)[:-30],
        "cut.txt": "t", "u.png": picture(7), "u.txt": b"\xff", "e.png": picture(8), "e.json": '{"text": 5}'})
    suffixes = ".png, .jpg, .jpeg, .webp, .gif, .bmp, .tif, .tiff"
    assert found(shards(path), tmp_path) == [
        ("0.tar: bare", "has no caption: neither .txt nor .json", "add bare.txt"),
        ("0.tar: text", f"has no picture ({suffixes}), only .txt", "add one, or remove it"),
        ("0.tar: two", "has several pictures: .png, .jpg", "give each a key of its own"),
        ("0.tar: j1.json", "is no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
         "correct it, or add a .txt"),
        ("0.tar: j2.json", "has no key 'caption' or 'text'", "set dataset.caption_keys"),
        ("0.tar: cut.png", "is truncated: the last chunk of a PNG (IEND) is missing", "replace or remove it"),
        ("0.tar: u.txt", "is not UTF-8 (byte 0)", "write UTF-8 text"),
        ("0.tar: e.json text", "a caption is a number, not a text", "write it in quotes, or a list of texts"),
    ]


@pytest.mark.parametrize(("cut", "num_whole", "cause"), [
    (100, 0, "is no tar: truncated header"),
    (512 * 7, 1, "is truncated or damaged after byte 3072 of 3584 (unexpected end of data); the records before it are used"),
    (512 * 7 + 700, 2, "ends without the mark of a tar's end; records may be lost"),
    (512 * 8, 2, "ends without the mark of a tar's end; records may be lost"),
])
def test_truncated_tar(tmp_path: Path, cut: int, num_whole: int, cause: str) -> None:
    """Records before the cut are used; the tar is named. A record is 4 blocks: a header and a block of content, twice."""
    files: dict[str, bytes | str] = {}
    for i in range(4):
        files |= {f"{i}.txt": "text", f"{i}.png": picture(i)}
    whole = write_tar(tmp_path / "whole.tar", files).read_bytes()
    path = write(tmp_path, {"cut.tar": whole[:cut]}) / "cut.tar"
    source = shards(path)
    assert len(source) == num_whole
    assert source.skipped[0].place == str(path)
    assert source.skipped[0].cause == cause


def test_two_shards_with_one_key_and_a_compressed_one(tmp_path: Path) -> None:
    import gzip

    for i in range(2):
        write_tar(tmp_path / f"{i}.tar", {"k.png": picture(i), "k.txt": str(i)})
    write(tmp_path, {"2.tar": gzip.compress((tmp_path / "0.tar").read_bytes())})
    source = shards(tmp_path)
    assert found(source, tmp_path) == [
        ("1.tar: k", "its id 'k' is that of 0.tar: k too", "give each record an id of its own"),
        ("2.tar", "is compressed (gzip); pictures can't be read at random from it",
         "unpack the compression; pictures are compressed already")]


def test_patterns(tmp_path: Path) -> None:
    assert expand_braces("{a,b}-{8..10}") == ["a-8", "a-9", "a-10", "b-8", "b-9", "b-10"]
    for i in range(3):
        write_tar(tmp_path / f"d-{i:03}.tar", {})
    names = [f"d-{i:03}.tar" for i in range(3)]
    for pattern in ("d-{000..002}.tar", "d-*.tar", "d-00{0,1,2}.tar"):
        assert [path.name for path in shard_paths(str(tmp_path / pattern))] == names
    assert [path.name for path in shard_paths(str(tmp_path))] == names
    with pytest.raises(DataError) as caught:
        shard_paths(str(tmp_path / "d-{000..003}.tar"))
    assert str(caught.value) == (f"dataset.path {tmp_path}/d-{{000..003}}.tar: there is no {tmp_path}/d-003.tar\n"
                                 "  next: correct dataset.path")


# --- tuxpaint


def test_stamps_by_hand(tmp_path: Path) -> None:
    write(tmp_path, {"animals/owl.png": picture(1), "animals/owl.txt": "An owl.\nde.utf8=Eine Eule.\n",
                     "animals/owl_mirror.png": b"", "animals/ant.png": picture(2), "animals/ant.txt": "An ant.\n",
                     "symbols/a.png": picture(3), "symbols/a.txt": "A"})
    source = TuxPaintSourceConfig(path=str(tmp_path), split="all").build()
    assert [(source.id(i), source.document(i)[0].text) for i in range(len(source))] == [
        ("animals/ant", "An ant."), ("animals/owl", "An owl.")]
    german = TuxPaintSourceConfig(path=str(tmp_path), split="all", language="de", symbols=True).build()
    assert list(german.texts()) == ["Eine Eule."]
    assert found(german, tmp_path) == [("animals/ant.txt", "has no caption in 'de'", "choose another dataset.language"),
                                       ("symbols/a.txt", "has no caption in 'de'", "choose another dataset.language")]


def test_stamps_that_are_not_installed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        TuxPaintSourceConfig(path=str(tmp_path / "stamps")).build()
    assert str(caught.value) == (f"dataset.path {tmp_path}/stamps: there is no such folder; Tux Paint's stamps are not "
                                 "installed\n"
                                 "  next: apt install tuxpaint-stamps-default")


def test_config_modules_are_light() -> None:
    import subprocess
    import sys

    code = ("import sys; from cm3plugins import cm3_datasets; cm3_datasets();"
            "sys.exit(bool({'torch', 'PIL', 'tqdm'} & set(sys.modules)))")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert result.returncode == 0, result.stderr
