"""The training loop: one for every recipe, one process or many. It knows interfaces only.

A run is a folder: `recipe.yaml`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `samples/`. What happens in a step is a function of the
weights, the optimiser's state, the place in the data and torch's generators; all four are in a checkpoint, so a run that was
killed goes on as if nothing had happened.
"""

from __future__ import annotations

import math
import resource
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cm3core.build import Components, build
from cm3core.checkpoint import (
    RECIPE,
    TOKENIZER,
    CheckpointState,
    check_fingerprints,
    check_recipe,
    latest_checkpoint,
    read_recipe,
    read_state,
    remove_leftovers,
    restore_training,
    save_checkpoint,
)
from cm3core.errors import CheckpointError, CM3Error, RecipeError
from cm3core.files import write_text
from cm3core.loss import GROUPS, cross_entropy_sums, modality_metrics
from cm3core.metrics import MetricsLog, SpeedMeter
from cm3core.optim import OptimizerGroup, Schedule
from cm3core.training_data import Preparation
from cm3core.validation import Validation

if TYPE_CHECKING:
    from cm3core.data import BatchLoader
    from cm3core.packing import TrainingBatch
    from cm3core.plugins import Registry
    from cm3core.recipe import Recipe


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the run has saved itself. The text says how to go on."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together; one by default. Sharding replaces `sum` by an all-reduce and changes nothing else.

    Args:
        rank: this process, from 0.
        world_size: number of processes.
        sum: the sum of a tensor over all processes.
    """

    rank: int = 0
    world_size: int = 1
    sum: Callable[[Tensor], Tensor] = lambda tensor: tensor


@dataclass(eq=False)
class TrainState:
    """A run, as callbacks see it after every step."""

    recipe: Recipe
    out_dir: Path
    components: Components
    preparation: Preparation
    decoder: nn.Module
    optimizer: OptimizerGroup
    schedule: Schedule
    loader: BatchLoader
    log: MetricsLog
    device: torch.device
    autocast_dtype: torch.dtype | None
    processes: Processes
    #: Optimiser steps done.
    step: int = 0
    #: Seconds of training, over all sittings.
    elapsed_s: float = 0.0
    #: Tokens trained on.
    tokens: int = 0
    #: The newest metrics, by name.
    metrics: dict[str, float] = field(default_factory=dict)
    #: Sums of losses since the last log, see `cross_entropy_sums`.
    sums_G2: Tensor = field(default_factory=lambda: torch.zeros(len(GROUPS), 2))
    speed: SpeedMeter = field(default_factory=SpeedMeter)
    steps_speed: SpeedMeter = field(default_factory=SpeedMeter)
    #: Seconds since the last log: waiting for data, computing the step, everything.
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("data", "step", "all"), 0.0))

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0..1."""
        return self.schedule.progress(self.step, self.elapsed_s)

    @property
    def seconds_left(self) -> float:
        """An estimate; infinite before the first steps."""
        if self.schedule.minutes is not None:
            return max(0.0, 60 * self.schedule.minutes - self.elapsed_s)
        assert self.schedule.steps is not None
        rate = self.steps_speed.rate
        return (self.schedule.steps - self.step) / rate if rate > 0 else math.inf

    def autocast(self) -> Any:
        """The context that forward passes run in."""
        return nullcontext() if self.autocast_dtype is None else torch.autocast(self.device.type, self.autocast_dtype)


#: Called after every step, in order; anything that draws random numbers must use its own generator.
Callback: TypeAlias = Callable[[TrainState], None]


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Args:
        checkpoint: the last checkpoint.
        step, elapsed_s, tokens: totals over all sittings.
        metrics: the last value of each metric.
        peak_memory_bytes: largest resident memory of this process (and of the GPU, where there is one).
    """

    checkpoint: Path
    step: int
    elapsed_s: float
    tokens: int
    metrics: dict[str, float]
    peak_memory_bytes: int
    peak_gpu_bytes: int = 0


def train(recipe: Recipe, out_dir: str | Path, registry: Registry, *, resume: bool = True, progress: bool = True,
          callbacks: Sequence[Callback] = (), device: str | torch.device | None = None, processes: Processes | None = None,
          command: str | None = None) -> TrainResult:
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
        CheckpointError: the folder's checkpoint is damaged or was made under another recipe, or can't be written.
        TrainingInterrupted: Ctrl-C; a checkpoint has been written.
        CM3Error: the loss is no longer finite.
    """
    out_dir = Path(out_dir)
    command = command or f"cm3 train {shlex.quote(recipe.name)} -o {shlex.quote(str(out_dir))}"
    with _threads(recipe.train.num_threads):
        state = _start(recipe, out_dir, registry, resume, progress, device, processes or Processes())
        try:
            checkpoint = _loop(state, progress, callbacks, command)
        finally:
            state.log.close()
    gpu = torch.cuda.max_memory_allocated() if state.device.type == "cuda" else 0
    scale = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, kilobytes elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return TrainResult(checkpoint, state.step, state.elapsed_s, state.tokens, state.metrics, peak, gpu)


# --- starting


def _start(recipe: Recipe, out_dir: Path, registry: Registry, resume: bool, progress: bool, device: str | torch.device | None,
           processes: Processes) -> TrainState:
    """Build everything; restore the newest checkpoint when there is one."""
    schedule = Schedule.of(recipe.train)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype, reason = choose_precision(recipe.train.precision, chosen)
    folder = latest_checkpoint(out_dir)
    if folder is not None:
        if not resume:
            raise CheckpointError(str(out_dir), f"holds a run already (step {read_state(folder).step})", "name another folder, or resume")
        check_recipe(folder, read_recipe(folder, registry), recipe)
    components = build(recipe, registry, stage="train", tokenizer_folder=None if folder is None else folder / TOKENIZER, device=chosen)
    if folder is not None:
        check_fingerprints(folder, read_state(folder), components)
    preparation = Preparation(components, progress=progress)
    decoder = components.decoder
    assert isinstance(decoder, nn.Module)
    decoder.train()
    codebook = components.image_tokenizer.codebook() if recipe.train.start_from_codebook and folder is None else None
    if codebook is not None:
        components.decoder.start_from_codebook(codebook.to(chosen), components.vocabulary)
    optimizer = OptimizerGroup(components.decoder, recipe.train, dtype or torch.float32)
    loader = preparation.loader(rank=processes.rank, world_size=processes.world_size)
    torch.manual_seed(recipe.train.seed)
    stored = CheckpointState(step=0) if folder is None else read_state(folder)
    if folder is not None:
        if stored.fingerprints.get("dataset") != preparation.fingerprint:
            raise CheckpointError(str(folder), "was trained on other data (documents were added, removed or changed)",
                                  "start in another folder (-o), or bring the data back")
        restore_training(folder, optimizer, decoder)
        loader.load_state_dict(stored.loader)
    out_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out_dir)
    write_text(out_dir / RECIPE, recipe.to_yaml())
    if progress:
        parameters = sum(p.numel() for p in decoder.parameters())
        start = f"goes on from {folder}" if folder is not None else f"starts in {out_dir}"
        print(f"{recipe.name} {start}: {parameters / 1e6:.2f}M parameters, {len(components.source):,} documents, {chosen}, "
              f"{reason}, {torch.get_num_threads()} threads", file=sys.stderr)
    log = MetricsLog(out_dir, stored.step)
    return TrainState(recipe, out_dir, components, preparation, decoder, optimizer, schedule, loader, log, chosen, dtype, processes,
                      stored.step, stored.elapsed_s, stored.tokens, sums_G2=torch.zeros(len(GROUPS), 2, device=chosen))


def choose_precision(precision: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """Autocast's dtype (None: off) and why, in words. "auto" takes bfloat16 only where the hardware multiplies it."""
    if precision == "fp32":
        return None, "fp32 as asked"
    if device.type == "cuda":
        able, what = torch.cuda.is_bf16_supported(including_emulation=False), torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        # torch offers no public question for this; without these instructions a bfloat16 product is up to 50 times slower.
        able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        what = "this CPU"
    else:
        able, what = False, str(device)
    if precision == "bf16":
        return torch.bfloat16, "bf16 as asked" if able else f"bf16 as asked, though {what} has no instructions for it and will be slow"
    return (torch.bfloat16, f"bf16 autocast ({what} computes it)") if able else (None, f"fp32 ({what} does not compute bf16)")


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


class _StopSignals:
    """Turns the first Ctrl-C or SIGTERM into a flag that the loop looks at after a step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def __enter__(self) -> _StopSignals:
        if threading.current_thread() is threading.main_thread():  # handlers can be set there only
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


# --- the loop


def _loop(state: TrainState, progress: bool, callbacks: Sequence[Callback], command: str) -> Path:
    section, validation = state.recipe.train, Validation(state.preparation, progress=progress)
    hidden_states = torch.compile(state.components.decoder.hidden_states) if section.compile else state.components.decoder.hidden_states
    batches = iter(state.loader)
    last_save, begin = time.monotonic(), time.monotonic() - state.elapsed_s
    with _StopSignals() as stop, _Bar(state, progress) as bar:
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
            due = section.checkpoint_every_steps and state.step % section.checkpoint_every_steps == 0
            if (due or time.monotonic() - last_save > 60 * section.checkpoint_every_minutes) and state.progress < 1:
                save(state)
                last_save = time.monotonic()
            _count_time(state, num_tokens, fetched - started, computed - fetched, time.monotonic() - started)
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
        raise TrainingInterrupted(f"stopped at step {state.step}, saved in {checkpoint}; to go on: {command}")
    return checkpoint


def _step(state: TrainState, hidden_states: Callable[..., Tensor], micro_batches: Sequence[TrainingBatch]) -> int:
    """Forward, backward and update; returns the number of tokens that were trained on, in all processes."""
    section, processes = state.recipe.train, state.processes
    count_2 = torch.stack([torch.stack([batch.weights_BT.double().sum(), (batch.weights_BT > 0).sum().double()]) for batch in micro_batches])
    weight, tokens = (float(value) for value in processes.sum(count_2.sum(0)))
    multiplier = state.schedule.multiplier(state.step, state.elapsed_s)
    for batch in micro_batches:
        loss_sum, sums_G2 = batch_loss(state, hidden_states, batch, section.z_loss)
        # the mean over the step's tokens; processes average their gradients, hence their number
        (loss_sum * (processes.world_size / max(weight, 1e-9))).backward()
        state.sums_G2 += sums_G2
    if section.clip_norm > 0:
        norm = nn.utils.clip_grad_norm_(state.optimizer.parameters, section.clip_norm)
        state.metrics["train/gradient_norm"] = norm  # type: ignore[assignment]  # read when it is logged: reading makes a GPU wait
    state.metrics["train/learning_rate"] = multiplier * section.learning_rate
    state.optimizer.step(multiplier)
    return int(tokens)


def batch_loss(state: TrainState, hidden_states: Callable[..., Tensor], batch: TrainingBatch, z_loss: float) -> tuple[Tensor, Tensor]:
    """Sum of the weighted losses of a batch, and its parts by modality (see `cross_entropy_sums`)."""
    device = state.device
    with state.autocast():
        hidden_BTE = hidden_states(batch.tokens_BT.to(device), positions_BT=batch.positions_BT.to(device),
                                   cells_BT=batch.cells_BT.to(device), kv_start_BT=batch.kv_start_BT.to(device))
        return cross_entropy_sums(hidden_BTE.flatten(0, 1), state.components.decoder.head_weight(), batch.targets_BT.to(device).flatten(),
                                  batch.weights_BT.to(device).flatten(), batch.modality_BT.to(device).flatten(), z_loss=z_loss)


def _count_time(state: TrainState, num_tokens: int, data_s: float, step_s: float, all_s: float) -> None:
    state.speed.add(num_tokens, all_s)
    state.steps_speed.add(1, all_s)
    for name, value in (("data", data_s), ("step", step_s), ("all", all_s)):
        state.seconds[name] += value


def _log(state: TrainState) -> None:
    """Write the metrics since the last log. Raises `CM3Error` when the loss is not finite: nothing bad is ever saved after that."""
    sums_G2 = state.processes.sum(state.sums_G2)
    if not bool(torch.isfinite(sums_G2).all()):
        raise CM3Error(f"training, step {state.step}", "the loss is not finite any more",
                       "lower train.learning_rate (or train.muon_learning_rate) or lengthen train.warmup_steps, and start in another folder")
    values = {f"train/{name}": value for name, value in modality_metrics(sums_G2).items()}
    values |= {name: float(state.metrics[name]) for name in ("train/gradient_norm", "train/learning_rate") if name in state.metrics}
    values |= {"tokens": float(state.tokens), "elapsed_s": state.elapsed_s, "progress": state.progress}
    if state.seconds["all"] > 0:
        values |= {"tokens_per_second": state.speed.rate, "seconds_left": state.seconds_left,
                   "time/data": state.seconds["data"] / state.seconds["all"],
                   "time/other": 1 - (state.seconds["data"] + state.seconds["step"]) / state.seconds["all"]}
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
        raise CM3Error(f"training, step {state.step}", "weights are not finite any more; they are not saved",
                       "lower train.learning_rate (or train.muon_learning_rate) or lengthen train.warmup_steps, and start in another folder")
    components = state.components
    fingerprints = {**components.fingerprints(), "dataset": state.preparation.fingerprint}
    stored = CheckpointState(state.step, state.elapsed_s, state.tokens, state.loader.state_dict(), components.vocabulary.to_dict(), fingerprints)
    state.log.flush()
    return save_checkpoint(state.out_dir, state.decoder, state.optimizer, stored, components, keep=state.recipe.train.keep_checkpoints)


class _Bar:
    """The progress bar: steps, or seconds where the clock decides."""

    def __init__(self, state: TrainState, show: bool) -> None:
        self.state = state
        by_clock = state.schedule.minutes is not None
        total = 60 * state.schedule.minutes if state.schedule.minutes is not None else state.schedule.steps
        self.bar = tqdm(total=total, initial=min(self._now(), total or 0), disable=not show, desc=state.recipe.name, mininterval=0.5, smoothing=0.05,
                        unit="s" if by_clock else "step",
                        bar_format="{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit}{postfix}")

    def _now(self) -> float:
        return self.state.elapsed_s if self.state.schedule.minutes is not None else self.state.step

    def update(self) -> None:
        """Show the newest figures."""
        state = self.state
        left = state.seconds_left
        parts = [f"{int(left) // 60}:{int(left) % 60:02d} left" if math.isfinite(left) else "", f"{state.speed.rate:,.0f} tokens/s"]
        parts += [f"{name} {state.metrics[f'train/{name}_loss']:.3f}" for name in ("image", "text") if f"train/{name}_loss" in state.metrics]
        self.bar.set_postfix_str(", ".join(part for part in parts if part), refresh=False)
        self.bar.update(max(0.0, min(self._now(), self.bar.total) - self.bar.n))

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
