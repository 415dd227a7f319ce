"""A run of `cm3 bench decode`: whose turn it is, who gets no time, and the figures of its table."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cm3lab.benchmarks.decode import engine, report
from cm3lab.benchmarks.decode.workload import decode_case
from cm3run.benchmarks import Verdict, Where
from decode_bench import CPU, EXTENT, LIMITS, MINI, SETUP, Fake, benchmark


def test_providers_take_turns_until_each_had_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """`slow` takes 30 seconds a run and has had its time after one; the others have three runs at
    most."""
    log: list[str] = []
    clock = {"now": 0.0}
    made = benchmark(
        [Fake("a", log), Fake("slow", log), Fake("b", log)], replace(EXTENT, seconds=20.0)
    )

    def now() -> float:
        clock["now"] += {"slow": 30.0}.get(log[-1], 1.0)
        return clock["now"]

    monkeypatch.setattr(made, "_now", now)
    rows = made.part("compare", [(provider, decode_case(SETUP, 6)) for provider in made.providers])
    assert log == [
        "a warms up",
        "slow warms up",
        "b warms up",
        "a",
        "slow",
        "b",
        "a",
        "b",
        "a",
        "b",
    ]
    assert [len(row["seconds"]["runs"]) for row in rows] == [3, 1, 3]
    assert rows[2]["seconds"]["median"] == pytest.approx(1.0)
    assert rows[2]["tokens_per_s"] == pytest.approx(6.0)
    assert rows[2]["ms_per_step"] == pytest.approx(1e3 / 6)


def test_who_is_wrong_or_fails_gets_no_time() -> None:
    log: list[str] = []
    outside = torch.full((1, 6), MINI.num_codes)
    made = benchmark(
        [
            Fake("fine", log),
            Fake("wrong", log, verdict=Verdict(3, 0, "of 64 greedy tokens unlike")),
            Fake("broken", log, verdict=RuntimeError("no such\nkernel")),
            Fake("short", log, {1: torch.zeros(1, 5)}),
            Fake("outside", log, {1: outside}),
            Fake("late", log, {2: MemoryError("none left")}),
        ]
    )
    made.extent = replace(EXTENT, seconds=60.0)
    rows = made.part("compare", [(provider, decode_case(SETUP, 6)) for provider in made.providers])
    told = [(row["provider"], row["status"], row.get("reason")) for row in rows]
    assert told == [
        ("fine", "ok", None),
        ("wrong", "wrong", "3 of 64 greedy tokens unlike: not timed"),
        ("broken", "failed", "RuntimeError: no such"),
        ("short", "wrong", "codes [1, 5], must be [1, 6] and in range: not timed"),
        ("outside", "wrong", "codes [1, 6], must be [1, 6] and in range: not timed"),
        ("late", "failed", "MemoryError: none left"),
    ]
    assert ["seconds" in row for row in rows] == [True, False, False, False, False, True]
    assert "late" in report.table(report.completed(rows, LIMITS | {"read_bytes_per_s": 1e9}))
    assert not {"wrong", "broken"} & set(log)


def test_a_variant_that_the_machine_refuses_says_why() -> None:
    case, where = decode_case(SETUP, 6), Where(CPU, "cpu", "quick")
    provider = engine.EngineProvider(
        "x", SETUP, engine.Variant({"precision": "int7"}), engine.RandomModel(SETUP)
    )
    assert provider.enabled(case, where) == "'int7' is not known"
    half = engine.EngineProvider(
        "x", replace(SETUP, dtype=torch.bfloat16), engine.VARIANTS["engine-bf16"], provider.model
    )
    assert half.enabled(case, where) == "equals the default engine"


def test_shares_of_the_floor_and_ratios_by_hand() -> None:
    row = {
        "part": "compare",
        "case": "c",
        "dtype": "float32",
        "floor_bytes_per_step": 4e6,
        "status": "ok",
        "seconds": {"median": 1.0, "p20": 1.0, "p80": 1.0, "runs": [1.0], "method": "wall clock"},
    }
    rows = [
        row | {"provider": "engine", "tokens_per_s": 30.0, "ms_per_step": 8.0},
        row | {"provider": "janus", "tokens_per_s": 10.0, "ms_per_step": 24.0},
    ]
    ours, theirs = report.completed(rows, {"read_bytes_per_s": 1e9, "copy_bytes_per_s": 2e9})
    assert (ours["of_read"], ours["of_copy"], ours["engine_x"]) == (
        pytest.approx(0.5),
        pytest.approx(0.25),
        1.0,
    )
    assert (theirs["of_read"], theirs["engine_x"]) == (pytest.approx(1 / 6), pytest.approx(3.0))
    janus = next(line for line in report.table([ours, theirs]).splitlines() if "janus" in line)
    assert janus.split() == [
        "janus",
        "1.00",
        "1.00-1.00",
        "1",
        "10.0",
        "24.00",
        "17%",
        "8%",
        "3.00",
    ]
