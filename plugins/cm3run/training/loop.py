"""The training loop: one for every recipe. It depends on interfaces only.

A run is a folder: `recipe.yaml`, `checkpoints/`, `metrics.jsonl`, `samples/`, and the files of its trackers
(`tensorboard/`). A step is a function of the weights, the optimiser's state, the position in the
data and torch's generators. All four are in a checkpoint, so a killed run resumes as if it had
not been interrupted.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from cm3core.arguments import checked
from cm3core.errors import CM3Error, RecipeError
from cm3core.interfaces.tracker import RunEnded, RunFailed, RunInterrupted, RunStarted, StepDone
from cm3run.checkpoint import latest_checkpoint
from cm3run.checkpoint.writing import end_with_best
from cm3run.machine_memory import fitting_memory, peak_resident
from cm3run.processes import Processes
from cm3run.progress import no_bars
from cm3run.stop_signals import StopSignals
from cm3run.training.metrics import batch_loss_sums, modality_metrics, part_metrics, read_metrics
from cm3run.training.saving import DIVERGED, Saver, run_lock
from cm3run.training.start import RunOptions, start
from cm3run.training.state import (
    Cadence,
    Callback,
    EarlyStopping,
    ProgressBar,
    TrainingInterrupted,
    TrainResult,
    TrainState,
    ended_early,
)
from cm3run.training.validation import SamplePictures, Validation

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.training.packing import TrainingBatch

#: Next step if a run exceeds the memory.
SMALLER = (
    "lower train.batch_rows or decoder.context_length, or use a larger machine, then run the same "
    "command again: it resumes from the newest checkpoint; 'cm3 recipe check' shows the memory that training needs"
)


@checked(RecipeError)
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
    shard: int | None = None,
    command: str | None = None,
    trust_endpoints: Sequence[str] = (),
) -> TrainResult:
    """Train a decoder, or resume from the newest checkpoint in `out_dir`.

    Args:
        recipe: composed and checked.
        out_dir: the run's folder.
        registry: the plugins that the recipe was composed with.
        resume: resume from an existing checkpoint; False: refuse a folder that has one.
        progress: show progress bars and print the run's settings.
        callbacks: see `Callback`.
        device: for the decoder; None: the GPU if there is one.
        processes: all that train together, see `started_processes`; None: only this one.
        shard: number of processes that share one decoder; None: see `parallel_of`.
        command: the command that resumes the run; shown when it is interrupted.
        trust_endpoints: paths outside its folder that links in the model to start from or resume may point
            to, if it was not made by this user's commands.

    Raises:
        CheckpointError: the folder's checkpoint is damaged or was made with another recipe, or
            can't be written.
        TrainingInterrupted: Ctrl-C; a checkpoint has been written.
        DeviceError: memory ran out.
        RecipeError: the memory is certainly too small, see `check_training_fits`.
        CM3Error: the loss is not finite, or another process is training in the folder.
        FileError: the folder is not writable.
    """
    out_dir, processes = Path(out_dir), processes or Processes()
    command = command or f"cm3 train {shlex.quote(recipe.name)} -o {shlex.quote(str(out_dir))}"
    with (
        run_lock(out_dir, processes),
        _threads(recipe.train.num_threads),
        fitting_memory("training", SMALLER),
        no_bars(not progress),
    ):
        options = RunOptions(
            resume=resume,
            progress=progress,
            device=device,
            processes=processes,
            shard=shard,
            trust_endpoints=trust_endpoints,
        )
        state = start(recipe, out_dir, registry, options)
        early = ended_early(recipe, out_dir)
        finished = latest_checkpoint(out_dir) if early or state.progress >= 1 else None
        with _told(state, command), closing(Saver(state)) as saver:
            validation = Validation(state.preparation, progress=progress, processes=state.processes)
            if finished is None:
                _watch(state, validation)
                checkpoint = _loop(state, saver, validation, progress, callbacks, command)
            else:
                checkpoint = finished if early else _end(state, saver, validation, finished)
            state.trackers.tell(RunEnded(state.step, checkpoint, MappingProxyType(state.metrics)))
    return _result(state, checkpoint, was_finished=finished is not None)


def _result(state: TrainState, checkpoint: Path, *, was_finished: bool) -> TrainResult:
    gpu = torch.cuda.max_memory_allocated() if state.device.type == "cuda" else 0
    peak = peak_resident()
    if was_finished:  # the state's last values
        for line in read_metrics(state.out_dir):
            state.metrics |= {name: value for name, value in line.items() if name != "step"}
    return TrainResult(
        checkpoint,
        state.step,
        state.elapsed_s,
        state.tokens,
        state.metrics,
        peak,
        gpu,
        was_finished=was_finished,
    )


@contextmanager
def _told(state: TrainState, command: str) -> Iterator[None]:
    """A context that tells trackers about a run's start, interruption or failure, and closes its log afterwards."""
    try:
        if state.trackers:
            state.trackers.tell(_started(state, command))
        yield
    except TrainingInterrupted:
        state.trackers.tell(RunInterrupted(state.step))
        raise
    except BaseException as error:
        text = str(error) or type(error).__name__
        state.trackers.tell(RunFailed(state.step, text))
        raise
    finally:
        state.loader.close()
        state.trackers.close()
        state.log.close()


def _started(state: TrainState, command: str) -> RunStarted:
    recipe = state.recipe
    sections = {name: MappingProxyType(keys) for name, keys in recipe.to_dict().items()}
    return RunStarted(
        state.out_dir,
        recipe.name,
        MappingProxyType(sections),
        recipe.hash,
        state.step,
        sum(one.numel() for one in state.decoder.parameters()),
        sum(one.numel() for one in state.optimizer.parameters),
        command,
    )


def _watch(state: TrainState, validation: Validation) -> None:
    """Prepare what is due by the clock, early stopping, and the limit of waits."""
    section = state.recipe.train
    if (note := state.processes.before_steps()) is not None:
        print(note, file=sys.stderr)
    state.cadences = {
        "validation": Cadence(section.validate_every_minutes if validation.splits else None),
        "samples": Cadence(section.sample_every_minutes),
    }
    if state.step:
        for cadence in state.cadences.values():
            cadence.start(state.elapsed_s)
    state.early = EarlyStopping.of(state.recipe, state.out_dir, state.step)
    if state.early is not None and not validation.splits:
        state.early = None
        print(
            "note: no pictures are held out, so training can't stop early (train.patience)",
            file=sys.stderr,
        )


def _drawing(state: TrainState) -> SamplePictures | None:
    """The callback for sample pictures, which need a process with all weights."""
    section = state.recipe.train
    if section.sample_every_steps is None and section.sample_every_minutes is None:
        return None
    if not state.parallel.whole:
        print("note: sample pictures are skipped: no process has all weights", file=sys.stderr)
        return None
    return SamplePictures(state.preparation) if state.processes.is_first else None


def _by_the_clock(
    state: TrainState, validation: Validation, drawing: SamplePictures | None
) -> bool:
    """Do what is due before the next step; return whether the held-out loss is the lowest so far."""
    improved = False
    if state.cadences["validation"].due(state.elapsed_s):
        improved = _validate(state, validation)
    if state.cadences["samples"].due(state.elapsed_s) and drawing is not None:
        drawing.save(state)
    return improved


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """A context in which torch uses `number` threads."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _loop(
    state: TrainState,
    saver: Saver,
    validation: Validation,
    progress: bool,
    callbacks: Sequence[Callback],
    command: str,
) -> Path:
    section, processes = state.recipe.train, state.processes
    hidden_states = state.components.decoder.hidden_states
    last_save, begin = time.monotonic(), time.monotonic() - state.elapsed_s
    stopped, drawing = False, _drawing(state)
    callbacks = [*callbacks, *([] if drawing is None else [drawing])]
    with StopSignals(processes.signal_patience_s) as stop, ProgressBar(state, progress) as bar:
        while state.progress < 1 and not (state.early and state.early.stops):
            if _by_the_clock(state, validation, drawing) and state.early:
                saver.save()
            started = time.monotonic()
            num_tokens, data_s, step_s = _timed_step(state, hidden_states)
            state.step += 1
            state.tokens += num_tokens
            if state.step % section.log_every_steps == 0:
                _log(state)
            validated = validation.splits and state.step % section.validate_every_steps == 0
            improved = validated and _validate(state, validation)
            if state.trackers:
                done = (state.step, state.tokens, state.elapsed_s, state.progress)
                state.trackers.tell(StepDone(*done))
            for callback in callbacks:
                callback(state)
            by_steps = section.checkpoint_every_steps
            due = bool(by_steps and state.step % by_steps == 0)
            due |= bool(improved and state.early)
            due |= time.monotonic() - last_save > 60 * section.checkpoint_every_minutes
            state.elapsed_s, due, stopped, written = processes.agreed(
                time.monotonic() - begin, due, stop.received is not None, saver.has_written
            )
            if written:
                saver.finish()  # a failure is reported at the next step, in all processes
            if due and state.progress < 1:
                (saver.begin if section.save_in_background else saver.save)()
                last_save = time.monotonic()
            saver.tell()
            all_s = time.monotonic() - started - (state.validation_s if validated else 0.0)
            _count_time(state, num_tokens, data_s, step_s, all_s)
            bar.update()
            if stopped:
                break
        checkpoint = saver.save() if stopped else _end(state, saver, validation)
        if not stopped and drawing is not None and state.recipe.train.sample_every_minutes:
            drawing.save(state)
        saver.tell()
    if stopped and state.progress < 1:
        raise TrainingInterrupted(
            f"stopped at step {state.step}, saved in {checkpoint}; to resume: {command}"
        )
    return checkpoint


def _end(
    state: TrainState, saver: Saver, validation: Validation, saved: Path | None = None
) -> Path:
    """Do the remaining work at the end of a run, and return its checkpoint.

    The last validation may take minutes, so the steps are saved before it and before the last record of losses. A
    run that is killed or stopped before these are done does them when it is started again; `saved` is then its
    checkpoint. None: not saved yet.
    """
    saved = saved or saver.save()
    processes = state.processes
    recorded = _recorded(state) if processes.is_first else None
    if validation.splits and processes.any(
        recorded is not None and not any(name.startswith("validation/") for name in recorded)
    ):
        _validate(state, validation)
    if processes.any(recorded is not None and "train/learning_rate" not in recorded):
        rate = state.recipe.train.learning_rate  # for the last step; not stored in a checkpoint
        multiplier = state.schedule.multiplier(state.step - 1, state.elapsed_s)
        state.metrics.setdefault("train/learning_rate", multiplier * rate)
        _log(state)
    return _best(state) or saved


def _best(state: TrainState) -> Path | None:
    """At the end of a run with early stopping: make the checkpoint of the lowest loss the newest, and return it."""
    early, processes = state.early, state.processes
    if early is None or early.best is None:
        return None
    best = early.best[0]
    found = processes.first(lambda: end_with_best(state.out_dir, best))
    if processes.is_first and found is not None:
        early.write(state.out_dir, ended=state.recipe.hash)
        why = f"{early.patience} validations without a lower loss: " if early.stops else ""
        tqdm.write(
            f"{state.recipe.name}: {why}{early.in_words()}; ends with {found}", file=sys.stderr
        )
    return found


def _recorded(state: TrainState) -> set[str]:
    """The names of all metrics recorded for the current step."""
    return {
        name for line in read_metrics(state.out_dir) if line["step"] == state.step for name in line
    }


def _timed_step(
    state: TrainState, hidden_states: Callable[..., Tensor]
) -> tuple[int, float, float]:
    """Train a step while the batches of the next one are made; return its tokens, the seconds that it waited for
    batches, and those that it computed."""
    started = time.monotonic()
    micro_batches = state.loader.next_step()
    fetched = time.monotonic()
    state.loader.begin()
    num_tokens = _step(state, hidden_states, micro_batches)
    computed = time.monotonic()
    state.loader.wait()
    waited_s = fetched - started + time.monotonic() - computed
    return num_tokens, waited_s, computed - fetched


def _step(
    state: TrainState, hidden_states: Callable[..., Tensor], micro_batches: Sequence[TrainingBatch]
) -> int:
    """Forward, backward and update; return the number of tokens trained on."""
    section, processes, parallel = state.recipe.train, state.processes, state.parallel
    counts = [(float(batch.weights_BT.double().sum()), batch.num_tokens) for batch in micro_batches]
    weight, tokens = processes.sum(torch.tensor(counts, dtype=torch.float64).sum(0)).tolist()
    multiplier = state.schedule.multiplier(state.step, state.elapsed_s)
    for number, batch in enumerate(micro_batches, 1):
        parallel.begin_backward(state.decoder, last=number == len(micro_batches))
        loss_sum, sums_G2 = batch_loss(state, hidden_states, batch, section.z_loss)
        # the mean over the step's tokens in all processes
        (loss_sum * (parallel.loss_scale / max(weight, 1e-9))).backward()
        state.sums_G2 += sums_G2
    parallel.reduce(state.optimizer.parameters)
    if section.clip_norm > 0:
        state.gradient_norm = parallel.clip(state.optimizer.parameters, section.clip_norm)
    state.metrics["train/learning_rate"] = multiplier * section.learning_rate
    state.optimizer.step(multiplier)
    processes.after_step()
    return int(tokens)


def batch_loss(
    state: TrainState, hidden_states: Callable[..., Tensor], batch: TrainingBatch, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Weighted loss sum of a batch, and its parts by modality (see `Decoder.loss_sums`)."""
    batch = batch.to(state.device)
    with state.autocast():
        hidden_BTE = hidden_states(
            batch.tokens_BT,
            positions_BT=batch.positions_BT,
            cells_BT=batch.cells_BT,
            kv_start_BT=batch.kv_start_BT,
        )
        return batch_loss_sums(
            state.components.decoder,
            hidden_BTE,
            batch,
            z_loss=z_loss,
            num_parts=max(1, len(state.components.source.parts)),
        )


def _count_time(
    state: TrainState, num_tokens: int, data_s: float, step_s: float, all_s: float
) -> None:
    state.speed.add(num_tokens, all_s)
    state.steps_s.add(all_s)
    for name, value in (("data", data_s), ("step", step_s), ("all", all_s)):
        state.seconds[name] += value


def _log(state: TrainState) -> None:
    """Write the metrics since the last log. Raises `CM3Error` if the loss is not finite."""
    sums_G2 = state.processes.sum(state.sums_G2)
    if not bool(torch.isfinite(sums_G2).all()):
        raise CM3Error(f"training, step {state.step}", "the loss is no longer finite", DIVERGED)
    values = {f"train/{name}": value for name, value in modality_metrics(sums_G2).items()}
    parts = state.components.source.parts
    values |= {f"train/{name}": value for name, value in part_metrics(sums_G2, parts).items()}
    counts = state.processes.sum(torch.tensor(state.loader.counts, dtype=torch.float64)).tolist()
    values |= {
        f"train/part/{name}/documents": count for name, count in zip(parts, counts, strict=True)
    }
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
    state.trackers.metrics(state.step, values)
    state.metrics.update(values)
    state.sums_G2.zero_()
    state.seconds = dict.fromkeys(state.seconds, 0.0)


def _validate(state: TrainState, validation: Validation) -> bool:
    """Measure every validation split and write the metrics; return whether early stopping finds its loss the lowest."""

    def forward(batch: TrainingBatch) -> Tensor:
        return batch_loss(state, state.components.decoder.hidden_states, batch, 0.0)[1]

    begin = time.monotonic()
    state.decoder.eval()
    with torch.no_grad():  # not inference_mode, whose tensors FSDP can't keep
        values = validation.measure(forward)
    state.parallel.end_validation(state.decoder)
    state.decoder.train()
    if values:
        state.log.write(state.step, values)
        state.trackers.metrics(state.step, values, validation=True)
        state.metrics.update(values)
    state.validation_s = time.monotonic() - begin
    if (early := state.early) is None or not values:
        return False
    improved = early.add(state.step, validation.loss)
    if state.processes.is_first:
        early.write(state.out_dir)
        tqdm.write(f"{state.recipe.name}: {early.in_words()}", file=sys.stderr)
    return improved
