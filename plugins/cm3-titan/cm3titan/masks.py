"""Which tokens attend to which: those before in their own sequence, of several that share a row.

With context parallelism each process has the queries of a part of each row, and the keys of the whole row in the order of
the processes. The first process has the first and the last of twice as many equal parts as there are processes, the
second the second and the last but one, and so on, so that all attend to about equally many keys.

Legend: B rows, T tokens of a row, Q queries of this process (T without context parallelism), K keys (= T).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torchtitan.models.common.attention import create_attention_mask


def shares_of_row(length: int, num_processes: int) -> Tensor:
    """The places in a row of each process's tokens, int64 [processes, Q].

    >>> shares_of_row(8, 2).tolist()
    [[0, 1, 6, 7], [2, 3, 4, 5]]
    """
    parts = torch.arange(length).view(2 * num_processes, -1)
    return torch.cat([parts[:num_processes], parts[num_processes:].flip(0)], 1)


def whole_mask(kv_start_BQ: Tensor, query_places_Q: Tensor, key_places_K: Tensor) -> Tensor:
    """The mask as bool [B, 1, Q, K].

    >>> places = torch.arange(3)
    >>> whole_mask(torch.tensor([[0, 0, 2]]), places, places)[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    before_QK = key_places_K <= query_places_Q[:, None]
    return (before_QK & (key_places_K >= kv_start_BQ[..., None]))[:, None]


def block_mask(kv_start_BQ: Tensor, query_places_Q: Tensor, key_places_K: Tensor) -> BlockMask:
    """The mask as FlexAttention's blocks, made on the tensors' device."""

    def visible(batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        place = key_places_K[key]
        return (place <= query_places_Q[query]) & (place >= kv_start_BQ[batch, query])

    make = create_block_mask if kv_start_BQ.device.type == "cpu" else create_attention_mask
    (B, Q), K = kv_start_BQ.shape, len(key_places_K)
    made: BlockMask = make(visible, B, None, Q, K, device=kv_start_BQ.device)
    return made
