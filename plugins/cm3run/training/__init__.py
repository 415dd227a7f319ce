"""Training: from a recipe to checkpoints. `train` resumes exactly where a run stopped.

preparation, code_cache, neighbours, sequences           documents -> codes -> sequences
packing, loader                                          sequences -> rows -> batches
memory                                                   what a training needs of the machine
origin, start, device, run_lock                          set up a run for its next step
loop, state, optim, loss                                 run optimiser steps
metrics, validation, samples, progress_bar               record metrics and samples
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
