"""The command `cm3 bench decode`; an interrupted run keeps what it has."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cm3apps.cli.main import main
from cm3lab.benchmarks.decode import engine, parallel, runner, workload
from decode_bench import MINI, Fake
from messages import tells


def test_parts_of_a_step(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Every column of every provider."""
    arguments = ["bench", "decode", "--parts", "--quick", "--size", "mini", "--threads", "1"]
    assert main([*arguments, "--batch", "1", "--providers", "engine", "engine-bf16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.replace("|", " ").split() for line in lines if line.startswith("  engine")]
    assert [row[:2] for row in rows] == [["engine", "1"], ["engine-bf16", "1"]]
    for row in rows:
        numbers = [float(value) for value in row[2:]]
        assert len(numbers) == 9
        assert min(numbers) >= 0
        assert numbers[7] > 0
    assert main([*arguments, "--providers", "janus"]) == 2
    assert "none of the providers is our engine" in capsys.readouterr().err


def test_several_codes_per_step(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights alone: each window draws the same pictures, and none loses a code."""
    monkeypatch.setattr(parallel, "TRAINED", {})
    monkeypatch.setattr(parallel, "RUNS", 1)
    monkeypatch.setattr(parallel, "WINDOWS", (1, 4, "auto"))
    monkeypatch.setattr(parallel, "RANDOM_CODES", 8)
    arguments = ["bench", "decode", "--parallel", "--quick", "--size", "mini", "--threads", "1"]
    assert main([*arguments, "--batch", "2"]) == 0
    heading, _, *lines = capsys.readouterr().out.splitlines()
    assert heading == "random weights, mini: 2 at a time, 8 codes each"
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows] == ["1", "4", "auto"]
    assert float(rows[0][1]) == 1.0
    assert all(1 <= float(row[1]) <= 4 and row[4:] == ["the", "same"] for row in rows)
    assert main([*arguments, "--parts"]) == 2
    assert "cm3 bench decode --parallel: doesn't read --parts" in capsys.readouterr().err


# ---- the gate


@pytest.mark.slow
def test_command_measures_all_parts(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(
        engine.VARIANTS, "engine-other", engine.Variant({"precision": "bf16"}, weight_bytes=2)
    )
    out = tmp_path / "decode.json"
    assert (
        main(
            [
                "bench",
                "decode",
                "--quick",
                "--size",
                "mini",
                "--providers",
                "engine",
                "engine-other",
                "janus",
                "llamagen",
                "llamagen-compiled",
                "--threads",
                "1",
                "-o",
                str(out),
            ]
        )
        == 0
    )
    document = json.loads(out.read_text())
    environment, ceilings, rows = document["environment"], document["ceilings"], document["results"]
    assert (document["format"], document["benchmark"]) == (2, "decode")
    assert environment["decoder"] == {
        "name": "mini",
        "num_layers": 2,
        "width": 64,
        "num_heads": 2,
        "d_ff": 96,
        "num_codes": 32,
        "trunk_parameters": 57344,
    }
    assert {"torch", "transformers"} <= set(environment["packages"])
    assert len(environment["load"]) == 2
    assert ceilings["read_bytes_per_s"] > 0
    compared = [
        (row["case"], row["provider"], row["status"]) for row in rows if row["part"] == "compare"
    ]
    assert compared == [
        (f"batch {batch}, 6 tokens", name, "not run" if name == "llamagen-compiled" else "ok")
        for batch in (1, 2)
        for name in ("engine", "engine-other", "janus", "llamagen", "llamagen-compiled")
    ]
    assert [(row["case"], row["provider"]) for row in rows if row["part"] == "candidates"] == [
        (f"{number} of one prompt, 6 tokens", name)
        for number in (1, 3)
        for name in ("engine", "engine-other")
    ]
    needed = {"part", "case", "parameters", "provider", "dtype", "status"}
    timed = {
        "seconds",
        "floor_bytes_per_step",
        "tokens_per_s",
        "ms_per_step",
        "of_read",
        "of_copy",
        "trunk_parameters",
    }
    for row in rows:
        assert needed <= set(row)
        assert timed <= set(row) if row["status"] == "ok" else "reason" in row
    first, other = rows[:2]
    assert first["seconds"]["method"] == "processor time"
    assert first["floor_bytes_per_step"] == workload.least_bytes(MINI, first["parameters"], 4, 4)
    # keys and values stay float32
    assert other["floor_bytes_per_step"] == workload.least_bytes(MINI, first["parameters"], 2, 4)
    assert first["of_read"] == pytest.approx(
        first["floor_bytes_per_step"] / (first["ms_per_step"] / 1e3) / ceilings["read_bytes_per_s"]
    )
    assert rows[2]["engine_x"] == pytest.approx(first["tokens_per_s"] / rows[2]["tokens_per_s"])
    one, many = (row for row in rows if row["part"] == "candidates" and row["provider"] == "engine")
    assert many["ratio_to_one"] == pytest.approx(
        many["seconds"]["median"] / one["seconds"]["median"]
    )
    (length,) = [row for row in rows if row["part"] == "length" and row["provider"] == "engine"]
    assert length["points"][-1][0] == 24
    assert length["points"] == sorted(length["points"])
    anew, kept = (
        row for row in rows if row["part"] == "conversation" and row["provider"] == "engine"
    )
    assert [row["parameters"]["keep"] for row in (anew, kept)] == [False, True]
    assert kept["speedup"] == pytest.approx(anew["seconds"]["median"] / kept["seconds"]["median"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "decode-length.png",
        "decode-speed.png",
        "decode.json",
    ]
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in tmp_path.glob("*.png"))
    printed = capsys.readouterr()
    assert "compare: batch 2, 6 tokens (float32)" in printed.out
    assert (
        "llamagen-compiled  not run: compiling takes ten seconds on a CPU; only the full run does it"
        in printed.out
    )
    assert "times one" in printed.out
    assert tells(printed.err, "... engine: 0 of 64")


@pytest.mark.slow
def test_interrupted_run_keeps_what_it_has(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    fakes = [Fake("first", log), Fake("second", log, {2: KeyboardInterrupt()})]
    monkeypatch.setattr(runner, "all_providers", lambda setup, added: fakes)
    out = tmp_path / "decode.json"
    assert main(["bench", "decode", "--quick", "--size", "mini", "-o", str(out)]) == 130
    rows = json.loads(out.read_text())["results"]
    assert [(row["case"], row["provider"], row["status"], row.get("reason")) for row in rows] == [
        ("batch 1, 6 tokens", "first", "ok", None),
        ("batch 1, 6 tokens", "second", "ok", None),
        ("batch 2, 6 tokens", "first", "ok", None),
        ("batch 2, 6 tokens", "second", "not run", "interrupted"),
    ]
    assert (tmp_path / "decode-speed.png").exists()


@pytest.mark.slow
def test_without_transformers_the_engine_is_measured_alone(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "transformers" else found(name, *rest),
    )
    assert (
        main(
            [
                "bench",
                "decode",
                "--quick",
                "--size",
                "mini",
                "--batch",
                "1",
                "--providers",
                "engine",
                "janus",
            ]
        )
        == 0
    )
    assert "janus              not run: transformers is not installed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_provider_that_fails_is_in_the_exit_code(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes = [Fake("fails", [], {1: RuntimeError("boom")}), Fake("fine", [])]
    monkeypatch.setattr(runner, "all_providers", lambda setup, added: fakes)
    assert main(["bench", "decode", "--quick", "--size", "mini", "--batch", "1"]) == 1
    assert capsys.readouterr().err.endswith("\n1 of 2 results are wrong or failed\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--device", "cuda"],
            "cm3 bench decode --device cuda: there is no CUDA device, or torch was built without "
            "CUDA\n"
            "  next: use --device cpu",
        ),
        (
            ["--size", "100M"],
            "cm3 bench decode --size: no size is called '100M'\n  next: did you mean '100m'?",
        ),
        (
            ["--providers", "engine", "januss"],
            "cm3 bench decode --providers: no provider is called 'januss'\n"
            "  next: did you mean 'janus'?",
        ),
        (
            ["--batch", "1", "0"],
            "cm3 bench decode: argument --batch: is '0', must be a whole number from 1 to 65,536\n"
            "  next: see `cm3 bench decode --help`",
        ),
        (
            ["--tokens", "1"],
            "cm3 bench decode: argument --tokens: is '1', must be a whole number from 2 to 1,048,576\n"
            "  next: see `cm3 bench decode --help`",
        ),
        (
            ["--threads", "0"],
            "cm3 bench decode: argument --threads: is '0', must be a whole number from 1 to 4,096\n"
            "  next: see `cm3 bench decode --help`",
        ),
    ],
)
def test_wrong_options_are_told(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "decode", *options]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_the_command_line_imports_no_torch() -> None:
    script = (
        "import sys, argparse\nfrom cm3lab.benchmarks.command import configure\n"
        "configure(argparse.ArgumentParser())\nprint('torch' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )
