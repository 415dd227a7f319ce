"""Whole matrices out of the rows that processes have."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3run.training.optim import rows_of_shards


@given(st.integers(1, 40), st.integers(1, 12))
def test_rows_are_divided_as_fsdp_divides_them(num_rows: int, num_shards: int) -> None:
    """Oracle: `torch.chunk`, which FSDP2 uses; it makes no empty chunks."""
    chunks = [len(chunk) for chunk in torch.zeros(num_rows, 2).chunk(num_shards)]
    assert rows_of_shards(num_rows, num_shards) == chunks + [0] * (num_shards - len(chunks))
