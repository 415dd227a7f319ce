"""Saving a run: while it waits, or, with `train.save_in_background`, in a thread while it goes on.

In the background, what is saved is copied first, to the host, as `torch.distributed.checkpoint.async_save`
does: by its stager, which keeps pinned buffers for the next time. The thread then does what is done
otherwise while training waits: a checkpoint is complete or not there, whenever a kill comes. One thread writes
the two folders of parts, their hashes and the description in this order; `async_save` would start one for
each folder.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cm3core.errors import CM3Error
from cm3core.interfaces.tracker import CheckpointSaved
from cm3run.checkpoint import CheckpointState, save_checkpoint
from cm3run.checkpoint.tensors import generator_states, weights_of
from cm3run.processes import own_part
from cm3run.tuning import write_adapters

if TYPE_CHECKING:
    from cm3run.training.state import TrainState

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
        step = state.step

        def write() -> Path:
            folder = save_checkpoint(
                state.out_dir,
                weights,
                optimizer,
                stored,
                state.components,
                keep=state.recipe.train.keep_checkpoints,
                words=state.words,
                adapter=adapter,
                processes=processes,
                sharded=not state.parallel.whole,
            )
            self._saved.append(CheckpointSaved(step, folder))
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
