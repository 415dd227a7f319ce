"""Saving a run; only one process at a time trains in its folder.

A run is saved while training waits, or, with `train.save_in_background`, in a thread while it continues. For saving in
the background, tensors are first copied to the host with the stager of `torch.distributed.checkpoint.async_save`,
which reuses pinned buffers. The thread then does the same work as in the foreground: a checkpoint is either complete
or absent, whenever the process is killed. A single thread writes the two folders of parts, their hashes and the
description in this order; `async_save` would start one for
each folder.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cm3core.errors import CM3Error, ProcessError
from cm3core.files import locked, make_folder
from cm3core.interfaces.tracker import CheckpointSaved
from cm3core.outputs import OutputFolder
from cm3core.plugins.registry import COMPONENTS
from cm3core.recipe.layers import STORED
from cm3run.checkpoint import CheckpointState, Snapshot, save_checkpoint
from cm3run.checkpoint.layout import PROVENANCE, latest_checkpoint
from cm3run.checkpoint.tensors import generator_states, weights_of
from cm3run.checkpoint.words import TrainingWords
from cm3run.processes import Processes, own_part
from cm3run.training.metrics import METRICS, read_metrics
from cm3run.tuning import write_adapters

if TYPE_CHECKING:
    from cm3run.training.state import TrainState


LOCK = ".lock"
#: Maximum seconds until a folder made on one machine is visible on the others.
_SEEN_S = 10.0


@contextmanager
def run_lock(out_dir: Path, processes: Processes | None = None) -> Iterator[None]:
    """A context in which no other run trains in the folder: two runs would truncate each other's metrics and delete each
    other's checkpoints. Makes the folder; a run that fails before writing anything leaves none, nor does one that is
    refused before its first record of metrics. Of processes that train together, the first holds the lock.

    Raises:
        CM3Error: another process is training there.
        FileError: the folder is not writable.
        ProcessError: a process doesn't see the first one's folder.
    """
    processes = processes or Processes()
    with ExitStack() as held:
        processes.first(lambda: held.enter_context(_held(out_dir)))
        _check_seen(out_dir, processes)
        yield


def _check_seen(out_dir: Path, processes: Processes) -> None:
    """Check that all processes see the folder, into which they write their parts of a checkpoint."""
    end = time.monotonic() + _SEEN_S  # shared file systems show new files late
    while not (out_dir / LOCK).exists() and time.monotonic() < end:
        time.sleep(0.1)
    for rank, (host, seen) in enumerate(
        processes.all_of((socket.gethostname(), (out_dir / LOCK).exists()))
    ):
        if not seen:
            raise ProcessError(
                str(out_dir),
                f"process {rank} of {processes.world_size} on {host} doesn't see this folder",
                "name a folder on a disk that all machines share (-o)",
            )


#: What a run writes before its first step.
DESCRIPTION = (STORED, COMPONENTS, PROVENANCE, METRICS)
#: What may not be in its folder before it begins, as patterns: these, and what it writes later.
RESULTS = (
    *DESCRIPTION,
    "early_stopping.json",
    "samples/step-*.png",
    "checkpoints/step-*",
    "checkpoints/step-*/**/*",
)


@contextmanager
def _held(out_dir: Path) -> Iterator[None]:
    goes_on = latest_checkpoint(out_dir) is not None
    OutputFolder(out_dir, *(() if goes_on else RESULTS), resumes=True)
    made = [place for place in (out_dir, *out_dir.parents) if not place.exists()]
    make_folder(out_dir)
    busy = CM3Error(
        str(out_dir),
        "another process is training in this folder",
        "wait for it, or name another folder (-o)",
    )
    with locked(out_dir / LOCK, busy):
        try:
            yield
        except BaseException as error:
            if made:
                _leave(made, refused=isinstance(error, CM3Error))
            raise


def _leave(made: Sequence[Path], *, refused: bool) -> None:
    """Delete the folders that a run made, innermost first, if nothing was done in them.

    Args:
        made: the run's folder, then its parents.
        refused: the run ended by an error that names a cause, and what describes it is not needed.
    """
    try:
        names = {path.name for path in made[0].iterdir()}
        refused = refused and not read_metrics(made[0])
        if names <= ({LOCK, *DESCRIPTION} if refused else {LOCK}):
            for name in names:
                (made[0] / name).unlink()
            for folder in made:
                folder.rmdir()
    except OSError:  # another process uses them
        return


#: Next step in errors about diverged training.
DIVERGED = "lower train.learning_rate (or train.muon_learning_rate) or lengthen train.warmup_steps, and start in another folder"
#: Seconds to wait for the thread after training has failed; if a process was lost, it ends by itself.
PATIENCE_S = 120.0


class Saver:
    """Saves a run. All processes call the same methods in the same order.

    Args:
        state: the run.
    """

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._stager: Any = None
        self._saved: list[CheckpointSaved] = []

    @property
    def has_written(self) -> bool:
        """Whether this process's thread is idle."""
        return self._thread is None or not self._thread.is_alive()

    def save(self) -> Path:
        """Write a checkpoint of the current state, after finishing any write in progress.

        Raises:
            CM3Error: weights are not finite.
            CheckpointError: this checkpoint or the previous one can't be written.
        """
        self.finish()
        return self._writer(in_background=False)()

    def begin(self) -> None:
        """Copy the current state, and start writing it; training may continue. Waits for any write in
        progress. Raises the errors of `save`."""
        self.finish()
        write = self._writer(in_background=True)

        def work() -> None:
            try:
                write()
            except BaseException as error:
                self._failure = error

        # a daemon, so that it doesn't delay the exit of a killed process
        self._thread = threading.Thread(target=work, name="cm3-saving", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the write in progress. Raises its error."""
        if self._thread is None:
            return
        self._thread.join()
        failure, self._thread, self._failure = self._failure, None, None
        if failure is not None:
            raise failure

    def tell(self) -> None:
        """Tell the trackers about checkpoints completed since the last call."""
        while self._saved:
            self.state.trackers.tell(self._saved.pop(0))

    def close(self) -> None:
        """At the end of training, even after a failure: wait for the write in progress."""
        if self._thread is not None:
            self._thread.join(PATIENCE_S)
        if self._stager is not None:
            self._stager.close()

    def _writer(self, *, in_background: bool) -> Callable[[], Path]:
        """Return a function that writes a checkpoint of the run's current state."""
        state = self.state
        _check_finite(state)
        stored = _stored(state)
        adapter = None
        if state.recipe.tune.adapts:
            adapter = write_adapters(state.decoder, state.recipe.tune, state.base["model"])
        state.log.flush()
        state.trackers.flush()
        weights = weights_of(state.decoder) if adapter is None else {}
        optimizer = state.optimizer.state_tensors()
        if state.processes.is_first:  # the others use the first one's
            optimizer = {**optimizer, **generator_states()}
        processes = state.processes
        if in_background:
            processes = processes.aside()
            if state.processes.is_first or not state.parallel.whole:
                copies = self._copied({"weights": weights, "optimizer": optimizer})
                weights, optimizer = copies["weights"], copies["optimizer"]
                if adapter is not None:
                    adapter = adapter.copied()
        best = None if state.early is None else state.early.best
        snapshot = Snapshot(
            weights=weights,
            optimizer_state=optimizer,
            state=stored,
            components=state.components,
            words=_words(state),
            adapter=adapter,
        )

        def write() -> Path:
            folder = save_checkpoint(
                state.out_dir,
                snapshot,
                keep=state.recipe.train.keep_checkpoints,
                processes=processes,
                sharded=not state.parallel.whole,
                best=None if best is None else best[0],
            )
            self._saved.append(CheckpointSaved(snapshot.state.step, folder))
            return folder

        return write

    def _copied(self, tensors: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Copies of the tensors on the host; divided tensors stay divided."""
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        if self._stager is None:
            on_gpu = self.state.device.type == "cuda"
            self._stager = DefaultStager(
                StagingOptions(
                    use_pinned_memory=on_gpu,
                    use_shared_memory=False,
                    use_async_staging=False,
                    use_non_blocking_copy=on_gpu,
                )
            )
        copied: dict[str, dict[str, Tensor]] = self._stager.stage(tensors)
        return copied


def _check_finite(state: TrainState) -> None:
    finite = all(bool(torch.isfinite(own_part(one)).all()) for one in state.decoder.parameters())
    if state.processes.any(not finite):
        raise CM3Error(
            f"training, step {state.step}",
            "the weights are no longer finite; they are not saved",
            DIVERGED,
        )


def _words(state: TrainState) -> TrainingWords | None:
    """The words of the training texts, with those that any process has drawn."""
    drawn = state.processes.all_of(state.loader.words)
    return None if state.words is None else TrainingWords(state.words.words.union(*drawn))


def _stored(state: TrainState) -> CheckpointState:
    """The run's `state.json`."""
    components = state.components
    fingerprints = {**components.fingerprints(), "dataset": state.preparation.fingerprint}
    if state.preparation.bank_fingerprint is not None:
        fingerprints["bank"] = state.preparation.bank_fingerprint
    return CheckpointState(
        state.step,
        state.elapsed_s,
        state.tokens,
        state.loader.state_dict(),
        components.vocabulary.to_dict(),
        fingerprints,
        state.processes.sum(state.sums_G2).tolist(),
        components.serializer.max_spans,
        base=state.base,
    )
