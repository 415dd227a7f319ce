"""Pure functions on tensors: references now, Triton kernels beside them. Imports torch (and
triton), nothing of ours."""

from cm3kernels.attention import attention
from cm3kernels.guided_sample import guided_sample
from cm3kernels.linear_cross_entropy import linear_cross_entropy
from cm3kernels.segment_decode import SegmentPlan, plan_segments, segment_decode

__all__ = [
    "SegmentPlan",
    "attention",
    "guided_sample",
    "linear_cross_entropy",
    "plan_segments",
    "segment_decode",
]
