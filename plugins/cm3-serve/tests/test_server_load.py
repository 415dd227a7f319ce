"""`python -m cm3serve.load` against a server of the toy model."""

from __future__ import annotations

import math
import socket

import pytest

from cm3serve.load import PROMPTS, Load, cpu_seconds, main, measure
from messages import tells
from toy_server import served


def test_figures_by_hand() -> None:
    load = Load(2, [1.0, 2.0, 3.0, 4.0], 8.0, 2.0)
    assert (load.throughput, load.latency(0.5), load.cpu_each) == (0.5, 2.0, 0.5)
    assert math.isnan(Load(1, [1.0], 1.0).cpu_each)


def test_prompts_differ() -> None:
    """... as what is asked for again is not searched for again."""
    assert len(set(PROMPTS)) == len(PROMPTS) == 144


def test_a_running_server(capsys: pytest.CaptureFixture[str]) -> None:
    with served() as server:
        assert main([server.url, "--clients", "1", "2", "--requests", "4", "--prompt", "red"]) == 0
        table = capsys.readouterr().out.splitlines()
        assert table[0].endswith("| CPU s per picture |")
        rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table[2:]]
        assert [row[0] for row in rows] == ["1", "2"]
        assert all(float(cell) >= 0 for row in rows for cell in row)
        before = cpu_seconds(server.url)
        load = measure(server.url, 2, range(8, 12), {"candidates": 1}, ["red", "blue"])
        assert len(load.latencies) == 4
        assert 0 <= load.cpu_seconds <= cpu_seconds(server.url) - before


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert main([url]) == 2
    tells(capsys.readouterr().err, "error: 127.0.0.1: did not answer ... start cm3 serve")
    assert main(["127.0.0.1:8000"]) == 2
    tells(capsys.readouterr().err, "error: 127.0.0.1:8000: is not the address of a server")
