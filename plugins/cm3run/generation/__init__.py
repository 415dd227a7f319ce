"""Generation: fill the holes of documents with continuous batching; compute the likelihood of given tokens.

engine      complete and stream requests; sessions that requests join and leave
prepare     validates requests and turns them into rows
row         one request in flight
batch       one step of many rows, captured and replayed on CUDA
groups      requests sampled in one call; the repetition penalty
sampling    sampler inputs: plans as tensors, state
prompts     prefill shared prefixes once; cache of finished requests
events      requests, completions and events
likelihood  teacher-forced log-probabilities
policy      sample and score, for reinforcement learning
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core._lazy import exporter

if TYPE_CHECKING:
    from cm3core.interfaces.reranker import LogProbability
    from cm3run.generation.likelihood import Likelihood
    from cm3run.generation.policy import Policy, Rollout, TokenLogProbabilities, recorded
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
        "Rollout": "policy",
        "TokenLogProbabilities": "policy",
        "plan_columns": "sampling",
        "recorded": "policy",
    },
)
