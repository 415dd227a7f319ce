"""Parquet: pictures inside, as paths, and what is wrong with either."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from cm3core.errors import DataError, MissingPackageError
from cm3plugins.datasets import parquet
from cm3plugins.datasets.table import TableSourceConfig
from messages import tells
from picture_files import found, picture

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def written(path: Path, cells: list[Any], kind: Any = IMAGE, rows: int = 2) -> Path:
    texts = [f"text {place}" for place in range(len(cells))]
    table = pa.table(
        {"image": pa.array(cells, kind), "text": texts, "licence": ["MIT"] * len(cells)}
    )
    pyarrow.parquet.write_table(table, path, row_group_size=rows)
    return path


def table(path: Path, **keys: Any) -> Any:
    columns = {"image": "image", "caption": "text"}
    return TableSourceConfig(path=str(path), columns=columns, split="all", **keys).build()


def inside(seed: int) -> dict[str, Any]:
    return {"bytes": picture(seed), "path": None}


def pixels(seed: int) -> Any:
    from cm3core.images import open_image

    return open_image(picture(seed))


@pytest.mark.parametrize("kind", [IMAGE, pa.binary(), pa.large_binary()])
def test_every_row_has_its_picture_in_any_order(tmp_path: Path, kind: Any) -> None:
    cells = [inside(seed) if kind == IMAGE else picture(seed) for seed in range(7)]
    source = table(written(tmp_path / "a.parquet", cells, kind, rows=3))
    assert source.skipped == []
    for index in (6, 0, 3, 5, 1, 4, 2):
        record = source.record(index)
        assert record["caption"] == f"text {index}"
        assert np.array_equal(record["image"].load(), pixels(index))
    # the second time, all is known
    again = table(tmp_path / "a.parquet")
    assert again.fingerprint == source.fingerprint
    assert np.array_equal(again.record(6)["image"].load(), pixels(6))


def test_paths_and_what_states_a_licence(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(picture(0))
    cells = [{"bytes": None, "path": "0.png"}, {"bytes": None, "path": "../0.png"}]
    source = table(written(tmp_path / "a.parquet", cells), provenance={"licence": "licence"})
    assert np.array_equal(source.record(0)["image"].load(), pixels(0))
    assert source.provenance(0).licence == "MIT"
    [(place, cause, _)] = found(source, tmp_path)
    assert place == "a.parquet, row 1: image ../0.png"
    assert cause == f"is outside the data set's folder {tmp_path}"


def test_bad_pictures_are_named_and_the_others_kept(tmp_path: Path) -> None:
    damaged = picture(9)[:-20]
    cells = [
        inside(0),
        {"bytes": b"no picture", "path": "x"},
        {"bytes": damaged, "path": "y"},
        None,
    ]
    source = table(written(tmp_path / "a.parquet", cells))
    assert len(source) == 1
    assert [one[:2] for one in found(source, tmp_path)] == [
        ("a.parquet, row 1, column 'image'", "is not a picture"),
        (
            "a.parquet, row 2, column 'image'",
            "is truncated: the last chunk of a PNG (IEND) is missing",
        ),
        ("a.parquet, row 3", "its column 'image', needed for the field 'image', is empty"),
    ]


def test_a_column_that_there_is_not(tmp_path: Path) -> None:
    """Said once, with the columns that are there, not for every row with those that were read."""
    path = written(tmp_path / "a.parquet", [inside(0), inside(1)])
    with pytest.raises(DataError) as error:
        TableSourceConfig(path=str(path), columns={"image": "picture"}).build()
    assert tells(error.value, f"{path}: has no column 'picture' ... 'image'")


def test_a_file_that_has_changed(tmp_path: Path) -> None:
    source = table(written(tmp_path / "a.parquet", [inside(0), inside(1)]))
    written(tmp_path / "a.parquet", [inside(2), inside(3)])
    with pytest.raises(DataError, match="has changed since the data set was opened"):
        source.record(0)["image"].load()
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(DataError, match="can no longer be read: No such file"):
        source.record(0)["image"].load()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"x" * 50 + b"PAR1", b"\0" * 100])
def test_files_that_are_no_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError) as error:
        table(tmp_path / "a.parquet")
    assert error.value.place == str(tmp_path / "a.parquet")
    assert error.value.cause.startswith("can't be read as Parquet (")


def test_a_damaged_page_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [inside(seed) for seed in range(4)])
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(bytes(content))
    with pytest.raises(DataError) as error:
        table(path)
    assert error.value.cause.startswith("can't be read as Parquet (")


def test_a_row_group_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 100)
    with pytest.raises(DataError) as error:
        table(written(tmp_path / "a.parquet", [inside(0)]))
    assert "its row group 0 has" in error.value.cause
    assert error.value.next_step == "write it with smaller row groups (row_group_size=100)"


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.parquet", [inside(0)])
    real = builtins.__import__

    def without(name: str, *args: Any, **keys: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ModuleNotFoundError(name)
        return real(name, *args, **keys)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError) as error:
        table(path)
    assert tells(error.value, f"{path}: the package 'pyarrow' ... 'cm3leon[parquet]'")
