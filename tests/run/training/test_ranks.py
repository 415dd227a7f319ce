"""Several processes train as one does; what ends one of them ends all, and loses nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cm3core.errors import CheckpointError
from cm3core.plugins import Registry
from cm3run.checkpoint import (
    OPTIMIZER,
    WEIGHTS,
    complete_checkpoints,
    export_model,
    latest_checkpoint,
    load_weights,
    open_checkpoint,
    read_state,
)
from cm3run.checkpoint.tensors import stored_tensors
from cm3run.training.metrics import read_metrics
from cm3run.tuning import ADAPTER
from messages import tells

# Each starts processes of its own that train together.
pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[2] / "fixtures" / "train" / "ranks.py"
SHARED = ["--shard", "2"]
MUON = ["train.optimizer=muon"]
AS_MANY = "data.num_streams=null"
LORA = ["tune.method=lora", "tune.rank=4", "tune.parameters=[embed_tokens]"]
HEAD = ["tune.method=head"]
FP32 = [1, "cm3run.training.start:choose_precision", (None, "fp32")]

Report = dict[str, Any]
Case = tuple[str, int, list[str], dict[str, Any]]


def case(
    out: Path, number: int, *overrides: str, steps: int = 6, name: str = "", **options: Any
) -> Case:
    defaults = {
        "data.cache_dir": str(out.parent / "cache"),
        # 1, 2 and 4 processes share the loaders of one order
        "data.num_streams": "4",
        "decoder.dropout": "0",
        # a unit of ReLU, or a step of Adam, whose gradient is all but zero turns rounding into 1e-4
        "decoder.activation": "gelu",
        "train.eps": "1e-5",
        "train.precision": "fp32",
        "train.batch_rows": "4",
        "train.log_every_steps": "1",
        "train.validate_every_steps": "3",
        "train.validation_splits": "[held]",
        "train.schedule": "constant",
        "train.steps": str(steps),
    }
    given = {one.partition("=")[0] for one in overrides}
    arguments = [
        str(PROGRAM.with_name("squares.yaml")),
        *("-o", str(out), "--device", "cpu"),
        *(f"{key}={value}" for key, value in defaults.items() if key not in given),
        *overrides,
    ]
    return name or out.name, number, arguments, options


def tuning(folder: Path, out: str, number: int, *overrides: str, **options: Any) -> Case:
    """A case of `cm3 tune`, of the model that two processes wrote in parts."""
    model = str(folder / "shards" / "checkpoints" / "step-00000003")
    return case(folder / out, number, *overrides, words=["tune", model], **options)


def run(folder: Path, cases: list[Case]) -> dict[str, Report]:
    """Run the cases one after the other, as `ranks.py` does."""
    file = folder / "cases.json"
    file.write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), str(file)],
        capture_output=True,
        text=True,
        timeout=300 * len(cases) + 60,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reports: dict[str, Report] = json.loads(done.stdout)
    return reports


def newest(out: Path) -> Path:
    folder = latest_checkpoint(out)
    assert folder is not None
    return folder


def assert_same_run(left: Path, right: Path, weights: str = WEIGHTS) -> None:
    """Weights, optimiser state and every logged loss to 1e-5, position in the data exactly."""
    for name in (weights, OPTIMIZER):
        one, other = (stored_tensors(newest(out), name) for out in (left, right))
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            if not key.startswith("generator"):
                torch.testing.assert_close(other[key], tensor, rtol=0, atol=1e-5)
    states = [read_state(newest(out)) for out in (left, right)]
    assert states[0].loader == states[1].loader
    assert states[0].tokens == states[1].tokens
    logs = [read_metrics(out) for out in (left, right)]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    for one_line, other_line in zip(*logs, strict=True):
        losses = {name: value for name, value in one_line.items() if "loss" in name}
        assert losses.keys() == {name for name in other_line if "loss" in name}
        for name, value in losses.items():
            assert other_line[name] == pytest.approx(value, abs=1e-5), name


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Report]]:
    """Runs with Muon, which include AdamW."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = [
        case(folder / "one", 1, *MUON, "data.num_streams=2"),
        case(folder / "copies", 2, *MUON, AS_MANY),
        case(folder / "shards", 2, *MUON, *SHARED, AS_MANY, steps=3),
        case(folder / "shards", 1, *MUON, AS_MANY, name="shards, then one"),
        case(folder / "streams", 2, "data.num_streams=3"),
        case(folder / "versions", 2, versions=1),
        case(folder / "rows", 3),
    ]
    return folder, run(folder, cases)


@pytest.fixture(scope="module")
def more(quick: tuple[Path, dict[str, Report]]) -> tuple[Path, dict[str, Report]]:
    """Runs that tune, and machines that differ."""
    folder, _ = quick
    cases = [
        case(folder / "shares", 2, arguments=[1, *SHARED]),
        case(folder / "precision", 2, "train.precision=bf16", answer=FP32),
        case(folder / "devices", 2, answer=[1, "cm3run.processes:_own_device", "cuda:0"]),
        tuning(folder, "lora of one", 1, *LORA),
        tuning(folder, "lora", 2, *LORA, steps=3),
        tuning(folder, "lora", 1, *LORA, name="lora, then one"),
        tuning(folder, "head of one", 1, *HEAD),
        tuning(folder, "head", 2, *HEAD),
        tuning(folder, "lora shared", 2, *LORA, *SHARED),
    ]
    return folder, run(folder, cases)


def test_two_processes_train_as_one(quick: tuple[Path, dict[str, Report]]) -> None:
    folder, reports = quick
    assert reports["one"]["codes"] == [0]
    assert reports["copies"]["codes"] == [0, 0], reports["copies"]
    assert_same_run(folder / "one", folder / "copies")
    first, second = reports["copies"]["printed"]
    assert "2 processes with a decoder each" in first
    assert second == "", "only the first process talks"
    assert (newest(folder / "copies") / WEIGHTS).is_file(), "a file as of one process"
    loader = read_state(newest(folder / "copies")).loader
    assert loader["setting"]["num_streams"] == len(loader["streams"]) == 2


def test_a_run_of_two_that_share_a_decoder_is_resumed_by_one(
    quick: tuple[Path, dict[str, Report]],
) -> None:
    folder, reports = quick
    assert reports["shards"]["codes"] == [0, 0], reports["shards"]
    assert "2 processes, 2 with a part of one decoder" in reports["shards"]["printed"][0]
    assert reports["shards, then one"]["codes"] == [0], reports["shards, then one"]
    parts = folder / "shards" / "checkpoints" / "step-00000003"
    assert sorted(path.name for path in parts.glob("model*")) == ["model_shards"]
    assert_same_run(folder / "one", folder / "shards")


def test_one_process_reads_parts(
    quick: tuple[Path, dict[str, Report]], registry: Registry, tmp_path: Path
) -> None:
    parts = quick[0] / "shards" / "checkpoints" / "step-00000003"
    exported = export_model(parts, tmp_path / "model", "fp32")
    whole = load_file(exported / WEIGHTS)
    opened = open_checkpoint(parts, registry)
    for name, tensor in opened.components.decoder.module.state_dict().items():
        assert torch.equal(whole[name], tensor)
    assert read_state(exported).format == 1
    assert read_state(parts).format == 2


def test_parts_that_are_damaged(
    quick: tuple[Path, dict[str, Report]], registry: Registry, tmp_path: Path
) -> None:
    parts = quick[0] / "shards" / "checkpoints" / "step-00000003"
    opened = open_checkpoint(parts, registry)
    shard = "model_shards/shard-00002-model-00001-of-00001.safetensors"
    for name, change, expected in (
        (
            "cut",
            lambda path: path.write_bytes(path.read_bytes()[:999]),
            "has changed since it was written",
        ),
        (
            "bit",
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
            "its SHA-256 differs",
        ),
        ("gone", Path.unlink, "can't be read"),
    ):
        copy = shutil.copytree(parts, tmp_path / name)
        change(copy / shard)
        with pytest.raises(CheckpointError, match=expected) as caught:
            load_weights(opened.components.decoder.module, copy)
        assert caught.value.place == str(copy / shard)


def test_processes_that_do_not_fit_together(quick: tuple[Path, dict[str, Report]]) -> None:
    folder, reports = quick
    assert reports["versions"]["codes"] == [2, 2]
    shown = reports["versions"]["printed"][0]
    assert shown.startswith("error: process 1 of 2 on ")
    assert ": has package version 0.0.1, but process 0 on " in shown
    assert reports["rows"]["codes"] == [2, 2, 2]
    assert reports["rows"]["printed"] == [
        "error: train.batch_rows, train.accumulate: 4 x 1 rows per step can't be divided among 3 "
        "processes\n  next: start 2 processes, or change train.batch_rows or train.accumulate so that "
        "3 divides their product\n",
        "",
        "",
    ]
    assert reports["streams"]["codes"] == [2, 2]
    assert reports["streams"]["printed"] == [
        "error: data.num_streams: is 3, which 2 processes can't share: 3 / 2 is not a whole number, and each "
        "process would make the rows of 2\n  next: use 6 or another multiple of 2, or null: as many as there are "
        "processes\n",
        "",
    ]
    assert not (folder / "streams" / "checkpoints").exists()


def test_machines_that_differ(more: tuple[Path, dict[str, Report]]) -> None:
    """Each would wait for what the others don't do, or compute otherwise without a word."""
    _, reports = more
    causes = {
        "shares": r"--shard 2, but process 0 on .* has not given\n  next: start all with the same",
        "precision": r"precision fp32, but process 0 on .* has bf16\n  next: set train.precision to fp32",
        "devices": r"on a GPU on .*, but process 0 is on a CPU on .*\n  next: set --device cpu or",
    }
    for name, cause in causes.items():
        assert reports[name]["codes"] == [2, 2], reports[name]
        shown = reports[name]["printed"][0]
        assert re.match(rf"error: process 1 of 2.*: (has|is) {cause}", shown), shown


def test_processes_tune_in_part_with_a_decoder_each(more: tuple[Path, dict[str, Report]]) -> None:
    """Adapters, and rows of a table, on a model whose weights lie in parts."""
    folder, reports = more
    for name in ("lora of one", "lora", "lora, then one", "head of one", "head"):
        assert set(reports[name]["codes"]) == {0}, reports[name]
    assert_same_run(folder / "lora of one", folder / "lora", ADAPTER)
    assert_same_run(folder / "head of one", folder / "head")
    assert "2 processes with a decoder each" in reports["lora"]["printed"][0]
    adapter = load_file(newest(folder / "lora") / ADAPTER)
    assert any(bool(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name)


def test_a_decoder_that_is_tuned_in_part_is_not_shared(
    more: tuple[Path, dict[str, Report]],
) -> None:
    _, reports = more
    assert reports["lora shared"]["codes"] == [2, 2]
    assert reports["lora shared"]["printed"] == [
        "error: --shard: is 2, but tune.method=lora trains a part of the decoder, which can't be "
        "divided among processes\n  next: leave --shard out, so that each process has a whole "
        "decoder, or use tune.method=full\n",
        "",
    ]


def test_any_number_of_processes_and_replicas(tmp_path: Path) -> None:
    streams = ["data.num_streams=8"]
    small = ["train.batch_rows=1", "train.accumulate=8"]
    checked = ["decoder.activation_checkpointing=true"]
    reports = run(
        tmp_path,
        [
            case(tmp_path / "one", 1),
            case(tmp_path / "four", 4),
            case(tmp_path / "replicas", 4, *SHARED),
            case(tmp_path / "all", 4, "--shard", "4"),
            case(tmp_path / "checked", 2, *SHARED, *checked),
            case(tmp_path / "small", 1, *small),
            case(tmp_path / "small of two", 2, *SHARED, *small),
            case(tmp_path / "small replicas", 4, *SHARED, *small),
            case(tmp_path / "muon", 1, *MUON),
            case(tmp_path / "muon replicas", 4, *SHARED, *MUON),
            case(tmp_path / "up", 1, steps=3, name="up, one"),
            case(tmp_path / "up", 4, *SHARED, name="up, four"),
            case(tmp_path / "down", 4, *SHARED, steps=3, name="down, four"),
            case(tmp_path / "down", 2, *SHARED, name="down, two"),
            case(tmp_path / "streams", 1, *streams),
            case(tmp_path / "streams of four", 4, *streams, *SHARED),
        ],
    )
    assert {code for report in reports.values() for code in report["codes"]} == {0}, reports
    for name in ("four", "replicas", "all", "checked", "up", "down"):
        assert_same_run(tmp_path / "one", tmp_path / name)
    for name in ("small of two", "small replicas"):
        assert_same_run(tmp_path / "small", tmp_path / name)
    assert_same_run(tmp_path / "muon", tmp_path / "muon replicas")
    assert_same_run(tmp_path / "streams", tmp_path / "streams of four")


def test_a_process_that_is_killed_ends_the_others_and_loses_nothing(tmp_path: Path) -> None:
    """Ten times, one of four, of two, or of one; each time another number of processes resumes."""
    often = ["train.checkpoint_every_steps=2"]
    last = 24
    numbers = (4, 2, 4, 1, 2, 4, 2, 1, 4, 2)
    cases = [
        case(
            tmp_path / "killed",
            number,
            *often,
            *(SHARED if number > 1 and index % 3 else []),
            steps=last,
            name=f"{index}",
            kill=[index % number, 2 * index + 2],
        )
        for index, number in enumerate(numbers)
    ]
    reports = run(
        tmp_path,
        [
            case(tmp_path / "whole", 1, *often, steps=last),
            *cases,
            case(tmp_path / "killed", 2, *SHARED, *often, steps=last, name="end"),
        ],
    )
    for index, number in enumerate(numbers):
        codes = reports[str(index)]["codes"]
        assert codes[index % number] == -9
        assert [code for rank, code in enumerate(codes) if rank != index % number] == [2] * (
            number - 1
        ), reports[str(index)]
        for rank, printed in enumerate(reports[str(index)]["printed"]):
            if rank != index % number:
                assert f"error: process {rank} of {number} on " in printed
                assert "the connection to another process, which ended or was killed" in printed
    assert reports["end"]["codes"] == [0, 0]
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*")), "leftovers are cleared away"


def test_several_save_while_they_go_on(tmp_path: Path) -> None:
    """A decoder that is shared, or one each; a kill while a checkpoint is written; another number resumes."""
    behind = ["train.save_in_background=true", "train.checkpoint_every_steps=4"]
    last = 12
    reports = run(
        tmp_path,
        [
            case(tmp_path / "whole", 1, "train.checkpoint_every_steps=4", steps=last),
            case(tmp_path / "shared", 2, *SHARED, *behind, steps=last),
            case(tmp_path / "replicas", 4, *SHARED, *behind, steps=last),
            case(tmp_path / "copies", 2, *behind, steps=last),
            case(
                tmp_path / "killed",
                2,
                *SHARED,
                *behind,
                steps=last,
                name="kill",
                pause=4.0,
                kill=[1, 10],
            ),
            case(tmp_path / "killed", 1, *behind, steps=last, name="end"),
        ],
    )
    for name in ("shared", "replicas", "copies", "end"):
        assert set(reports[name]["codes"]) == {0}, reports[name]
        assert_same_run(tmp_path / "whole", tmp_path / ("killed" if name == "end" else name))
    assert reports["kill"]["codes"] == [2, -9], reports["kill"]
    assert "checkpoints/step-00000004:" in reports["end"]["printed"][0], reports["end"]
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*")), "leftovers are cleared away"


def test_a_stop_signal_to_any_process_saves_and_ends_all(tmp_path: Path) -> None:
    reports = run(tmp_path, [case(tmp_path / "out", 2, *SHARED, steps=4000, signal=[1, 2])])
    assert reports["out"]["codes"] == [130, 130]
    first, second = reports["out"]["printed"]
    saved = newest(tmp_path / "out")
    assert first.endswith(
        f"stopped at step {read_state(saved).step}, saved in {saved}; to resume: the same command, "
        "with any number of processes\n"
    )
    assert second == ""


def test_a_disk_that_is_full_for_one_process(tmp_path: Path) -> None:
    out = tmp_path / "out"
    reports = run(
        tmp_path,
        [
            case(out, 2, *SHARED, steps=3, name="begin"),
            case(out, 2, *SHARED, name="full", limit=[1, 20000]),
            case(out, 2, *SHARED, name="end"),
        ],
    )
    assert [reports[name]["codes"] for name in ("begin", "full", "end")] == [[0, 0], [2, 2], [0, 0]]
    assert tells(
        reports["full"]["printed"][0],
        f"... error: {out}/checkpoints/step-00000006: process 1 of 2 ... 27",
    )
    assert [folder.name for folder in complete_checkpoints(out)] == [
        "step-00000003",
        "step-00000006",
    ]
