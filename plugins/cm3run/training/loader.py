"""From sequences to batches: the order of an epoch's sequences, and the rows they are packed into.

The state of a `BatchLoader` is a few numbers, and a run that resumes from them gets bit for bit the
batches that it would have had without the interruption.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from itertools import cycle
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.document import MaskedSequence
from cm3core.errors import CheckpointError, DataError, RecipeError
from cm3run.processes import Processes
from cm3run.training.packing import Packer, TrainingBatch, collate
from cm3run.training.sequences import MaskedSequences

#: Separates the random streams that order epochs from those that make sequences.
_EPOCH_ORDER = 1

#: No run has as many epochs.
_MAX_EPOCH = 2**63


class BatchLoader:
    """Endless batches: each epoch's sequences in a new order, packed into rows.

    Row i of the run comes from stream i modulo V, of V `RowStream`s (virtual loaders), and belongs to
    process i modulo W, of W processes: the batches of a step are the same rows whatever W is. A
    process makes the streams that have rows of its own: 1 / W of the work where W divides V, all of
    it with V = 1.

    Args:
        data: the sequences.
        batch_rows: rows of a micro-batch.
        length: number of inputs of a row.
        seed: of the order.
        pack: put several sequences in a row; False: one.
        window: number of sequences of a stream that wait to fill rows, see `Packer`.
        accumulate: micro-batches of a step, if one process makes them all.
        num_streams: V.
        processes: W, and which of them this is.
    """

    def __init__(
        self,
        data: MaskedSequences,
        batch_rows: int,
        length: int,
        seed: int,
        pack: bool = True,
        window: int = 64,
        *,
        accumulate: int = 1,
        num_streams: int = 1,
        processes: Processes | None = None,
    ) -> None:
        if len(data) < num_streams:
            raise DataError(
                "data set",
                f"has {len(data)} documents for data.num_streams {num_streams}",
                f"set data.num_streams to {len(data)} or less",
            )
        self.data, self.batch_rows, self.length, self.seed = data, batch_rows, length, seed
        self.pack, self.window, self.num_streams = pack, window if pack else 1, num_streams
        self.processes = Processes() if processes is None else processes
        rank, number = self.processes.rank, self.processes.world_size
        #: Rows of this process's micro-batches of a step.
        self.step_rows = micro_batches(batch_rows, accumulate, number)
        self._sizes = cycle(self.step_rows)
        shared = math.gcd(num_streams, number)
        #: The streams that have rows of this process, by number.
        self.streams = {
            place: RowStream(data, length, seed, self.window, place, num_streams)
            for place in range(rank % shared, num_streams, shared)
        }
        self._reported = 0
        #: Rows that all processes were given.
        self.num_rows = 0
        #: Documents given to this process so far by part of the data set, see `DocumentSource.parts`.
        self.counts = [0] * len(data.source.parts)

    @property
    def epoch(self) -> int:
        """Of the next sequence of this process's first stream."""
        return next(iter(self.streams.values())).epoch

    def __iter__(self) -> Iterator[TrainingBatch]:
        return self

    def __next__(self) -> TrainingBatch:
        """This process's next micro-batch."""
        rows = [self._next_row() for _ in range(next(self._sizes))]
        for row in rows:
            for sequence in row if self.counts else ():
                self.counts[sequence.part] += 1
        return collate(rows, self.length, self.data.serializer.vocabulary)

    def next_step(self) -> list[TrainingBatch]:
        """This process's micro-batches of the next step."""
        return [next(self) for _ in self.step_rows]

    def _next_row(self) -> list[MaskedSequence]:
        """This process's row among the next W. Those of others are made and dropped where they come
        from a stream that also has own ones."""
        own: list[MaskedSequence] | None = None
        for rank in range(self.processes.world_size):
            stream = self.streams.get(self.num_rows % self.num_streams)
            self.num_rows += 1
            if stream is not None:
                before = stream.epoch
                row = stream.next_row()
                if stream.epoch > before:
                    self._report_too_long()
                if rank == self.processes.rank:
                    own = row
        assert own is not None
        return own

    def state_dict(self) -> dict[str, Any]:
        """The position of all processes, as plain numbers for JSON; called by all between two steps.

        It is the same whatever their number."""
        streams: dict[int, dict[str, Any]] = {}
        counts = [0] * len(self.counts)
        for part, given in self.processes.all_of(
            ({place: one.state_dict() for place, one in self.streams.items()}, self.counts)
        ):
            streams |= part
            counts = [one + other for one, other in zip(counts, given, strict=True)]
        return {
            **(
                streams[0]
                if self.num_streams == 1
                else {
                    "rows": self.num_rows,
                    "streams": [streams[place] for place in range(self.num_streams)],
                }
            ),
            "setting": self._setting(),
            **({"counts": counts} if counts else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict()`, of any number of processes.

        Raises `CheckpointError` when the state has other data or other settings.
        """
        position = RowStream.KEYS if self.num_streams == 1 else {"rows", "streams"}
        if set(state) != {*position, "setting", *({"counts"} if self.counts else ())}:
            raise CheckpointError(
                "loader state", f"holds {sorted(state)}", "use a whole checkpoint"
            )
        if not isinstance(state["setting"], dict):
            raise _unusable("setting", state["setting"])
        for key, value in self._setting().items():
            if state["setting"].get(key) != value:
                raise CheckpointError(
                    "loader state",
                    f"{key} was {state['setting'].get(key)} and is now {value}",
                    "resume with the same data and recipe",
                )
        streams = [state] if self.num_streams == 1 else state["streams"]
        if not isinstance(streams, list) or len(streams) != self.num_streams:
            raise _unusable("streams", streams)
        rows = 0 if self.num_streams == 1 else state["rows"]
        if not _is_index(rows, _MAX_EPOCH) or rows % self.processes.world_size:
            raise _unusable("rows", rows)
        counts = state.get("counts", [])
        if (
            not isinstance(counts, list)
            or len(counts) != len(self.counts)
            or not all(_is_index(count, _MAX_EPOCH) for count in counts)
        ):
            raise _unusable("counts", counts)
        for place, stream in self.streams.items():
            stream.load_state_dict(streams[place])
        # the counts are sums over processes
        self.counts = list(counts) if self.processes.is_first else [0] * len(counts)
        self.num_rows = rows

    def _setting(self) -> dict[str, Any]:
        """The values that must match for a state to give the same batches."""
        return {
            "num_documents": len(self.data),
            # earlier versions bound a state to one process of several
            "rank": 0,
            "world_size": 1,
            "length": self.length,
            "batch_rows": self.batch_rows,
            "seed": self.seed,
            "pack": self.pack,
            "window": self.window,
            **({} if self.num_streams == 1 else {"num_streams": self.num_streams}),
        }

    def _report_too_long(self) -> None:
        """Report at the end of an epoch how many documents were too long, if they became more."""
        if (number := self.data.num_too_long) > self._reported:
            self._reported = number
            warnings.warn(
                f"{number} of {len(self.data)} documents were too long for the context and were "
                "left out; set data.max_text_tokens, or raise decoder.context_length",
                stacklevel=3,
            )


class RowStream:
    """Rows of every V-th sequence of each epoch's order: a virtual loader, a function of its number
    and of how many rows it has given.

    Args:
        data, length, seed, window: see `BatchLoader`.
        place: its number.
        num_streams: V. All streams get the same number of sequences of an epoch.
    """

    KEYS: ClassVar[frozenset[str]] = frozenset({"epoch", "position", "waiting"})

    def __init__(
        self,
        data: MaskedSequences,
        length: int,
        seed: int,
        window: int,
        place: int = 0,
        num_streams: int = 1,
    ) -> None:
        self.data, self.seed, self.place, self.num_streams = data, seed, place, num_streams
        self.packer: Packer[tuple[int, int]] = Packer(length, window)
        #: The next sequence: its epoch, and its place in this stream's part of the epoch's order.
        self.epoch, self.position = 0, 0
        self.order = self._epoch_order(0)

    def next_row(self) -> list[MaskedSequence]:
        """The sequences of the next row."""
        while not self.packer.is_full:
            self._add_next()
        return self.packer.next_row()

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain numbers for JSON."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "waiting": [list(key) for key, _ in self.packer.waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict()`. Raises `CheckpointError` for one that can't be."""
        if not isinstance(state, dict) or not set(state) >= self.KEYS:
            raise _unusable("stream", state)
        epoch, position, waiting = state["epoch"], state["position"], state["waiting"]
        if not _is_index(epoch, _MAX_EPOCH):
            raise _unusable("epoch", epoch)
        order = self._epoch_order(epoch)
        if not _is_index(position, len(order) + 1):
            raise _unusable("position", position)
        if not isinstance(waiting, list) or len(waiting) > self.packer.window:
            raise _unusable("waiting", waiting)
        # documents may come again in an epoch whose order is the source's own
        repeats = self.data.epoch_order(self.seed, epoch) is not None
        most = _MAX_EPOCH if repeats else len(self.data)
        for key in waiting:
            if (
                not isinstance(key, list)
                or len(key) != 2
                or not (_is_index(key[0], _MAX_EPOCH) and _is_index(key[1], most))
            ):
                raise _unusable("waiting", key)
        self.epoch, self.position, self.order = epoch, position, order
        self.packer.waiting.clear()
        for epoch, index in waiting:
            self.packer.add((epoch, index), self.data.sequence(epoch, index))

    def _epoch_order(self, epoch: int) -> npt.NDArray[np.int64]:
        """This stream's part of the epoch's order."""
        own = self.data.stream_order(self.seed, epoch, self.place, self.num_streams)
        if own is not None:
            return own
        order = self.data.epoch_order(self.seed, epoch)
        if order is None:
            rng = np.random.default_rng(
                np.random.SeedSequence((self.seed, epoch), spawn_key=(_EPOCH_ORDER,))
            )
            order = rng.permutation(len(self.data))
        if len(order) < self.num_streams:
            raise DataError(
                "data set",
                f"epoch {epoch} has {len(order)} usable documents for data.num_streams {self.num_streams}",
                f"set data.num_streams to {max(1, len(order))} or less, or put more documents into an epoch",
            )
        return order[self.place :: self.num_streams][: len(order) // self.num_streams]

    def _add_next(self) -> None:
        if self.position == len(self.order):
            self.epoch, self.position = self.epoch + 1, 0
            self.order = self._epoch_order(self.epoch)
        key = (self.epoch, int(self.order[self.position]))
        self.packer.add(key, self.data.sequence(*key))
        self.position += 1


def micro_batches(batch_rows: int, accumulate: int, num_processes: int) -> list[int]:
    """Rows of the micro-batches of one of several processes: at most `batch_rows` each, and
    batch_rows * accumulate rows a step in all.

    Raises `RecipeError` when the processes can't have equally many.

    >>> micro_batches(4, 512, 256), micro_batches(8, 1, 4), micro_batches(4, 3, 2)
    ([4, 4], [2], [4, 2])
    """
    total = batch_rows * accumulate
    own, rest = divmod(total, num_processes)
    if rest or not own:
        fitting = [n for n in range(1, num_processes + 1) if total % n == 0]
        raise RecipeError(
            "train.batch_rows, train.accumulate",
            f"{batch_rows} x {accumulate} rows a step can't be divided among {num_processes} processes",
            f"start {fitting[-1]} processes, or change train.batch_rows or train.accumulate so that "
            f"{num_processes} divides their product",
        )
    return [min(batch_rows, own - start) for start in range(0, own, batch_rows)]


def _is_index(value: object, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end


def _unusable(key: str, value: object) -> CheckpointError:
    return CheckpointError(
        "loader state",
        f"state.json has a {key} that can't be: {repr(value)[:40]}",
        "use an older checkpoint, or copy it again from where it came",
    )
