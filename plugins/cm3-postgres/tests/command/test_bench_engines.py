"""`cm3 bench retrieval --postgres`: the server beside the bank, in one run; what can't be measured is refused
before anything is written."""

from __future__ import annotations

import json

import pytest

from cm3apps.cli.main import main
from cm3lab.benchmarks.retrieval import runner
from messages import tells

pytest.importorskip("cm3postgres", reason="needs pip install ./plugins/cm3-postgres")

BENCH = [
    "bench",
    "retrieval",
    "--num",
    "1000",
    "--quick",
    "--index",
    "ivf",
    "--postgres",
    "--no-loader",
]


@pytest.fixture
def here(postgres, monkeypatch):
    """The environment names the server."""
    for name, value in zip(
        ("PGHOST", "PGDATABASE", "PGUSER"), postgres.options.values(), strict=True
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        "cm3lab.benchmarks.machine.roofs",
        lambda where, stopwatch: {"copy_bytes_per_s": 1e9, "flop_per_s": {}, "products": {}},
    )


@pytest.mark.slow
def test_the_server_is_measured_beside_the_bank(here, postgres, tmp_path):
    out = tmp_path / "results.json"
    assert main([*BENCH, "--dimension", "16", "-o", str(out)]) == 0
    rows = json.loads(out.read_text())["results"]
    (filled,) = (row for row in rows if row["part"] == "filled")
    assert filled["engine"].startswith("PostgreSQL ")
    assert 0 < filled["index_bytes"] < filled["file_bytes"]
    asked = {row["engine"]: row["queries"] for row in rows if row["part"] == "engine"}
    assert list(asked) == ["ivf", "pgvector", "pgvector, ten styles", "pgvector, one style"]
    for queries in asked.values():
        assert all(one["recall"] > 0.9 and one["ms"] > 0 for one in queries.values())
    assert postgres.sql("SELECT to_regnamespace('cm3_bench')") == [(None,)], "nothing is left"


@pytest.mark.slow
def test_clients_are_measured_with_and_without_a_network(here, postgres, tmp_path, monkeypatch):
    monkeypatch.setattr("cm3lab.benchmarks.retrieval.clients.SECONDS", 0.5)
    out = tmp_path / "results.json"
    options = ["--dimension", "16", "--clients", "4", "--latency", "30", "-o", str(out)]
    assert main([*BENCH, *options]) == 0
    rows = [row for row in json.loads(out.read_text())["results"] if row["part"] == "clients"]
    shape = [(row["latency_ms"], row["threads"], row["connections"]) for row in rows]
    assert shape == [(ms, *one) for ms in (0.0, 30.0) for one in ((1, 1), (4, 4), (4, 1))]
    assert all(row["recall"] > 0.9 and 0 < row["ms"] <= row["ms_p99"] for row in rows)
    one, many, _ = rows[3:]
    assert one["ms"] > 60, "two answers a query, each 30 ms later"
    assert many["queries_per_s"] > one["queries_per_s"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--clients", "4"], "error: cm3 bench retrieval --clients: needs --postgres"),
        (["--postgres", "--latency", "5"], "error: cm3 bench retrieval --latency: needs --clients"),
    ],
)
def test_clients_need_a_server_and_latency_needs_clients(options, told, capsys):
    assert main(["bench", "retrieval", *options]) == 2
    assert tells(capsys.readouterr().err, told)


def test_what_would_fail_after_minutes_is_refused_at_once(here, monkeypatch, capsys):
    monkeypatch.setattr(runner, "run_bank", None)
    assert main([*BENCH, "--dimension", "5000"]) == 2
    assert tells(capsys.readouterr().err, "error: cm3 bench retrieval --dimension: is 5,000, but")
    monkeypatch.setenv("PGDATABASE", "nowhere")
    assert main(BENCH) == 2
    assert 'database "nowhere" does not exist' in capsys.readouterr().err


def test_the_message_names_the_host_of_the_environment(here, monkeypatch, capsys):
    monkeypatch.setenv("PGHOST", "db.invalid")
    assert main(["postgres", "stat", "--retry-seconds", "0"]) == 2
    told = capsys.readouterr().err
    assert tells(
        told,
        "error: PostgreSQL schema cm3_memory (PGHOST db.invalid, PGDATABASE cm3): can't be reached",
    )
