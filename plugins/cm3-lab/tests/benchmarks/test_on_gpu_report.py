"""kernels/bench/report.py: what `on_gpu` measured beside what was expected, and attention by provider."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
SCRIPT = ROOT / "kernels" / "bench" / "report.py"


def load() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("on_gpu_report", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["on_gpu_report"] = module
    spec.loader.exec_module(module)
    return module


report = load()


def attention(provider: str, case: str, us: float | None, reason: str = "") -> dict[str, Any]:
    """A row of training attention, timed or not."""
    row = {"op": "attention", "provider": provider, "shape": case, "direction": "both"}
    row |= {"parameters": {}, "status": "not run", "reason": reason}
    return row if us is None else row | {"warm": {"us": us}, "flop_per_s": 1e18 / us}


def write(folder: Path, name: str, found: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(found))


def measured(folder: Path, *rows: dict[str, Any]) -> list[str]:
    ceilings = {"copy_bytes_per_s": 2.7e12, "flop_per_s": {"bfloat16": 325e12}}
    sampled = {"op": "guided_sample", "provider": "cm3/triton", "direction": "forward"}
    shape = {"n": 8, "V": 8192, "kind": "cd_k"}
    results = [sampled | {"parameters": shape, "warm": {"us": 50.0}}, *rows]
    write(folder, "quick", {"ceilings": ceilings, "results": results})
    training = {"of_products": 0.31, "launches": 2446, "peak_gb": 30.3}
    write(folder, "training", training)
    write(folder, "decode", {"golden": {"tokens": 256, "equal": 128}})
    lines: list[str] = report.lines(folder)
    return lines


def of(lines: list[str], name: str) -> list[str]:
    """The columns after the name of a figure."""
    [line] = [line for line in lines if line.startswith(name)]
    return line.removeprefix(name).split()


def test_a_figure_is_beside_its_expectation(tmp_path: Path) -> None:
    lines = measured(tmp_path)
    assert of(lines, "copy, GB/s") == ["2,700.0", "2700", "1.00"]
    assert of(lines, "product 8192^3 bfloat16, TFLOP/s") == ["325.0", "650", "0.50"]
    assert of(lines, "guided_sample, 8,192 ids, us") == ["50.0", "20-25", "2.00"]
    assert of(lines, "350M step (training), % of a product's throughput") == ["31.0", "31", "1.00"]
    assert of(lines, "350M step, launches") == ["2,446.0", "1223", "2.00"]
    assert of(lines, "tokens equal on CPU and device, %") == ["50.0", "100", "0.50"]
    # measured in part, and not begun
    assert of(lines, "7B decoding, ms per token") == ["-", "5.7-6.3", "not", "measured"]
    flex = of(lines, "350M step (training-flex), % of a product's throughput")
    assert flex == ["-", "31-40", "training-flex.json", "is", "not", "there"]


def test_a_dry_run_s_figures_are_not_compared(tmp_path: Path) -> None:
    """Its recipe and its decoder are other ones than those of the expectations."""
    write(tmp_path, "training", {"recipe": "tiny", "of_products": 0.059})
    write(
        tmp_path,
        "decode",
        {"size": "tiny", "ms_per_token": 1.06, "golden": {"tokens": 2, "equal": 2}},
    )
    lines = report.lines(tmp_path)
    name = "350M step (training), % of a product's throughput"
    assert of(lines, name) == ["-", "31", "5.9", "with", "tiny"]
    assert of(lines, "7B decoding, ms per token") == ["-", "5.7-6.3", "1.1", "with", "tiny"]


CASES = ("B=8,H=16,T=4096,D=64,documents=1", "B=1,H=32,T=4096,D=128,documents=1")


def test_attention_is_listed_by_provider(tmp_path: Path) -> None:
    """The fastest first; one lacks a case, and one did not run."""
    rows = [
        attention(name, case, us, "out of memory")
        for name, times in (
            ("cm3/triton", (100.0, 200.0)),
            ("cm3/flex", (80.0, 160.0)),
            ("sdpa cudnn", (60.0, None)),
            ("cm3/xformers", (None, None)),
        )
        for case, us in zip(CASES, times, strict=True)
    ]
    said = [" ".join(line.split()) for line in measured(tmp_path, *rows)]
    assert said[-4:] == [
        "sdpa cudnn 0.60 (1 cases less)",
        "cm3/flex 0.80",
        "cm3/triton 1.00",
        "cm3/xformers - not run: out of memory",
    ]


def test_attention_that_was_not_timed(tmp_path: Path) -> None:
    (tmp_path / "quick.json").write_text('{"ceilings": ')  # stopped while it was written
    assert report.lines(tmp_path)[-1] == "attention of a training step: not measured"


def test_it_needs_nothing_but_python(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("figure ")


@pytest.mark.slow
def test_decoding_is_timed_on_a_cpu(tmp_path: Path) -> None:
    """On the CPU, tokens equal themselves."""
    out = tmp_path / "decode.json"
    script = str(ROOT / "kernels" / "bench" / "decode_step.py")
    options = ["--device", "cpu", "--size", "tiny", "--tokens", "4", "-o", str(out)]
    subprocess.run(
        [sys.executable, script, *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
    )
    found = json.loads(out.read_text())
    assert found["golden"] == {"tokens": 256, "equal": 256}
    assert found["ms_per_token"] > 0
    assert found["kernels_per_token"] is None
