"""Training: from a recipe to checkpoints. `train` resumes exactly where a run stopped.

preparation, code_cache, neighbours     documents -> codes, neighbours
sequences, packing                      -> sequences -> rows -> batches
memory                                  the memory that training needs
start, data_notes                       set up a run for its next step; notes on its data
loop, state, optim, parallel            run optimiser steps
metrics, validation                     loss, metrics log, trackers; held-out documents and samples
saving                                  checkpoints; one process at a time
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core._lazy import exporter

if TYPE_CHECKING:
    from cm3run.training.loop import train
    from cm3run.training.state import TrainingInterrupted

__all__ = [
    "TrainingInterrupted",
    "train",
]

__getattr__ = exporter(
    __name__,
    {
        "TrainingInterrupted": "state",
        "train": "loop",
    },
)
