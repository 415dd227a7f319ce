"""`cm3 bench retrieval --qdrant`: Qdrant's engine beside the bank, in this process."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cm3apps.cli.main import main
from cm3lab.benchmarks.retrieval import engines, runner, synthetic
from cm3run.bank import MemoryBank
from messages import tells

BENCH = ["bench", "retrieval", "--num", "1000", "--dimension", "16", "--quick", "--index", "ivf"]


@pytest.fixture
def ceilings(monkeypatch):
    """The machine's limits, which are not what is tested, as constants."""
    monkeypatch.setattr(
        "cm3lab.benchmarks.machine.roofs",
        lambda where, stopwatch: {"copy_bytes_per_s": 1e9, "flop_per_s": {}, "products": {}},
    )


@pytest.fixture
def qdrant():
    """Where the package is."""
    pytest.importorskip("qdrant_edge", reason="needs pip install qdrant-edge-py")


@pytest.mark.slow
def test_the_engine_is_measured_beside_the_bank(qdrant, ceilings, tmp_path):
    out = tmp_path / "results.json"
    folder = tmp_path / "here"
    asked = [*BENCH, "--qdrant", "--no-loader", "--folder", str(folder), "-o", str(out)]
    assert main(asked) == 0
    rows = json.loads(out.read_text())["results"]
    (filled,) = (row for row in rows if row["part"] == "filled")
    assert filled["engine"].startswith("Qdrant Edge 0.")
    assert filled["engine"].endswith(", 0 vectors in its graph"), "64 kB are compared"
    vectors = 1000 * 16 * 4
    assert 0 < filled["index_bytes"] < filled["file_bytes"]
    assert vectors < filled["file_bytes"] < 100 * vectors
    found = {row["engine"]: row["queries"] for row in rows if row["part"] == "engine"}
    assert list(found) == [
        "ivf",
        "qdrant",
        "qdrant, ten styles",
        "qdrant, one style",
        "qdrant by ACORN, ten styles",
    ]
    for queries in found.values():
        assert all(one["recall"] > 0.9 and one["ms"] > 0 for one in queries.values())
    assert list(folder.iterdir()) == [], "nothing is left"


@pytest.mark.parametrize(
    ("compared_kb", "in_graph", "acorn"), [(10_000, 0, False), (10, 1000, False), (1, 1000, True)]
)
def test_it_finds_the_nearest_of_those_that_pass(
    qdrant, monkeypatch, tmp_path, compared_kb, in_graph, acorn
):
    """Compared, by its graph, and by its graph with a filter: as a sort of all products does, each query alone and in a batch."""
    monkeypatch.setattr(engines, "COMPARED_KB", compared_kb)
    towers = synthetic.Towers(1000, 16)
    synthetic.write_bank(tmp_path / "bank", towers)
    bank, queries = MemoryBank.open(tmp_path / "bank"), towers.queries(3)
    products = queries @ np.concatenate(list(towers.blocks())).T
    with engines.filled_qdrant(tmp_path / "qdrant", bank) as (shard, row):
        assert row["engine"].endswith(f", {in_graph:,} vectors in its graph")
        for styles, passing in (([], range(100)), (["style 7", "style 8"], [7, 8])):
            own = [number for number in range(1000) if number % 100 in passing]
            expected = [sorted(own, key=lambda number: -line[number])[:4] for line in products]
            ask = engines.ask_qdrant(shard, queries, styles, acorn=acorn)
            assert ask(list(range(6))) == expected
            assert [ask([at])[0] for at in range(6)] == expected


def test_filters_pass_one_document_in_ten_and_in_a_hundred():
    shares = [
        sum(synthetic.styles_of(number) in styles for number in range(1000))
        for styles in synthetic.FILTERS.values()
    ]
    assert shares == [0, 100, 10]


def test_only_what_is_written_counts_as_bytes_on_disk(tmp_path):
    """An engine's files have holes: a file of 32 MB with one byte takes a block."""
    with (tmp_path / "sparse").open("wb") as file:
        file.write(b"x")
        file.truncate(32 << 20)
    assert 0 < engines.disk_bytes([tmp_path / "sparse", tmp_path]) <= 1 << 16


@pytest.mark.parametrize(
    ("option", "module", "told"),
    [
        (
            "--qdrant",
            "qdrant_edge",
            "error: cm3 bench retrieval --qdrant: the package 'qdrant-edge-py'",
        ),
        (
            "--lancedb",
            "lancedb",
            "error: cm3 bench retrieval --lancedb: the packages 'lancedb'",
        ),
    ],
)
def test_a_missing_package_is_named_before_anything_is_written(
    monkeypatch, capsys, option, module, told
):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    monkeypatch.setattr(runner, "run_bank", None)
    assert main([*BENCH, option]) == 2
    assert tells(capsys.readouterr().err, told)


def test_without_databases_none_is_asked_for(monkeypatch):
    monkeypatch.setattr(engines, "qdrant_package", None)
    monkeypatch.setattr(engines, "lancedb_packages", None)
    engines.check_engines(16, engines.Engines())
