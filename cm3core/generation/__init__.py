"""Generation: the engine that fills the holes of documents, with continuous batching, and the
likelihood of given tokens.

engine      complete and stream requests          session    requests that join and leave a running batch
batch, row  one step of many rows                 prompts    guidance streams that share their prefixes
events      what is reported on the way           likelihood teacher-forced log-probabilities
cuda_graph  steps recorded and replayed           sampling   columns of sampling plans for the fused op
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core._lazy import exporter

if TYPE_CHECKING:
    from cm3core.generation.likelihood import Likelihood, LogProbability
    from cm3core.generation.sampling import plan_columns

__all__ = [
    "Likelihood",
    "LogProbability",
    "plan_columns",
]

__getattr__ = exporter(
    __name__,
    {
        "Likelihood": "likelihood",
        "LogProbability": "likelihood",
        "plan_columns": "sampling",
    },
)
