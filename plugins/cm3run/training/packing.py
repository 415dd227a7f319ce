"""Masked sequences -> rows of a batch: several sequences share a row, none is split, and none sees
another.

Legend: B rows, T inputs in a row, n tokens of a sequence (n - 1 inputs: each token but the last
predicts the next one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cm3core.document import NO_CELL, MaskedSequence
from cm3core.errors import DocumentError
from cm3core.vocab import Vocabulary

#: `TrainingBatch.modality_BT`.
NO_MODALITY, TEXT, IMAGE, SPECIAL = 0, 1, 2, 3
NUM_MODALITIES = 4

Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Tensors of one batch, [B, T].

    Args:
        tokens_BT: int64; inputs, <pad> behind the last sequence of a row.
        targets_BT: int64; the token after each input; <pad> where there is none.
        weights_BT: float32; weight of each target's loss, 0 on padding.
        positions_BT: int64; place in the sequence, from 0 in each; 0 on padding.
        cells_BT: int64; raster cell of an input that is an image code, else `NO_CELL`.
        kv_start_BT: int64; index in the row of the first input that this one may see: where its
            sequence starts.
        modality_BT: int8; of the targets: 0 none (padding), 1 text, 2 image, 3 special; of a part of
            the data set (`MaskedSequence.part`), that plus four times its number, int16.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    weights_BT: Tensor
    positions_BT: Tensor
    cells_BT: Tensor
    kv_start_BT: Tensor
    modality_BT: Tensor

    def to(self, device: torch.device | str) -> TrainingBatch:
        """The batch on a device; to a CUDA device from pinned memory, without waiting for it."""
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
        """Targets whose loss counts."""
        return int((self.weights_BT > 0).sum())


class Packer(Generic[Key]):
    """Chooses which waiting sequences make the next row. First fit, the longest waiting first, so
    none waits for ever.

    Args:
        length: T, inputs in a row.
        window: sequences that wait to be chosen from; more fill rows better and mix the order more.
    """

    def __init__(self, length: int, window: int = 64) -> None:
        assert length >= 1
        assert window >= 1
        self.length, self.window = length, window
        #: Waiting sequences with the keys that they were added under, oldest first.
        self.waiting: list[tuple[Key, MaskedSequence]] = []

    @property
    def is_full(self) -> bool:
        """Whether enough sequences wait."""
        return len(self.waiting) >= self.window

    def add(self, key: Key, sequence: MaskedSequence) -> None:
        """Let a sequence wait. Raises `DocumentError` when no row can hold it."""
        if len(sequence) - 1 > self.length:
            raise DocumentError(
                f"sequence {key}",
                f"{len(sequence)} tokens, a row holds {self.length + 1}",
                "make rows at least as long as decoder.context_length",
            )
        self.waiting.append((key, sequence))

    def next_row(self) -> list[MaskedSequence]:
        """Take the sequences of the next row out of those that wait; empty when none does."""
        row: list[MaskedSequence] = []
        rest: list[tuple[Key, MaskedSequence]] = []
        room = self.length
        for key, sequence in self.waiting:
            if len(sequence) - 1 <= room:
                row.append(sequence)
                room -= len(sequence) - 1
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
    """A batch of rows of `length` inputs. The sequences of a row must fit, see `Packer`."""
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
        kv_start[index, start:] = start  # padding sees padding only, so no attention row is empty
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
