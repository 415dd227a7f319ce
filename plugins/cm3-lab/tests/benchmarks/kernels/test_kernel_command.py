"""`cm3 bench kernels` as a command: files, plugins, wrong options, an interrupt."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cm3apps.cli.main import main
from cm3lab.benchmarks import machine, measure
from cm3lab.benchmarks.kernels import report, runner
from cm3run.benchmarks import Op
from kernel_bench import at, doubling
from kernel_bench import machine as machine_of

MINE = """
from cm3core.hookspecs import hookimpl
from cm3core.interfaces.attention import AttentionBackend, AttentionConfig
from cm3run.benchmarks import Provider
from dataclasses import dataclass

CM3_API = 1

@hookimpl
def cm3_benchmarks():
    return {"mine": "cm3_plugin_file_mine:add"}

@dataclass(kw_only=True)
class MineConfig(AttentionConfig):
    def build(self):
        import torch

        class Mine(AttentionBackend):
            def attend(self, q_BTHD, k_BSKD, v_BSKD, *, kv_start_BT=None, **rest):
                from cm3kernels import attention
                return attention(q_BTHD, k_BSKD, v_BSKD, kv_start=kv_start_BT, implementation="reference")

        return Mine()

@hookimpl
def cm3_attention_backends():
    return {"ours": MineConfig}

class Mine(Provider):
    name = "mine"

    def prepare(self, case, inputs):
        from torch.nn.functional import cross_entropy, linear

        def loss():
            losses = cross_entropy(linear(inputs["hidden"], inputs["head"]), inputs["targets"], reduction="none")
            return (losses * inputs["weights"]).sum()
        return loss

def add(registry):
    registry.add_provider("linear_cross_entropy", Mine())
"""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The command sets torch's threads for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few repetitions, and small roofs."""
    monkeypatch.setattr(machine, "stopwatch_for", lambda where: measure.CPUStopwatch(0.0, 3))
    monkeypatch.setitem(machine.COPY_BYTES, "cpu", 2**16)
    monkeypatch.setitem(machine.SIDES, "cpu", 32)


def test_files_are_read_back(
    brief: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON and CSV have the same times; the picture is one; two runs can be compared."""
    files = [tmp_path / f"r.{suffix}" for suffix in ("json", "csv", "svg")]
    command = ["bench", "kernels", "--quick", "--threads", "1", "--op", "silu_gate"]
    command += ["--shape", "M=2,F=8", "--shape", "M=3", "--dtype", "float32,bfloat16"]
    assert main([*command, *(part for file in files for part in ("-o", str(file)))]) == 0
    document = json.loads(files[0].read_text())
    assert (document["format"], document["benchmark"]) == (2, "kernels")
    assert set(document["ceilings"]["flop_per_s"]) == {"float32", "bfloat16"}
    rows = document["results"]
    assert {(row["shape"], row["dtype"]) for row in rows} == {
        (shape, dtype) for shape in ("M=2,F=8", "M=3,F=2816") for dtype in ("float32", "bfloat16")
    }
    with files[1].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows)
    assert lines[0]["shape"] == "M=2,F=8"  # a value with commas
    for row, line in zip(rows, lines, strict=True):
        assert [line[name] for name in ("op", "shape", "dtype", "direction", "provider")] == [
            row[name] for name in ("op", "shape", "dtype", "direction", "provider")
        ]
        assert (line["device"], line["threads"]) == (document["environment"]["device"]["name"], "1")
        if row["status"] == "ok":
            assert float(line["warm_us"]) == row["warm"]["us"] > 0
            assert float(line["roof_fraction"]) == row["roof"]["fraction"] > 0
            assert line["roof"] == row["roof"]["binds"]
            assert int(line["num_bytes"]) == row["num_bytes"]
        else:
            assert line["warm_us"] == line["roof"] == ""
            assert line["reason"] == row["reason"]
    assert {row["status"] for row in rows} == {"ok", "not run"}
    assert b"<svg" in files[2].read_bytes()[:1000]
    assert f"written: {', '.join(map(str, files))}" in capsys.readouterr().out
    assert main(["bench", "compare", str(files[0]), str(files[0])]) == 0


def test_command_with_a_plugins_provider_and_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--device cuda --dry-run` without a GPU, with what a plugin's file brings."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "mine.py").write_text(MINE)
    out = tmp_path / "dry.json"
    command = ["--plugin", str(tmp_path / "mine.py"), "bench", "kernels", "--device", "cuda"]
    command += ["--dry-run", "--op", "linear_cross_entropy,attention", "-o", str(out)]
    command += ["--direction", "both,backward"]
    for name in ("mine", "mine/ours", "cm3/reference", "torch"):
        command += ["--provider", name]
    assert main(command) == 0
    document = json.loads(out.read_text())
    assert document["environment"]["target"] == "cuda"
    assert document["ceilings"]["copy_bytes_per_s"] is None
    found = {
        (row["op"], row["provider"], row["direction"], row["status"]) for row in document["results"]
    }
    assert found == {
        (op, provider, direction, "dry run")
        for op, providers in (
            ("linear_cross_entropy", ("mine", "cm3/reference", "torch")),
            ("attention", ("mine/ours", "cm3/reference")),
        )
        for provider in providers
        for direction in ("both", "backward")
    }
    text = capsys.readouterr().out
    assert "mine                       dry run, relative error" in text
    assert "mine/ours                  dry run, relative error" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--device", "cuda"],
            "cm3 bench kernels --device cuda: there is no CUDA device, or torch was built "
            "without CUDA\n"
            "  next: use --device cpu, or --dry-run to run everything without one",
        ),
        (
            ["--op", "atention"],
            "cm3 bench kernels --op: no op is called 'atention'\n  next: did you mean 'attention'?",
        ),
        (
            ["--quick", "--dry-run"],
            "cm3 bench kernels: --quick and --dry-run can't be combined\n  next: leave one out",
        ),
        (
            ["--list", "-o", "r.json"],
            "cm3 bench kernels --list -o: a list measures nothing and has all keys, dtypes, directions and providers\n"
            "  next: leave out --list or -o",
        ),
        (
            ["--list", "--shape", "M=2"],
            "cm3 bench kernels --list --shape: a list measures nothing and has all keys, dtypes, directions and "
            "providers\n  next: leave out --list or --shape",
        ),
        (
            ["-o", "r.txt"],
            "cm3 bench kernels -o r.txt: the format .txt is not supported\n  next: end the file's name with .json, "
            ".csv, .png, .svg or .pdf",
        ),
        (
            ["-o", "r"],
            "cm3 bench kernels -o r: the format without a suffix is not supported\n  next: end the file's name with "
            ".json, .csv, .png, .svg or .pdf",
        ),
        (
            ["--threads", "0"],
            "cm3 bench kernels: argument --threads: is '0', must be a whole number from 1 to 4,096\n"
            "  next: see `cm3 bench kernels --help`",
        ),
    ],
)
def test_wrong_options_are_refused(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "roofs", lambda *_: pytest.fail("something was measured"))
    assert main(["bench", "kernels", *options]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_plot_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is measured; JSON needs no matplotlib."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(machine, "roofs", lambda *_: pytest.fail("something was measured"))
    out = tmp_path / "r.png"
    assert main(["bench", "kernels", "--op", "silu_gate", "-o", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"error: cm3 bench kernels -o {out}: the package 'matplotlib' is not installed\n"
        "  next: pip install 'cm3leon[plots]'\n"
    )
    report.Files([tmp_path / "r.json"])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`timeout -s INT` in kernels/bench/on_gpu: the first op's JSON and plot are there, whole."""
    plain = runner.run_op

    def interrupted(op: Op, *args: Any, **options: Any) -> Any:
        if op.name == "linear_cross_entropy":
            raise KeyboardInterrupt
        return plain(op, *args, **options)

    monkeypatch.setattr(runner, "run_op", interrupted)
    out = [tmp_path / "r.json", tmp_path / "r.png"]
    command = ["bench", "kernels", "--dry-run", "--op", "segment_decode,linear_cross_entropy"]
    command += ["--provider", "cm3/torch"]
    assert main([*command, "-o", str(out[0]), "-o", str(out[1])]) == 130
    assert {row["op"] for row in json.loads(out[0].read_text())["results"]} == {"segment_decode"}
    assert out[1].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels", "--list", "--op", "attention"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("attention\n")
    assert "sdpa flash (baseline)      runs\n" in text


def test_plots_are_pictures(tmp_path: Path) -> None:
    op = doubling()
    rows = runner.run_op(op, op.cases(at("cpu", "quick")), machine_of())
    environment = machine.environment(at("cpu", "quick"))
    for suffix, head in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        path = tmp_path / f"r.{suffix}"
        report.write_plot(path, rows, environment)
        assert path.read_bytes()[:4] == head
