"""Training: from a recipe to checkpoints. `train` resumes exactly where a run stopped.

preparation, sequences, loader   documents -> codes, neighbours -> masked sequences -> batches
loop, state, optim, loss         one optimiser step after the other
metrics, validation, samples     what is written down on the way
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core._lazy import exporter

if TYPE_CHECKING:
    from cm3core.training.loop import TrainingInterrupted, train

__all__ = [
    "TrainingInterrupted",
    "train",
]

__getattr__ = exporter(
    __name__,
    {
        "TrainingInterrupted": "loop",
        "train": "loop",
    },
)
