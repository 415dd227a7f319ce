"""Generation: fill the holes of documents with continuous batching; likelihood of given tokens.

engine      complete and stream requests          session          requests that join and leave a running batch
prepare     requests, checked, as rows            row              one request in flight
batch       one step of many rows                 groups           requests sampled in one call
prompts     prefixes are read once                events           requests, completions and events
cuda_graph  steps captured and replayed           likelihood       teacher-forced log-probabilities
states      what samplers remember                sampling         plans as columns for the fused op
teacher_forcing  documents and contents -> rows     policy           sample and score, for reinforcement learning
kept        what finished requests have read
rollouts    sampled documents and their tokens    scoring          their log-probabilities, with gradients
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core._lazy import exporter

if TYPE_CHECKING:
    from cm3core.interfaces.reranker import LogProbability
    from cm3run.generation.likelihood import Likelihood
    from cm3run.generation.policy import Policy
    from cm3run.generation.rollouts import Rollout, TokenLogProbabilities, recorded
    from cm3run.generation.sampling import plan_columns

__all__ = [
    "Likelihood",
    "LogProbability",
    "Policy",
    "Rollout",
    "TokenLogProbabilities",
    "plan_columns",
    "recorded",
]

__getattr__ = exporter(
    __name__,
    {
        "Likelihood": "likelihood",
        "LogProbability": "likelihood",
        "Policy": "policy",
        "Rollout": "rollouts",
        "TokenLogProbabilities": "rollouts",
        "plan_columns": "sampling",
        "recorded": "rollouts",
    },
)
