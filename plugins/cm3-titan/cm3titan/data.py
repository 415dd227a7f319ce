"""The framework's loader as torchtitan's: the same rows in the same order as `cm3 train`, and a position to resume from.

Rows are divided among the groups of processes that hold different data (torchtitan's axis "batch"); processes that share
a model by tensors, layers or tokens read the same rows. The position is stored per virtual loader (`data.num_streams`),
so a run may resume with another number of groups that divides it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchtitan.components.dataloader import BaseDataLoader

from cm3core.errors import RecipeError
from cm3run.training.packing import BatchLoader, TrainingBatch
from cm3titan.loss import packed_labels
from cm3titan.share import STREAM, Share, loader_state, setting_of


class RecipeLoader(BaseDataLoader):
    """A step's rows of this group, in pieces of `local_batch_size` rows."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        """`make`: makes the loader of a share."""

        make: Callable[[Share], BatchLoader]

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int,
        dp_rank: int,
        local_batch_size: int,
        **_: Any,
    ) -> None:
        self._loader = config.make(Share(dp_rank, dp_world_size))
        self._size = local_batch_size
        rows = sum(self._loader.step_rows)
        if rows % local_batch_size:
            raise RecipeError(
                "train.batch_rows",
                f"{rows} rows of a step can't be divided into pieces of {local_batch_size}",
                "choose train.batch_rows and train.accumulate so that they can",
            )

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        while True:
            for piece in pieces(self._loader.next_step(), self._size):
                yield inputs_of(piece)

    def state_dict(self) -> dict[str, Any]:
        """The position between two steps: the rows given to all groups, and this group's virtual loaders."""
        position = self._loader.position()
        return {
            "rows": position.num_rows,
            "setting": json.dumps(setting_of(self._loader)),
            **{STREAM.format(i): json.dumps(one) for i, one in position.streams.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from positions; raises `CheckpointError` if they don't fit the data and recipe."""
        self._loader.load_state_dict(loader_state(state_dict, len(self._loader.counts)))


def pieces(batches: list[TrainingBatch], size: int) -> Iterator[TrainingBatch]:
    """The rows of several batches in batches of `size`."""
    names = list(TrainingBatch.__dataclass_fields__)
    rows = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}
    for start in range(0, len(rows[names[0]]), size):
        yield TrainingBatch(**{name: rows[name][start : start + size] for name in names})


def inputs_of(batch: TrainingBatch) -> tuple[dict[str, Tensor], Tensor]:
    """torchtitan's inputs and labels of a batch."""
    inputs = {
        "input": batch.tokens_BT,
        "positions": batch.positions_BT,
        "cells": batch.cells_BT,
        "kv_start": batch.kv_start_BT,
    }
    return inputs, packed_labels(batch.targets_BT, batch.weights_BT)
