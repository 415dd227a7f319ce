"""`cm3 bench shards`: both readers see every document, and what is printed and stored."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from cm3apps.cli.main import main
from cm3lab.benchmarks import shards
from cm3plugins.datasets.tokens import TokensSourceConfig
from messages import tells


def test_both_readers_read_every_document(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="compares with webdataset: pip install webdataset")
    shards.write_shards(tmp_path, 40, 16)
    assert shards.read(tmp_path) == shards.read_by_webdataset(tmp_path) == 40
    source = TokensSourceConfig(path=str(tmp_path)).build()
    assert {source.id(index) for index in range(40)} == {f"picture-{index}" for index in range(40)}


def test_what_the_package_decodes_is_what_was_written(tmp_path: Path) -> None:
    """`webdataset` is an independent reader of the format."""
    webdataset = pytest.importorskip(
        "webdataset", reason="compares with webdataset: pip install webdataset"
    )
    shards.write_shards(tmp_path, 40, 16)
    source = TokensSourceConfig(path=str(tmp_path)).build()
    samples = list(
        webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False).decode()
    )
    for index, sample in enumerate(samples):
        text, codes = source.document(index)
        assert sample["json"]["id"] == source.id(index)
        assert sample["json"]["segments"][0]["texts"] == [text.text]  # type: ignore[union-attr]  # webdataset decodes to these
        assert sample["npy"].tolist() == [codes.codes.tolist()]  # type: ignore[union-attr]  # webdataset decodes to these
    assert len(samples) == 40


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("webdataset", reason="compares with webdataset: pip install webdataset")
    out = tmp_path / "out.json"
    assert (
        main(["bench", "shards", "--num", "32", "--codes", "8", "--runs", "2", "-o", str(out)]) == 0
    )
    said = capsys.readouterr().out
    figures = r" +[\d.,]+ \([\d.,]+ to [\d.,]+\)"
    one = rf"  cm3{figures} documents/s\n  webdataset{figures} documents/s\n  ratio{figures}\n"
    assert re.fullmatch(
        rf"wall-clock time\n{one}processor time\n{one}"
        r"32 documents with 8 codes; medians of 2 alternating runs\n",
        said,
    )
    values = json.loads(out.read_text())
    assert (values["documents"], values["codes"]) == (32, 8)
    assert [row["reader"] for row in values["results"]] == ["cm3", "webdataset"]


def test_without_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert main(["bench", "shards", "--quick"]) == 2
    assert tells(capsys.readouterr().err, "error: cm3 bench shards: the package 'webdataset'")


def test_ratios_by_hand() -> None:
    rows = shards.Row("a", (4.0, 9.0), (1.0, 2.0)), shards.Row("b", (2.0, 3.0), (4.0, 4.0))
    assert shards.ratios_of(rows) == [2.0, 3.0]
    assert shards.ratios_of(rows, "processor_runs") == [0.25, 0.5]
