"""Muon's matrices where each process has some rows of every matrix.

Newton-Schulz needs whole matrices. Gathering all of them everywhere would repeat the same products S
times; instead each of the S processes that share a decoder collects some whole matrices, orthogonalises
those, and sends every other process its rows back: two exchanges a step, each of one copy of the
momenta divided by S.

Legend: S processes, n matrices of one shape [A, B], a rows of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor


def orthogonalised_shards(
    parameters: Sequence[Tensor],
    momenta: Sequence[Tensor],
    orthogonalise: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """The updates' rows of this process.

    Args:
        parameters: n DTensors of one shape, divided by rows over the last dimension of one mesh.
        momenta: this process's rows of each, [a, B].
        orthogonalise: [m, A, B] -> [m, A, B].

    Returns:
        n tensors [a, B].
    """
    import torch.distributed as dist

    first = cast(Any, parameters[0])
    mesh = first.device_mesh
    group, rank = mesh.get_group(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1)
    S, A, B = dist.get_world_size(group), first.shape[0], momenta[0].shape[1]
    rows = rows_of_shards(A, S)
    number = len(momenta)
    owned = [len(range(owner, number, S)) for owner in range(S)]  # process i has matrices i::S
    by_owner = [momenta[place] for owner in range(S) for place in range(owner, number, S)]
    sent = torch.stack(by_owner).flatten()
    sizes_out = [count * rows[rank] * B for count in owned]
    sizes_in = [owned[rank] * count * B for count in rows]
    received = sent.new_empty(sum(sizes_in))
    dist.all_to_all_single(received, sent, sizes_in, sizes_out, group=group)
    pieces = [
        part.view(owned[rank], count, B)
        for part, count in zip(received.split(sizes_in), rows, strict=True)
    ]
    whole = torch.cat(pieces, dim=1)
    if owned[rank]:
        whole = orthogonalise(whole)
    answers = torch.cat([part.flatten() for part in whole.split(rows, dim=1)])
    back = sent.new_empty(sum(sizes_out))
    dist.all_to_all_single(back, answers.contiguous(), sizes_out, sizes_in, group=group)
    updates = back.view(number, rows[rank], B).unbind()
    order = [place for owner in range(S) for place in range(owner, number, S)]
    return [
        update for _, update in sorted(zip(order, updates, strict=True), key=lambda one: one[0])
    ]


def rows_of_shards(num_rows: int, num_shards: int) -> list[int]:
    """Rows of each process where FSDP2 divides `num_rows`: as `torch.chunk`, the last ones may have none.

    >>> rows_of_shards(10, 4), rows_of_shards(3, 4), rows_of_shards(8, 4)
    ([3, 3, 3, 1], [1, 1, 1, 0], [2, 2, 2, 2])
    """
    size = -(-num_rows // num_shards)
    return [max(0, min(size, num_rows - size * shard)) for shard in range(num_shards)]
