"""Image codes apart from the table of tokens: embeddings of few dimensions, and a head of their own.

Janus (Wu et al. 2024, arXiv:2410.13848) draws pictures so: a code's vector, of the image tokenizer's few
dimensions, is brought to the decoder's width by two layers, and two others read codes from its states.
Written from the paper; equal to `JanusVQVAEAlignerMLP` and `JanusVQVAEHead` of transformers
(Apache-2.0), which the tests compare.

Legend: C codes, P dimensions of a code's vector, W width between the head's layers, E model dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CodeEmbedding(nn.Module):
    """Codes -> what enters the first block: a table [C, P], and two layers with a GELU between."""

    def __init__(self, num_codes: int, dim: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_codes, dim)
        self.fc1 = nn.Linear(dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, codes: Tensor) -> Tensor:
        """[..., E] of int64 codes 0..C-1."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(self.embed(codes)))))


class CodeHead(nn.Module):
    """Final hidden states -> logits of codes: two layers with a GELU between."""

    def __init__(self, width: int, inner: int, num_codes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, num_codes)

    def inner(self, hidden: Tensor) -> Tensor:
        """What the last layer reads, [..., W]."""
        weight, bias = self.fc1.weight, self.fc1.bias
        return F.gelu(F.linear(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype)))

    def forward(self, hidden: Tensor, codes: slice = slice(None)) -> Tensor:
        """Logits [..., c] of some codes, of hidden states [..., E]."""
        weight, bias = self.fc2.weight[codes], self.fc2.bias[codes]
        return F.linear(self.inner(hidden), weight.to(hidden.dtype), bias.to(hidden.dtype))


def table_rows(ids: Tensor, own: range) -> Tensor:
    """Rows of ids in a table without those of `own`; of these, any row.

    >>> table_rows(torch.tensor([0, 1, 2, 3, 4]), range(2, 4)).tolist()
    [0, 1, 0, 0, 2]
    """
    rows = ids - len(own) * (ids >= own.stop)
    return torch.where((ids >= own.start) & (ids < own.stop), 0, rows)


def by_head(
    ids: range, own: range, others: Callable[[range], Tensor], codes: Callable[[range], Tensor]
) -> Tensor:
    """Logits [..., len(ids)] of ids with two heads.

    Args:
        ids: wanted.
        own: ids of the second head.
        others, codes: logits of a range of the first head's rows, and of the second's.
    """
    below = range(ids.start, min(ids.stop, own.start))
    within = range(max(ids.start, own.start) - own.start, min(ids.stop, own.stop) - own.start)
    above = range(max(ids.start, own.stop) - len(own), ids.stop - len(own))
    parts = [
        head(rows) for head, rows in ((others, below), (codes, within), (others, above)) if rows
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
