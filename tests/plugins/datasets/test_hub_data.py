"""Data sets of the Hugging Face Hub: they give the documents of the same files in a folder; the Hub's own client, and a Hub
on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

from cm3apps.cli.main import main
from cm3core.document import Image
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource, DocumentSourceConfig
from cm3plugins.datasets.folder import FolderSourceConfig
from cm3plugins.datasets.hub_data import local
from cm3plugins.datasets.jsonl import JSONLSourceConfig
from cm3plugins.datasets.svg_folder import SvgFolderConfig
from cm3plugins.datasets.table import TableSourceConfig
from cm3plugins.datasets.tokens import TokensSourceConfig
from cm3plugins.datasets.webdataset import WebDatasetSourceConfig
from fake_hub import FakeHub, fake_hub, files_of, forget_downloads
from messages import tells
from picture_files import picture, write, write_tar
from squares import PARTS, encode_squares

NAME = "hf://datasets/me/bells"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(tmp_path / "hub-cache") as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def published(hub: FakeHub, folder: Path) -> str:
    """The address of a folder's files with the commit."""
    commit = hub.add("me/bells", files_of(folder), kind="datasets").refs["main"]
    return f"{NAME}@{commit}"


def same(here: DocumentSource, there: DocumentSource) -> bool:
    """Whether two sources have equal documents."""
    assert there.fingerprint == here.fingerprint
    assert [one.cause for one in there.skipped] == [one.cause for one in here.skipped]
    assert len(there) == len(here) > 0
    for index in range(len(here)):
        assert there.id(index) == here.id(index)
        for one, other in zip(here.document(index), there.document(index), strict=True):
            if isinstance(one, Image) and isinstance(other, Image):
                assert np.array_equal(one.load(), other.load())
            else:
                assert one == other
    return True


def captioned(folder: Path, number: int = 3) -> Path:
    for index in range(number):
        name = f"a/{index}"
        write(folder, {f"{name}.png": picture(index), f"{name}.txt": f"picture {index}"})
    return folder


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    tables = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is missing")
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is missing")
    tables.write_table(pyarrow.table(columns), path)


def test_a_folder(hub: FakeHub, folder: Path) -> None:
    captioned(folder)
    write(folder, {"a/bare.png": picture(9), "README.md": "x", "model.bin": "x", "run.py": "x"})
    write(
        folder,
        {
            "LICENSE": "SPDX-License-Identifier: MIT",
            "a/1.png.license": "SPDX-License-Identifier: CC0-1.0",
        },
    )
    address = published(hub, folder)
    here, there = (
        FolderSourceConfig(path=path, split="all").build() for path in (str(folder), NAME)
    )
    assert same(here, there)
    assert not {"README.md", "model.bin", "run.py"} & set(hub.downloads())
    assert {there.provenance(index).source for index in range(len(there))} == {address}
    assert [there.provenance(index).licence for index in range(3)] == ["MIT", "CC0-1.0", "MIT"]
    inner = FolderSourceConfig(path=f"{NAME}/a", split="all").build()
    assert [inner.id(index) for index in range(len(inner))] == ["0.png", "1.png", "2.png"]


def test_a_stated_source_stays(hub: FakeHub, folder: Path) -> None:
    rows = [{"image": "0.png", "text": "bell", "source": "a book"}, {"image": "1.png", "text": "b"}]
    write(folder, {"captions.jsonl": "\n".join(map(json.dumps, rows))})
    write(folder, {"0.png": picture(0), "1.png": picture(1)})
    address = published(hub, folder)
    source = FolderSourceConfig(path=NAME, split="all").build()
    assert [source.provenance(index).source for index in range(2)] == ["a book", address]


def test_tars_by_folder_and_by_pattern(hub: FakeHub, folder: Path) -> None:
    folder.mkdir()
    for shard in range(4):
        members: dict[str, bytes | str]
        members = {f"{shard}{index}.png": picture(index) for index in range(2)}
        members |= {f"{shard}{index}.txt": b"bell" for index in range(2)}
        write_tar(folder / f"data-{shard}.tar", members)
    write(folder, {"preview.png": picture(0), "more/x.tar": "x"})
    published(hub, folder)
    pattern = WebDatasetSourceConfig(path=f"{NAME}/data-{{1..2}}.tar", split="all").build()
    assert sorted(hub.downloads()) == ["data-1.tar", "data-2.tar"]
    assert len(pattern) == 4
    assert same(
        WebDatasetSourceConfig(path=str(folder / "data-*.tar"), split="all").build(),
        WebDatasetSourceConfig(path=f"{NAME}/data-*.tar", split="all").build(),
    )
    assert same(
        WebDatasetSourceConfig(path=str(folder), split="all").build(),
        WebDatasetSourceConfig(path=NAME, split="all").build(),
    )
    assert sorted(hub.downloads()) == [f"data-{shard}.tar" for shard in range(4)]
    with pytest.raises(DataError) as caught:
        WebDatasetSourceConfig(path=f"{NAME}/data-{{7..9}}.tar").build()
    assert tells(
        caught.value, f"{NAME}@ ... : has no file data-7.tar, data-8.tar, data-9.tar; it has data-0"
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables(hub: FakeHub, folder: Path, kind: str) -> None:
    folder.mkdir()
    columns = {"file_name": ["a/0.png", "a/1.png"], "text": ["one", "two"]}
    write(folder, {f"a/{index}.png": picture(index) for index in range(2)})
    if kind == "csv":
        rows = ["file_name,text", "a/0.png,one", "a/1.png,two"]
        write(folder, {"metadata.csv": "\n".join(rows) + "\n"})
    else:
        write_parquet(folder / "metadata.parquet", columns)
    published(hub, folder)
    keys: dict[str, Any] = {"columns": {"image": "file_name", "caption": "text"}, "split": "all"}
    here = TableSourceConfig(path=str(folder), **keys).build()
    assert same(here, TableSourceConfig(path=NAME, **keys).build())
    file = f"metadata.{kind}"
    assert same(here, TableSourceConfig(path=f"{NAME}/{file}", **keys).build())


def test_records_name_no_files_of_another_repository(hub: FakeHub, folder: Path) -> None:
    """Their folders are side by side in the cache."""
    hub.add("me/secrets", files_of(captioned(folder / "x")), kind="datasets")
    secret = local("hf://datasets/me/secrets")
    theirs = [
        f"../../../{secret.relative_to(secret.parents[2])}/a/0.png",
        f"{secret}/a/0.png",
        f"../../blobs/{(secret / 'a/0.png').resolve().name}",
        "0.png",
    ]
    rows = [{"image": name, "text": "bell"} for name in theirs]
    write(folder / "y", {"0.png": picture(0), "d.jsonl": "\n".join(map(json.dumps, rows))})
    hub.add("me/bells", files_of(folder / "y"), kind="datasets")
    source = JSONLSourceConfig(path=f"{NAME}/d.jsonl", split="all").build()
    assert len(source) == 1
    assert len(source.skipped) == 3
    assert all("outside" in one.cause for one in source.skipped)


def test_drawings(hub: FakeHub, folder: Path) -> None:
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="M2 2h8v8z"/></svg>'
    )
    folder = folder / "bells"
    write(folder, {"bell.svg": drawing, "bell-off.svg": drawing.replace("h8", "h9")})
    address = published(hub, folder)
    here, there = (SvgFolderConfig(path=path, split="all").build() for path in (str(folder), NAME))
    assert same(here, there)
    assert there.provenance(0).source == address


@pytest.mark.slow
def test_token_shards(hub: FakeHub, tmp_path: Path) -> None:
    shards = encode_squares(tmp_path / "shards")
    published(hub, shards)
    here, there = (TokensSourceConfig(path=path).build() for path in (str(shards), NAME))
    assert there.fingerprint == here.fingerprint
    assert [there.document(index) for index in range(5)] == [
        here.document(index) for index in range(5)
    ]


# ---- what goes wrong


def test_what_is_refused(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str, config: type[DocumentSourceConfig] = FolderSourceConfig) -> DataError:
        with pytest.raises(DataError) as caught:
            config(path=path).build()  # type: ignore[call-arg]  # all of these have a path
        return caught.value

    assert tells(refused("hf://me/bells"), "hf://me/bells: names a model, not a data set")
    assert tells(refused(f"{NAME}/../x"), f"{NAME}/../x: is not the address")
    assert tells(refused(NAME), f"{NAME}: is not on 127.0.0.1")
    write(folder, {"train.parquet": "x", "README.md": "x"})
    published(hub, folder)
    assert tells(
        refused(NAME), f"{NAME}: has no file ... it has README.md, train.parquet ... table for"
    )
    assert tells(
        refused(f"{NAME}/none.jsonl", JSONLSourceConfig), f"{NAME}: has no file none.jsonl"
    )
    assert hub.downloads() == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert tells(refused(NAME), f"{NAME}: is not in the cache of downloads ... HF_HUB_OFFLINE")


def test_one_commit_in_a_process(hub: FakeHub, folder: Path) -> None:
    """Also of files that are asked for later."""
    captioned(folder)
    write(folder, {"d.jsonl": json.dumps({"image": "a/0.png", "text": "old"})})
    address = published(hub, folder)
    FolderSourceConfig(path=NAME).build()
    write(folder, {"d.jsonl": json.dumps({"image": "a/0.png", "text": "new"})})
    published(hub, folder)
    source = JSONLSourceConfig(path=f"{NAME}/d.jsonl", split="all").build()
    assert list(source.texts()) == ["old"]
    assert source.provenance(0).source == address
    forget_downloads()
    source = JSONLSourceConfig(path=f"{NAME}/d.jsonl", split="all").build()
    assert list(source.texts()) == ["new"]


def test_without_a_connection_the_download_is_used(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(hub, captioned(folder))
    here = FolderSourceConfig(path=NAME, split="all").build()
    forget_downloads()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert same(here, FolderSourceConfig(path=NAME, split="all").build())
    assert len(hub.requests) == asked


# ---- commands


@pytest.mark.parametrize("kind", ["folder", "tars", "table"])
def test_commands_find_the_reader(
    hub: FakeHub, folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "folder":
        captioned(folder)
    elif kind == "tars":
        folder.mkdir()
        write_tar(folder / "0.tar", {"0.png": picture(0), "0.txt": "bell"})
    else:
        cells = {"image": [{"bytes": picture(0), "path": "0.png"}], "text": ["bell"]}
        folder.mkdir()
        write_parquet(folder / "train.parquet", cells)
    published(hub, folder)
    reader = {"folder": "folder", "tars": "webdataset", "table": "table"}[kind]
    columns = ["dataset.columns={image: image, caption: text}"] if kind == "table" else []
    assert main(["data", "validate", NAME, *columns]) == 0
    assert f"{NAME} ({reader})" in capsys.readouterr().out


def test_a_run_records_the_commit(
    hub: FakeHub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = published(hub, captioned(folder))
    words = [
        *("dataset=folder", f"dataset.path={NAME}", "dataset.valid=0", "train.steps=1"),
        *("train.validation_splits=[]", "decoder.context_length=128", "retriever=random"),
    ]
    run = ["--plugin", str(PARTS / "train_parts.py"), "train", str(PARTS / "squares.yaml")]
    assert main([*run, "-o", str(tmp_path / "run"), "--quiet", *words]) == 0
    known = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert [row["source"] for row in known["trained_on"]] == [address]
    capsys.readouterr()
    assert main([*run[:2], "provenance", str(tmp_path / "run")]) == 0
    assert f"dataset.path connects to {NAME}" in capsys.readouterr().out
