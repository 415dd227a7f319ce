"""kernels/bench/on_gpu ends in time and leaves one archive with what there is; a training step is timed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
SCRIPT = ROOT / "kernels" / "bench" / "on_gpu"
#: What the script calls.
TOOLS = [
    "bash",
    "dirname",
    "basename",
    "mkdir",
    "mktemp",
    "rm",
    "tar",
    "gzip",
    "mv",
    "wc",
    "tail",
    "timeout",
    "grep",
    "sort",
    "tee",
    "cat",
    "git",
    "env",
    "nproc",
    "sh",
]

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("timeout") is None, reason="needs bash, timeout"
)


def stub(folder: Path, name: str, body: str) -> Path:
    """An interpreter that is a shell script: BODY sees the arguments of each step."""
    path = folder / name
    path.write_text(f'#!/bin/sh\ncase "$1" in -c) exit 0;; esac\n{body}\n')
    path.chmod(0o755)
    return path


def run(
    tmp_path: Path, *options: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    begin = time.monotonic()
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out"), *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, time.monotonic() - begin


def archived(tmp_path: Path) -> dict[str, str]:
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        files = [member for member in archive.getmembers() if member.isfile()]
        read = {member.name: archive.extractfile(member) for member in files}
        return {name: file.read().decode() for name, file in read.items() if file is not None}


@pytest.mark.slow
def test_it_ends_in_time_with_what_it_has(tmp_path: Path) -> None:
    """The first step never ends by itself: it is stopped, and the others are skipped."""
    python = stub(tmp_path, "endless", "echo begun; exec sleep 300")
    limits = {"LIMIT_S": "5", "ARCHIVE_S": "1", "GRACE_S": "1", "LEAST_S": "2"}
    done, seconds = run(tmp_path, PYTHON=str(python), **limits)
    assert done.returncode == 0, done.stderr
    assert seconds < 20  # 5 on a machine with nothing else to do
    files = archived(tmp_path)
    assert files["out/tests.log"] == "begun\n"
    summary = files["out/summary.log"]
    assert summary.startswith("tests: stopped, time is up\n")
    assert "== budget: skipped, time is up" in summary


def test_each_step_runs_though_others_fail(tmp_path: Path) -> None:
    """Tests, kernels, training, decoding, budget, each op in full; GPU tests are those of all folders."""
    python = stub(tmp_path, "failing", 'echo "$@"; exit 3')
    done, _ = run(tmp_path, PYTHON=str(python))
    assert done.returncode == 1
    files = archived(tmp_path)
    assert "tests/run/generation/test_cuda_graph.py" in files["out/tests.log"]
    assert "tests/kernels/test_segment_decode_triton.py" in files["out/tests.log"]
    assert "bench decode --quick --device cuda" in files["out/decoding.log"]
    assert "--size 7b" in files["out/decode.log"]
    assert "attention=flex" in files["out/training-flex.log"]
    assert "kernels/bench/report.py" in files["out/report.txt"]
    failed = [line.partition(":")[0] for line in files["out/summary.log"].splitlines()]
    expected = [
        "tests",
        "quick",
        "training",
        "training-compiled",
        "training-sdpa",
        "training-flex",
        "decode",
        "decoding",
        "budget",
        "full-attention",
        "full-guided_sample",
    ]
    expected += ["full-segment_decode", "full-add_norm", "full-store_heads"]
    expected += ["full-silu_gate", "full-linear_cross_entropy"]
    assert [name for name in failed if name != "sanitizer"] == expected


def test_plugins_of_a_checkout_are_those_of_its_distributions() -> None:
    """`cm3 bench` is in the distribution cm3lab: without its entry point, no benchmark would run there."""
    script = SCRIPT.read_text()
    for project in (ROOT, ROOT / "plugins" / "cm3-lab"):
        text = (project / "pyproject.toml").read_text()
        plugins = tomllib.loads(text)["project"]["entry-points"]["cm3core.plugins"]
        for name, module in plugins.items():
            assert f"\\n{name} = {module}\\n" in script, name
    assert 'PYTHONPATH=".:plugins:plugins/cm3-lab:kernels:' in script


@pytest.mark.slow
def test_an_archive_that_would_be_too_large_leaves_out_pictures(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "large.png").write_bytes(os.urandom(17 << 20))
    python = stub(tmp_path, "fine", "echo fine")
    done, _ = run(tmp_path, "--dry-run", PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.tar.gz").stat().st_size < 1 << 20
    assert "out/large.png" not in archived(tmp_path)


def test_python3_alone_is_enough(tmp_path: Path) -> None:
    """A PATH with the tools and without `python`."""
    tools = tmp_path / "bin"
    tools.mkdir()
    stub(tools, "python3", "echo by python3")
    for name in TOOLS:
        if (found := shutil.which(name)) is not None:
            (tools / name).symlink_to(found)
    done, _ = run(tmp_path, "--dry-run", PATH=str(tools))
    assert done.returncode == 0, done.stderr
    assert archived(tmp_path)["out/tests.log"] == "by python3\n"
    (tools / "python3").unlink()
    done, _ = run(tmp_path, "--dry-run", PATH=str(tools))
    assert done.returncode == 2
    assert "neither python nor python3 has torch" in done.stderr


@pytest.mark.slow
def test_a_training_step_is_timed(tmp_path: Path) -> None:
    """On the CPU, with a decoder whose arithmetic can be done by hand."""
    out = tmp_path / "training.json"
    small = ["decoder.num_layers=1", "decoder.context_length=96", "train.batch_rows=1"]
    options = ["--device", "cpu", "--recipe", "tiny", "-o", str(out), *small]
    script = str(ROOT / "kernels" / "bench" / "training_step.py")
    subprocess.run(
        [sys.executable, script, *options, "train.precision=fp32"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
    )
    found = json.loads(out.read_text())
    # width 64: 12 * 64^2 weights; the head's ids; three documents of 32 tokens
    ids = 256 + 4 + found_codes() + 16
    ids += -ids % 8
    pairs = 3 * 32 * 33 // 2
    weights = 12 * 64**2 + ids * 64
    assert found["flops"] == pytest.approx(6 * weights * 96 + 12 * 64 * pairs, rel=1e-3)
    assert found["tokens"] == 96
    assert found["tokens_per_second"] == pytest.approx(96 / found["seconds"])
    assert found["profile"]


def found_codes() -> int:
    from cm3core.plugins.discovery import load_registry
    from cm3core.recipe import compose

    tokenizer = compose("tiny", registry=load_registry()).image_tokenizer
    assert tokenizer is not None
    return tokenizer.codebook_size
