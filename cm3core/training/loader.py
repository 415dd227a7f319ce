"""From sequences to batches: the order of an epoch's sequences, and the rows they are packed into.

The state of a `BatchLoader` is a few numbers, and a run that resumes from them gets bit for bit the
batches that it would have had without the interruption.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cm3core.errors import CheckpointError, DataError
from cm3core.sequence.packing import Packer, TrainingBatch, collate
from cm3core.training.sequences import MaskedSequences

#: Separates the random streams that order epochs from those that make sequences.
_EPOCH_ORDER = 1

#: No run has as many epochs.
_MAX_EPOCH = 2**63


class BatchLoader:
    """Endless batches: each epoch's sequences in a new order, packed into rows.

    Args:
        data: the sequences.
        batch_rows: rows of a batch.
        length: number of inputs of a row.
        seed: of the order.
        pack: put several sequences in a row; False: one.
        rank, world_size: this process gets every `world_size`-th sequence of an epoch, starting at
            the `rank`-th; all processes get the same number.
        window: number of sequences that wait to fill rows, see `Packer`.
    """

    def __init__(
        self,
        data: MaskedSequences,
        batch_rows: int,
        length: int,
        seed: int,
        pack: bool = True,
        rank: int = 0,
        world_size: int = 1,
        window: int = 64,
    ) -> None:
        assert 0 <= rank < world_size
        if len(data) < world_size:
            raise DataError(
                "data set",
                f"has {len(data)} documents for {world_size} processes",
                "use fewer processes",
            )
        self.data, self.batch_rows, self.length, self.seed = data, batch_rows, length, seed
        self.rank, self.world_size = rank, world_size
        self.packer: Packer[tuple[int, int]] = Packer(length, window if pack else 1)
        self.pack = pack
        self._reported = 0
        #: The next sequence: its epoch, and its place in this process's part of the epoch's order.
        self.epoch, self.position = 0, 0
        #: Documents given so far by part of the data set, see `DocumentSource.parts`.
        self.counts = [0] * len(data.source.parts)
        self._order = self._epoch_order(0)

    def __iter__(self) -> Iterator[TrainingBatch]:
        return self

    def __next__(self) -> TrainingBatch:
        rows = []
        for _ in range(self.batch_rows):
            while not self.packer.is_full:
                self._add_next()
            rows.append(self.packer.next_row())
        for row in rows:
            for sequence in row if self.counts else ():
                self.counts[sequence.part] += 1
        return collate(rows, self.length, self.data.serializer.vocabulary)

    def state_dict(self) -> dict[str, Any]:
        """The loader's position, as plain numbers for JSON."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "waiting": [list(key) for key, _ in self.packer.waiting],
            "setting": self._setting(),
            **({"counts": list(self.counts)} if self.counts else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict()`.

        Raises `CheckpointError` when the state has other data or other settings.
        """
        named = {"counts"} if self.counts else set()
        if set(state) != {"epoch", "position", "waiting", "setting", *named}:
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
        epoch, position, waiting = state["epoch"], state["position"], state["waiting"]
        if not _is_index(epoch, _MAX_EPOCH):
            raise _unusable("epoch", epoch)
        order = self._epoch_order(epoch)
        if not _is_index(position, len(order) + 1):
            raise _unusable("position", position)
        if not isinstance(waiting, list) or len(waiting) > self.packer.window:
            raise _unusable("waiting", waiting)
        most = _MAX_EPOCH if self.counts else len(self.data)  # documents may come again in an epoch
        for key in waiting:
            if (
                not isinstance(key, list)
                or len(key) != 2
                or not (_is_index(key[0], _MAX_EPOCH) and _is_index(key[1], most))
            ):
                raise _unusable("waiting", key)
        counts = state.get("counts", [])
        if (
            not isinstance(counts, list)
            or len(counts) != len(self.counts)
            or not all(_is_index(count, _MAX_EPOCH) for count in counts)
        ):
            raise _unusable("counts", counts)
        self.counts = list(counts)
        self.epoch, self.position, self._order = epoch, position, order
        self.packer.waiting.clear()
        for epoch, index in waiting:
            self.packer.add((epoch, index), self.data.sequence(epoch, index))

    def _setting(self) -> dict[str, Any]:
        """The values that must match for a state to give the same batches."""
        return {
            "num_documents": len(self.data),
            "rank": self.rank,
            "world_size": self.world_size,
            "length": self.length,
            "batch_rows": self.batch_rows,
            "seed": self.seed,
            "pack": self.pack,
            "window": self.packer.window,
        }

    def _epoch_order(self, epoch: int) -> npt.NDArray[np.int64]:
        """This process's part of the epoch's order."""
        given = self.data.epoch_order(self.seed, epoch)
        if given is not None:
            return given[self.rank :: self.world_size][: len(given) // self.world_size]
        rng = np.random.default_rng(
            np.random.SeedSequence((self.seed, epoch), spawn_key=(_EPOCH_ORDER,))
        )
        order: npt.NDArray[np.int64] = rng.permutation(len(self.data))[self.rank :: self.world_size]
        return order[: len(self.data) // self.world_size]

    def _add_next(self) -> None:
        if self.position == len(self._order):
            self._report_too_long()
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._epoch_order(self.epoch)
        key = (self.epoch, int(self._order[self.position]))
        self.packer.add(key, self.data.sequence(*key))
        self.position += 1

    def _report_too_long(self) -> None:
        """Report at the end of an epoch how many documents were too long, if they became more."""
        if (number := self.data.num_too_long) > self._reported:
            self._reported = number
            warnings.warn(
                f"{number} of {len(self.data)} documents were too long for the context and were "
                "left out; set data.max_text_tokens, or raise decoder.context_length",
                stacklevel=3,
            )


def _is_index(value: object, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end


def _unusable(key: str, value: object) -> CheckpointError:
    return CheckpointError(
        "loader state",
        f"state.json has a {key} that can't be: {repr(value)[:40]}",
        "use an older checkpoint, or copy it again from where it came",
    )
