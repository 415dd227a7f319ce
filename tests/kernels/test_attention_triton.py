"""The attention kernels against the float64 reference: interpreted on the CPU at small tiles,
compiled and larger on CUDA."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cm3kernels.attention import (
    AttentionPlan,
    _forward,
    _grad_keys,
    _grad_queries,
    attention,
    configs,
)
from cm3kernels.attention.configs import Launch
from cm3kernels.attention.plan import visible_mask

triton_ops = import_module("cm3kernels.attention.triton")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter: 16 by 16, so that a few tokens make many tiles."""
    monkeypatch.setattr(configs, "INTERPRETED", Launch(16, 16, 4, 1))


def start_of(layout: str, T: int) -> Tensor | None:
    """kv_start [T] of a named layout."""
    position = torch.arange(T)
    if layout == "none":
        return None
    if layout == "packed":
        length = 37 if T > 64 else 13
        return position // length * length
    if layout == "one token each":
        return position
    if layout == "retrieved":  # two documents that don't see each other, seen by what follows
        return torch.where((position >= T // 3) & (position < 2 * T // 3), T // 3, 0)
    assert layout == "padded"  # the first two and the last five see nothing
    return torch.where((position < 2) | (position >= T - 5), T, position // 20 * 20)


@dataclass
class Case:
    """Inputs in float64; `run` gives out, lse and the gradients of q, k, v for fixed gradients of
    out and lse."""

    q: Tensor
    k: Tensor
    v: Tensor
    kv_start: Tensor | None

    @classmethod
    def random(
        cls, B: int, T: int, heads: tuple[int, int], D: int, kv_start: Tensor | None, device: str
    ) -> Case:
        generator = torch.Generator().manual_seed(T + D)
        q, k, v = (
            torch.randn(B, T, h, D, generator=generator, dtype=torch.float64).to(device)
            for h in (*heads, heads[1])
        )
        return cls(q, k, v, None if kv_start is None else kv_start.expand(B, T).to(device))

    def run(self, implementation: str, dtype: torch.dtype) -> list[Tensor]:
        tensors = [x.detach().to(dtype).requires_grad_() for x in (self.q, self.k, self.v)]
        out, lse = attention(
            *tensors, kv_start=self.kv_start, return_lse=True, implementation=implementation
        )
        generator = torch.Generator().manual_seed(1)
        grads = [
            torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in (out, lse)
        ]
        return [out, lse, *torch.autograd.grad((out, lse), tensors, grads)]


def assert_equal(ours: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each within `tolerance` of the largest finite value expected; -inf where -inf is."""
    for name, x, y in zip(
        ("out", "lse", "grad of q", "grad of k", "grad of v"), ours, expected, strict=True
    ):
        finite = y.isfinite()
        assert torch.equal(x.isfinite(), finite), name
        assert torch.equal(x.isneginf(), y.isneginf()), name
        x, y = x.detach().double()[finite], y.detach()[finite]
        largest = float(y.abs().max()) if len(y) else 0.0
        torch.testing.assert_close(
            x,
            y,
            atol=tolerance * max(largest, 1.0),
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


#: Heads and head dimension never interact in a kernel, so the interpreter, at a second a case,
#: covers each value of both, not each pair; some more pairs are slow tests.
MATRIX = [(64, (2, 2)), (96, (4, 2)), (128, (4, 1))]
MORE = [
    pytest.param(D, heads, "cpu", marks=pytest.mark.slow)
    for D, heads in ((64, (4, 2)), (64, (4, 1)), (128, (2, 2)))
]
ON_CUDA = [
    pytest.param(D, heads, "cuda", marks=pytest.mark.gpu)
    for D in (64, 96, 128)
    for heads in ((2, 2), (4, 2), (4, 1))
]


@pytest.mark.parametrize("layout", ["none", "packed", "retrieved"])
@pytest.mark.parametrize(
    ("D", "heads", "device"),
    [*((*case, "cpu") for case in MATRIX), *MORE, *ON_CUDA],
    indirect=["device"],
)
def test_equals_the_reference(
    D: int, heads: tuple[int, int], layout: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    T = 35 if device == "cpu" else 1000
    monkeypatch.setattr(
        configs, "INTERPRETED", Launch(16, 32, 4, 1) if D == 96 else Launch(32, 16, 4, 1)
    )
    case = Case.random(1 if device == "cpu" else 2, T, heads, D, start_of(layout, T), device)
    assert_equal(case.run("triton", torch.float32), case.run("reference", torch.float64), 4e-6)


@pytest.mark.parametrize("layout", ["none", "one token each", "padded"])
@pytest.mark.parametrize("T", [1, 15, 16, 17, 31, 33, 64])
def test_edges(T: int, layout: str, device: str) -> None:
    """Tokens around a tile's edge; documents of one token; queries that see nothing."""
    case = Case.random(1, T, (1, 1), 32, start_of(layout, T) if T > 6 else None, device)
    assert_equal(case.run("triton", torch.float32), case.run("reference", torch.float64), 4e-6)


def test_documents_of_exactly_one_tile_and_rows_of_their_own(device: str) -> None:
    starts = torch.stack([torch.arange(48) // 16 * 16, torch.zeros(48, dtype=torch.int64)])
    case = Case.random(2, 48, (1, 1), 32, starts, device)
    assert_equal(case.run("triton", torch.float32), case.run("reference", torch.float64), 4e-6)


def test_queries_that_see_nothing_have_no_gradient(device: str) -> None:
    case = Case.random(1, 40, (1, 1), 32, start_of("padded", 40), device)
    out, lse, grad_q, *_ = case.run("triton", torch.float32)
    blind = torch.tensor([0, 1, 35, 36, 37, 38, 39], device=device)
    assert not out[:, blind].any()
    assert lse[:, :, blind].isneginf().all()
    assert not grad_q[:, blind].any()
    # The gradient that arrives for an lse of -inf is often NaN: exp(lse - other_lse) and the like.
    tensors = [x.detach().float().requires_grad_() for x in (case.q, case.k, case.v)]
    out, lse = attention(*tensors, kv_start=case.kv_start, return_lse=True, implementation="triton")
    upstream = torch.where(lse.isneginf(), math.nan, 1.0)
    grads = torch.autograd.grad((out, lse), tensors, (torch.ones_like(out), upstream))
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0][:, blind].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_error_is_at_most_twice_that_of_torchs_function(
    dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in `dtype`, compared with float64 on the same, rounded inputs."""
    monkeypatch.setattr(configs, "INTERPRETED", Launch(32, 32, 4, 1))
    T = 64 if device == "cpu" else 1024
    case = Case.random(1, T, (2, 2), 64, None, device)
    case.q, case.k, case.v = (x.to(dtype).double() for x in (case.q, case.k, case.v))
    results = {}
    kinds = (
        ("ours", dtype, "triton"),
        ("torch", dtype, "sdpa"),
        ("exact", torch.float64, "reference"),
    )
    for name, kind, implementation in kinds:
        tensors = [x.to(kind).requires_grad_() for x in (case.q, case.k, case.v)]
        out = attention(*tensors, implementation=implementation)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(
            device, dtype
        )
        results[name] = [out, *torch.autograd.grad(out, tensors, weight.to(kind))]
    for ours, torchs, exact in zip(
        results["ours"], results["torch"], results["exact"], strict=True
    ):
        error, allowed = ((x.double() - exact).square().mean().sqrt() for x in (ours, torchs))
        assert error <= 2 * allowed + 1e-7, (dtype, float(error), float(allowed))


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_huge_logits(scale: float, device: str) -> None:
    """Weights of nearly one key, sums far from overflow: no NaN, and the error of float32's own
    scores."""
    case = Case.random(1, 40, (1, 1), 32, start_of("packed", 40), device)
    tensors = [x.float() for x in (case.q, case.k, case.v)]
    exact = attention(
        *(x.double() for x in tensors),
        kv_start=case.kv_start,
        scale=scale,
        implementation="reference",
    )
    errors = [
        (
            attention(*tensors, kv_start=case.kv_start, scale=scale, implementation=name).double()
            - exact
        )
        .abs()
        .max()
        for name in ("triton", "sdpa")
    ]
    assert errors[0] <= 4 * errors[1] + 1e-5, errors


def test_gradients_are_those_of_the_function() -> None:
    """gradcheck in float64, which the kernels support in the interpreter: also of lse, grouped
    heads, packed rows."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 17, h, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for h in (2, 1, 1)
    )
    kv_start = start_of("retrieved", 17)
    assert kv_start is not None

    def both(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return attention(
            *tensors, kv_start=kv_start[None], return_lse=True, implementation="triton"
        )

    assert torch.autograd.gradcheck(both, (q, k, v), fast_mode=True, check_undefined_grad=False)


@settings(
    max_examples=6,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_any_starts_any_tiles_any_strides(data: st.DataObject) -> None:
    """kv_start need not increase, and may be outside the row; tensors may be slices of larger
    ones."""
    T, D = (
        data.draw(st.integers(1, 40), label="T"),
        data.draw(st.sampled_from([8, 24, 32, 40]), label="D"),
    )
    heads = data.draw(st.sampled_from([(1, 1), (2, 1)]), label="heads")
    tile = data.draw(st.sampled_from([(16, 16), (16, 32), (32, 16)]), label="tile")
    starts = data.draw(st.lists(st.integers(-40, T + 1), min_size=T, max_size=T), label="kv_start")
    case = Case.random(1, T, heads, D, torch.tensor(starts, dtype=torch.int32), "cpu")
    wide = torch.full((1, heads[0], T + 2, D + 3), math.nan, dtype=torch.float64).transpose(1, 2)[
        :, 1:-1, :, 2:-1
    ]
    case.q = wide.copy_(case.q)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "INTERPRETED", Launch(*tile, 4, 1))
        assert_equal(case.run("triton", torch.float32), case.run("reference", torch.float64), 4e-6)


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


def samples(device: str) -> tuple[Any, ...]:
    case = Case.random(1, 20, (2, 1), 16, start_of("packed", 20), device)
    plan = AttentionPlan(20, 20, case.kv_start)
    q, k, v = (x.float().requires_grad_() for x in (case.q, case.k, case.v))
    shape = configs.launch("grad_keys", q)
    return (
        q,
        k,
        v,
        plan.narrow_start(),
        None,
        *(plan.query_tiles(shape.block_q, shape.block_k) or ()),
        0.25,
    )


def test_opcheck(device: str) -> None:
    """Schema, fake tensors, autograd registration, compilation with dynamic shapes."""
    arguments = samples(device)
    torch.library.opcheck(torch.ops.cm3.attention.default, arguments)
    out, lse = torch.ops.cm3.attention(*arguments)
    q, k, v, start, _, tiles, counts, scale = (
        x.detach() if isinstance(x, Tensor) else x for x in arguments
    )
    torch.library.opcheck(
        torch.ops.cm3.attention_backward.default,
        (
            torch.randn_like(out),
            torch.randn_like(lse),
            q,
            k,
            v,
            out.detach(),
            lse.detach(),
            start,
            tiles,
            counts,
            scale,
        ),
    )


def test_compiles_as_one_graph(device: str) -> None:
    case = Case.random(1, 20, (2, 1), 16, start_of("packed", 20), device)

    def loss(q: Tensor, k: Tensor, v: Tensor, kv_start: Tensor) -> Tensor:
        return attention(q * 2, k, v, kv_start=kv_start, implementation="triton").square().sum()

    compiled = torch.compile(
        loss, fullgraph=True, backend="aot_eager" if device == "cpu" else "inductor"
    )
    q, k, v = tensors = [x.float().requires_grad_() for x in (case.q, case.k, case.v)]
    assert case.kv_start is not None
    expected = torch.autograd.grad(loss(q, k, v, case.kv_start), tensors)
    for ours, eager in zip(
        torch.autograd.grad(compiled(*tensors, case.kv_start), tensors), expected, strict=True
    ):
        torch.testing.assert_close(ours, eager)


def test_no_rows_and_no_tokens(device: str) -> None:
    for shape in ((0, 3, 2, 8), (2, 0, 2, 8)):
        q = torch.zeros(shape, device=device, requires_grad=True)
        kv_start = torch.zeros(shape[:2], dtype=torch.int32, device=device)
        attention(q, q, q, kv_start=kv_start, implementation="triton").sum().backward()
        assert q.grad is not None


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


def refused(**changes: Any) -> str:
    arguments = {
        "q": torch.zeros(1, 2, 1, 8),
        "k": torch.zeros(1, 2, 1, 8),
        "v": torch.zeros(1, 2, 1, 8),
        **changes,
    }
    with pytest.raises((ValueError, RuntimeError)) as caught:
        attention(**arguments, implementation="triton")
    return str(caught.value)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    far = torch.empty(2**24 + 8, dtype=torch.float32, device="cpu").as_strided(
        (1, 2, 1, 8), (2**24, 2**24, 8, 1)
    )
    assert refused(q=far) == (
        "attention: q's tokens are 16777216 elements apart, must be under 16777216; next: "
        "q.contiguous()"
    )
    wide = torch.zeros(1, 2, 1, 160)
    assert refused(q=wide, k=wide, v=wide) == (
        "attention: implementation 'triton' can't run here: the head dimension is 160, the "
        "kernels support up to 128; "
        "next: implementation='sdpa'"
    )
    many = torch.zeros(1).expand(2**16, 1, 1, 1)
    assert refused(q=many, k=many, v=many) == (
        "attention: q is [65536, 1, 1, 1], must have at most 65535 rows and heads, and fewer "
        "than 536870912 tokens"
    )
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert refused().startswith(
        "attention: implementation 'triton' can't run here: the tensor is on the CPU; next: "
    )


def test_no_gradient_through_a_cache() -> None:
    q = torch.zeros(1, 2, 1, 8, requires_grad=True)
    out = attention(q, q, q, offset=torch.tensor([0]), implementation="triton")
    with pytest.raises(RuntimeError) as caught:
        out.sum().backward()
    assert str(caught.value) == (
        "attention: the Triton kernels have no backward with an offset (cached decoding)\n"
        "  next: call them under torch.no_grad(), or use implementation='sdpa'"
    )


def test_every_configuration_is_compiled_ahead_of_time() -> None:
    """Everything that `launch` can return for the shipped head dimensions is in the budget, on the
    capability that gets it, with and without packed rows, and with grouped heads where they are a
    loop."""
    checked = {
        (
            entry.name.split(".")[1],
            entry.name.split(".")[2],
            entry.constexprs["HEAD_DIM"],
            arch,
            entry.constexprs["HAS_START"],
            entry.constexprs["GROUP"],
            Launch(
                entry.constexprs["BLOCK_Q"],
                entry.constexprs["BLOCK_K"],
                entry.num_warps,
                entry.num_stages,
            ),
        )  # type: ignore[arg-type]  # constexprs are objects to the types, and int here
        for entry in triton_ops.aot_entries()
        if "BLOCK_K" in entry.constexprs
        for arch in entry.archs
    }
    for dtype, num_bytes in (("bf16", 2), ("fp32", 4)):
        for name in ("forward", "decode", "grad_keys", "grad_queries"):
            for D in (32, 64, 96, 128):
                for arch in (80, 90):
                    shape = configs.table(name, num_bytes, configs.block_d(D), capability=arch)
                    for packed in (True, False):
                        for group in (1, 8) if name == "grad_keys" else (1,):
                            assert (name, dtype, D, arch, packed, group, shape) in checked
