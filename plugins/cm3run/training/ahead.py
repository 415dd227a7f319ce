"""The batches of the next step, made while the device computes this one.

The thread that makes them works only between `begin` and `wait`, around a step's computation: nothing else that reads
documents (validation, sample pictures) runs at the same time, so tokenizers, retrievers and data sets need no locks.
"""

from __future__ import annotations

from concurrent.futures import Future, wait
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeAlias

from cm3run.training.packing import BatchLoader, Position, TrainingBatch

_Future: TypeAlias = "Future[tuple[list[TrainingBatch], Position]]"


class AheadLoader:
    """A loader that is at most one step ahead. Its position is that behind the last step that it gave, so a checkpoint
    knows nothing of batches that were made and not trained on.

    Args:
        loader: makes the batches.
    """

    def __init__(self, loader: BatchLoader) -> None:
        self._loader, self._position = loader, loader.position()
        self._next: _Future | None = None
        self._asked: SimpleQueue[_Future | None] = SimpleQueue()
        self._maker: Thread | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """Documents given to this process so far, by part of the data set."""
        return self._position.counts

    @property
    def words(self) -> frozenset[str]:
        """See `MaskedSequences.words`; of this process. Call it between steps, while nothing is made."""
        return frozenset(self._loader.data.words)

    def next_step(self) -> list[TrainingBatch]:
        """This process's micro-batches of the next step. What making them raised is raised here."""
        made, self._next = self._next, None
        batches, self._position = self._make() if made is None else made.result()
        return batches

    def begin(self) -> None:
        """Begin to make the batches of the next step."""
        if self._maker is None:
            # a daemon, as a second Ctrl-C must end a run whose store never responds
            self._maker = Thread(target=self._work, name="cm3 batches", daemon=True)
            self._maker.start()
        if self._next is None:
            self._next = Future()
            self._asked.put(self._next)

    def wait(self) -> None:
        """Wait until they are made."""
        if self._next is not None:
            wait([self._next])

    def state_dict(self) -> dict[str, Any]:
        """See `BatchLoader.state_dict`."""
        return self._loader.state_dict(self._position)

    def close(self) -> None:
        """End the thread, once it has made what it is making."""
        self._asked.put(None)

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            try:
                asked.set_result(self._make())
            except BaseException as error:  # raised by `next_step`
                asked.set_exception(error)

    def _make(self) -> tuple[list[TrainingBatch], Position]:
        return self._loader.next_step(), self._loader.position()
