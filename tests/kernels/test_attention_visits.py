"""The attention kernels' work: which tiles they visit, what they never read or write, cached rows."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attention_cases import Case, assert_equal, start_of
from attention_cases import small_tiles as small_tiles  # the fixture
from cm3kernels.attention import (
    _forward,
    _grad_keys,
    _grad_queries,
    attention,
)
from cm3kernels.attention.plan import visible_mask


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, bool]]:
    """What the loops load: (kernel, tile of the program, first token, masked), twice a step (k and
    v; q and the gradient)."""
    from triton.runtime.interpreter import interpreter_builder

    seen: list[tuple[str, int, int, bool]] = []

    def counted(module: Any, walk: str) -> Callable[..., Any]:
        plain, load = getattr(module, walk), module.load_tile

        def call(*args: Any) -> Any:
            def noted(pointer: Any, first: Any, *rest: Any) -> Any:
                seen.append(
                    (walk, int(interpreter_builder.grid_idx[0]), int(first), bool(rest[-1]))
                )
                return load(pointer, first, *rest)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "load_tile", noted)
                return plain(*args)

        return call

    for module, walk in (
        (_forward, "_attend_tiles"),
        (_grad_keys, "_grad_key_tiles"),
        (_grad_queries, "_grad_query_tiles"),
    ):
        monkeypatch.setattr(module, walk, counted(module, walk))
    return seen


@pytest.mark.parametrize("layout", ["none", "packed", "retrieved", "padded"])
def test_visible_tiles_are_visited_once_and_no_others(
    layout: str, loads: list[tuple[str, int, int, bool]]
) -> None:
    """All three loops; and only partly visible tiles pay for a mask. 70 tokens make 5
    tiles, the last one ragged."""
    T, block = 70, 16
    case = Case.random(1, T, (1, 1), 8, start_of(layout, T), "cpu")
    case.run("triton", torch.float32)
    seen = visible_mask(T, T, case.kv_start, None)[0, 0]
    num_tiles = -(-T // block)
    visible, whole = set(), set()
    for m in range(num_tiles):
        for n in range(num_tiles):
            tile = seen[m * block : (m + 1) * block, n * block : (n + 1) * block]
            visible |= {(m, n)} if tile.any() else set()
            whole |= {(m, n)} if tile.all() and tile.shape[1] == block else set()
    assert visible > whole
    # A ragged last tile of queries is stored with a mask, so its keys need none; where it is summed
    # over, it does.
    whole_and_full = {(m, n) for m, n in whole if (m + 1) * block <= T}
    for walk, unmasked in (
        ("_attend_tiles", whole),
        ("_grad_query_tiles", whole),
        ("_grad_key_tiles", whole_and_full),
    ):
        visits = [
            (
                masked,
                (first // block, mine) if "key" in walk else (num_tiles - 1 - mine, first // block),
            )
            for name, mine, first, masked in loads
            if name == walk
        ]
        assert sorted(tile for _, tile in visits) == sorted([*visible, *visible]), walk
        assert {tile for masked, tile in visits if not masked} == unmasked, walk


def test_keys_that_nobody_sees_may_be_nan(device: str) -> None:
    """Before the first start, between the documents that are seen, and in slots of a cache that
    were never written."""
    T = 40
    starts = torch.where(torch.arange(T) < 20, T, 20)
    case = Case.random(1, T, (1, 1), 32, starts, device)
    expected = case.run("reference", torch.float64)
    case.k, case.v = (x.detach().clone() for x in (case.k, case.v))
    case.k[:, :20] = case.v[:, :20] = math.nan
    assert_equal(case.run("triton", torch.float32), expected, 4e-6)


@pytest.mark.parametrize("T", [1, 5, 20])
def test_cached_rows(T: int, device: str) -> None:
    """Rows of individual lengths in a longer cache of another layout, whose unwritten slots hold
    NaN; offsets out of range on both sides, and 14, with which the first query sees all of a tile
    of keys but one."""
    generator = torch.Generator().manual_seed(T)
    B, S, H, K, D = 4, 45, 2, 1, 32
    q = torch.randn(B, T, H, D, generator=generator).to(device)
    k, v = (
        torch.randn(B, K, S, D, generator=generator).to(device).transpose(1, 2) for _ in range(2)
    )
    offset = torch.tensor([0, 14, -3, 40], device=device)
    kv_start = torch.tensor([0, 0, -30, 9], device=device)[:, None].expand(B, T)
    expected, lse = attention(
        *(x.double() for x in (q, k, v)),
        kv_start=kv_start,
        offset=offset,
        return_lse=True,
        implementation="reference",
    )
    unwritten = torch.arange(S, device=device) >= (offset + T)[:, None]
    k[unwritten] = v[unwritten] = math.nan
    out, ours = attention(
        q, k, v, kv_start=kv_start, offset=offset, return_lse=True, implementation="triton"
    )
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(ours.double(), lse, atol=2e-6, rtol=2e-6)


def test_the_same_bits_every_time(device: str) -> None:
    T = 40 if device == "cpu" else 2000
    case = Case.random(1, T, (1, 1), 32, start_of("packed", T), device)
    first = case.run("triton", torch.float32)
    for _ in range(1 if device == "cpu" else 100):
        assert all(
            torch.equal(x, y) for x, y in zip(first, case.run("triton", torch.float32), strict=True)
        )


@pytest.mark.slow
def test_nothing_outside_the_tensors_is_touched(
    run_guarded: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    """Every tensor that a kernel reads or writes is next to a guard page, on one side and on the
    other; ragged tiles."""
    done = run_guarded("""
from cm3kernels.attention import attention, configs, AttentionPlan
configs.INTERPRETED = configs.Launch(16, 32, 4, 1)
import importlib
ops = importlib.import_module("cm3kernels.attention.triton")
new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like
for side in ("after", "before"):
    def against_a_page(tensor):
        return guarded(tensor, side) if tensor.numel() else tensor
    torch.Tensor.new_empty = lambda self, *a, **o: against_a_page(new_empty(self, *a, **o))
    torch.empty_like = lambda self: against_a_page(empty_like(self))
    T, D = 19, 20
    q = guarded(torch.randn(1, T, 2, D), side)
    k, v = (guarded(torch.randn(1, T, 1, D), side) for _ in range(2))
    grad = guarded(torch.randn(1, T, 2, D), side)
    for start in (None, torch.arange(T)[None] // 10 * 10):
        start = None if start is None else guarded(start.int(), side)
        tiles, counts = AttentionPlan(T, T, start).query_tiles(16, 32) or (None, None)
        tiles, counts = (None if x is None else guarded(x, side) for x in (tiles, counts))
        out, lse = ops.attention_op._init_fn(q, k, v, start, None, tiles, counts, 0.2)
        ops.attention_backward_op._init_fn(grad, lse, q, k, v, out, lse, start, tiles, counts, 0.2)
    offset = guarded(torch.tensor([16], dtype=torch.int32), side)
    ops.attention_op._init_fn(q[:, :3], k, v, None, offset, None, None, 0.2)
print("all within")
""")
    assert (done.returncode, done.stdout.strip()) == (0, "all within"), done.stderr[-2000:]
