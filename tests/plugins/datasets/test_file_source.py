"""What data sets of a user's own files share: splits, captions, keys, pictures that change or can't
be decoded, the index."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import DataError, RecipeError
from cm3core.interfaces.dataset import SkippedRecord
from cm3plugins.datasets.file_source import FoundRecord, captions_of, split_of
from cm3plugins.datasets.pictures import VERSION
from messages import tells
from picture_files import folder, picture, png_chunk, png_header, write


def test_unknown_split_and_share(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        folder(tmp_path, split="vald")
    assert tells(caught.value, "dataset.split: there is no ... 'vald' ... 'valid'")
    with pytest.raises(RecipeError) as caught:
        folder(tmp_path, valid=5.0)
    assert tells(caught.value, "dataset.valid: is 5.0, must be 0..1 ... use 0.05")


def test_splits_are_a_partition_and_stay(tmp_path: Path) -> None:
    names = [f"{i:03}" for i in range(60)]
    write(
        tmp_path,
        {f"{name}.png": picture(0) for name in names} | {f"{name}.txt": name for name in names},
    )
    splits = {
        name: set(folder(tmp_path, split=name, valid=0.3).texts())
        for name in ("train", "valid", "all")
    }
    assert splits["train"] | splits["valid"] == splits["all"] == set(names)
    assert not splits["train"] & splits["valid"]
    assert 8 <= len(splits["valid"]) <= 28  # 18 expected
    (tmp_path / "000.png").unlink()
    write(tmp_path, {"new.png": picture(0), "new.txt": "new"})
    assert set(folder(tmp_path, split="valid", valid=0.3).texts()) - {"new"} == splits["valid"] - {
        "000"
    }


def test_copies_of_one_picture_are_in_one_split(tmp_path: Path) -> None:
    """Ten pictures, four copies of each: by their ids some are on both sides, by picture none is; a split by
    picture is one of the records, too, and stays when others come."""
    copies = {f"{i}-{number}": picture(number) for i in range(4) for number in range(10)}
    write(
        tmp_path,
        {f"{name}.png": data for name, data in copies.items()}
        | {f"{name}.txt": name for name in copies},
    )

    def splits(split_by: str) -> list[set[str]]:
        keys = {"valid": 0.4, "split_by": split_by}
        return [set(folder(tmp_path, split=name, **keys).texts()) for name in ("train", "valid")]

    def numbers(names: set[str]) -> set[str]:
        return {name.partition("-")[2] for name in names}

    train, valid = splits("id")
    assert numbers(train) & numbers(valid)
    train, valid = splits("picture")
    assert train
    assert valid
    assert not numbers(train) & numbers(valid)
    assert (train | valid, train & valid) == (set(copies), set())
    (tmp_path / "0-0.png").unlink()
    write(tmp_path, {"new.png": picture(1), "new.txt": "new-1"})
    after = splits("picture")[1]
    assert after - {"new-1"} == valid - {"0-0"}
    assert ("new-1" in after) == ("0-1" in valid)


def test_what_splits_can_be_made_by(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        folder(tmp_path, split_by="pictures")
    assert tells(caught.value, "dataset.split_by: is 'pictures'; did ... 'picture'")


def test_without_a_picture_the_id_decides() -> None:
    text = FoundRecord("name", "here", (("a text",),))
    assert (text.name_in_splits("picture"), text.name_in_splits("id")) == ("name", "name")


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
    write(
        tmp_path,
        {
            "a.png": picture(1),
            "a.txt": "a",
            "b.png": picture(1),
            "b.txt": "b",
            "c.png": picture(2),
            "c.txt": "c",
        },
    )
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
    """The header and every checksum are right, the pixels are too few: only decoding can find
    it."""
    data = (
        png_header(40, 40) + png_chunk(b"IDAT", zlib.compress(b"\0" * 50)) + png_chunk(b"IEND", b"")
    )
    write(tmp_path, {"a.png": data, "a.txt": "a", "b.png": picture(1), "b.txt": "b"})
    source = folder(tmp_path)
    assert len(source) == 2
    with pytest.raises(DataError) as caught:
        source.document(0)[1].load()
    assert caught.value.place == f"{tmp_path}/a.png"
    assert "can't be read as a picture" in caught.value.cause
    assert caught.value.next_step == "replace or remove it; it is skipped from the next start on"
    again = folder(tmp_path)
    assert len(again) == 1
    assert again.skipped == [
        SkippedRecord(f"{tmp_path}/a.png", caught.value.cause, "replace or remove it")
    ]


def test_changed_and_removed_pictures(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(1), "a.txt": "a"})
    image = folder(tmp_path).document(0)[1]
    write(tmp_path, {"a.png": picture(2)})
    with pytest.raises(DataError) as caught:
        image.load()
    assert tells(caught.value, f"{tmp_path}/a.png: has changed since the data set")
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError) as caught:
        image.load()
    assert tells(caught.value, f"{tmp_path}/a.png: can no longer be read: No")


def test_damaged_index(tmp_path: Path, cache: Path) -> None:
    write(tmp_path, {"a.png": picture(1), "a.txt": "a"})
    index = (
        write(cache, {f"datasets/pictures-v{VERSION}.sqlite": "no database " * 100})
        / "datasets"
        / f"pictures-v{VERSION}.sqlite"
    )
    with pytest.raises(DataError) as caught:
        folder(tmp_path)
    assert tells(caught.value, f"{index}: the index of pictures can't be ... CM3_CACHE")


def test_config_modules_are_light() -> None:
    code = (
        "import sys; from cm3plugins import cm3_datasets; cm3_datasets();"
        "sys.exit(bool({'torch', 'PIL', 'tqdm'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )
    assert result.returncode == 0, result.stderr
