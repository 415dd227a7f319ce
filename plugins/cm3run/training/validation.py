"""Validation during training, on the same held-out documents each time.

Documents are in the order text -> image, with and without retrieved documents. The metric is the loss
of the query document's own tokens, nats per token: `validation/<split>/image_loss`,
`.../text_loss`, and `..._retrieved` if the recipe retrieves. Nothing is masked or random, so values
of two steps or two runs are comparable.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from tqdm import tqdm

from cm3core.document import MaskedSequence, TokenSequence
from cm3core.interfaces import Decoder, MaskingObjective
from cm3core.progress import make_bar
from cm3core.sequence import only_responses
from cm3run.build import split_or_reason
from cm3run.processes import Processes
from cm3run.training.loss import batch_loss_sums, modality_metrics, part_metrics

if TYPE_CHECKING:
    from cm3run.training.packing import TrainingBatch
    from cm3run.training.preparation import Preparation


class UnmaskedObjective(MaskingObjective):
    """The unmasked sequence, with loss on the query document only; if a task made it, on its
    responses only."""

    @property
    def max_added_tokens(self) -> int:
        return 0

    def _mask(
        self, sequence: TokenSequence, rng: np.random.Generator, max_length: int
    ) -> MaskedSequence:
        weights = np.zeros(len(sequence), np.float32)
        weights[sequence.segments[sequence.query_segment].start :] = 1.0
        weights = only_responses(weights, sequence)
        return MaskedSequence(sequence.tokens, sequence.cells, weights)


class Validation:
    """The recipe's validation splits, prepared at the first measurement.

    A split that the data set lacks is left out with a note. Several processes divide the batches.
    """

    def __init__(
        self,
        preparation: Preparation,
        *,
        progress: bool = True,
        processes: Processes | None = None,
    ) -> None:
        self.preparation, self.progress = preparation, progress
        self.processes = Processes() if processes is None else processes
        self.splits = preparation.recipe.validation_splits
        self._batches: dict[str, Sequence[TrainingBatch]] | None = None

    def measure(self, forward: Callable[[TrainingBatch], Tensor]) -> dict[str, float]:
        """Metrics of all splits.

        `forward` returns a batch's loss sums by modality (see `Decoder.loss_sums`).
        """
        if self._batches is None:
            self._batches = self._prepare()
        values: dict[str, float] = {}
        for name, batches in self._batches.items():
            split, _, suffix = name.partition("+")
            bar = make_bar(
                self._own(batches),
                desc=f"validation {name}",
                leave=False,
                disable=not self.progress,
                unit="batch",
            )
            sums_G2 = self.processes.sum(_total(forward, bar))
            parts = self.preparation.components.source.parts
            for metric, value in part_metrics(sums_G2, parts).items():
                values[f"validation/{split}/{metric}{suffix}"] = value
            for metric, value in modality_metrics(sums_G2).items():
                if metric in ("image_loss", "text_loss"):
                    values[f"validation/{split}/{metric}{suffix}"] = value
        return values

    def _own(self, batches: Sequence[TrainingBatch]) -> Sequence[TrainingBatch]:
        """This process's batches. All have equally many, because processes that share a decoder
        compute together: the last ones are repeated without weights."""
        rank, number = self.processes.rank, self.processes.world_size
        own = list(batches[rank::number])
        if len(own) < -(-len(batches) // number):
            filler = batches[-1]
            own.append(replace(filler, weights_BT=filler.weights_BT * 0))
        return own

    def _prepare(self) -> dict[str, Sequence[TrainingBatch]]:
        section, components = self.preparation.recipe.train, self.preparation.components
        prepared: dict[str, Sequence[TrainingBatch]] = {}
        for split in self.splits:
            source = split_or_reason(components, split)
            if isinstance(source, str):
                if split in section.validation_splits:
                    tqdm.write(
                        f"note: validation split {split!r} is left out: {source}", file=sys.stderr
                    )
                continue
            for suffix, retrieve in (("", False), ("_retrieved", True)):
                if retrieve and not self.preparation.retrieves:
                    continue
                data = self.preparation.sequences(
                    source, UnmaskedObjective(), retrieve=retrieve, training=False
                )
                sequences = data.fitting(spread(len(data), section.validation_documents))
                if sequences:  # else no document fits the context
                    prepared[f"{split}+{suffix}"] = self.preparation.pack(sequences)
        return prepared


def spread(total: int, number: int) -> list[int]:
    """At most `number` indices of 0..total-1, spread evenly.

    >>> spread(10, 4), spread(2, 4)
    ([0, 3, 6, 9], [0, 1])
    """
    return sorted(
        {round(place) for place in np.linspace(0, total - 1, min(total, number)).tolist()}
    )


def measured_loss(decoder: Decoder, batches: Iterable[TrainingBatch]) -> dict[str, float]:
    """Losses of batches by modality, see `modality_metrics`.

    Computed on the decoder's device, in the weights' precision.
    """
    device = decoder.head_weight().device

    def forward(batch: TrainingBatch) -> Tensor:
        batch = batch.to(device)
        hidden_BTE = decoder.hidden_states(
            batch.tokens_BT,
            positions_BT=batch.positions_BT,
            cells_BT=batch.cells_BT,
            kv_start_BT=batch.kv_start_BT,
        )
        return batch_loss_sums(decoder, hidden_BTE, batch)[1]

    return modality_metrics(_total(forward, batches))


def _total(forward: Callable[[TrainingBatch], Tensor], batches: Iterable[TrainingBatch]) -> Tensor:
    sums: Tensor | None = None
    for batch in batches:
        part = forward(batch)
        sums = part if sums is None else sums + part
    assert sums is not None, "a split with documents gives batches"
    return sums
