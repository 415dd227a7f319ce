"""Pure functions on tensors: references now, Triton kernels beside them. Imports torch (and triton), nothing of ours."""

from cm3kernels.attention import attention
from cm3kernels.guided_sample import guided_sample

__all__ = ["attention", "guided_sample"]
