"""Pictures are examined without decoding: truncation, an end mark inside, a hostile size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import DataError
from cm3plugins.datasets.pictures import PictureIndex, examine
from own_temporary import private_folder as private_folder
from picture_files import picture, png_chunk, png_header
from small_disk import small_disk


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
    """EXIF holds a whole small JPEG with its own end mark; cut after it, the file is still
    truncated."""
    thumbnail = picture(1, "JPEG", (8, 8))
    segment = b"Exif\0\0" + thumbnail
    whole = picture(0, "JPEG", (64, 64))
    with_thumbnail = (
        whole[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + whole[2:]
    )
    assert examine(with_thumbnail, "here") == (64, 64)
    with pytest.raises(DataError, match="is truncated: the end marker of the JPEG is missing"):
        examine(with_thumbnail[:-100], "here")


def test_hostile_size() -> None:
    with pytest.raises(DataError, match="more than 64,000,000"):
        examine(png_header(60_000, 60_000) + png_chunk(b"IEND", b""), "here")


def written(folder: Path, number: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{name}.png" for name in range(number)]
    for name, path in enumerate(paths):
        path.write_bytes(picture(name, "PNG", (8, 6)))
    return paths


SCAN = """
import sys, time
from pathlib import Path
from cm3plugins.datasets import pictures
read = pictures._read_facts
def slowly(path, place):
    time.sleep(0.05)
    print(path.name, flush=True)
    return read(path, place)
pictures._read_facts = slowly
with pictures.PictureIndex.open(Path(sys.argv[1])) as index:
    for path in sorted(Path(sys.argv[2]).iterdir()):
        index.picture(path, path.name)
"""


@pytest.mark.slow
def test_of_processes_that_scan_a_folder_one_reads_the_pictures(tmp_path: Path) -> None:
    written(tmp_path / "pictures", 30)
    command = [sys.executable, "-c", SCAN, str(tmp_path / "index"), str(tmp_path / "pictures")]
    scans = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outs = [scan.communicate(timeout=60)[0].split() for scan in scans]
    assert [scan.returncode for scan in scans] == [0, 0, 0]
    assert sorted(map(len, outs)) == [0, 0, 30]
    assert not list(tmp_path.glob("*.lock"))


def test_an_index_that_can_only_be_read(
    tmp_path: Path, private_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = written(tmp_path / "pictures", 2)
    with small_disk(tmp_path / "disk") as disk:
        with PictureIndex.open(disk / "index") as index:
            known = index.picture(first, "first")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with PictureIndex.open(disk / "index") as index:
            assert index.picture(first, "first") == known
            assert index.picture(second, "second").width == 8
            index.mark_undecodable("key", "is torn")
        with PictureIndex.open(disk / "folder" / "other") as index:
            assert index.picture(first, "first").key == known.key
            assert index.path.is_relative_to(private_folder)
    assert "reading pictures for this process alone" in capsys.readouterr().err
