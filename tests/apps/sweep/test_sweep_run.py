"""Real sweeps of the smallest recipe: interrupted, killed and resumed, with equal results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cm3apps.cli.main import main
from cm3apps.sweep.grid import Grid
from cm3apps.sweep.plan import plan_of
from cm3apps.sweep.running import check_memory
from cm3core.errors import RecipeError
from cm3core.plugins.discovery import load_registry
from cm3run.evaluation.protocol import Protocol
from tests.fixtures.messages import tells

PARTS = Path(__file__).parents[2] / "fixtures/train"
PLUGIN = ("--plugin", str(PARTS / "train_parts.py"))
RECIPE = str(PARTS / "squares.yaml")
#: Its held-out squares look like others, so the default protocol has none.
PROTOCOL = Protocol(
    "squares",
    "all held-out squares",
    {"name": "documents", "dataset": {"name": "squares"}, "split": "held"},
    [{"metric": {"name": "held_out_loss"}}, {"metric": {"name": "copy_of_training"}}],
    size=8,
)
VALUES = ("train.learning_rate=1e-3,1e-2", "sampler.top_p=0.5,1")


def arguments(out: Path, *more: str) -> list[str]:
    protocol = out.parent / "squares.json"
    protocol.write_text(PROTOCOL.text())
    chosen = ("--protocol", str(protocol), "--metric", "image_loss")
    return [*PLUGIN, "sweep", RECIPE, *VALUES, *chosen, "-o", str(out), *more]


def results(out: Path) -> list[dict[str, Any]]:
    """The lines without their times."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in one.items() if key != "seconds"} for one in lines]


def started(out: Path, *more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    command = [sys.executable, "-m", "cm3apps.cli.main", *arguments(out, *more)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def wait_for(found: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 240
    while not found():
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(arguments(out, "--seeds", "2", "--jobs", "2")) == 0
    return out


@pytest.mark.slow
def test_a_sweep_from_its_files(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = results(whole)
    assert len(found) == 8
    assert len(list((whole / "runs").iterdir())) == 4  # one for both samplers
    by_run: dict[str, set[float]] = {}
    for one in found:
        cases = [json.loads(line) for line in (whole / one["cases"]).read_text().splitlines()]
        values = [case["scores"]["image_loss"] for case in cases]
        assert one["scores"]["image_loss"]["value"] == pytest.approx(sum(values) / len(values))
        by_run.setdefault(one["run"], set()).add(one["scores"]["image_loss"]["value"])
    assert all(len(values) == 1 for values in by_run.values())  # drawing changes no likelihood
    assert len({tuple(values) for values in by_run.values()}) == 4
    # the same batches with each learning rate
    tokens = {(one["run"][-1], one["tokens"]) for one in found}
    assert len(tokens) == 2
    before = {path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("*.safetensors")}
    assert main(arguments(whole, "--seeds", "2")) == 0  # nothing is trained again
    assert {
        path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("*.safetensors")
    } == before
    assert "image_loss, lower is better, 5 cases, 2 seeds" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_sweep_resumes_with_equal_results(whole: Path, tmp_path: Path) -> None:
    """Killed while the first trainings run, and again after the first results; orphans save and end."""
    out = tmp_path / "out"
    for begun in (
        lambda: any(out.glob("runs/*/checkpoints/*/state.json")),
        lambda: any(out.glob("cells/*/result.json")),
    ):
        process = started(out, "--seeds", "2", "--jobs", "2")
        wait_for(begun, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert main(arguments(out, "--seeds", "2", "--jobs", "2")) == 0
    assert results(out) == results(whole)
    tables = [(one / "table.md").read_text().split("```")[-1] for one in (out, whole)]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_ctrl_c_saves_and_tells_how_to_go_on(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = started(out, "--seeds", "2")
    wait_for(lambda: any(out.glob("runs/*/checkpoints/*/state.json")), process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    line = said.decode().splitlines()[-1]
    assert line.startswith("interrupted; to continue: cm3 --plugin")
    assert line.endswith(f"squares.json --metric image_loss -o {out}")
    assert main(arguments(out, "--seeds", "2")) == 0
    assert results(out) == results(whole)


@pytest.mark.slow
def test_a_failed_cell_is_named_and_the_others_finish(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too high a learning rate: the loss is not finite."""
    out = tmp_path / "out"
    own = arguments(out, "train.clip_norm=0")
    own[own.index(VALUES[0])] = "train.learning_rate=1e-3,1e6"
    own.remove(VALUES[1])
    assert main(own) == 2
    assert tells(
        capsys.readouterr().err,
        "...error: 1 of 2 trainings: failed, see above ... tries them again",
    )
    assert [one["cell"] for one in results(out)] == ["train.learning_rate=1e-3"]
    assert not (out / "table.md").exists()


def test_data_without_cases_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*PLUGIN, "sweep", RECIPE, VALUES[0], "-o", str(out)]) == 2
    assert tells(
        capsys.readouterr().err, "...split 'held' of the recipe's data set: has no document"
    )
    assert not out.exists()


def test_jobs_follow_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tiny` takes some 0.6 GB: two fit in 2 GB, one in 1 GB, none in 0.1 GB."""
    registry = load_registry()
    plan = plan_of("tiny", Grid.of(["train.steps=1,2"]), 1, registry, is_model=False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for limit, jobs in (("8", 2), ("1", 1)):
        monkeypatch.setenv("CM3_MEMORY_GB", limit)
        assert check_memory(plan, "cpu", None, registry) == jobs
    with pytest.raises(RecipeError) as error:
        check_memory(plan, "cpu", 2, registry)
    assert tells(error.value, "cell train.steps=1, seed 0: ... or give a smaller --jobs")
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setenv("CM3_MEMORY_GB", "8")
    assert check_memory(plan, "cpu", None, registry) == 1
