"""The op `attention` without its kernels: the definition, the plan, torch's function, and what is
refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import cm3plugins.attention
from cm3kernels.attention import AttentionPlan, attention, sdpa
from cm3kernels.attention.plan import FAR, query_tiles, segments, visible_mask
from cm3kernels.attention.sdpa import LONGEST_PRODUCT


def packed(*lengths: int) -> Tensor:
    """kv_start [T] of documents of these lengths."""
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
    return starts.repeat_interleave(torch.tensor(lengths))


def test_worked_example() -> None:
    """Two keys with scores 0 and log 3 have weights 1/4 and 3/4, and lse log 4; kv_start 1 leaves
    only the second, 2 leaves nothing."""
    q = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)
    k = torch.tensor([0.0, math.log(3), 5.0]).view(1, 3, 1, 1)
    v = torch.tensor([8.0, 4.0, 2.0]).view(1, 3, 1, 1)
    out, lse = attention(
        q,
        k,
        v,
        kv_start=torch.tensor([[0, 0, 3]]),
        scale=1.0,
        return_lse=True,
        implementation="reference",
    )
    torch.testing.assert_close(out.flatten(), torch.tensor([8.0, 8 / 4 + 4 * 3 / 4, 0.0]))
    torch.testing.assert_close(lse.flatten(), torch.tensor([0.0, math.log(4), -math.inf]))
    out, lse = attention(
        q,
        k,
        v,
        kv_start=torch.tensor([[0, 1, 2]]),
        scale=1.0,
        return_lse=True,
        implementation="reference",
    )
    torch.testing.assert_close(out.flatten(), v.flatten())
    torch.testing.assert_close(lse.flatten(), torch.tensor([0.0, math.log(3), 5.0]))


def test_lse_differentiates_to_the_weights() -> None:
    q, k, v = (torch.randn(1, 5, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def both(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return attention(
            *tensors, kv_start=packed(2, 3)[None], return_lse=True, implementation="reference"
        )

    assert torch.autograd.gradcheck(both, (q, k, v))


@given(st.data())
def test_segments_are_found_if_and_only_if_rows_are_packed(data: st.DataObject) -> None:
    lengths = data.draw(
        st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3)
    )
    T = max(map(sum, lengths))
    rows = [[*row, T - sum(row)] if sum(row) < T else row for row in lengths]
    starts = torch.stack([packed(*row) for row in rows])
    assert segments(starts) == tuple(length for row in rows for length in row)
    assert segments(starts.int()) == segments(starts)
    at = data.draw(st.tuples(st.integers(0, len(rows) - 1), st.integers(0, T - 1)))
    # A document of one token may join the one before.
    still_packed = {int(starts[at]), at[1], int(starts[at[0], max(at[1] - 1, 0)])}
    other = data.draw(st.integers(-1, T).filter(lambda start: max(start, 0) not in still_packed))
    starts[at] = other
    assert segments(starts) is None


@given(st.data())
def test_tiles_of_queries_are_exactly_the_visible_ones(data: st.DataObject) -> None:
    """Arbitrary starts: first the tiles that see all of a tile of keys, then those that see some of
    it; no other is counted."""
    T = data.draw(st.integers(1, 40))
    block_q, block_k = data.draw(st.sampled_from([(4, 4), (4, 8), (8, 8), (8, 4)]))
    start = torch.tensor(
        data.draw(st.lists(st.integers(-2, T + 2), min_size=T, max_size=T)), dtype=torch.int32
    )[None]
    tiles, counts = query_tiles(start, block_q, block_k)
    seen = F.pad(visible_mask(T, T, start, None)[0, 0], (0, -T % block_k, 0, -T % block_q))
    seen = seen.view(-1, block_q, seen.shape[1] // block_k, block_k).transpose(1, 2)
    for n in range(seen.shape[1]):
        num_whole, num_some = counts[0, n].tolist()
        order = tiles[0, n].tolist()
        assert sorted(order) == list(range(seen.shape[0]))
        assert order[:num_whole] == [m for m in range(seen.shape[0]) if seen[m, n].all()]
        partial = [m for m in range(seen.shape[0]) if seen[m, n].any() and not seen[m, n].all()]
        if block_k >= block_q:
            assert order[num_whole:num_some] == partial
        else:
            assert (
                set(partial) <= set(order[num_whole:num_some]) <= {*partial, n * block_k // block_q}
            )


def test_a_plan_is_made_once() -> None:
    plan = AttentionPlan(40, 40, packed(20, 20)[None], None)
    assert plan.mask() is plan.mask()
    assert plan.query_tiles(8, 8) is plan.query_tiles(8, 8)
    assert plan.narrow_start() is plan.narrow_start()
    narrow = AttentionPlan(2, 2, torch.tensor([[-(2**40), 2**40]])).narrow_start()
    assert narrow is not None
    assert narrow.tolist() == [[-FAR, FAR]]


@pytest.mark.slow
def test_a_shared_plan_compiles_as_one_graph() -> None:
    """As a decoder uses it: the plan is made inside the compiled function, and nothing is read on
    the host."""

    def layers(x: Tensor, kv_start: Tensor) -> Tensor:
        plan = AttentionPlan(x.shape[1], x.shape[1], kv_start)
        for _ in range(2):
            x = attention(x, x, x, kv_start=kv_start, implementation="sdpa", plan=plan)
        return x

    x, kv_start = torch.randn(1, 40, 2, 8), packed(20, 20)[None]
    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, kv_start), layers(x, kv_start))


LAYOUTS: dict[str, Callable[[], Tensor | None]] = {
    "plain": lambda: None,
    "whole rows": lambda: torch.zeros(2, 64, dtype=torch.int64),
    "packed": lambda: torch.stack([packed(64), packed(20, 44)]),
    "short documents": lambda: torch.stack([packed(*[4] * 16), packed(30, 34)]),
    "before the row": lambda: torch.stack([packed(40, 24), torch.full((64,), -3)]),
    "retrieved": lambda: torch.cat([packed(20, 20), torch.zeros(24, dtype=torch.int64)])[
        None
    ].repeat(2, 1),
    "padding sees nothing": lambda: torch.cat([packed(40), torch.full((24,), 64)])[None].repeat(
        2, 1
    ),
}


@pytest.fixture
def free_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the sizes of a test, no number of calls would pay off."""
    monkeypatch.setattr(sdpa, "CALL_COST", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.usefixtures("free_calls")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_key_heads", [4, 2])
def test_sdpa_is_the_reference(layout: str, num_key_heads: int) -> None:
    kv_start = LAYOUTS[layout]()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 64, heads, 16, generator=generator)
        for heads in (4, num_key_heads, num_key_heads)
    )
    weight = torch.randn(q.shape, generator=generator)
    answers = []
    for implementation, dtype in (("sdpa", torch.float32), ("reference", torch.float64)):
        tensors = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out = attention(*tensors, kv_start=kv_start, implementation=implementation)
        answers.append([out, *torch.autograd.grad((out * weight).sum(), tensors)])
    for ours, expected in zip(*answers, strict=True):
        torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("free_calls")
def test_sdpa_calls_once_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows on the CPU: one causal call a document, no mask; everything else: one call with a
    mask."""
    calls: list[tuple[list[int], bool]] = []
    fused = F.scaled_dot_product_attention

    def counted(
        q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None, **options: Any
    ) -> Tensor:
        calls.append((list(q.shape[:1]) + list(q.shape[2:3]), attn_mask is not None))
        return fused(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    q = torch.randn(2, 64, 1, 64)
    for layout in LAYOUTS.values():
        attention(q, q, q, kv_start=layout(), implementation="sdpa")
    documents = [([1, length], False) for length in (64, 20, 44, *[4] * 16, 30, 34, 40, 24, 64)]
    assert calls == [([2, 64], False), ([2, 64], False), *documents, *[([2, 64], True)] * 2]


def test_when_documents_are_faster() -> None:
    """As measured at the quickstart's shape (README.md): with two threads and three heads it takes
    more documents to pay off."""
    q = torch.empty(2, 576, 3, 64, device="meta")
    documents = {
        "1 and 2": (576, 300, 276),
        "2 and 2": (288, 288, 200, 376),
        "8 and 8": (72,) * 16,
        "one token": (1,) * 1152,
    }
    faster = {
        n: [name for name, lengths in documents.items() if sdpa.documents_are_faster(lengths, q, n)]
        for n in (1, 2)
    }
    assert faster == {1: ["1 and 2", "2 and 2", "8 and 8"], 2: ["2 and 2", "8 and 8"]}


multiplies_bf16 = pytest.mark.skipif(
    not sdpa._multiplies_bf16(), reason="oneDNN multiplies no bfloat16 on this CPU"
)


@multiplies_bf16
@pytest.mark.parametrize(
    "layout", ["plain", "whole rows", "packed", "short documents", "before the row"]
)
def test_products_in_bfloat16_are_the_reference(layout: str) -> None:
    """As near to float64 as torch's function is, forward and backward."""
    kv_start = LAYOUTS[layout]()
    generator = torch.Generator().manual_seed(0)
    q, k, v, weight = (torch.randn(2, 64, 3, 16, generator=generator).bfloat16() for _ in range(4))
    answers = {}
    for name, implementation, dtype in (
        ("products", "sdpa", torch.bfloat16),
        ("fused", "sdpa", torch.bfloat16),
        ("exact", "reference", torch.float64),
    ):
        tensors = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        with pytest.MonkeyPatch.context() as patch:
            if name == "fused":
                patch.setattr(sdpa, "can_multiply", lambda *_: False)
            out = attention(*tensors, kv_start=kv_start, implementation=implementation)
        answers[name] = [out, *torch.autograd.grad((out * weight.to(dtype)).sum(), tensors)]
        uses_products = "_Products" in type(out.grad_fn).__name__ or any(
            "_Products" in type(one[0]).__name__ for one in out.grad_fn.next_functions if one[0]
        )
        assert uses_products == (name == "products")
    for ours, fused, exact in zip(*answers.values(), strict=True):
        errors = [float((one.detach().double() - exact.detach()).norm()) for one in (ours, fused)]
        assert errors[0] < max(2 * errors[1], 5e-3 * float(exact.detach().norm()))


@multiplies_bf16
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.integers(1, 4),
    st.sampled_from([1, 16, sdpa.BLOCK]),
)
def test_products_of_any_documents(lengths: list[int], num_heads: int, block: int) -> None:
    """Each document gets what it gets alone, in blocks or not; nothing leaks from padding."""
    generator = torch.Generator().manual_seed(1)
    q, k, v, grad = (
        torch.randn(sum(lengths), num_heads, 8, generator=generator).bfloat16() for _ in range(4)
    )
    given = [x.requires_grad_() for x in (q, k, v)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdpa, "BLOCK", block)
        out = sdpa.attend_documents(*given, tuple(lengths), 0.3)
        found = [out, *torch.autograd.grad(out, given, grad)]
    start = 0
    for length in lengths:
        own = [x[None, start : start + length].detach().double().requires_grad_() for x in given]
        exact = attention(*own, scale=0.3, implementation="reference")
        grads = torch.autograd.grad(exact, own, grad[None, start : start + length].double())
        for ours, right in zip(found, (exact, *grads), strict=True):
            error = (ours[start : start + length].detach().double() - right[0].detach()).abs().max()
            assert float(error) <= 0.06
        start += length


def test_a_layout_by_hand() -> None:
    """Documents of 2, 20 and 1 tokens, two heads: the longest alone, the others together."""
    layout = sdpa.layout_of((2, 20, 1), 2)
    assert layout.groups == ((2, 32), (4, 16))
    # the row of token 0, head 1 is in the second group, behind the 16 places of its head 0
    assert layout.places[1] == 2 * 32 + 16
    assert layout.rows[layout.places].tolist() == list(range(23 * 2))
    assert len(layout.padding) == len(layout.rows) - 23 * 2
    assert set(layout.padding.tolist()).isdisjoint(layout.places.tolist())


def test_what_is_not_multiplied_out() -> None:
    q = torch.empty(2, 8, 4, 16, dtype=torch.bfloat16)
    assert sdpa.can_multiply(q, q, (16,)) == sdpa._multiplies_bf16()
    assert not sdpa.can_multiply(q.float(), q.float(), (16,))
    assert not sdpa.can_multiply(q, q[:, :, :2], (16,)), "shared key heads"
    assert not sdpa.can_multiply(q, q, (LONGEST_PRODUCT + 1,))
    assert not sdpa.can_multiply(q, q, ())
    assert cm3plugins.attention.LONGEST_PRODUCT == LONGEST_PRODUCT
    assert cm3plugins.attention.BLOCK == sdpa.BLOCK


@given(st.integers(1, 2 * LONGEST_PRODUCT))
def test_blocks_cover_all_queries(length: int) -> None:
    found = sdpa.blocks(length)
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == length
    assert len(found) == 1 or max(stop - start for start, stop in found) <= sdpa.BLOCK


def test_auto_on_the_cpu_is_torchs_function_and_the_reference_for_lse() -> None:
    q = torch.randn(1, 3, 1, 4)
    torch.testing.assert_close(
        attention(q, q, q), attention(q, q, q, implementation="sdpa"), atol=0, rtol=0
    )
    out, lse = attention(q, q, q, return_lse=True)
    expected = attention(q, q, q, return_lse=True, implementation="reference")
    torch.testing.assert_close((out, lse), expected, atol=0, rtol=0)


def test_autocast_decides_the_dtype() -> None:
    """As torch's function: mixed inputs are cast. The reference stays float32 inside."""
    q, k = torch.randn(1, 5, 2, 8), torch.randn(1, 5, 2, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for implementation in ("sdpa", "reference"):
            assert attention(q, k, k, implementation=implementation).dtype == torch.bfloat16
        inside = attention(q, k, k, implementation="reference")
    assert torch.equal(inside, attention(q.bfloat16(), k, k, implementation="reference"))


@pytest.mark.parametrize("implementation", ["sdpa", "reference"])
def test_no_rows_and_no_tokens(implementation: str) -> None:
    for shape in ((0, 3, 2, 4), (2, 0, 2, 4)):
        q, kv_start = torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.int64)
        assert attention(q, q, q, kv_start=kv_start, implementation=implementation).shape == shape


ZERO = torch.zeros(1, 2, 4, 8)
REFUSALS: dict[str, dict[str, Any]] = {
    "attention: q, k and v are [rows, tokens, heads, head dimension]": {"q": ZERO[0]},
    "attention: q, k and v share one floating dtype, got torch.float32, torch.float16, "
    "torch.float32": {"k": ZERO.half()},
    "attention: k is [1, 2, 4, 8], v is [1, 2, 4, 4]": {"v": ZERO[..., :4]},
    "attention: q [2, 2, 4, 8] and k [1, 2, 4, 8] differ in rows or head dimension, or have none": {
        "q": ZERO.repeat(2, 1, 1, 1)
    },
    "attention: 3 query heads on 4 key heads": {"q": ZERO[:, :, :3]},
    "attention: 1 queries on 2 keys need an offset": {"q": ZERO[:, :1]},
    "attention: scale is 0.0, must be positive and finite": {"scale": 0.0},
    "attention: scale is nan, must be positive and finite": {"scale": math.nan},
    "attention: v's last stride is 2, must be 1; next: v.contiguous()": {
        "v": torch.zeros(1, 2, 4, 16)[..., ::2]
    },
    "attention: kv_start is [1, 2] torch.float32, must be int32 or int64 [1, 2]": {
        "kv_start": torch.zeros(1, 2)
    },
    "attention: offset is [2] torch.int64, must be int32 or int64 [1]": {
        "offset": torch.zeros(2, dtype=torch.int64)
    },
    "attention: kv_start is on meta, q on cpu": {
        "kv_start": torch.zeros(1, 2, dtype=torch.int64, device="meta")
    },
    "attention: plan was made for other lengths, or for other tensors kv_start and offset": {
        "plan": AttentionPlan(2, 3)
    },
    "attention: implementation 'sdpa' can't run here: torch's function returns no lse; next: "
    "implementation='reference', or "
    "'triton' on a CUDA device": {"implementation": "sdpa", "return_lse": True},
    "attention: implementation 'magic' is not available\n"
    "  next: use 'auto' or one of: triton, sdpa, reference": {"implementation": "magic"},
}


@pytest.mark.parametrize("message", REFUSALS, ids=lambda message: message[11:40])
def test_refusals(message: str) -> None:
    with pytest.raises(ValueError) as caught:
        attention(**{"q": ZERO, "k": ZERO, "v": ZERO, **REFUSALS[message]})
    assert str(caught.value) == message
