"""Pure functions on tensors, each with a plain reference and faster implementations. Imports torch
(and triton), and no other package of this project."""

from cm3kernels._host import interprets
from cm3kernels.add_norm import add_norm
from cm3kernels.attention import attention
from cm3kernels.guided_sample import guided_sample
from cm3kernels.guided_sample.log_probabilities import guided_log_probabilities
from cm3kernels.linear_cross_entropy import linear_cross_entropy
from cm3kernels.segment_decode import SegmentPlan, plan_segments, segment_decode
from cm3kernels.silu_gate import silu_gate
from cm3kernels.store_heads import HeadNorms, Turn, store_heads

__all__ = [
    "HeadNorms",
    "SegmentPlan",
    "Turn",
    "add_norm",
    "attention",
    "guided_log_probabilities",
    "guided_sample",
    "interprets",
    "linear_cross_entropy",
    "plan_segments",
    "segment_decode",
    "silu_gate",
    "store_heads",
]
