"""The loop: it learns, resumes exactly, stops cleanly, and records what it did."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from cm3apps.cli.main import main
from cm3core.errors import CheckpointError, CM3Error
from cm3core.images import open_image, read_png_metadata
from cm3core.plugins import Registry
from cm3run.checkpoint import latest_checkpoint
from cm3run.training import loop as train_module
from cm3run.training.loop import train
from cm3run.training.metrics import read_metrics
from cm3run.training.packing import TrainingBatch
from cm3run.training.start import RunOptions, start
from cm3run.training.state import (
    Callback,
    EarlyStopping,
    TrainingInterrupted,
    TrainResult,
    TrainState,
    ended_early,
)
from cm3run.training.validation import Validation
from messages import tells
from squares import PARTS, squares, weights


def stop_at(step: int, number: signal.Signals = signal.SIGINT) -> Callback:
    def callback(state: TrainState) -> None:
        if state.step == step:
            os.kill(os.getpid(), number)

    return callback


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_learns_a_few_documents_by_heart(
    optimizer: str, registry: Registry, cache: Path, tmp_path: Path
) -> None:
    overrides = [
        "objective=causal",
        "decoder.dropout=0",
        "dataset.num_documents=2",
        "train.steps=120",
        "train.learning_rate=0.01",
        f"train.optimizer={optimizer}",
        "train.weight_decay=0",
        "train.validation_splits=[]",
        "train.checkpoint_every_steps=null",
    ]
    result = train(squares(registry, cache, overrides), tmp_path, registry, progress=False)
    assert result.metrics["train/image_loss"] < 0.05
    first = read_metrics(tmp_path)[0]
    assert first["train/image_loss"] > 0.5


def test_a_decoder_learns_the_rows_and_columns_of_any_grid(
    registry: Registry, cache: Path, tmp_path: Path
) -> None:
    """The image tokenizer says no more than its grid."""
    overrides = [
        "image_tokenizer=patches",
        "image_tokenizer.resolution=32",
        "decoder=llama",
        "decoder.num_layers=1",
        "decoder.d_model=16",
        "decoder.num_heads=2",
        "decoder.context_length=128",
        "decoder.code_axes={row: 8, column: 8}",
        "train.warmup_steps=0",
        "train.steps=2",
        "train.validation_splits=[]",
    ]
    recipe = squares(registry, cache, overrides)
    recipe.check()
    before: list[torch.Tensor] = []

    def rows_and_columns(state: TrainState) -> None:
        module: Any = state.components.decoder.module
        tables = module.embed_axes.parameters()
        before.append(torch.cat([table.detach().flatten() for table in tables]))

    train(recipe, tmp_path, registry, progress=False, callbacks=[rows_and_columns])
    assert [table.numel() for table in before] == [(8 + 8) * 16] * 2
    assert (before[0] != before[1]).all()


def test_the_largest_seed_is_trained_with(registry: Registry, cache: Path, tmp_path: Path) -> None:
    overrides = ["train.steps=1", f"train.seed={2**63 - 1}"]
    recipe = squares(registry, cache, overrides)
    recipe.check()
    assert train(recipe, tmp_path, registry, progress=False).step == 1


def test_two_trainings_in_one_folder_are_refused(
    registry: Registry, cache: Path, tmp_path: Path
) -> None:
    recipe = squares(registry, cache, ["train.steps=4", "train.log_every_steps=1"])
    refused: list[str] = []

    def another(state: TrainState) -> None:
        if state.step == 2:
            with pytest.raises(CM3Error) as caught:
                train(recipe, tmp_path, registry, progress=False)
            refused.append(str(caught.value))

    train(recipe, tmp_path, registry, progress=False, callbacks=[another])
    assert refused == [
        f"{tmp_path}: another process is training in this folder\n"
        "  next: wait for it, or name another folder (-o)"
    ]
    logged = [record["step"] for record in read_metrics(tmp_path) if "train/loss" in record]
    assert logged == [1, 2, 3, 4]
    train(recipe, tmp_path, registry, progress=False)


def test_ctrl_c_saves_and_the_same_command_goes_on_exactly(
    whole: TrainResult, registry: Registry, cache: Path, tmp_path: Path
) -> None:
    recipe = squares(registry, cache, ["train.steps=20"])
    before = signal.getsignal(signal.SIGINT)
    for step, number in ((7, signal.SIGINT), (13, signal.SIGTERM)):
        with pytest.raises(TrainingInterrupted) as caught:
            train(
                recipe,
                tmp_path,
                registry,
                progress=False,
                callbacks=[stop_at(step, number)],
                command="cm3 train mine",
            )
        newest = latest_checkpoint(tmp_path)
        assert (
            str(caught.value)
            == f"stopped at step {step}, saved in {newest}; to resume: cm3 train mine"
        )
        assert newest is not None
        assert newest.name == f"step-{step:08d}"
    result = train(recipe, tmp_path, registry, progress=False)
    assert weights(result) == weights(whole)
    assert result.tokens == whole.tokens
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_metrics_after_going_on_are_those_of_a_whole_run(
    whole: TrainResult, registry: Registry, cache: Path, tmp_path: Path
) -> None:
    """Lines after the checkpoint are removed and written again, with the same losses; those of a
    record that was interrupted, at step 12, are averaged over all of its steps."""
    pytest.importorskip("tensorboard", reason="needs pip install 'cm3leon[tensorboard]'")
    recipe = squares(registry, cache, ["train.steps=20"])
    for step in (12, 15):
        with pytest.raises(TrainingInterrupted):
            train(recipe, tmp_path, registry, progress=False, callbacks=[stop_at(step)])
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000015")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "half')
    train(recipe, tmp_path, registry, progress=False)

    def losses(folder: Path) -> list[tuple[float, str, float]]:
        return [
            (line["step"], name, value)
            for line in read_metrics(folder)
            for name, value in line.items()
            if name.endswith("_loss")
        ]

    ours, theirs = losses(tmp_path), losses(whole.checkpoint.parents[1])
    assert ours == theirs
    assert any(entry[1].startswith("validation") for entry in ours)
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.slow
def test_by_the_clock(registry: Registry, cache: Path, tmp_path: Path) -> None:
    """The clock resumes where it stopped; checkpoints keep it."""
    recipe = squares(
        registry,
        cache,
        [
            "train.steps=null",
            "train.minutes=0.015",
            "train.checkpoint_every_steps=null",
            "train.validation_splits=[]",
        ],
    )
    with pytest.raises(TrainingInterrupted):
        train(recipe, tmp_path, registry, progress=False, callbacks=[stop_at(4)])
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    before = json.loads((newest / "state.json").read_text())["elapsed_s"]
    assert before > 0
    seen: list[float] = []
    result = train(
        recipe,
        tmp_path,
        registry,
        progress=False,
        callbacks=[lambda state: seen.append(state.elapsed_s)],
    )
    assert seen[0] >= before
    assert result.step > 4
    assert 0.9 <= result.elapsed_s < 5


def test_accumulation_equals_a_larger_batch(
    registry: Registry, cache: Path, tmp_path: Path
) -> None:
    """Rows of different weight in the two halves: the mean is over all tokens of the step."""
    recipe = squares(
        registry,
        cache,
        [
            "train.batch_rows=4",
            "decoder.dropout=0",
            "train.validation_splits=[]",
            "train.precision=fp32",
        ],
    )
    states = [start(recipe, tmp_path / name, registry, RunOptions(progress=False)) for name in "ab"]
    [batch] = states[0].loader.next_step()
    halves = [
        TrainingBatch(*(getattr(batch, name)[rows] for name in TrainingBatch.__dataclass_fields__))
        for rows in (slice(2), slice(2, 4))
    ]
    halves[0].weights_BT[0] = 0
    for state, parts in ((states[0], [batch]), (states[1], halves)):
        train_module._step(state, state.components.decoder.hidden_states, parts)
        state.log.close()
    for left, right in zip(
        states[0].decoder.parameters(), states[1].decoder.parameters(), strict=True
    ):
        torch.testing.assert_close(left, right, atol=2e-5, rtol=0)
    torch.testing.assert_close(states[0].sums_G2, states[1].sums_G2)


def test_a_loss_that_is_not_finite_stops_and_is_not_saved(
    registry: Registry, cache: Path, tmp_path: Path
) -> None:
    def spoil(state: TrainState) -> None:
        if state.step == 6:
            next(state.decoder.parameters()).data.fill_(float("nan"))

    with pytest.raises(CM3Error) as caught:
        train(squares(registry, cache), tmp_path, registry, progress=False, callbacks=[spoil])
    assert "no longer finite" in str(caught.value)
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000003"


@pytest.mark.parametrize("moment", ["_validate", "_log"])
def test_a_run_that_was_killed_at_its_end_gets_what_it_lacks(
    moment: str, registry: Registry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step is lost; the validation and losses of the last step are those of an undisturbed run, and the same
    command once more adds nothing."""
    overrides = [
        "train.steps=7",
        "train.validate_every_steps=100",
        "train.checkpoint_every_steps=null",
    ]
    recipe = squares(registry, cache, overrides)
    undisturbed = train(recipe, tmp_path / "whole", registry, progress=False)

    def killed(state: TrainState, *rest: object) -> None:
        if state.step == 7:
            raise KeyError("killed")
        original(state, *rest)

    with monkeypatch.context() as patch:
        original = getattr(train_module, moment)
        patch.setattr(train_module, moment, killed)
        with pytest.raises(KeyError):
            train(recipe, tmp_path / "killed", registry, progress=False)
    newest = latest_checkpoint(tmp_path / "killed")
    assert newest is not None
    assert newest.name == "step-00000007"
    for _ in range(2):
        result = train(recipe, tmp_path / "killed", registry, progress=False)
        assert result.checkpoint == newest
        assert result.was_finished
        assert_same_records(tmp_path / "killed", tmp_path / "whole")
        assert weights(result) == weights(undisturbed)


def assert_same_records(left: Path, right: Path) -> None:
    """All that two runs recorded but times and the last gradient's norm, which no checkpoint keeps."""
    times = ("elapsed_s", "tokens_per_second", "seconds_left", "time/data", "time/other")
    ours, theirs = (
        [
            {
                name: value
                for name, value in line.items()
                if name not in (*times, "train/gradient_norm")
            }
            for line in read_metrics(folder)
        ]
        for folder in (left, right)
    )
    assert ours == theirs
    assert any("validation/held/image_loss" in line for line in ours)


def test_a_stop_at_the_last_step_leaves_the_validation_to_the_same_command(
    registry: Registry, cache: Path, tmp_path: Path
) -> None:
    overrides = ["train.steps=7", "train.validate_every_steps=100"]
    recipe = squares(registry, cache, overrides)
    train(recipe, tmp_path / "whole", registry, progress=False)
    train(recipe, tmp_path / "stopped", registry, progress=False, callbacks=[stop_at(7)])
    assert not any("validation/held/loss" in line for line in read_metrics(tmp_path / "stopped"))
    train(recipe, tmp_path / "stopped", registry, progress=False)
    assert_same_records(tmp_path / "stopped", tmp_path / "whole")


def test_command_line(
    registry: Registry,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "train",
        str(PARTS / "squares.yaml"),
        "train.steps=2",
        "--plugin",
        str(PARTS / "train_parts.py"),
        f"data.cache_dir={cache}",
    ]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("runs/squares/checkpoints/step-00000002\n")
    assert tells(captured.err, "... note: validation split 'absent' is skipped: the squares have")
    assert main([*arguments, "train.learning_rate=7"]) == 2
    assert "train.learning_rate: 0.003 in the checkpoint, 7.0 now" in capsys.readouterr().err

    def interrupted(*args: object, **options: object) -> TrainResult:
        raise TrainingInterrupted(f"to resume: {options['command']}")

    monkeypatch.setattr(train_module, "train", interrupted)
    assert main([*arguments, "-o", "my run"]) == 130
    assert tells(
        capsys.readouterr().err,
        f"to resume: cm3 --plugin {PARTS / 'train_parts.py'} ... {PARTS / 'squares.yaml'} ... 'my run' train.steps",
    )


def test_sample_pictures_do_not_change_the_training(
    whole: TrainResult, registry: Registry, cache: Path, tmp_path: Path
) -> None:
    result = train(
        squares(registry, cache, ["train.steps=20", "train.sample_every_steps=10"]),
        tmp_path,
        registry,
        progress=False,
    )
    assert weights(result) == weights(whole)
    assert [path.name for path in sorted((tmp_path / "samples").iterdir())] == [
        "step-00000010.png",
        "step-00000020.png",
    ]
    assert open_image(tmp_path / "samples" / "step-00000020.png").shape[0] >= 5 * 8
    assert read_png_metadata(tmp_path / "samples" / "step-00000020.png")["step"] == "20"


def test_sample_pictures_by_the_clock(registry: Registry, cache: Path, tmp_path: Path) -> None:
    """Before the first step, and at the end; as many as fit into a fifth of the time between."""
    own = ["train.steps=2", "train.sample_every_minutes=60", "train.validation_splits=[]"]
    train(squares(registry, cache, own), tmp_path, registry, progress=False)
    names = [path.name for path in sorted((tmp_path / "samples").iterdir())]
    assert names == ["step-00000000.png", "step-00000002.png"]


def measured(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let validations measure these losses."""
    left = iter(losses)

    def measure(self: Validation, forward: object) -> dict[str, float]:
        self.loss = next(left)
        return {"validation/held/image_loss": self.loss}

    monkeypatch.setattr(Validation, "measure", measure)


@pytest.mark.slow
def test_a_run_that_no_longer_learns_ends_with_its_best_checkpoint(
    registry: Registry,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lowest after 10 of 40 steps; 15 and 20 are no lower, so that it stops; its next call trains nothing. Without
    patience it goes on from there."""
    measured(monkeypatch, [5.0, 4.0, 4.5, 4.0])
    own = ["train.validate_every_steps=5", "train.keep_checkpoints=1"]
    recipe = squares(registry, cache, [*own, "train.patience=2"])
    result = train(recipe, tmp_path, registry, progress=False)
    best = tmp_path / "checkpoints" / "step-00000010"
    assert (result.step, result.checkpoint, result.was_finished) == (20, best, False)
    assert list((tmp_path / "checkpoints").iterdir()) == [best]
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "squares: held-out loss 4.0000 at step 20, lowest 4.0000 at step 10",
        f"squares: 2 validations without a lower loss: held-out loss 4.0000 at step 20, lowest 4.0000 at step 10; ends "
        f"with {best}",
    ]
    again = train(recipe, tmp_path, registry, progress=False)
    assert (again.checkpoint, again.was_finished) == (best, True)
    measured(monkeypatch, [4.0] * 9)
    more = train(squares(registry, cache, own), tmp_path, registry, progress=False)
    assert (more.step, more.checkpoint.name) == (40, "step-00000040")


def test_a_killed_run_remembers_its_losses_up_to_its_checkpoint(
    registry: Registry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = squares(registry, cache, ["train.patience=2"])
    assert EarlyStopping.of(squares(registry, cache, []), tmp_path, 9) is None
    first = EarlyStopping.of(recipe, tmp_path, 0)
    assert first is not None
    assert (first.best, first.stops) == (None, False)
    for step, loss in ((0, 5.0), (5, 4.5), (10, math.nan), (15, 4.6)):
        first.add(step, loss)
    first.write(tmp_path)
    resumed = EarlyStopping.of(recipe, tmp_path, 12)
    assert resumed is not None
    assert resumed.losses == [(0, 5.0), (5, 4.5)]
    assert not ended_early(recipe, tmp_path)
    first.write(tmp_path, ended=recipe.hash)
    assert ended_early(recipe, tmp_path)
    (tmp_path / "early_stopping.json").write_text('{"losses": [[1')
    resumed = EarlyStopping.of(recipe, tmp_path, 12)
    assert resumed is not None
    assert resumed.losses == []


@pytest.mark.parametrize("sums", [[[1.0, 2.0]], [["a", "b"]] * 4, [1, 2, 3, 4]])
def test_loss_sums_of_another_shape_are_refused(
    whole: TrainResult, registry: Registry, cache: Path, tmp_path: Path, sums: list[object]
) -> None:
    out = Path(shutil.copytree(whole.checkpoint.parents[1], tmp_path / "run"))
    path = out / "checkpoints" / whole.checkpoint.name / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"loss_sums": sums}))
    with pytest.raises(CheckpointError) as caught:
        train(squares(registry, cache, ["train.steps=25"]), out, registry, progress=False)
    assert tells(caught.value, "... checkpoint's state ... loss_sums")


def test_without_a_compiler_training_is_slower(
    registry: Registry,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    overrides = ["train.steps=1", "train.compile=true"]
    result = train(squares(registry, cache, overrides), tmp_path, registry, progress=False)
    assert result.step == 1
    assert (
        "note: nothing is compiled (train.compile): there is no C++ compiler 'g++'; next: install it (g++)"
        ", or train more slowly"
    ) in capsys.readouterr().err


@pytest.mark.slow
def test_blocks_are_compiled_once_and_train_the_same(
    registry: Registry, cache: Path, tmp_path: Path
) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    torch._dynamo.reset()
    losses = []
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        overrides = [
            *("train.steps=3", "train.log_every_steps=1", "train.precision=fp32"),
            *("decoder.num_layers=6", "decoder.dropout=0", f"train.compile={compiled}"),
        ]
        train(squares(registry, cache, overrides), tmp_path / name, registry, progress=False)
        lines = read_metrics(tmp_path / name)
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # attention is called apart: on the CPU, documents are attended to one by one
    assert len(counters["graph_break"]) == 1
    # before and behind it, in training and in validation, first for one shape and then for any: not for each of six blocks
    assert counters["stats"]["unique_graphs"] < 12
