"""Saving a run, in whose folder one process at a time trains.

A run is saved while it waits, or, with `train.save_in_background`, in a thread while it goes on. What is saved in the
background is copied first, to the host, as `torch.distributed.checkpoint.async_save`
does: by its stager, which keeps pinned buffers for the next time. The thread then does what is done
otherwise while training waits: a checkpoint is complete or not there, whenever a kill comes. One thread writes
the two folders of parts, their hashes and the description in this order; `async_save` would start one for
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
from cm3core.files import check_writable, locked, make_folder
from cm3core.interfaces.tracker import CheckpointSaved
from cm3run.checkpoint import CheckpointState, Snapshot, save_checkpoint
from cm3run.checkpoint.tensors import generator_states, weights_of
from cm3run.processes import Processes, own_part
from cm3run.tuning import write_adapters

if TYPE_CHECKING:
    from cm3run.training.state import TrainState


LOCK = ".lock"
#: Seconds in which a folder that one machine made appears on the others.
_SEEN_S = 10.0


@contextmanager
def run_lock(out_dir: Path, processes: Processes | None = None) -> Iterator[None]:
    """Context in which no other run trains in the folder: two would cut off each other's
    metrics and delete each other's checkpoints. The folder is made; a run that fails before it has
    written anything leaves none. Of processes that train together, the first holds it.

    Raises:
        CM3Error: another process is training there.
        FileError: nothing can be written there.
        ProcessError: a process doesn't see the folder of the first one.
    """
    processes = processes or Processes()
    with ExitStack() as held:
        processes.first(lambda: held.enter_context(_held(out_dir)))
        _check_seen(out_dir, processes)
        yield


def _check_seen(out_dir: Path, processes: Processes) -> None:
    """All write their parts of a checkpoint into the folder."""
    end = time.monotonic() + _SEEN_S  # file systems of several machines show new files late
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


@contextmanager
def _held(out_dir: Path) -> Iterator[None]:
    check_writable(out_dir, folder=True)
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
        except BaseException:
            if made and [path.name for path in out_dir.iterdir()] == [LOCK]:
                _remove(made)
            raise


def _remove(made: Sequence[Path]) -> None:
    """Delete the folders, the innermost first, as far as they are empty."""
    try:
        (made[0] / LOCK).unlink()
        for folder in made:
            folder.rmdir()
    except OSError:  # another process uses one
        return


#: Next step in errors about diverged training.
DIVERGED = "lower train.learning_rate (or train.muon_learning_rate) or lengthen train.warmup_steps, and start in another folder"
#: Seconds in which a thread may end when training has failed: it ends by itself where a process is gone.
PATIENCE_S = 120.0


class Saver:
    """Saves a run. All its processes call the same methods in the same order.

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
        """Whether nothing is being written by this process's thread."""
        return self._thread is None or not self._thread.is_alive()

    def save(self) -> Path:
        """Write a checkpoint of the current state, after one that is being written.

        Raises:
            CM3Error: weights are not finite.
            CheckpointError: this one, or the one before, can't be written.
        """
        self.finish()
        return self._writer(in_background=False)()

    def begin(self) -> None:
        """Copy the current state, and begin to write it; training may go on. One that is being written is
        waited for. Raises as `save`."""
        self.finish()
        write = self._writer(in_background=True)

        def work() -> None:
            try:
                write()
            except BaseException as error:
                self._failure = error

        # it must not keep a process alive that is told to end at once
        self._thread = threading.Thread(target=work, name="cm3-saving", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for what is being written. Raises what made it fail."""
        if self._thread is None:
            return
        self._thread.join()
        failure, self._thread, self._failure = self._failure, None, None
        if failure is not None:
            raise failure

    def tell(self) -> None:
        """Tell the trackers of checkpoints that are complete since the last call."""
        while self._saved:
            self.state.trackers.tell(self._saved.pop(0))

    def close(self) -> None:
        """At the end of training, also of one that failed: let what is being written be written."""
        if self._thread is not None:
            self._thread.join(PATIENCE_S)
        if self._stager is not None:
            self._stager.close()

    def _writer(self, *, in_background: bool) -> Callable[[], Path]:
        """What writes a checkpoint of the state that the run has now."""
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
        if state.processes.is_first:  # all go on with those of the first one
            optimizer = {**optimizer, **generator_states()}
        processes = state.processes
        if in_background:
            processes = processes.aside()
            if state.processes.is_first or not state.parallel.whole:
                copies = self._copied({"weights": weights, "optimizer": optimizer})
                weights, optimizer = copies["weights"], copies["optimizer"]
                if adapter is not None:
                    adapter = adapter.copied()
        snapshot = Snapshot(
            weights=weights,
            optimizer_state=optimizer,
            state=stored,
            components=state.components,
            words=state.words,
            adapter=adapter,
        )

        def write() -> Path:
            folder = save_checkpoint(
                state.out_dir,
                snapshot,
                keep=state.recipe.train.keep_checkpoints,
                processes=processes,
                sharded=not state.parallel.whole,
            )
            self._saved.append(CheckpointSaved(snapshot.state.step, folder))
            return folder

        return write

    def _copied(self, tensors: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """The tensors on the host, those that are divided as they are."""
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
