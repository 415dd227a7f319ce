"""From masked sequences to batches: the order of an epoch's sequences, and packing them into rows.

Several sequences share a row; none is split, and none attends to another. The state of a `BatchLoader` is a few
numbers, and a run that resumes from them gets bit for bit the batches that it would have had without the interruption.

Legend: B rows, T inputs in a row, n tokens of a sequence (n - 1 inputs: each token but the last
predicts the next one).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from itertools import cycle
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cm3core.document import NO_CELL, MaskedSequence
from cm3core.errors import CheckpointError, DataError, DocumentError, RecipeError
from cm3core.vocab import Vocabulary
from cm3run.processes import Processes
from cm3run.training.sequences import MaskedSequences

#: Values of `TrainingBatch.modality_BT`.
NO_MODALITY, TEXT, IMAGE, SPECIAL = 0, 1, 2, 3
NUM_MODALITIES = 4

Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Tensors of one batch, [B, T].

    Args:
        tokens_BT: int64; inputs, <pad> after the last sequence of a row.
        targets_BT: int64; the token after each input; <pad> if there is none.
        weights_BT: float32; weight of each target's loss, 0 on padding.
        positions_BT: int64; position in the sequence, from 0 in each; 0 on padding.
        cells_BT: int64; raster cell of an input that is an image code, otherwise `NO_CELL`.
        kv_start_BT: int64; index in the row of the first input that this one may attend to: the start of
            its sequence.
        modality_BT: int8; of the targets: 0 none (padding), 1 text, 2 image, 3 special; for a part of
            the data set (`MaskedSequence.part`), plus four times the part's number, int16.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    weights_BT: Tensor
    positions_BT: Tensor
    cells_BT: Tensor
    kv_start_BT: Tensor
    modality_BT: Tensor

    def to(self, device: torch.device | str) -> TrainingBatch:
        """The batch on a device; copies to a CUDA device are asynchronous, from pinned memory."""
        to_cuda = torch.device(device).type == "cuda"

        def moved(tensor: Tensor) -> Tensor:
            if to_cuda and tensor.device.type == "cpu":
                return tensor.pin_memory().to(device, non_blocking=True)
            return tensor.to(device)

        return TrainingBatch(
            **{item.name: moved(getattr(self, item.name)) for item in fields(self)}
        )

    @property
    def num_tokens(self) -> int:
        """Number of targets whose loss counts."""
        return int((self.weights_BT > 0).sum())


class Packer(Generic[Key]):
    """Chooses which waiting sequences make the next row. First fit, longest waiting first, so
    none waits forever.

    Args:
        length: T, inputs in a row.
        window: number of waiting sequences to choose from; a larger one fills rows better and mixes the order more.
    """

    def __init__(self, length: int, window: int = 64) -> None:
        assert length >= 1
        assert window >= 1
        self.length, self.window = length, window
        #: Waiting sequences with the keys under which they were added, oldest first.
        self.waiting: list[tuple[Key, MaskedSequence]] = []

    @property
    def is_full(self) -> bool:
        """Whether enough sequences are waiting."""
        return len(self.waiting) >= self.window

    def add(self, key: Key, sequence: MaskedSequence) -> None:
        """Add a waiting sequence. Raises `DocumentError` if no row can hold it."""
        if len(sequence) - 1 > self.length:
            raise DocumentError(
                f"sequence {key}",
                f"{len(sequence)} tokens, but a row holds {self.length + 1}",
                "make rows at least as long as decoder.context_length",
            )
        self.waiting.append((key, sequence))

    def next_row(self) -> list[MaskedSequence]:
        """Remove and return the waiting sequences for the next row; empty if none are waiting."""
        row: list[MaskedSequence] = []
        rest: list[tuple[Key, MaskedSequence]] = []
        room = self.length
        for key, sequence in self.waiting:
            num_inputs = len(sequence.tokens) - 1
            if num_inputs <= room:
                row.append(sequence)
                room -= num_inputs
            else:
                rest.append((key, sequence))
        self.waiting = rest
        return row


def modalities(
    tokens: npt.NDArray[np.integer[Any]], vocabulary: Vocabulary
) -> npt.NDArray[np.int8]:
    """Modality int8 of each token, as in `TrainingBatch.modality_BT`."""
    result = np.full(tokens.shape, SPECIAL, np.int8)
    result[vocabulary.is_text(tokens)] = TEXT
    result[vocabulary.is_image(tokens)] = IMAGE
    result[tokens == vocabulary.pad] = NO_MODALITY
    return result


def collate(
    rows: Sequence[Sequence[MaskedSequence]], length: int, vocabulary: Vocabulary
) -> TrainingBatch:
    """Make a batch of rows of `length` inputs. The sequences of a row must fit, see `Packer`."""
    shape = (len(rows), length)
    tokens, targets = (
        np.full(shape, vocabulary.pad, np.int64),
        np.full(shape, vocabulary.pad, np.int64),
    )
    weights = np.zeros(shape, np.float32)
    positions, kv_start = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    cells = np.full(shape, NO_CELL, np.int64)
    parts = np.zeros(shape, np.int16)
    for index, row in enumerate(rows):
        start = 0
        for sequence in row:
            stop = start + len(sequence) - 1
            assert stop <= length
            here = slice(start, stop)
            tokens[index, here], targets[index, here] = sequence.tokens[:-1], sequence.tokens[1:]
            weights[index, here] = sequence.weights[1:]
            positions[index, here] = np.arange(stop - start)
            cells[index, here] = sequence.cells[:-1]
            kv_start[index, here] = start
            parts[index, here] = sequence.part
            start = stop
        kv_start[index, start:] = (
            start  # padding attends to padding only, so no attention row is empty
        )
    modality = modalities(targets, vocabulary)
    if parts.any():
        modality = np.where(modality == NO_MODALITY, 0, modality + NUM_MODALITIES * parts)
    return TrainingBatch(
        *(
            torch.from_numpy(array)
            for array in (
                tokens,
                targets,
                weights,
                positions,
                cells,
                kv_start,
                modality,
            )
        )
    )


#: Separates the random streams that order epochs from those that make sequences.
_EPOCH_ORDER = 1

#: Next step if there are too few documents for the loaders.
FEWER_STREAMS = "set data.num_streams to {} or less, and start no more processes than that"

#: Upper bound for epochs, beyond any real run.
_MAX_EPOCH = 2**63


@dataclass(frozen=True)
class RowSettings:
    """How sequences are packed into the rows of a run.

    Args:
        batch_rows: rows per micro-batch.
        length: number of inputs per row.
        seed: of the order.
        pack: put several sequences into a row; False: one.
        window: number of waiting sequences per stream, see `Packer`.
        accumulate: micro-batches per step, if a single process makes them all.
        num_streams: V, see `BatchLoader`.
    """

    batch_rows: int
    length: int
    _: KW_ONLY
    seed: int
    pack: bool = True
    window: int = 64
    accumulate: int = 1
    num_streams: int = 1


def streams_of_new_run(num_streams: int | None, world_size: int) -> int:
    """V of a run that starts: `data.num_streams`, or the number of processes.

    Raises `RecipeError` if the processes can't share the loaders evenly.

    >>> streams_of_new_run(None, 4), streams_of_new_run(8, 4)
    (4, 8)
    """
    if num_streams is None:
        return world_size
    shared = math.gcd(num_streams, world_size)
    if shared == world_size:
        return num_streams
    raise RecipeError(
        "data.num_streams",
        f"is {num_streams}, which {world_size} processes can't share: {num_streams} / {world_size} is not a whole number, "
        f"and each process would make the rows of {world_size // shared}",
        f"use {math.lcm(num_streams, world_size)} or another multiple of {world_size}, or null: as many as there are processes",
    )


def note_on_streams(num_streams: int, world_size: int) -> str | None:
    """A note if processes of a resumed run make rows for each other; None if each makes its own.

    >>> note_on_streams(8, 4) is note_on_streams(1, 1) is None
    True
    """
    shared = math.gcd(num_streams, world_size)
    if shared == world_size:
        return None
    return (
        f"note: each process makes the rows of {world_size // shared} processes, because the run started with "
        f"{num_streams} loader{'' if num_streams == 1 else 's'} (data.num_streams). A number of processes that divides "
        f"{num_streams} shares this work"
    )


@dataclass(frozen=True)
class Position:
    """Where a process's loader is.

    Args:
        num_rows: rows given to all processes.
        streams: number of a stream -> its `RowStream.state_dict()`.
        counts: documents given to this process, by part of the data set.
    """

    num_rows: int
    streams: dict[int, dict[str, Any]]
    counts: tuple[int, ...]


class BatchLoader:
    """Endless batches: each epoch's sequences in a new order, packed into rows.

    Row i of the run comes from stream i modulo V, of V `RowStream`s (virtual loaders), and belongs to
    process i modulo W, of W processes, so the batches of a step have the same rows for any W. A
    process computes the streams that contain rows of its own: 1 / W of the work if W divides V, all of
    it with V = 1.

    Args:
        data: the sequences.
        rows: how they are packed.
        processes: W, and this process's number; None: only this one.
    """

    def __init__(
        self,
        data: MaskedSequences,
        rows: RowSettings,
        processes: Processes | None = None,
    ) -> None:
        num_streams = rows.num_streams
        if len(data) < num_streams:
            raise DataError(
                "data set",
                f"has {len(data)} documents for data.num_streams {num_streams}",
                FEWER_STREAMS.format(len(data)),
            )
        self.data, self.rows = data, rows if rows.pack else replace(rows, window=1)
        self.processes = Processes() if processes is None else processes
        rank, number = self.processes.rank, self.processes.world_size
        #: Rows in each of this process's micro-batches of a step.
        self.step_rows = micro_batches(rows.batch_rows, rows.accumulate, number)
        self._sizes = cycle(self.step_rows)
        shared = math.gcd(num_streams, number)
        #: The streams with rows of this process, by number.
        self.streams = {
            place: RowStream(data, self.rows, place)
            for place in range(rank % shared, num_streams, shared)
        }
        self._reported = 0
        #: Number of rows given to all processes.
        self.num_rows = 0
        #: Documents given to this process so far, by part of the data set, see `DocumentSource.parts`.
        self.counts = [0] * len(data.source.parts)

    @property
    def epoch(self) -> int:
        """Epoch of the next sequence of this process's first stream."""
        return next(iter(self.streams.values())).epoch

    def __iter__(self) -> Iterator[TrainingBatch]:
        return self

    def __next__(self) -> TrainingBatch:
        """This process's next micro-batch."""
        rows = [self._next_row() for _ in range(next(self._sizes))]
        for row in rows:
            for sequence in row if self.counts else ():
                self.counts[sequence.part] += 1
        return collate(rows, self.rows.length, self.data.serializer.vocabulary)

    def next_step(self) -> list[TrainingBatch]:
        """This process's micro-batches of the next step."""
        return [next(self) for _ in self.step_rows]

    def _next_row(self) -> list[MaskedSequence]:
        """This process's row among the next W. Rows of other processes are made and dropped if they come
        from a stream that also has rows of this one."""
        own: list[MaskedSequence] | None = None
        for rank in range(self.processes.world_size):
            stream = self.streams.get(self.num_rows % self.rows.num_streams)
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

    def position(self) -> Position:
        """That of this process."""
        streams = {place: one.state_dict() for place, one in self.streams.items()}
        return Position(self.num_rows, streams, tuple(self.counts))

    def state_dict(self, position: Position | None = None) -> dict[str, Any]:
        """The position of all processes, as plain numbers for JSON; called by all of them between two steps.

        It is the same for any number of processes. `position`: that of this process; None: the present one."""
        position = position or self.position()
        streams: dict[int, dict[str, Any]] = {}
        counts = [0] * len(position.counts)
        for part, given in self.processes.all_of((position.streams, list(position.counts))):
            streams |= part
            counts = [one + other for one, other in zip(counts, given, strict=True)]
        return {
            **(
                streams[0]
                if self.rows.num_streams == 1
                else {
                    "rows": position.num_rows,
                    "streams": [streams[place] for place in range(self.rows.num_streams)],
                }
            ),
            "setting": self._setting(),
            **({"counts": counts} if counts else {}),
        }

    @staticmethod
    def streams_of(state: dict[str, Any]) -> int:
        """V of the loader with this `state_dict()`."""
        setting = state.get("setting")
        number = setting.get("num_streams", 1) if isinstance(setting, dict) else 1
        if not _is_index(number, _MAX_EPOCH) or not number:
            raise _unusable("num_streams", number)
        return int(number)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict()`, saved by any number of processes.

        Raises `CheckpointError` if the state has other data or other settings.
        """
        position = RowStream.KEYS if self.rows.num_streams == 1 else {"rows", "streams"}
        if set(state) != {*position, "setting", *({"counts"} if self.counts else ())}:
            raise CheckpointError(
                "loader state", f"has the keys {sorted(state)}", "use a whole checkpoint"
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
        streams = [state] if self.rows.num_streams == 1 else state["streams"]
        if not isinstance(streams, list) or len(streams) != self.rows.num_streams:
            raise _unusable("streams", streams)
        rows = 0 if self.rows.num_streams == 1 else state["rows"]
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
            "length": self.rows.length,
            "batch_rows": self.rows.batch_rows,
            "seed": self.rows.seed,
            "pack": self.rows.pack,
            "window": self.rows.window,
            **({} if self.rows.num_streams == 1 else {"num_streams": self.rows.num_streams}),
        }

    def _report_too_long(self) -> None:
        """At the end of an epoch, report the number of documents that were too long, if it has grown."""
        if (number := self.data.num_too_long) > self._reported:
            self._reported = number
            warnings.warn(
                f"{number} of {len(self.data)} documents were too long for the context and were "
                "skipped; set data.max_text_tokens, or raise decoder.context_length",
                stacklevel=3,
            )


class RowStream:
    """Rows of every V-th sequence of each epoch's order: a virtual loader, a function of its number
    and of how many rows it has given.

    Args:
        data, rows: see `BatchLoader`. All streams get equally many sequences of an epoch.
        place: its number.
    """

    KEYS: ClassVar[frozenset[str]] = frozenset({"epoch", "position", "waiting"})

    def __init__(self, data: MaskedSequences, rows: RowSettings, place: int = 0) -> None:
        self.data, self.place = data, place
        self.seed, self.num_streams = rows.seed, rows.num_streams
        self.packer: Packer[tuple[int, int]] = Packer(rows.length, rows.window)
        #: The next sequence: its epoch, and its position in this stream's part of the epoch's order.
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
        """Resume from `state_dict()`. Raises `CheckpointError` for an invalid state."""
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
        # a source's own order of an epoch may repeat documents
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
                f"{FEWER_STREAMS.format(max(1, len(order)))}, or put more documents into an epoch",
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
    """Row counts of the micro-batches of one of several processes: at most `batch_rows` each, and
    batch_rows * accumulate rows per step in total.

    Raises `RecipeError` if the rows can't be divided evenly.

    >>> micro_batches(4, 512, 256), micro_batches(8, 1, 4), micro_batches(4, 3, 2)
    ([4, 4], [2], [4, 2])
    """
    total = batch_rows * accumulate
    own, rest = divmod(total, num_processes)
    if rest or not own:
        fitting = [n for n in range(1, num_processes + 1) if total % n == 0]
        raise RecipeError(
            "train.batch_rows, train.accumulate",
            f"{batch_rows} x {accumulate} rows per step can't be divided among {num_processes} processes",
            f"start {fitting[-1]} processes, or change train.batch_rows or train.accumulate so that "
            f"{num_processes} divides their product",
        )
    return [min(batch_rows, own - start) for start in range(0, own, batch_rows)]


def _is_index(value: object, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end


def _unusable(key: str, value: object) -> CheckpointError:
    return CheckpointError(
        "loader state",
        f"state.json has an impossible value of {key!r}: {repr(value)[:40]}",
        "use an older checkpoint, or copy it again from its source",
    )
