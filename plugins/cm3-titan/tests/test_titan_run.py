"""Runs with torchtitan, on one and two processes and divided in every way, against `cm3 train`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import cm3core
from cm3core.errors import CheckpointError, RecipeError, TrustError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3run.checkpoint import OPTIMIZER, WEIGHTS, latest_checkpoint, read_state
from cm3run.training.loop import train
from cm3run.training.metrics import read_metrics
from messages import tells

pytest.importorskip("cm3titan", reason="needs pip install ./plugins/cm3-titan")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("torchtitan") is None,
        reason="needs pip install './plugins/cm3-titan[torchtitan]'",
    ),
]

PROGRAM = Path(__file__).parents[3] / "tests" / "fixtures" / "titan" / "runs.py"
#: Steps of the long runs, and of the others, which are compared with the beginning of the same reference.
LONG, SHORT = 50, 6
UNTIED = ["decoder.tie_embeddings=false"]
PARALLELISM = "parallelism.{}_parallel_degree=2"


def overrides(cache: Path, steps: int, *more: str) -> list[str]:
    return [
        f"data.cache_dir={cache}",
        "data.num_streams=2",
        # a unit of ReLU, or a step of Adam, whose gradient is all but zero turns rounding into 1e-4
        "decoder.activation=gelu",
        "train.eps=1e-5",
        "train.batch_rows=2",
        "train.accumulate=2",
        "train.log_every_steps=1",
        "train.precision=fp32",
        "train.schedule=constant",
        "train.trackers=[]",
        "train.validate_every_steps=1000",
        f"train.steps={steps}",
        *more,
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def titan(folder: Path, number: int, cases: list[dict[str, Any]]) -> None:
    """Train the cases in `number` processes."""
    file = folder / f"cases-{number}-{len(cases)}.json"
    file.write_text(json.dumps(cases))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(number)]
    command = [sys.executable, *(launcher if number > 1 else []), str(PROGRAM), str(file)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]


def losses(out: Path) -> list[float]:
    return [line["train/loss"] for line in read_metrics(out) if "train/loss" in line]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("titan")


@pytest.fixture(scope="module")
def reference(place: Path) -> Path:
    """Our own trainer, in one process."""
    recipe = compose("tiny", overrides(place / "cache", LONG), registry=load_registry())
    train(recipe, place / "own", load_registry(), progress=False, device="cpu")
    return place / "own"


@pytest.fixture(scope="module")
def divided(place: Path, reference: Path) -> Path:
    """All divisions by two processes, in one launch."""

    def case(name: str, steps: int, settings: list[str], *more: str) -> dict[str, Any]:
        given = overrides(place / "cache", steps, *more)
        return {"out": str(place / name), "overrides": given, "settings": settings}

    tensor = PARALLELISM.format("tensor")
    titan(
        place,
        2,
        [
            case("shard", LONG, []),
            case("replicate", SHORT, ["parallelism.data_parallel_replicate_degree=2"]),
            case(
                "tensor", SHORT, [tensor, "activation_checkpoint=selective"], "decoder.qk_norm=true"
            ),
            case("no-sequence", SHORT, [tensor, "parallelism.enable_sequence_parallel=false"]),
            case("context", SHORT, [PARALLELISM.format("context")]),
            case("pipeline", SHORT, [PARALLELISM.format("pipeline")], *UNTIED),
            # two processes go on where one stops, divided in another way
            case("resumed", SHORT // 2, [tensor], "train.checkpoint_every_steps=3"),
            case("resumed", SHORT, [], "train.checkpoint_every_steps=3"),
        ],
    )
    return place


def test_one_process_trains_as_ours_does(place: Path, reference: Path) -> None:
    out = place / "one"
    given = overrides(place / "cache", LONG)
    titan(place, 1, [{"out": str(out), "overrides": given, "settings": []}])
    assert losses(out) == pytest.approx(losses(reference), abs=1e-4)
    assert len(losses(out)) == LONG
    first, second = latest_checkpoint(reference), latest_checkpoint(out)
    assert first is not None
    assert second is not None
    for name, most in ((WEIGHTS, 1e-4), (OPTIMIZER, 1e-3)):
        ours, theirs = load_file(first / name), load_file(second / name)
        assert ours.keys() == theirs.keys()
        for key, one in ours.items():
            if not key.startswith("generator"):
                difference = (one - theirs[key]).abs().max().item()
                assert difference <= most, (key, difference)
    ours, theirs = read_state(first), read_state(second)
    assert (theirs.loader, theirs.tokens) == (ours.loader, ours.tokens)
    assert theirs.vocabulary == ours.vocabulary
    assert theirs.fingerprints == ours.fingerprints


@pytest.mark.parametrize("name", ["shard", "replicate", "no-sequence", "context", "resumed"])
def test_two_processes_train_as_one(divided: Path, reference: Path, name: str) -> None:
    found = losses(divided / name)
    assert len(found) == (LONG if name == "shard" else SHORT)
    assert found == pytest.approx(losses(reference)[: len(found)], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "more"), [("tensor", ["decoder.qk_norm=true"]), ("pipeline", UNTIED)]
)
def test_decoders_of_other_settings_are_divided(divided: Path, name: str, more: list[str]) -> None:
    recipe = compose("tiny", overrides(divided / "cache", SHORT, *more), registry=load_registry())
    out = divided / f"own-{name}"
    train(recipe, out, load_registry(), progress=False, device="cpu")
    assert losses(divided / name) == pytest.approx(losses(out), abs=1e-4)


@pytest.mark.extended
def test_four_processes_are_divided_twice(place: Path, reference: Path) -> None:
    """By tensors and layers; by tokens and rows."""
    tensor, pipeline, context = map(PARALLELISM.format, ("tensor", "pipeline", "context"))
    cases = [("twice", [tensor, pipeline], UNTIED), ("rows", [context], [])]
    titan(
        place,
        4,
        [
            {
                "out": str(place / name),
                "overrides": overrides(place / "cache", SHORT, *more),
                "settings": settings,
            }
            for name, settings, more in cases
        ],
    )
    recipe = compose("tiny", overrides(place / "cache", SHORT, *UNTIED), registry=load_registry())
    train(recipe, place / "own-twice", load_registry(), progress=False, device="cpu")
    assert losses(place / "twice") == pytest.approx(losses(place / "own-twice"), abs=1e-4)
    assert losses(place / "rows") == pytest.approx(losses(reference)[:SHORT], abs=1e-4)


def test_the_folder_has_a_model_that_our_trainer_continues(divided: Path, reference: Path) -> None:
    out = divided / "resumed"
    model = cm3core.load(str(out), device="cpu")
    assert model.generate("a red apple", num_images=1, seed=0)[0].pixels.shape == (64, 64, 3)
    recipe = compose("tiny", overrides(divided / "cache", SHORT + 2), registry=load_registry())
    train(recipe, out, load_registry(), progress=False, device="cpu")
    assert losses(out) == pytest.approx(losses(reference)[: SHORT + 2], abs=1e-4)


def test_a_killed_run_resumes(place: Path, reference: Path) -> None:
    out = place / "killed"
    given = overrides(place / "cache", 8, "train.checkpoint_every_steps=3")
    command = [sys.executable, "-m", "cm3apps.cli.main", "titan", "tiny", "-o", str(out)]
    command += ["--device", "cpu", "--quiet", *given]
    running = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while running.poll() is None and time.monotonic() < end and len(read_metrics(out)) < 4:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    exported = subprocess.run(
        [*command, "--export"], env=environment(), capture_output=True, text=True, check=True
    )
    assert exported.stdout.strip() == str(out / "checkpoints" / "step-00000003")
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert losses(out) == pytest.approx(losses(reference)[:8], abs=1e-4)
    assert done.stdout.strip() == str(latest_checkpoint(out))


def test_refusals(divided: Path, reference: Path) -> None:
    """In one process, which torchtitan has not been imported in for another device."""
    from cm3titan.on_cpu import use_cpu

    use_cpu()
    import torch

    from cm3run.processes import Processes
    from cm3titan.config import Plan
    from cm3titan.run import Job, export_only
    from cm3titan.run import train as train_here
    from cm3titan.settings import Setting

    registry = load_registry()
    recipe = compose("tiny", overrides(divided / "cache", SHORT), registry=registry)
    for settings, number, words in (
        (
            ["parallelism.tensor_parallel_degree=3"],
            4,
            "--titan parallelism: doesn't fit 4 processes",
        ),
        (
            ["parallelism.tensor_parallel_degree=4"],
            4,
            "decoder.num_heads: 2 heads can't be divided",
        ),
        (["parallelism.pipeline_parallel_degree=2"], 2, "decoder.tie_embeddings: is true, but"),
        (
            ["parallelism.context_parallel_degree=5"],
            5,
            "decoder.context_length: rows of 384 tokens",
        ),
    ):
        with pytest.raises(RecipeError) as info:
            Plan.of(recipe, [Setting.read(one) for one in settings], number)
        assert tells(info.value, words)
    moved = divided / "moved"
    shutil.copytree(divided / "context", moved)
    job = Job(recipe, registry, moved, Processes(), torch.device("cpu"))
    for run in (train_here, export_only):
        with pytest.raises(TrustError) as trust:
            run(job)
        assert tells(trust.value, "... can run code when they are read ... --trust-checkpoints")
    assert export_only(replace(job, trusted=True)).name == f"step-{SHORT:08d}"
    with pytest.raises(CheckpointError) as info:
        export_only(replace(job, out_dir=divided / "nothing"))
    assert tells(info.value, "... has no complete checkpoint ... train first: the same command")
    assert not (divided / "nothing").exists()
    job = Job(recipe, registry, reference, Processes(), torch.device("cpu"))
    with pytest.raises(CheckpointError) as info:
        train_here(job)
    assert tells(info.value, "... has a run of cm3 train ... set train.start_from")
