"""Pure functions on tensors: references now, Triton kernels beside them. Imports torch (and triton), nothing of ours."""
