"""segment_decode's kernels, interpreted (or on CUDA with `-m gpu`), against float64."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles import examples

pytest.importorskip("triton", reason="Triton is not installed: pip install 'cm3leon[triton]'")

# Loaded by conftest.py in this folder.
from segment_cases import Case, make_case, shared_prefix

triton_ops = import_module("cm3kernels.segment_decode.triton")
RunGuarded = Callable[[str], "subprocess.CompletedProcess[str]"]
SUFFIXES = (3, 0, 17, 16, 1, 5, 32, 2)


def operands(case: Case, scale: float = 0.125) -> tuple[Any, ...]:
    plan = case.plan
    return (
        case.q,
        case.keys,
        case.values,
        case.lengths,
        plan.items,
        plan.item_rows,
        plan.merge_begin,
        plan.merge_partials,
        plan.tile,
        scale,
    )


@pytest.mark.parametrize("prefix", [0, 1, 63, 64, 65])
@pytest.mark.parametrize(
    ("num_rows", "group", "dim"),
    [(1, 4, 64), (3, 1, 96), (8, 1, 128), (3, 2, 80), (2, 1, 24), (2, 1, 5)],
)
def test_rows_that_share_a_prefix(
    device: str, prefix: int, num_rows: int, group: int, dim: int
) -> None:
    """Ragged suffixes, one of them empty; slots that are not filled are NaN."""
    make_case(
        *shared_prefix(prefix, num_rows, SUFFIXES, 32),
        num_query_heads=group,
        dim=dim,
        device=device,
    ).check("triton")


@pytest.mark.parametrize(
    ("dtype", "num_rows", "heads", "dim"),
    [
        (torch.float16, 3, (8, 2), 64),
        (torch.bfloat16, 3, (8, 1), 128),
        (torch.bfloat16, 2, (2, 2), 96),
        (torch.float16, 2, (4, 1), 32),
    ],
)
def test_half_precision_and_grouped_heads(
    device: str, dtype: torch.dtype, num_rows: int, heads: tuple[int, int], dim: int
) -> None:
    make_case(
        *shared_prefix(65, num_rows, SUFFIXES, 32),
        num_query_heads=heads[0],
        num_key_heads=heads[1],
        dim=dim,
        dtype=dtype,
        device=device,
    ).check("triton")


def test_two_streams_of_two_prompts(device: str) -> None:
    """The layout of the README: conditional rows share their prompt, unconditional ones the null
    prompt."""
    capacities, lengths = [70, 20, 3, *[8] * 8], [70, 20, 3, *[5, 5, 4, 4, 8, 8, 0, 0]]
    rows = [
        [2 if stream else prompt, 3 + prompt * 4 + candidate * 2 + stream]
        for prompt in range(2)
        for candidate in range(2)
        for stream in range(2)
    ]
    case = make_case(capacities, lengths, rows, gap=3, device=device)
    assert len(case.plan.items) == 12
    case.check("triton")


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="its tensors are on the CPU, where kernels are interpreted"
)
@settings(max_examples=examples(10))
@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), min_size=1, max_size=3),
    st.data(),
    st.sampled_from([1, 2]),
)
def test_any_layout(segments: Sequence[tuple[int, float]], data: st.DataObject, group: int) -> None:
    """Also rows without segments, segments without rows, and a segment read twice."""
    rows = data.draw(
        st.lists(st.lists(st.integers(0, len(segments) - 1), max_size=3), min_size=1, max_size=3)
    )
    capacities = [capacity for capacity, _ in segments]
    make_case(
        capacities,
        [int(part * capacity) for capacity, part in segments],
        rows,
        num_query_heads=group,
    ).check("triton")


@pytest.mark.slow
def test_splits_give_what_one_piece_gives(device: str) -> None:
    """65 partial results, the last ones without keys; and more rows than fit a tile."""
    lengths = (4097 - 130, 3)
    split = make_case([4097, 8], lengths, [[0, 1]], split=64, device=device)
    assert split.plan.merge_begin.tolist() == [0, 66]
    split.check("triton")
    whole = make_case([4097, 8], lengths, [[0, 1]], split=8192, device=device)
    assert len(whole.plan.items) == 2
    torch.testing.assert_close(split.run("triton"), whole.run("triton"), rtol=1e-5, atol=1e-6)


def test_more_rows_than_a_tile(device: str) -> None:
    case = make_case([20], [20], [[0]] * 5, num_query_heads=16, device=device)
    assert case.plan.items[:, 5].tolist() == [4, 1]
    case.check("triton")


def test_nothing_to_attend_to(device: str) -> None:
    """Empty prefix and suffix, a row without segments, no segments at all, no rows at all: zeros,
    never NaN."""
    case = make_case([2, 4], [0, 0], [[0, 1], []], num_query_heads=2, device=device)
    assert case.run("triton").tolist() == torch.zeros(2, 2, 32).tolist()
    assert (
        make_case([], [], [[]], device=device).run("triton").tolist()
        == torch.zeros(1, 1, 32).tolist()
    )
    assert make_case([4], [4], [], device=device).run("triton").shape == (0, 1, 32)


def test_huge_scores(device: str) -> None:
    make_case([70, 4], [70, 4], [[0, 1]], q_scale=1e6, device=device).check("triton")


def test_lengths_beyond_the_segment_are_cut_in_the_kernel(device: str) -> None:
    """On CUDA lengths are not checked: whatever they are, no slot outside the segment is read."""
    case = make_case([20, 5], [20, 5], [[0, 1]], gap=2, device=device)
    wrong = torch.tensor([1000, -7], dtype=torch.int32, device=device)
    short = torch.tensor([20, 0], dtype=torch.int32, device=device)
    case.lengths = wrong
    out = torch.ops.cm3.segment_decode(*operands(case))
    case.lengths = short
    assert torch.equal(out, torch.ops.cm3.segment_decode(*operands(case)))


def test_op_contract(device: str) -> None:
    """PyTorch's own check of a custom operator, and a graph without breaks."""
    case = make_case([20, 5], [20, 3], [[0, 1], [0]], num_query_heads=2, device=device)
    torch.library.opcheck(torch.ops.cm3.segment_decode.default, operands(case))
    compiled = torch.compile(
        lambda *args: torch.ops.cm3.segment_decode(*args) * 2, fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(
        compiled(*operands(case)), torch.ops.cm3.segment_decode(*operands(case)) * 2
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dim": 160},
            "head dimension 160, 'triton' supports up to 128; next: implementation='reference'",
        ),
        (
            {"dtype": torch.float64},
            "dtype torch.float64, 'triton' supports float32, float16, bfloat16; next: "
            "implementation='reference'",
        ),
        (
            {"num_query_heads": 65},
            "65 query heads on each key head, 'triton' has at most 64; next: "
            "implementation='reference'",
        ),
    ],
)
def test_refusals(device: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape('segment_decode: ' + message)}$"):
        make_case([4], [4], [[0]], device=device, **options).run("triton")


@pytest.mark.slow
def test_no_access_outside_the_tensors(run_guarded: RunGuarded) -> None:
    """A guard page after, then before, every input; the last segment ends with the pool, the head
    dimension is padded."""
    done = run_guarded("""
from cm3kernels import plan_segments, segment_decode
for side in ("after", "before"):
    plan = plan_segments([0, 9], [9, 4], [[0, 1], [0]], num_query_heads=2, num_key_heads=2)
    for name in ("items", "item_rows", "merge_begin", "merge_partials"):
        object.__setattr__(plan, name, guarded(getattr(plan, name), side))
    q, keys, values = (guarded(torch.randn(n, 2, 96), side) for n in (2, 13, 13))
    lengths = guarded(torch.tensor([9, 4], dtype=torch.int32), side)
    ours, theirs = (
        segment_decode(q, keys, values, lengths, plan, implementation=name)
        for name in ("triton", "reference")
    )
    torch.testing.assert_close(ours, theirs)
""")
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_every_configuration_is_compiled_ahead_of_time() -> None:
    """Whatever tile a plan asks for, at each head dimension and element size."""
    tiles = {make_case([4], [4], [[0]] * rows, dim=32).plan.tile for rows in range(1, 100)}
    checked = {
        (entry.constexprs["D"], entry.types["q_ptr"], entry.constexprs["TILE"])
        for entry in triton_ops.aot_entries()
        if "TILE" in entry.constexprs
    }
    assert checked == {
        (dim, dtype, tile)
        for dim in triton_ops.HEAD_DIMS
        for dtype in ("*bf16", "*fp32")
        for tile in tiles
    }


@pytest.mark.gpu
def test_a_captured_graph_follows_the_lengths() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    case = make_case(
        [300, 64, 64],
        [300, 1, 1],
        [[0, 1], [0, 2]],
        num_query_heads=8,
        num_key_heads=8,
        dim=64,
        device="cuda",
    )
    case.keys.nan_to_num_()
    case.values.nan_to_num_()
    case.run("triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = case.run("triton")
    for length in (1, 2, 63, 64):
        case.lengths[1:] = length
        graph.replay()
        torch.testing.assert_close(out, case.run("reference", plan=case.plan), rtol=1e-4, atol=1e-5)
