"""The training loop: one for every recipe, one process or many. It knows interfaces only.

A run is a folder: `recipe.yaml`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `samples/`. What
happens in a step is a function of the weights, the optimiser's state, the place in the data and
torch's generators; all four are in a checkpoint, so a run that was killed goes on as if nothing had
happened.
"""

from __future__ import annotations

import math
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cm3core.build import build
from cm3core.checkpoint import (
    RECIPE,
    TOKENIZER,
    CheckpointState,
    check_fingerprints,
    check_recipe,
    find_checkpoint,
    find_model,
    latest_checkpoint,
    load_weights,
    read_recipe,
    read_state,
    remove_leftovers,
    restore_training,
    save_checkpoint,
)
from cm3core.errors import CheckpointError, CM3Error, DeviceError
from cm3core.files import check_writable, make_folder, write_text
from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
from cm3core.stop_signals import StopSignals
from cm3core.training.loss import GROUPS, batch_loss_sums, modality_metrics
from cm3core.training.metrics import MetricsLog
from cm3core.training.optim import OptimizerGroup, Schedule
from cm3core.training.preparation import Preparation
from cm3core.training.samples import SamplePictures
from cm3core.training.state import Callback, Processes, TrainingInterrupted, TrainResult, TrainState
from cm3core.training.validation import Validation

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3core.sequence.packing import TrainingBatch

__all__ = [
    "Callback",
    "Processes",
    "TrainResult",
    "TrainState",
    "TrainingInterrupted",
    "choose_precision",
    "save",
    "train",
]

#: Last words when training has diverged.
DIVERGED = "lower train.learning_rate (or train.muon_learning_rate) or lengthen train.warmup_steps, and start in another folder"


def train(
    recipe: Recipe,
    out_dir: str | Path,
    registry: Registry,
    *,
    resume: bool = True,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    device: str | torch.device | None = None,
    processes: Processes | None = None,
    command: str | None = None,
) -> TrainResult:
    """Train a decoder, or go on where `out_dir`'s newest checkpoint stopped.

    Args:
        recipe: composed and checked.
        out_dir: the run's folder.
        registry: the plugins that the recipe was composed with.
        resume: go on from a checkpoint that is there; False: refuse a folder that has one.
        progress: show bars and say what was chosen.
        callbacks: see `Callback`.
        device: where the decoder is trained; None: the GPU when there is one.
        processes: the processes that train together.
        command: what the user can type to go on; told when interrupted.

    Raises:
        CheckpointError: the folder's checkpoint is damaged or was made under another recipe, or
            can't be written.
        TrainingInterrupted: Ctrl-C; a checkpoint has been written.
        CM3Error: the loss is no longer finite.
    """
    out_dir = Path(out_dir)
    command = command or f"cm3 train {shlex.quote(recipe.name)} -o {shlex.quote(str(out_dir))}"
    with _threads(recipe.train.num_threads):
        state = _start(
            recipe, out_dir, registry, resume, progress, device, processes or Processes()
        )
        drawing = (
            [SamplePictures(state.preparation)]
            if recipe.train.sample_every_steps is not None
            else []
        )
        try:
            checkpoint = _loop(state, progress, [*drawing, *callbacks], command)
        finally:
            state.log.close()
    gpu = torch.cuda.max_memory_allocated() if state.device.type == "cuda" else 0
    # getrusage counts bytes there, kilobytes elsewhere
    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return TrainResult(
        checkpoint, state.step, state.elapsed_s, state.tokens, state.metrics, peak, gpu
    )


# --- starting


def _start(
    recipe: Recipe,
    out_dir: Path,
    registry: Registry,
    resume: bool,
    progress: bool,
    device: str | torch.device | None,
    processes: Processes,
) -> TrainState:
    """Build everything; restore the newest checkpoint when there is one."""
    schedule = Schedule.of(recipe.train)
    check_writable(out_dir, folder=True)
    chosen = choose_device(device)
    dtype, reason = choose_precision(recipe.train.precision, chosen)
    folder = latest_checkpoint(out_dir)
    if folder is not None:
        if not resume:
            raise CheckpointError(
                str(out_dir),
                f"holds a run already (step {read_state(folder).step})",
                "name another folder, or resume",
            )
        check_recipe(folder, read_recipe(folder, registry), recipe)
    origin = folder
    if origin is None and recipe.train.start_from is not None:
        origin = find_checkpoint(find_model(recipe.train.start_from, registry))
    components = build(
        recipe,
        registry,
        stage="train",
        tokenizer_folder=None if origin is None else origin / TOKENIZER,
        image_tokenizer_folder=None if origin is None else origin / IMAGE_TOKENIZER,
        device=chosen,
    )
    if origin is not None:
        check_fingerprints(origin, read_state(origin), components)
    preparation = Preparation(components, progress=progress)
    decoder = components.decoder.module
    decoder.train()
    codebook = (
        components.image_tokenizer.codebook()
        if recipe.train.start_from_codebook and origin is None
        else None
    )
    if codebook is not None:
        components.decoder.start_from_codebook(codebook.to(chosen), components.vocabulary)
    if origin is not None and folder is None:
        load_weights(decoder, origin)
    optimizer = OptimizerGroup(components.decoder, recipe.train, dtype or torch.float32)
    loader = preparation.loader(rank=processes.rank, world_size=processes.world_size)
    torch.manual_seed(recipe.train.seed)
    stored = CheckpointState(step=0) if folder is None else read_state(folder)
    if folder is not None:
        if stored.fingerprints.get("dataset") != preparation.fingerprint:
            raise CheckpointError(
                str(folder),
                "was trained on other data (documents were added, removed or changed)",
                "start in another folder (-o), or bring the data back",
            )
        if stored.fingerprints.get("bank") != preparation.bank_fingerprint:
            raise CheckpointError(
                str(folder),
                "was trained with another memory bank (documents were added, removed or changed)",
                "start in another folder (-o), or bring the bank back",
            )
        restore_training(folder, optimizer, decoder)
        loader.load_state_dict(stored.loader)
    make_folder(out_dir)
    remove_leftovers(out_dir)
    write_text(out_dir / RECIPE, recipe.to_yaml())
    if progress:
        parameters = sum(p.numel() for p in decoder.parameters())
        start = f"goes on from {folder}" if folder is not None else f"starts in {out_dir}"
        start += f" from the weights of {origin}" if origin is not None and folder is None else ""
        print(
            f"{recipe.name} {start}: {parameters / 1e6:.2f}M parameters, "
            f"{len(components.source):,} documents, {chosen}, "
            f"{reason}, {torch.get_num_threads()} threads",
            file=sys.stderr,
        )
    log = MetricsLog(out_dir, stored.step)
    return TrainState(
        recipe,
        out_dir,
        components,
        preparation,
        decoder,
        optimizer,
        schedule,
        loader,
        log,
        chosen,
        dtype,
        processes,
        stored.step,
        stored.elapsed_s,
        stored.tokens,
        sums_G2=torch.zeros(len(GROUPS), 2, device=chosen),
    )


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for (None: the GPU when there is one), tried out. Raises `DeviceError` when
    it can't compute."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.ones(1, device=chosen).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # the second: a torch that was built without CUDA
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DeviceError(
            f"device {str(device)!r}",
            f"can't be used here ({reason})",
            "use cpu, or cuda on a machine with a GPU",
        ) from error
    return chosen


def choose_precision(precision: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """Autocast's dtype (None: off) and why, in words. "auto" takes bfloat16 only where the hardware
    multiplies it."""
    if precision == "fp32":
        return None, "fp32 as asked"
    if device.type == "cuda":
        able, what = (
            torch.cuda.is_bf16_supported(including_emulation=False),
            torch.cuda.get_device_name(device),
        )
    elif device.type == "cpu":
        # torch offers no public question for this; without these instructions a bfloat16 product is
        # up to 50 times slower.
        able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        what = "this CPU"
    else:
        able, what = False, str(device)
    if precision == "bf16":
        return torch.bfloat16, "bf16 as asked" + (
            "" if able else f", though {what} has no instructions for it and will be slow"
        )
    return (
        (torch.bfloat16, f"bf16 autocast ({what} computes it)")
        if able
        else (None, f"fp32 ({what} does not compute bf16)")
    )


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Torch computes with `number` threads inside."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- the loop


def _loop(state: TrainState, progress: bool, callbacks: Sequence[Callback], command: str) -> Path:
    section, validation = state.recipe.train, Validation(state.preparation, progress=progress)
    hidden_states = state.components.decoder.hidden_states
    if section.compile:
        hidden_states = torch.compile(hidden_states)
    batches = iter(state.loader)
    last_save, begin = time.monotonic(), time.monotonic() - state.elapsed_s
    with StopSignals() as stop, _Bar(state, progress) as bar:
        while state.progress < 1:
            started = time.monotonic()
            micro_batches = [next(batches) for _ in range(section.accumulate)]
            fetched = time.monotonic()
            num_tokens = _step(state, hidden_states, micro_batches)
            computed = time.monotonic()
            state.step += 1
            state.tokens += num_tokens
            if state.step % section.log_every_steps == 0:
                _log(state)
            if section.validation_splits and state.step % section.validate_every_steps == 0:
                _validate(state, validation)
            for callback in callbacks:
                callback(state)
            state.elapsed_s = time.monotonic() - begin
            due = (
                section.checkpoint_every_steps and state.step % section.checkpoint_every_steps == 0
            )
            if (
                due or time.monotonic() - last_save > 60 * section.checkpoint_every_minutes
            ) and state.progress < 1:
                save(state)
                last_save = time.monotonic()
            _count_time(
                state, num_tokens, fetched - started, computed - fetched, time.monotonic() - started
            )
            bar.update()
            if stop.received is not None:
                break
        if stop.received is None:
            if section.validation_splits and state.step % section.validate_every_steps:
                _validate(state, validation)
            if state.step % section.log_every_steps and state.seconds["all"] > 0:
                _log(state)
        checkpoint = save(state)
    if stop.received is not None and state.progress < 1:
        raise TrainingInterrupted(
            f"stopped at step {state.step}, saved in {checkpoint}; to go on: {command}"
        )
    return checkpoint


def _step(
    state: TrainState, hidden_states: Callable[..., Tensor], micro_batches: Sequence[TrainingBatch]
) -> int:
    """Forward, backward and update; returns the number of tokens that were trained on, in all
    processes."""
    section, processes = state.recipe.train, state.processes
    counts = [(float(batch.weights_BT.double().sum()), batch.num_tokens) for batch in micro_batches]
    weight, tokens = processes.sum(torch.tensor(counts, dtype=torch.float64).sum(0)).tolist()
    multiplier = state.schedule.multiplier(state.step, state.elapsed_s)
    for batch in micro_batches:
        loss_sum, sums_G2 = batch_loss(state, hidden_states, batch, section.z_loss)
        # the mean over the step's tokens; processes average their gradients, hence their number
        (loss_sum * (processes.world_size / max(weight, 1e-9))).backward()
        state.sums_G2 += sums_G2
    if section.clip_norm > 0:
        state.gradient_norm = nn.utils.clip_grad_norm_(
            state.optimizer.parameters, section.clip_norm
        )
    state.metrics["train/learning_rate"] = multiplier * section.learning_rate
    state.optimizer.step(multiplier)
    return int(tokens)


def batch_loss(
    state: TrainState, hidden_states: Callable[..., Tensor], batch: TrainingBatch, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Sum of the weighted losses of a batch, and its parts by modality (see
    `Decoder.loss_sums`)."""
    batch = batch.to(state.device)
    with state.autocast():
        hidden_BTE = hidden_states(
            batch.tokens_BT,
            positions_BT=batch.positions_BT,
            cells_BT=batch.cells_BT,
            kv_start_BT=batch.kv_start_BT,
        )
        return batch_loss_sums(state.components.decoder, hidden_BTE, batch, z_loss=z_loss)


def _count_time(
    state: TrainState, num_tokens: int, data_s: float, step_s: float, all_s: float
) -> None:
    state.speed.add(num_tokens, all_s)
    state.steps_speed.add(1, all_s)
    for name, value in (("data", data_s), ("step", step_s), ("all", all_s)):
        state.seconds[name] += value


def _log(state: TrainState) -> None:
    """Write the metrics since the last log. Raises `CM3Error` when the loss is not finite."""
    sums_G2 = state.processes.sum(state.sums_G2)
    if not bool(torch.isfinite(sums_G2).all()):
        raise CM3Error(f"training, step {state.step}", "the loss is not finite any more", DIVERGED)
    values = {f"train/{name}": value for name, value in modality_metrics(sums_G2).items()}
    values["train/learning_rate"] = state.metrics.get("train/learning_rate", 0.0)
    if state.gradient_norm is not None:
        values["train/gradient_norm"] = float(state.gradient_norm)
    values |= {
        "tokens": float(state.tokens),
        "elapsed_s": state.elapsed_s,
        "progress": state.progress,
    }
    if state.seconds["all"] > 0:
        values |= {
            "tokens_per_second": state.speed.rate,
            "seconds_left": state.seconds_left,
            "time/data": state.seconds["data"] / state.seconds["all"],
            "time/other": 1
            - (state.seconds["data"] + state.seconds["step"]) / state.seconds["all"],
        }
    state.log.write(state.step, values)
    state.metrics.update(values)
    state.sums_G2.zero_()
    state.seconds = dict.fromkeys(state.seconds, 0.0)


def _validate(state: TrainState, validation: Validation) -> None:
    """Measure every validation split and write the metrics."""

    def forward(batch: TrainingBatch) -> Tensor:
        return batch_loss(state, state.components.decoder.hidden_states, batch, 0.0)[1]

    state.decoder.eval()
    with torch.inference_mode():
        values = validation.measure(forward)
    state.decoder.train()
    if values:
        state.log.write(state.step, values)
        state.metrics.update(values)


def save(state: TrainState) -> Path:
    """Write a checkpoint of this moment; refuses weights that are not finite."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in state.decoder.parameters()):
        raise CM3Error(
            f"training, step {state.step}",
            "weights are not finite any more; they are not saved",
            DIVERGED,
        )
    components = state.components
    fingerprints = {**components.fingerprints(), "dataset": state.preparation.fingerprint}
    if state.preparation.bank_fingerprint is not None:
        fingerprints["bank"] = state.preparation.bank_fingerprint
    stored = CheckpointState(
        state.step,
        state.elapsed_s,
        state.tokens,
        state.loader.state_dict(),
        components.vocabulary.to_dict(),
        fingerprints,
    )
    state.log.flush()
    return save_checkpoint(
        state.out_dir,
        state.decoder,
        state.optimizer,
        stored,
        components,
        keep=state.recipe.train.keep_checkpoints,
    )


class _Bar:
    """The progress bar: steps, or seconds where the clock decides."""

    def __init__(self, state: TrainState, show: bool) -> None:
        self.state = state
        by_clock = state.schedule.minutes is not None
        total = (
            60 * state.schedule.minutes
            if state.schedule.minutes is not None
            else state.schedule.steps
        )
        self.bar = tqdm(
            total=total,
            initial=min(self._now(), total or 0),
            disable=not show,
            desc=state.recipe.name,
            mininterval=0.5,
            unit="s" if by_clock else "step",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit}{postfix}",
        )

    def _now(self) -> float:
        return self.state.elapsed_s if self.state.schedule.minutes is not None else self.state.step

    def update(self) -> None:
        """Show the newest figures."""
        state = self.state
        left = state.seconds_left
        clock = f"{int(left) // 60}:{int(left) % 60:02d} left" if math.isfinite(left) else ""
        parts = [clock, f"{state.speed.rate:,.0f} tokens/s"]
        losses = {name: state.metrics.get(f"train/{name}_loss") for name in ("image", "text")}
        parts += [f"{name} {loss:.3f}" for name, loss in losses.items() if loss is not None]
        self.bar.set_postfix_str(", ".join(part for part in parts if part), refresh=False)
        self.bar.update(max(0.0, min(self._now(), self.bar.total) - self.bar.n))

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
