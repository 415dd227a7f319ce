"""Attention by torch's `scaled_dot_product_attention`.

Plain causal rows use `is_causal`, for which the kernels skip much of the upper triangle. On the CPU
packed rows are attended document by document, with one causal call each, where that is faster: no score
across documents is computed, forward or backward; short ones in bfloat16 use plain products
(`attend_documents`). Everything else (a cache, retrieved documents, a
GPU) uses a boolean mask. Legend: B rows, T queries, S keys, H query heads, K key heads, D head
dimension, X tokens of all rows (of all documents), L padded length of a group of documents, P rows (one head of a token)
of all groups, including padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3kernels.attention.plan import AttentionPlan

#: Longest document whose scores are computed as plain products in bfloat16 on a CPU: they take 1.2 MB per head. Of
#: longer ones torch's function is as fast.
LONGEST_PRODUCT = 1024
#: Queries of a document of more than twice as many are multiplied in blocks of about this many, each with the keys up to
#: its last: of 1,024 queries, nearly half the scores are skipped. Smaller products are slower.
BLOCK = 128
#: Cost of a call in addition to its scores, as a number of scores of one head with 64 dimensions: about
#: 0.2 ms.
CALL_COST = 12_000
#: Minimum expected speed-up for one call per document.
MARGIN = 1.2


def attention_sdpa(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    plan: AttentionPlan,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, None]:
    """See `cm3kernels.attention`."""
    assert not return_lse, "rejected by the dispatch"
    return _attend_plan(q_BTHD, k_BSKD, v_BSKD, plan, scale), None


def _attend_plan(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, plan: AttentionPlan, scale: float
) -> Tensor:
    B, T = q_BTHD.shape[:2]
    whole_rows = plan.plain and k_BSKD.shape[1] == T
    lengths = (T,) * B if whole_rows else plan.segments()
    if lengths is not None and can_multiply(q_BTHD, k_BSKD, lengths):
        q, k, v = (x.flatten(0, 1) for x in (q_BTHD, k_BSKD, v_BSKD))
        return attend_documents(q, k, v, lengths, scale).view(q_BTHD.shape)
    if plan.plain:
        return _attend(q_BTHD, k_BSKD, v_BSKD, None, scale)
    if lengths is not None and all(length == q_BTHD.shape[1] for length in lengths):
        return _attend(q_BTHD, k_BSKD, v_BSKD, None, scale)
    if lengths is None or not documents_are_faster(lengths, q_BTHD, torch.get_num_threads()):
        return _attend(q_BTHD, k_BSKD, v_BSKD, plan.mask(), scale)
    # Splitting is free, and its backward is one concatenation: each slice would fill a full-size gradient
    # with zeros.
    documents = zip(
        *(x.flatten(0, 1).split(lengths) for x in (q_BTHD, k_BSKD, v_BSKD)), strict=True
    )
    out_XHD = torch.cat(
        [_attend(q[None], k[None], v[None], None, scale)[0] for q, k, v in documents]
    )
    return out_XHD.view(q_BTHD.shape)


def documents_are_faster(lengths: tuple[int, ...], q_BTHD: Tensor, num_threads: int) -> bool:
    """Whether one call per document beats one call with a mask, forward and backward, on the CPU.

    The backward assigns whole heads of whole rows to threads: with two threads, three heads of a document
    take as long as four.
    """
    B, T, H, D = q_BTHD.shape
    together = -(-B * H // num_threads) * T**2 * D / 64
    one_by_one = sum(-(-H // num_threads) * length**2 * D / 64 + CALL_COST for length in lengths)
    return MARGIN * one_by_one <= together


def _attend(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask_B1TS: Tensor | None, scale: float
) -> Tensor:
    """Attend in one call; causal without a mask."""
    q_BHTD, k_BKSD, v_BKSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD))
    out_BHTD = F.scaled_dot_product_attention(
        q_BHTD,
        k_BKSD,
        v_BKSD,
        attn_mask=mask_B1TS,
        is_causal=mask_B1TS is None,
        scale=scale,
        enable_gqa=q_BHTD.shape[1] != k_BKSD.shape[1],
    )
    return out_BHTD.transpose(1, 2)


# Plain products, for bfloat16 on a CPU with instructions for it. torch's fused CPU function spends most of a short
# document's time outside its products, mainly backward. Here documents of similar lengths are padded to one batch, and
# long ones are divided into blocks of queries. As in a chain of torch functions in bfloat16, scores are rounded to
# bfloat16, and their softmax is computed in float32 and rounded; probabilities are kept for the backward, so only for
# short documents. `cm3 bench kernels --op attention` compares the two.

#: A group's documents have at least this fraction of its padded length.
_LEAST = 0.8
#: Padded lengths are multiples of this: narrower products are slower.
_MULTIPLE = 16


class Layout(NamedTuple):
    """Position of each row when documents are multiplied in groups.

    Args:
        groups: (number of matrices, L) of each group; its rows follow the previous group's.
        rows: the row at each place (for padding, a row of the same document), int64 [P].
        places: the place of each row, int64 [X * H].
        padding: places without a row, int64.
    """

    groups: tuple[tuple[int, int], ...]
    rows: Tensor
    places: Tensor
    padding: Tensor


def can_multiply(q_BTHD: Tensor, k_BSKD: Tensor, lengths: Sequence[int]) -> bool:
    """Whether `attend_documents` supports these documents and is faster."""
    return (
        q_BTHD.device.type == "cpu"
        and q_BTHD.dtype == torch.bfloat16
        and q_BTHD.shape[2] == k_BSKD.shape[2]
        and bool(lengths)
        and max(lengths) <= LONGEST_PRODUCT
        and not torch.compiler.is_compiling()
        and _multiplies_bf16()
    )


@lru_cache(maxsize=1)
def _multiplies_bf16() -> bool:
    """Whether oneDNN supports bfloat16 products here."""
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


@lru_cache(maxsize=8)  # shared by the layers of a pass
def layout_of(lengths: tuple[int, ...], num_heads: int) -> Layout:
    """Return the layout of consecutive documents, the longest first.

    >>> layout = layout_of((2, 20, 1), 1)
    >>> layout.groups, layout.places.tolist()[:3], layout.rows.tolist()[-32:-29]
    (((1, 32), (2, 16)), [32, 33, 0], [0, 1, 0])
    """
    all_lengths = torch.tensor(lengths)
    starts = all_lengths.cumsum(0) - all_lengths
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    sizes, rows, is_real = [], [], []
    head_H1 = torch.arange(num_heads)[:, None]
    while order:
        length = -(-lengths[order[0]] // _MULTIPLE) * _MULTIPLE
        number = 1
        while number < len(order) and lengths[order[number]] >= _LEAST * length - _MULTIPLE:
            number += 1
        own, order = order[:number], order[number:]
        position_L = torch.arange(length)
        real_NL = position_L < all_lengths[own][:, None]
        token_NL = starts[own][:, None] + torch.where(real_NL, position_L, 0)
        sizes.append((number * num_heads, length))
        rows.append((token_NL[:, None] * num_heads + head_H1).flatten())
        is_real.append(real_NL[:, None].expand(-1, num_heads, -1).flatten())
    rows_P, real_P = torch.cat(rows), torch.cat(is_real)
    places = torch.empty(sum(lengths) * num_heads, dtype=torch.int64)
    places[rows_P[real_P]] = real_P.nonzero().flatten()
    return Layout(tuple(sizes), rows_P, places, (~real_P).nonzero().flatten())


def attend_documents(
    q_XHD: Tensor, k_XHD: Tensor, v_XHD: Tensor, lengths: tuple[int, ...], scale: float
) -> Tensor:
    """Return causal attention of each document to itself, bfloat16 [X, H, D]; differentiable once.

    Args:
        q_XHD, k_XHD, v_XHD: bfloat16 on the CPU.
        lengths: lengths of the documents, in order; they sum to X.
        scale: scale of the scores.
    """
    out_XHD: Tensor = _Products.apply(q_XHD, k_XHD, v_XHD, lengths, scale)  # type: ignore[no-untyped-call]  # torch's annotations lack it
    return out_XHD


class _Products(torch.autograd.Function):
    """P = softmax(scale Q Kᵀ), out = P V, and their derivatives."""

    @staticmethod
    def forward(
        ctx: Any,
        q_XHD: Tensor,
        k_XHD: Tensor,
        v_XHD: Tensor,
        lengths: tuple[int, ...],
        scale: float,
    ) -> Tensor:
        layout = layout_of(lengths, q_XHD.shape[1])
        q, k, v = (_gathered(x, layout) for x in (q_XHD, k_XHD, v_XHD))
        out = torch.empty_like(q)
        kept = []
        with torch.autocast("cpu", enabled=False):
            for own_q, own_k, own_v, own_out in _groups(layout, q, k, v, out):
                for start, stop in blocks(own_q.shape[1]):
                    scores = _product(own_q[:, start:stop], own_k[:, :stop].mT, scale)
                    scores[:, :, start:].add_(_mask(stop - start))
                    kept.append(scores.softmax(-1))
                    own_out[:, start:stop] = torch.bmm(kept[-1], own_v[:, :stop])
        ctx.save_for_backward(q, k, v, *kept)
        ctx.layout, ctx.scale = layout, scale
        return out.index_select(0, layout.places).view_as(q_XHD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        grad = _gathered(grads[0].to(q.dtype), ctx.layout).index_fill_(0, ctx.layout.padding, 0)
        found = [torch.empty_like(q) for _ in range(3)]
        with torch.autocast("cpu", enabled=False):
            for parts in reversed(list(_groups(ctx.layout, q, k, v, grad, *found))):
                _backward_of_group(parts, kept, ctx.scale)
        shape = grads[0].shape
        given = [one.index_select(0, ctx.layout.places).view(shape) for one in found]
        return *given, None, None


def _backward_of_group(parts: list[Tensor], kept: list[Tensor], scale: float) -> None:
    """Write the gradients of a group's queries, keys and values, each [N, L, D], and take its probabilities from the
    end of `kept`. The last block is the first, since it sees all keys."""
    own_q, own_k, own_v, own_grad, grad_q, grad_k, grad_v = parts
    length = own_q.shape[1]
    for start, stop in reversed(blocks(length)):
        q, grad, p = own_q[:, start:stop], own_grad[:, start:stop], kept.pop()
        grad_p = torch.bmm(grad, own_v[:, :stop].mT)
        grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
        grad_q[:, start:stop] = _product(grad_scores, own_k[:, :stop], scale)
        for whole, part in (
            (grad_k, _product(grad_scores.mT, q, scale)),
            (grad_v, torch.bmm(p.mT, grad)),
        ):
            if stop == length:
                whole.copy_(part)
            else:
                whole[:, :stop] += part


def blocks(length: int) -> list[tuple[int, int]]:
    """First query of each block, and the first after it.

    >>> blocks(256), blocks(400)
    ([(0, 256)], [(0, 112), (112, 224), (224, 336), (336, 400)])
    """
    number = 1 if length <= 2 * BLOCK else -(-length // BLOCK)
    size = -(-length // (number * _MULTIPLE)) * _MULTIPLE
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * a @ b, with the factor applied inside the product."""
    unread = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    return torch.baddbmm(unread, a, b, beta=0, alpha=scale)


@lru_cache(maxsize=64)
def _mask(length: int) -> Tensor:
    """Return 0 where a query sees a key, otherwise -inf, bfloat16 [L, L]."""
    return torch.full((length, length), float("-inf"), dtype=torch.bfloat16).triu_(1)


def _gathered(x_XHD: Tensor, layout: Layout) -> Tensor:
    """Return the rows in the order of the layout, [P, D]."""
    return x_XHD.reshape(-1, x_XHD.shape[-1]).index_select(0, layout.rows)


def _groups(layout: Layout, *arrays_PD: Tensor) -> Iterator[list[Tensor]]:
    """Yield each group's part of the arrays, as matrices [N * H, L, D]."""
    start = 0
    for number, length in layout.groups:
        stop = start + number * length
        yield [x[start:stop].view(number, length, -1) for x in arrays_PD]
        start = stop
