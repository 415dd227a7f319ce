"""Data set `webdataset`: the kit, records by hand, every kind of bad record with its exact message,
damaged tars, patterns."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pictures

from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource
from cm3kits.dataset import DocumentSourceContract
from cm3plugins.datasets.webdataset import WebDatasetSourceConfig, expand_braces, shard_paths
from messages import tells
from picture_files import folder, found, picture, write, write_tar
from profiles import examples


class TestWebDataset(DocumentSourceContract):
    root: Path
    pytestmark = pytest.mark.usefixtures("samples")
    max_examples = examples(5)

    def make(self) -> DocumentSource:
        return WebDatasetSourceConfig(path=str(self.root / "{0..0}.tar"), split="all").build()


def shards(path: Path | str, **keys: Any) -> Any:
    return WebDatasetSourceConfig(path=str(path), **{"split": "all", **keys}).build()


def test_tar_by_hand(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "0.tar",
        {
            "./a.png": picture(1),
            "./a.txt": "a bee",
            "x/b.c.jpg": b"",
            "x/b.jpg": picture(2, "JPEG"),
            "a.cls": "7",
            "x/b.json": '{"caption": ["one", "two"], "width": 3}',
        },
    )
    source = shards(path)
    assert source.skipped == []
    assert [source.id(i) for i in range(2)] == ["a", "x/b"]
    assert list(source.texts()) == ["a bee", "one", "two"]
    with Pictures.open(io.BytesIO(picture(1))) as expected:
        assert np.array_equal(source.document(0)[1].load(), np.asarray(expected))


def test_a_dot_in_a_key_is_named(tmp_path: Path) -> None:
    """`2023.05.png` is `.05.png` of the record `2023`, as webdataset has it: not lost without a word."""
    path = write_tar(
        tmp_path / "0.tar",
        {
            "x/2023.05.png": picture(1),
            "x/2023.05.txt": "may",
            "x/2023.06.PNG": picture(2),
            "a.mask.png": picture(3),
            "a.png": picture(4),
            "a.txt": "with a mask",
            "b.depth.npy": "",
        },
    )
    source = shards(path)
    assert [source.id(i) for i in range(len(source))] == ["a"]
    (lost,) = source.skipped
    assert (lost.place, lost.cause, lost.next_step) == (
        str(path),
        "x/2023.05.png is left out: a record's key ends at the first dot, and 'x/2023' has no other "
        "picture or text",
        "rename it and its related members, without dots in the key",
    )


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
    path = write_tar(
        tmp_path / "0.tar",
        {
            "ok.png": picture(0),
            "ok.txt": "fine",
            "bare.png": picture(1),
            "text.txt": "alone",
            "two.png": picture(2),
            "two.jpg": picture(3),
            "two.txt": "t",
            "j1.png": picture(4),
            "j1.json": "{",
            "j2.png": picture(5),
            "j2.json": "{}",
            "cut.png": picture(6)[:-30],
            "cut.txt": "t",
            "u.png": picture(7),
            "u.txt": b"\xff",
            "e.png": picture(8),
            "e.json": '{"text": 5}',
        },
    )
    suffixes = ".png, .jpg, .jpeg, .webp, .gif, .bmp, .tif, .tiff"
    assert found(shards(path), tmp_path) == [
        ("0.tar: bare", "has no caption: neither .txt nor .json", "add bare.txt"),
        (
            "0.tar: text",
            f"has no picture ({suffixes}), only .txt",
            "add a picture, or remove the record",
        ),
        ("0.tar: two", "has several pictures: .png, .jpg", "give each picture its own key"),
        (
            "0.tar: j1.json",
            "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 "
            "(char 1)",
            "correct it, or add a .txt",
        ),
        ("0.tar: j2.json", "has no key 'caption' or 'text'", "set dataset.caption_keys"),
        (
            "0.tar: cut.png",
            "is truncated: the last chunk of a PNG (IEND) is missing",
            "replace or remove it",
        ),
        ("0.tar: u.txt", "is not UTF-8 (byte 0)", "write UTF-8 text"),
        (
            "0.tar: e.json text",
            "a caption is a number, not a text",
            "write it in quotes, or a list of texts",
        ),
    ]


@pytest.mark.parametrize(
    ("cut", "num_whole", "cause"),
    [
        (100, 0, "is not a tar: truncated header"),
        (
            512 * 7,
            1,
            "is truncated or ... byte 3072 of 3584",
        ),
        (
            512 * 5 + 300,
            1,
            "is truncated or ... byte 2860 of 2860",
        ),
        (512 * 7 + 700, 2, "lacks the end marker of a tar; records may be lost"),
        (512 * 8, 2, "lacks the end marker of a tar; records may be lost"),
    ],
)
def test_truncated_tar(tmp_path: Path, cut: int, num_whole: int, cause: str) -> None:
    """Records before the cut are used; the tar is named. A record is 4 blocks: a header and a block
    of content, twice."""
    files: dict[str, bytes | str] = {}
    for i in range(4):
        files |= {f"{i}.txt": "text", f"{i}.png": picture(i)}
    whole = write_tar(tmp_path / "whole.tar", files).read_bytes()
    path = write(tmp_path, {"cut.tar": whole[:cut]}) / "cut.tar"
    source = shards(path)
    assert len(source) == num_whole
    assert source.skipped[0].place == str(path)
    assert tells(source.skipped[0].cause, cause)


def test_two_shards_with_one_key_and_a_compressed_one(tmp_path: Path) -> None:
    for i in range(2):
        write_tar(tmp_path / f"{i}.tar", {"k.png": picture(i), "k.txt": str(i)})
    write(tmp_path, {"2.tar": gzip.compress((tmp_path / "0.tar").read_bytes())})
    source = shards(tmp_path)
    assert found(source, tmp_path) == [
        ("1.tar: k", "its id 'k' is also the id of 0.tar: k", "give each record a unique id"),
        (
            "2.tar",
            "is compressed (gzip), so pictures can't be read by random access",
            "decompress it; pictures are already compressed",
        ),
    ]


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
    assert tells(
        caught.value, f"dataset.path {tmp_path}/d-{{000..003}}.tar: there is no {tmp_path}/d"
    )
    with pytest.raises(DataError, match=r"/dev/zero: /dev/zero is not a regular file\n"):
        shard_paths("/dev/zero")


def test_a_pipe_among_the_tars_is_skipped(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"k.txt": "t", "k.png": picture(1)})
    os.mkfifo(tmp_path / "1.tar")
    source = shards(tmp_path)
    assert len(source) == 1
    assert found(source, tmp_path) == [
        (
            "1.tar",
            "is a device, a pipe or a socket, not a regular file",
            "use a regular file instead",
        )
    ]


def test_a_huge_member_is_skipped_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    member = tarfile.TarInfo("huge.png")
    member.size = 6 << 30
    with path.open("wb") as file:
        file.write(member.tobuf())
        file.seek(member.size, os.SEEK_CUR)
        file.write(write_tar(tmp_path / "rest", {"huge.txt": "t"}).read_bytes())
    assert found(shards(path), tmp_path) == [
        (
            "0.tar: huge.png",
            "has 6,442,450,944 bytes, but a picture may have at most 268,435,456",
            "reduce its size first",
        )
    ]


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_huge_header_is_not_read(tmp_path: Path, kind: bytes) -> None:
    path = write_tar(tmp_path / "0.tar", {"k.txt": "t", "k.png": picture(1)})
    content = path.read_bytes()
    ends = (i for i in range(0, len(content), 512) if not content[i:].strip(b"\0"))
    records = content[: next(ends)]
    header = tarfile.TarInfo("long")
    header.size, header.type = 6 << 30, kind
    with path.open("wb") as file:
        file.write(records + header.tobuf())
        file.truncate(file.tell() + header.size + 10240)
    source = shards(path)
    assert len(source) == 1
    (problem,) = source.skipped
    assert "a header of 6442450944 bytes, more than 1048576" in problem.cause


def test_a_member_whose_name_is_not_utf8_is_one_skipped_record(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "0.tar",
        {"b\udcff.png": picture(0), "b\udcff.txt": "t", "k.txt": "t", "k.png": picture(1)},
    )
    source = shards(path)
    assert [source.id(i) for i in range(len(source))] == ["k"]
    assert found(source, tmp_path) == [
        ("0.tar: b?", "its name in the tar is not valid UTF-8", "rename it")
    ]


@pytest.mark.parametrize(
    "pattern",
    [
        "{000..999999999}.tar",
        "{0..9}{0..9}{0..9}{0..9}{0..9}{a,b}.tar",
        "{0.." + "9" * 5000 + "}.tar",
    ],
)
def test_patterns_of_too_many_tars_are_refused_without_being_expanded(pattern: str) -> None:
    with pytest.raises(DataError, match="the pattern expands to more than 100,000 files"):
        expand_braces(pattern)


def test_a_pattern_may_have_many_braces() -> None:
    assert expand_braces("{1..1}" * 2000) == ["1" * 2000]
    assert expand_braces("{2..1}.tar") == []


def test_members_without_a_key_and_links_are_named(tmp_path: Path) -> None:
    """They were left out without a word, and a picture that is a link made its record one without."""
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in {
            "a.png": picture(1),
            "a.txt": b"one",
            ".jpg": picture(2, "JPEG"),
            "x/.PNG": picture(2),
            "x/.txt": b"its text",
            "._a.png": b"what macOS adds",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, kind in {
            "b.png": tarfile.LNKTYPE,
            "b.txt": tarfile.SYMTYPE,
            "b.npy": tarfile.LNKTYPE,
            "._b.png": tarfile.SYMTYPE,
        }.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.png"
            tar.addfile(member)
    source = shards(path)
    assert list(source.texts()) == ["one"]
    key = "is left out: it has no key, the name up to the first dot"
    link = "is left out: it is a link, which contains no data"
    make = "recreate the tar with the targets of links: tar --dereference --hard-dereference"
    assert found(source, tmp_path) == [
        ("0.tar", f".jpg {key}", "give it and its caption a name, such as 000.jpg"),
        ("0.tar", f"x/.PNG {key}", "give it and its caption a name, such as 000.PNG"),
        ("0.tar", f"b.png {link}", make),
        ("0.tar", f"b.txt {link}", make),
    ]
