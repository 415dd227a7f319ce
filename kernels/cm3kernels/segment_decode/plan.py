"""The plan of a decode step: which rows read which segments, cut into the kernels' work items. Computed once
per prompt.

Values that change from step to step (the length of each segment) are not part of it, but in a tensor on the
device: one plan, and one captured CUDA graph, serves all steps. README.md in this folder shows the cache layout
and a drawn example.

Legend: R rows, S segments, Z uses (a row reading a segment), N work items, P partial results (an
item for one of its rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from cm3kernels._host import require

OP = "plan_segments"
#: Number of keys that a kernel reads at a time; the unit of splits.
KEY_BLOCK = 64
#: Maximum rows of a kernel's tile: query heads of one key head, for all rows of an item.
MAX_TILE = 64
#: A partial result costs 8 bytes per element of its rows, its keys and values 2 to 8: splits have at least this
#: many times as many keys as an item has queries, so that partial results stay below a quarter of the
#: traffic.
KEYS_PER_QUERY = 8
#: Columns of `SegmentPlan.items`.
SEGMENT, START, FIRST, COUNT, ROWS_BEGIN, NUM_ROWS = range(6)


@dataclass(frozen=True)
class SegmentRun:
    """Adjacent segments in the pool, with equal capacity and equally many rows: one batched product on a
    CPU.

    Args:
        segments: their indices, in the order of the pool.
        start: first slot of the first one.
        capacity: slots per segment.
        num_rows: rows that read each segment.
        rows: the rows of the first, of the second, ...; no row twice. A slice if they are
            evenly spaced, otherwise int64 [b * n] on the CPU.
    """

    segments: tuple[int, ...]
    start: int
    capacity: int
    num_rows: int
    rows: slice | Tensor


@dataclass(frozen=True, eq=False)
class SegmentPlan:
    """A call of `segment_decode`, except for the lengths. Made by `plan_segments`.

    Args:
        num_rows: R.
        num_query_heads, num_key_heads: heads of the queries and of the pool.
        num_segments: S; the number of entries of `lengths`.
        num_slots: minimum number of slots of the pool.
        capacities: slots of each segment.
        starts: first slot of each segment.
        row_segments: the segments of each row, in order.
        items: int32 [N, 6], the kernel's work list: segment, first slot, first key, number of keys (of the
            capacity; those past the current length are skipped), its first entry in `item_rows`, its number
            of rows.
        item_rows: int32 [P]; the rows of all items. An entry's index is also the index of its partial
            result.
        merge_begin: int32 [R + 1]; start of each row's entries in `merge_partials`.
        merge_partials: int32 [P]; the partial results of row 0, of row 1, ...
        tile: rows of the kernel's tile, 16 to `MAX_TILE`, or 0 if the query heads of a key head
            exceed it.
        runs: the work on a CPU, runs with most rows first.
    """

    num_rows: int
    num_query_heads: int
    num_key_heads: int
    num_segments: int
    num_slots: int
    starts: tuple[int, ...]
    capacities: tuple[int, ...]
    row_segments: tuple[tuple[int, ...], ...]
    items: Tensor
    item_rows: Tensor
    merge_begin: Tensor
    merge_partials: Tensor
    tile: int
    runs: tuple[SegmentRun, ...]


def plan_segments(
    starts: Sequence[int],
    capacities: Sequence[int],
    row_segments: Sequence[Sequence[int]],
    *,
    num_query_heads: int,
    num_key_heads: int,
    device: torch.device | str = "cpu",
    target_programs: int = 264,
    split: int | None = None,
) -> SegmentPlan:
    """Plan the decode steps of a batch of rows, on the host.

    Args:
        starts: first slot of each segment in the pool.
        capacities: slots that each segment may fill; for a finished one, its length.
        row_segments: for each row the segments that it reads, in order. A row may have none.
        num_query_heads, num_key_heads: the former is a multiple of the latter.
        device: device of the work list, which is the pool's.
        target_programs: number of programs that fill the device; splits are chosen to give about this many
            items when all segments are full. Default: two for each of the 132 multiprocessors of an
            H100.
        split: keys per work item, overriding that choice (rounded up to a multiple of 64).

    Raises:
        ValueError: the numbers are inconsistent.

    >>> heads = {"num_query_heads": 4, "num_key_heads": 4}
    >>> plan = plan_segments([0, 100, 110], [100, 10, 10], [[0, 1], [0, 2]], **heads)
    >>> plan.items.tolist()  # the shared segment in two splits for both rows, then each row's own
    [[0, 0, 0, 64, 0, 2], [0, 0, 64, 36, 2, 2], [1, 100, 0, 10, 4, 1], [2, 110, 0, 10, 5, 1]]
    >>> plan.item_rows.tolist()
    [0, 1, 0, 1, 0, 1]
    """
    starts, capacities = tuple(map(int, starts)), tuple(map(int, capacities))
    rows = tuple(tuple(map(int, segments)) for segments in row_segments)
    _check(starts, capacities, rows, num_query_heads, num_key_heads, target_programs, split)
    num_rows, group = len(rows), num_query_heads // num_key_heads
    start_S, capacity_S = (
        torch.tensor(starts, dtype=torch.int64),
        torch.tensor(capacities, dtype=torch.int64),
    )
    segment_Z = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.int64)
    row_Z = torch.repeat_interleave(
        torch.arange(num_rows), torch.tensor([len(row) for row in rows], dtype=torch.int64)
    )
    segment_Z, order_Z = segment_Z.sort(stable=True)
    row_Z = row_Z[order_Z]
    uses_S = torch.bincount(segment_Z, minlength=len(starts))

    items_N6, item_rows_P, tile = _items(
        start_S, capacity_S, uses_S, row_Z, group, num_key_heads, target_programs, split
    )
    merge_begin = _exclusive_sum(torch.bincount(item_rows_P, minlength=num_rows), total=True)

    def on_device(numbers: Tensor) -> Tensor:
        return numbers.to(torch.int32).to(device)

    return SegmentPlan(
        num_rows=num_rows,
        num_query_heads=num_query_heads,
        num_key_heads=num_key_heads,
        num_segments=len(starts),
        num_slots=max(
            (start + capacity for start, capacity in zip(starts, capacities, strict=True)),
            default=0,
        ),
        starts=starts,
        capacities=capacities,
        row_segments=rows,
        items=on_device(items_N6),
        item_rows=on_device(item_rows_P),
        merge_begin=on_device(merge_begin),
        merge_partials=on_device(item_rows_P.argsort(stable=True)),
        tile=tile,
        runs=_runs(starts, capacities, rows),
    )


def _check(
    starts: Sequence[int],
    capacities: Sequence[int],
    row_segments: Sequence[Sequence[int]],
    num_query_heads: int,
    num_key_heads: int,
    target_programs: int,
    split: int | None,
) -> None:
    require(
        len(starts) == len(capacities),
        OP,
        f"{len(starts)} starts and {len(capacities)} capacities, must be one of each per segment",
    )
    require(
        num_key_heads > 0 and num_query_heads > 0 and num_query_heads % num_key_heads == 0,
        OP,
        f"{num_query_heads} query heads on {num_key_heads} key heads, must be a multiple",
    )
    for segment, (start, capacity) in enumerate(zip(starts, capacities, strict=True)):
        require(
            start >= 0 and capacity >= 0,
            OP,
            f"segment {segment} has start {start} and capacity {capacity}, must not be negative",
        )
        require(
            start + capacity < 2**31,
            OP,
            f"segment {segment} ends at slot {start + capacity}, must be below 2**31",
        )
    for row, segments in enumerate(row_segments):
        for segment in segments:
            require(
                0 <= segment < len(starts),
                OP,
                f"row {row} reads segment {segment}, must be 0 to {len(starts) - 1}",
            )
    require(target_programs > 0, OP, f"target_programs is {target_programs}, must be positive")
    require(split is None or split > 0, OP, f"split is {split}, must be positive")


def _items(
    start_S: Tensor,
    capacity_S: Tensor,
    uses_S: Tensor,
    row_Z: Tensor,
    group: int,
    num_key_heads: int,
    target_programs: int,
    split: int | None,
) -> tuple[Tensor, Tensor, int]:
    """Return the work list, the rows of all items, and the tile: rows in blocks that fit a tile, keys in even
    splits."""
    block = max(1, MAX_TILE // group)
    num_blocks_S = _ceil_div(uses_S, block)
    # X: blocks of rows
    segment_X = torch.repeat_interleave(torch.arange(len(start_S)), num_blocks_S)
    block_X = _within(num_blocks_S)
    num_rows_X = (uses_S[segment_X] - block_X * block).clamp(max=block)
    first_use_X = _exclusive_sum(uses_S)[segment_X] + block_X * block

    capacity_X = capacity_S[segment_X]
    if split is None:
        split = -(-int(capacity_X.sum()) * num_key_heads // target_programs)
        longest_X = (num_rows_X * group * KEYS_PER_QUERY).clamp(min=max(split, 1))
    else:
        longest_X = torch.full_like(capacity_X, split)
    num_splits_X = _ceil_div(capacity_X, _ceil_div(longest_X, KEY_BLOCK) * KEY_BLOCK)
    even_X = _ceil_div(_ceil_div(capacity_X, num_splits_X.clamp(min=1)), KEY_BLOCK) * KEY_BLOCK

    block_N = torch.repeat_interleave(torch.arange(len(segment_X)), num_splits_X)
    first_N = _within(num_splits_X) * even_X[block_N]
    count_N = torch.minimum(even_X[block_N], capacity_X[block_N] - first_N)
    num_rows_N = num_rows_X[block_N]
    segment_N = segment_X[block_N]
    items_N6 = torch.stack(
        [segment_N, start_S[segment_N], first_N, count_N, _exclusive_sum(num_rows_N), num_rows_N],
        dim=1,
    )
    item_rows_P = row_Z[
        torch.repeat_interleave(first_use_X[block_N], num_rows_N) + _within(num_rows_N)
    ]
    queries = int(num_rows_N.max()) * group if len(num_rows_N) else 1
    tile = 0 if group > MAX_TILE else max(16, 1 << (queries - 1).bit_length())
    return items_N6, item_rows_P, tile


def _runs(
    starts: Sequence[int], capacities: Sequence[int], row_segments: Sequence[Sequence[int]]
) -> tuple[SegmentRun, ...]:
    """Return segments in runs. A segment that a row reads twice counts as two, of which the second has the
    repeated rows."""
    rows_of: dict[tuple[int, int], list[int]] = {}  # (number of earlier uses, segment)
    for row, segments in enumerate(row_segments):
        for place, segment in enumerate(segments):
            rows_of.setdefault((segments[:place].count(segment), segment), []).append(row)
    runs: list[tuple[list[int], list[int]]] = []
    before: tuple[int, ...] = ()
    taken: set[int] = set()
    order = sorted(
        (again, len(rows), capacities[segment], starts[segment], segment)
        for (again, segment), rows in rows_of.items()
    )
    for again, num_rows, capacity, start, segment in order:
        rows = rows_of[again, segment]
        if before != (again, num_rows, capacity, start) or not taken.isdisjoint(rows):
            runs.append(([], []))
            taken = set()
        runs[-1][0].append(segment)
        runs[-1][1].extend(rows)
        taken.update(rows)
        before = again, num_rows, capacity, start + capacity
    runs.sort(key=lambda run: -len(run[1]))
    return tuple(
        SegmentRun(
            tuple(segments),
            starts[segments[0]],
            capacities[segments[0]],
            len(rows) // len(segments),
            _as_slice(rows),
        )
        for segments, rows in runs
    )


def _as_slice(rows: list[int]) -> slice | Tensor:
    """Return a slice, which selects a view, if rows are evenly spaced."""
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if step > 0 and rows == list(range(rows[0], rows[-1] + 1, step)):
        return slice(rows[0], rows[-1] + 1, step)
    return torch.tensor(rows)


def _ceil_div(value: Tensor, by: Tensor | int) -> Tensor:
    return (value + by - 1) // by


def _exclusive_sum(count: Tensor, *, total: bool = False) -> Tensor:
    """Return the exclusive cumulative sum; `total`: with the sum of all at the end."""
    sums = torch.cat([count.new_zeros(1), count.cumsum(0)])
    return sums if total else sums[:-1]


def _within(count: Tensor) -> Tensor:
    """Return 0..count[0]-1, 0..count[1]-1, ..."""
    return torch.arange(int(count.sum())) - torch.repeat_interleave(_exclusive_sum(count), count)
