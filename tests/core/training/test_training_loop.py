"""The loop: it learns, goes on exactly, stops cleanly, refuses what it must, and writes down what
it did."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from cm3core.checkpoint import WEIGHTS, latest_checkpoint, read_tensors
from cm3core.cli.main import main
from cm3core.errors import CheckpointError, CM3Error, DeviceError, FileError
from cm3core.images import open_image, read_png_metadata
from cm3core.plugins import Registry, load_registry
from cm3core.recipe import Recipe, compose
from cm3core.sequence.packing import TrainingBatch
from cm3core.training import loop as train_module
from cm3core.training.loop import (
    TrainingInterrupted,
    TrainResult,
    TrainState,
    choose_device,
    choose_precision,
    train,
)
from cm3core.training.metrics import MetricsLog, SpeedMeter, read_metrics

PARTS = Path(__file__).parents[2] / "fixtures" / "train"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry([PARTS / "train_parts.py"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def squares(registry: Registry, cache: Path, overrides: Sequence[str] = ()) -> Recipe:
    return compose(
        str(PARTS / "squares.yaml"), [f"data.cache_dir={cache}", *overrides], registry=registry
    )


@pytest.fixture(scope="module")
def whole(registry: Registry, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """An uninterrupted run of 20 steps."""
    return train(
        squares(registry, cache, ["train.steps=20"]),
        tmp_path_factory.mktemp("whole"),
        registry,
        progress=False,
    )


def weights(result: TrainResult) -> bytes:
    return (result.checkpoint / WEIGHTS).read_bytes()


def stop_at(step: int, number: signal.Signals = signal.SIGINT) -> train_module.Callback:
    def callback(state: TrainState) -> None:
        if state.step == step:
            os.kill(os.getpid(), number)

    return callback


def test_starts_from_the_weights_of_another_run(
    whole: TrainResult,
    registry: Registry,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Learning almost nothing leaves them what they were; other documents are no obstacle; resuming
    doesn't start over."""
    own = [
        f"train.start_from={whole.checkpoint.parent.parent}",
        "train.steps=2",
        "train.learning_rate=1e-12",
        "train.optimizer=adamw",
        "dataset.num_documents=3",
        "train.start_from_codebook=true",
    ]
    result = train(squares(registry, cache, own), tmp_path, registry)
    assert f"from the weights of {whole.checkpoint}" in capsys.readouterr().err
    before, after = (read_tensors(found.checkpoint / WEIGHTS) for found in (whole, result))
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-9)
    again = train(squares(registry, cache, own), tmp_path, registry, progress=False)
    assert weights(again) == weights(result)


def test_a_start_that_does_not_fit_is_refused(
    whole: TrainResult, registry: Registry, cache: Path, tmp_path: Path
) -> None:
    origin = f"train.start_from={whole.checkpoint}"
    with pytest.raises(CheckpointError, match="beside the weights, unchanged"):
        train(
            squares(registry, cache, [origin, "train.steps=2", "decoder.num_layers=1"]),
            tmp_path / "a",
            registry,
        )
    with pytest.raises(CheckpointError, match="no installed plugin ships it"):
        train(
            squares(registry, cache, ["train.start_from=bundled:nothing", "train.steps=2"]),
            tmp_path / "b",
            registry,
        )
    assert not (tmp_path / "a" / "checkpoints").exists()


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
            == f"stopped at step {step}, saved in {newest}; to go on: cm3 train mine"
        )
        assert newest is not None
        assert newest.name == f"step-{step:08d}"
    result = train(recipe, tmp_path, registry, progress=False)
    assert weights(result) == weights(whole)
    assert result.tokens == whole.tokens
    assert signal.getsignal(signal.SIGINT) is before


def test_metrics_after_going_on_are_those_of_a_whole_run(
    whole: TrainResult, registry: Registry, cache: Path, tmp_path: Path
) -> None:
    """Lines after the checkpoint are cut away and written again, with the same losses."""
    recipe = squares(registry, cache, ["train.steps=20"])
    with pytest.raises(TrainingInterrupted):
        train(recipe, tmp_path, registry, progress=False, callbacks=[stop_at(15)])
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
    validated = [entry for entry in ours if entry[1].startswith("validation")]
    assert validated == [entry for entry in theirs if entry[1].startswith("validation")]
    assert [entry for entry in ours if entry[0] in (5, 10, 20)] == [
        entry for entry in theirs if entry[0] in (5, 10, 20)
    ]
    assert len(ours) == len(theirs)
    assert list((tmp_path / "tensorboard").iterdir())


def test_changed_recipe_is_refused_with_the_difference(
    whole: TrainResult, registry: Registry, cache: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole.checkpoint.parents[1], tmp_path / "run"))
    changed = squares(
        registry,
        cache,
        [
            "train.steps=30",
            "train.learning_rate=0.1",
            "decoder.num_layers=3",
            "sampler.temperature=0.5",
        ],
    )
    with pytest.raises(CheckpointError) as caught:
        train(changed, out, registry, progress=False)
    assert str(caught.value) == (
        f"{out / 'checkpoints' / 'step-00000020'}: was made under another recipe:\n"
        "    decoder.num_layers: 2 in the checkpoint, 3 now\n"
        "    train.learning_rate: 0.003 in the checkpoint, 0.1 now\n"
        "  next: start in another folder (-o), or resume with the recipe unchanged"
    )


def test_a_finished_run_can_be_made_longer(
    whole: TrainResult, registry: Registry, cache: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole.checkpoint.parents[1], tmp_path / "run"))
    assert (
        train(squares(registry, cache, ["train.steps=20"]), out, registry, progress=False).step
        == 20
    ), "nothing left to do"
    assert (
        train(
            squares(registry, cache, ["train.steps=22", "train.log_every_steps=1"]),
            out,
            registry,
            progress=False,
        ).step
        == 22
    )
    with pytest.raises(CheckpointError, match="holds a run already \\(step 22\\)"):
        train(
            squares(registry, cache, ["train.steps=22"]),
            out,
            registry,
            progress=False,
            resume=False,
        )


def test_other_data_is_refused(
    whole: TrainResult,
    registry: Registry,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = Path(shutil.copytree(whole.checkpoint.parents[1], tmp_path / "run"))
    path = whole.checkpoint.name
    state = json.loads((out / "checkpoints" / path / "state.json").read_text())
    state["fingerprints"]["dataset"] = "another"
    (out / "checkpoints" / path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="was trained on other data"):
        train(squares(registry, cache, ["train.steps=21"]), out, registry, progress=False)


def test_another_memory_bank_is_refused(registry: Registry, cache: Path, tmp_path: Path) -> None:
    """A bank that has grown since is another training; its bytes brought back, the run goes on."""
    bank, out = tmp_path / "bank", tmp_path / "run"

    def memory(action: str, *arguments: str) -> int:
        return main(
            [
                "--plugin",
                str(PARTS / "train_parts.py"),
                "memory",
                action,
                *arguments,
                "--quiet",
                f"data.cache_dir={cache}",
            ]
        )

    assert (
        memory("build", str(PARTS / "squares.yaml"), "-o", str(bank), "embedder=light_encoder") == 0
    )
    shutil.copytree(bank, tmp_path / "before")
    own = [
        "embedder=light_encoder",
        "retriever=dense",
        f"retriever.bank={bank}",
        "train.validation_splits=[]",
        "decoder.context_length=96",
    ]
    train(squares(registry, cache, [*own, "train.steps=2"]), out, registry, progress=False)
    assert memory("add", str(bank), str(PARTS / "squares.yaml"), "--id-prefix", "more/") == 0
    with pytest.raises(CheckpointError) as error:
        train(squares(registry, cache, [*own, "train.steps=3"]), out, registry, progress=False)
    assert "was trained with another memory bank (documents were added, removed or changed)" in str(
        error.value
    )
    assert "start in another folder (-o), or bring the bank back" in str(error.value)
    shutil.rmtree(bank)
    shutil.copytree(tmp_path / "before", bank)
    assert (
        train(squares(registry, cache, [*own, "train.steps=3"]), out, registry, progress=False).step
        == 3
    )


def test_by_the_clock(registry: Registry, cache: Path, tmp_path: Path) -> None:
    """The clock goes on where it stopped; checkpoints keep it."""
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
    """Rows of different weight in the two halves: the mean is over the whole step's tokens."""
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
    states = [
        train_module._start(
            recipe, tmp_path / name, registry, True, False, None, train_module.Processes()
        )
        for name in "ab"
    ]
    batch = next(iter(states[0].loader))
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
    assert "not finite any more" in str(caught.value)
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000003"


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
    assert (
        "note: validation split 'absent' is left out: the squares have no split 'absent'"
        in captured.err
    )
    assert main([*arguments, "train.learning_rate=7"]) == 2
    assert "train.learning_rate: 0.003 in the checkpoint, 7.0 now" in capsys.readouterr().err

    def interrupted(*args: object, **options: object) -> TrainResult:
        raise TrainingInterrupted(f"to go on: {options['command']}")

    monkeypatch.setattr(train_module, "train", interrupted)
    assert main([*arguments, "-o", "my run"]) == 130
    assert capsys.readouterr().err == (
        f"to go on: cm3 --plugin {PARTS / 'train_parts.py'} train {PARTS / 'squares.yaml'} -o "
        "'my run' "
        f"train.steps=2 data.cache_dir={cache}\n"
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


def test_devices_that_are_not_there(registry: Registry, cache: Path, tmp_path: Path) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("banana", "cuda:99"):
        with pytest.raises(DeviceError) as caught:
            train(squares(registry, cache), tmp_path / "out", registry, device=name, progress=False)
        assert str(caught.value).startswith(f"device {name!r}: can't be used here (")
        assert str(caught.value).endswith(")\n  next: use cpu, or cuda on a machine with a GPU")
    (tmp_path / "file").touch()
    with pytest.raises(FileError) as caught_file:
        train(squares(registry, cache), tmp_path / "file", registry, progress=False)
    assert str(caught_file.value) == f"{tmp_path / 'file'}: is a file\n  next: name a folder"
    assert not (tmp_path / "out").exists()


def test_precision() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) == (None, "fp32 as asked")
    assert choose_precision("bf16", cpu)[0] == torch.bfloat16
    dtype, reason = choose_precision("auto", cpu)
    able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert dtype == (torch.bfloat16 if able else None)
    assert "this CPU" in reason


def test_speed_by_hand() -> None:
    meter = SpeedMeter(time_constant_s=1.0)
    assert meter.rate == 0.0
    meter.add(10, 1.0)
    assert meter.rate == pytest.approx(10.0)
    meter.add(0, 1.0)
    keep = 2.718281828**-1
    assert meter.rate == pytest.approx(10 * keep / (keep + 1))


def test_metrics_log_cuts_what_is_later(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write(1, {"a": 1.0})
    log.write(2, {"a": float("inf")})
    log.close()
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": None}]
    MetricsLog(tmp_path, 1, tensorboard=False).close()
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1.0}]


class BrokenWriter:
    """TensorBoard's writer on a disk that is full when the method `fails` is called."""

    fails = "add_scalar"

    def __init__(self, folder: str, **options: object) -> None:
        self.called: list[str] = []
        self._call("__init__")

    def _call(self, name: str) -> None:
        self.called.append(name)
        if name == self.fails:
            raise OSError(28, "No space left on device")

    def add_scalar(self, *values: object) -> None:
        self._call("add_scalar")

    def add_image(self, *values: object, **options: object) -> None:
        self._call("add_image")

    def flush(self) -> None:
        self._call("flush")

    def close(self) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("method", ["__init__", "add_scalar", "add_image", "flush", "close"])
def test_tensorboard_that_fails_is_left_out_and_said_once(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(BrokenWriter, "fails", method)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", BrokenWriter)
    log = MetricsLog(tmp_path)
    for step in (1, 2):
        log.write(step, {"a": 1.0, "b": 2.0})
        log.image(step, "samples", np.zeros((2, 2, 3), np.uint8))
        log.flush()
    log.close()
    assert read_metrics(tmp_path) == [{"step": step, "a": 1.0, "b": 2.0} for step in (1, 2)]
    assert capsys.readouterr().err == (
        "note: TensorBoard is left out from here on, it can't be written ([Errno 28] No space "
        "left on device); "
        "metrics.jsonl goes on\n"
    )


def test_tensorboards_own_thread_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real writer, whose thread hits a limit on file sizes; metrics.jsonl, which is shorter,
    goes on."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # Python shows what ended a thread
    log = MetricsLog(tmp_path)
    log.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE,
        (max(path.stat().st_size for path in (tmp_path / "tensorboard").iterdir()), hard),
    )
    try:
        log.write(1, {"a": 1.0})
        log.flush()
        log.write(2, {"a": 1.0})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 1.0}]
    assert capsys.readouterr().err.count("note: TensorBoard is left out from here on") == 1


def test_metrics_that_the_disk_does_not_take_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)

    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    for call in (log.flush, log.close):
        with pytest.raises(
            CheckpointError,
            match=r"metrics.jsonl: can't be written \(\[Errno 5\] Input/output error\)",
        ):
            call()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(log._file)  # closed all the same


def test_metrics_on_a_full_disk(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write(1, {"a": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 10, hard))
    try:
        with pytest.raises(
            CheckpointError, match=r"metrics.jsonl: can't be written \(the disk is full\)"
        ):
            log.write(2, {"a": 1.0})
        with pytest.raises(
            CheckpointError, match=r"metrics.jsonl: can't be written \(\[Errno 27\]"
        ):
            log.write(2, {"a": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1.0}], "half a line is no line"
