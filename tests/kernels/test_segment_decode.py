"""segment_decode without Triton: the plan, the reference by hand, the CPU's implementation, and
what is refused."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

# Loaded by conftest.py in this folder.
from segment_cases import make_case, shared_prefix
from torch.nn.functional import scaled_dot_product_attention

from cm3kernels import plan_segments, segment_decode
from cm3kernels.segment_decode.plan import KEY_BLOCK

#: Capacities, lengths, segments of each row.
Layout = tuple[list[int], list[int], list[list[int]]]


def test_by_hand() -> None:
    """One head, two dimensions. Keys (0, 0) and (log 3, 0) in a shared segment, (0, 0) in row 0's
    own: weights 1, 3 and 1."""
    plan = plan_segments([0, 4], [2, 3], [[0, 1], [0]], num_query_heads=1, num_key_heads=1)
    keys, values = torch.full((7, 1, 2), math.nan), torch.full((7, 1, 2), math.nan)
    keys[[0, 1, 4], 0] = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [0.0, 0.0]])
    values[[0, 1, 4], 0] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    q, lengths = (
        torch.tensor([[[1.0, 0.0]]]).repeat(2, 1, 1),
        torch.tensor([2, 1], dtype=torch.int32),
    )
    for implementation in ("reference", "torch"):
        out = segment_decode(
            q, keys, values, lengths, plan, scale=1.0, implementation=implementation
        )
        torch.testing.assert_close(out[:, 0], torch.tensor([[1.2, 1.6], [0.25, 0.75]]))


def test_reference_is_attention_over_the_concatenation() -> None:
    case = make_case(
        [5, 9], [5, 7], [[0, 1], [1]], num_query_heads=4, num_key_heads=2, dtype=torch.float64
    )
    for row, slots in ((0, [*range(12)]), (1, [*range(5, 12)])):
        k, v = (pool[slots].transpose(0, 1)[None] for pool in (case.keys, case.values))
        theirs = scaled_dot_product_attention(case.q[row, None, :, None], k, v, enable_gqa=True)[
            0, :, 0
        ]
        torch.testing.assert_close(case.expected[row], theirs)


def test_plan_of_the_readme() -> None:
    """2 prompts x 4 candidates x 2 streams: a prompt is read once for 4 rows, the null prompt once
    for 8, a suffix for one."""
    starts = [0, 192, 320, *range(324, 324 + 16 * 64, 64)]
    capacities = [192, 128, 4, *[64] * 16]
    rows = [
        [2 if stream else prompt, 3 + prompt * 8 + candidate * 2 + stream]
        for prompt in range(2)
        for candidate in range(4)
        for stream in range(2)
    ]
    plan = plan_segments(
        starts, capacities, rows, num_query_heads=16, num_key_heads=16, target_programs=64
    )
    assert Counter(plan.items[:, 5].tolist()) == {4: 2, 8: 1, 1: 16}
    assert [(run.num_rows, len(run.segments)) for run in plan.runs] == [
        (1, 16),
        (8, 1),
        (4, 1),
        (4, 1),
    ]
    assert plan.tile == 16
    assert plan.num_slots == 324 + 16 * 64


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    capacities = draw(st.lists(st.integers(0, 150), min_size=1, max_size=6))
    if draw(st.booleans()):  # what is one run on a CPU
        capacities = [capacities[0]] * len(capacities)
    lengths = [draw(st.integers(0, capacity)) for capacity in capacities]
    segment = st.integers(0, len(capacities) - 1)
    return (
        capacities,
        lengths,
        draw(st.lists(st.lists(segment, max_size=4), min_size=1, max_size=6)),
    )


@given(layouts(), st.sampled_from([1, 4, 40, 64]), st.sampled_from([None, 1, 100]))
def test_the_work_list_covers_every_key_of_every_row_once(
    layout: Layout, group: int, split: int | None
) -> None:
    capacities, _, rows = layout
    case = make_case(capacities, capacities, rows, num_query_heads=group, dim=1, split=split)
    plan, covered = case.plan, Counter[tuple[int, int, int]]()
    for segment, start, first, count, rows_begin, num_rows in plan.items.tolist():
        assert start == plan.starts[segment]
        assert first % KEY_BLOCK == 0
        assert count > 0
        assert num_rows * group <= plan.tile <= 64
        for row in plan.item_rows[rows_begin : rows_begin + num_rows].tolist():
            covered.update((row, segment, key) for key in range(first, first + count))
    assert covered == Counter(
        (row, segment, key)
        for row, segments in enumerate(rows)
        for segment in segments
        for key in range(capacities[segment])
    )
    merged = [
        plan.item_rows[plan.merge_partials[begin:end].long()].tolist()
        for begin, end in zip(plan.merge_begin[:-1], plan.merge_begin[1:], strict=True)
    ]
    assert all(set(parts) <= {row} for row, parts in enumerate(merged))
    assert sorted(plan.merge_partials.tolist()) == list(range(len(plan.item_rows)))


def test_evenly_spaced_rows_are_views() -> None:
    """For interleaved streams, and for streams one after the other; anything else is gathered."""
    runs = plan_segments(
        [0, 9, 18], [9, 9, 9], [[0], [1], [0], [1], [0, 2]], num_query_heads=1, num_key_heads=1
    ).runs
    assert [run.rows for run in runs] == [slice(0, 5, 2), slice(1, 4, 2), slice(4, 5, 1)]
    (run,) = plan_segments([0], [9], [[0], [0], [], [0]], num_query_heads=1, num_key_heads=1).runs
    assert isinstance(run.rows, torch.Tensor)
    assert run.rows.tolist() == [0, 1, 3]


def test_splits_follow_the_device_and_the_tile() -> None:
    """Enough items for the requested programs, but never a split so short that partial results
    dominate the traffic."""

    def lengths(num_rows: int, target_programs: int) -> set[int]:
        rows = [[0]] * num_rows
        return set(
            plan_segments(
                [0],
                [4096],
                rows,
                num_query_heads=4,
                num_key_heads=4,
                target_programs=target_programs,
            )
            .items[:, 3]
            .tolist()
        )

    assert lengths(1, target_programs=4) == {4096}
    assert lengths(1, target_programs=64) == {256}
    assert lengths(1, target_programs=10_000) == {64}
    assert lengths(32, target_programs=10_000) == {256}


@given(layouts(), st.sampled_from([(1, 1), (4, 2), (4, 4)]), st.integers(0, 3))
def test_the_cpus_implementation_equals_the_reference(
    layout: Layout, heads: tuple[int, int], gap: int
) -> None:
    capacities, lengths, rows = layout
    make_case(
        capacities, lengths, rows, num_query_heads=heads[0], num_key_heads=heads[1], dim=8, gap=gap
    ).check("torch")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [32, 96, 40])
def test_dtypes_and_head_dimensions_on_the_cpu(dtype: torch.dtype, dim: int) -> None:
    layout = shared_prefix(65, 3, [5, 0, 9], 16)
    case = make_case(*layout, num_query_heads=4, num_key_heads=2, dim=dim, dtype=dtype)
    case.check("torch")
    case.check("reference")
    torch.testing.assert_close(case.run("auto"), case.run("torch"), rtol=0, atol=0)


def test_huge_scores_and_rows_without_keys() -> None:
    case = make_case([40, 8, 8], [40, 8, 0], [[0, 1], [2], []], q_scale=1e5, num_query_heads=2)
    case.check("torch")
    assert case.run("torch")[1:].abs().max() == 0


def test_parts_that_weigh_nothing_beside_others() -> None:
    """Logarithms far apart: the shared segment's scores are a million below the row's own, or
    above."""
    case = make_case([3, 2], [3, 2], [[0, 1], [1, 0]], q_scale=0.0)
    case.q[:] = 1e5
    case.keys[:3], case.keys[3:] = -1.0, 1.0
    torch.testing.assert_close(
        case.run("torch"), case.values[3:].mean(0, keepdim=True).expand(2, 1, 32)
    )
    case.keys.neg_()
    torch.testing.assert_close(
        case.run("torch"), case.values[:3].mean(0, keepdim=True).expand(2, 1, 32)
    )


def test_lengths_are_read_at_each_call() -> None:
    """One plan for all steps: a step only writes a slot and counts it."""
    case = make_case([3, 4], [3, 0], [[0, 1]])
    for length in range(1, 5):
        case.lengths[1] = length
        case.keys[2 + length], case.values[2 + length] = torch.randn(1, 32), torch.randn(1, 32)
        torch.testing.assert_close(case.run("torch"), case.run("reference"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], [1, 2], [[0]]), "1 starts and 2 capacities, must be one of each per segment"),
        (([-1], [1], [[0]]), "segment 0 has start -1 and capacity 1, must not be negative"),
        (([2**31 - 5], [5], [[0]]), "segment 0 ends at slot 2147483648, must be below 2**31"),
        (([0], [1], [[], [1]]), "row 1 reads segment 1, must be 0 to 0"),
    ],
)
def test_plans_refused(
    arguments: tuple[list[int], list[int], list[list[int]]], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape('plan_segments: ' + message)}$"):
        plan_segments(*arguments, num_query_heads=1, num_key_heads=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_query_heads": 3}, "3 query heads on 2 key heads, must be a multiple"),
        ({"split": 0}, "split is 0, must be positive"),
        ({"target_programs": 0}, "target_programs is 0, must be positive"),
    ],
)
def test_plan_settings_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape('plan_segments: ' + message)}$"):
        plan_segments([0], [1], [[0]], **{"num_query_heads": 2, "num_key_heads": 2, **options})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"q": torch.zeros(2, 32)},
            "q is [2, 32], keys [8, 1, 32], values [8, 1, 32], must be [rows, query heads, D] "
            "and twice [slots, key heads, D]",
        ),
        (
            {"q": torch.zeros(2, 2, 32, dtype=torch.float16)},
            "q, keys and values share one floating dtype, got torch.float16, torch.float32, "
            "torch.float32",
        ),
        ({"q": torch.zeros(3, 2, 32)}, "q is [3, 2, 32], the plan is for [2, 2, 32]"),
        ({"q": torch.zeros(2, 2, 64)}, "keys are [8, 1, 32], must be [slots, 1, 64]"),
        (
            {"keys": torch.zeros(7, 1, 32), "values": torch.zeros(7, 1, 32)},
            "the pool has 7 slots, the plan's segments end at 8",
        ),
        (
            {"lengths": torch.zeros(2, dtype=torch.int64)},
            "lengths is [2] torch.int64, must be int32 [2]",
        ),
        (
            {"q": torch.zeros(2, 2, 64)[..., ::2]},
            "q has strides [128, 64, 2], the last one must be 1",
        ),
        (
            {"q": torch.zeros(2, 2, 32, requires_grad=True)},
            "q, keys or values require a gradient, which this op doesn't have; next: call it under "
            "torch.no_grad()",
        ),
        (
            {"lengths": torch.tensor([4, 5], dtype=torch.int32)},
            "segment 1 is 5 long, must be 0 to 4",
        ),
        (
            {"lengths": torch.tensor([-1, 4], dtype=torch.int32)},
            "segment 0 is -1 long, must be 0 to 4",
        ),
        (
            {"lengths": torch.zeros(2, dtype=torch.int32, device="meta")},
            "everything must be on one device, got q on cpu, keys on cpu, values on cpu, lengths "
            "on meta, plan on cpu",
        ),
    ],
)
def test_calls_refused(changed: dict[str, torch.Tensor], message: str) -> None:
    case = make_case([4, 4], [4, 4], [[0, 1], [0]], num_query_heads=2)
    with pytest.raises(ValueError, match=f"^{re.escape('segment_decode: ' + message)}$"):
        case.run("auto", **changed)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_scales_refused(scale: float) -> None:
    case = make_case([4], [4], [[0]])
    with pytest.raises(
        ValueError, match=f"^segment_decode: scale is {scale}, must be positive and finite$"
    ):
        segment_decode(case.q, case.keys, case.values, case.lengths, case.plan, scale=scale)


def test_the_cpus_implementation_is_refused_elsewhere() -> None:
    case = make_case([4, 4], [4, 4], [[0, 1], [0]], num_query_heads=2)
    plan = plan_segments(
        [0, 4], [4, 4], [[0, 1], [0]], num_query_heads=2, num_key_heads=1, device="meta"
    )
    with pytest.raises(
        ValueError,
        match=r"^segment_decode: implementation 'torch' can't run here: the tensor is on meta; "
        r"next: use 'triton', 'reference', or tensors on the CPU$",
    ):
        segment_decode(
            *(tensor.to("meta") for tensor in (case.q, case.keys, case.values, case.lengths)),
            plan,
            implementation="torch",
        )
