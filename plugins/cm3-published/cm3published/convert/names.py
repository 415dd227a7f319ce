"""Chameleon's tensors: names, their split over Meta's files, and the two orders of rotation.

Meta rotates adjacent dimensions of a head, transformers dimension d with d + D/2: rows of the projections to
queries and keys are permuted, and so are weights and biases of their norms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3published.convert.facts import Facts


@dataclass(frozen=True)
class Lazy:
    """A tensor read on demand: its shape, its dtype, and a function that reads it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Part:
    """A tensor of the decoder with both names.

    Args:
        hugging_face, meta: its names; "" if Meta has no such model.
        shape: complete shape.
        split: dimension along which Meta splits it over files. None: each file has all of it.
        heads: number of heads whose rows are permuted. None: not permuted.
        is_head_norm: a norm of queries or keys: [heads, D] in one format, [D] in each file of the other.
    """

    hugging_face: str
    meta: str
    shape: tuple[int, ...]
    split: int | None = None
    heads: int | None = None
    is_head_norm: bool = False


def parts(facts: Facts) -> list[Part]:
    """Return all tensors of the decoder, in the order of Meta's files."""
    E, F, V, D = facts.d_model, facts.d_ff, facts.vocab_size, facts.head_dim
    H, K = facts.num_heads, facts.num_key_heads
    found = [Part("model.embed_tokens.weight", "tok_embeddings.weight", (V, E), split=1)]
    for layer in range(facts.num_layers):
        ours, theirs = f"model.layers.{layer}.", f"layers.{layer}."
        attention, mlp = f"{ours}self_attn.", f"{ours}mlp."
        found += [
            Part(f"{attention}q_proj.weight", f"{theirs}attention.wq.weight", (H * D, E), 0, H),
            Part(f"{attention}k_proj.weight", f"{theirs}attention.wk.weight", (K * D, E), 0, K),
            Part(f"{attention}v_proj.weight", f"{theirs}attention.wv.weight", (K * D, E), 0),
            Part(f"{attention}o_proj.weight", f"{theirs}attention.wo.weight", (E, H * D), 1),
        ]
        for letter, heads in (("q", H), ("k", K)) if facts.has_norms else ():
            found += [
                Part(
                    f"{attention}{letter}_norm.{kind}",
                    f"{theirs}attention.{letter}_normalization.{kind}",
                    (heads, D),
                    heads=heads,
                    is_head_norm=True,
                )
                for kind in ("weight", "bias")
            ]
        if facts.rms_norms:
            found += [
                Part(f"{attention}{letter}_norm.weight", "", (1, D), is_head_norm=True)
                for letter in "qk"
            ]
        found += [
            Part(f"{mlp}gate_proj.weight", f"{theirs}feed_forward.w1.weight", (F, E), 0),
            Part(f"{mlp}down_proj.weight", f"{theirs}feed_forward.w2.weight", (E, F), 1),
            Part(f"{mlp}up_proj.weight", f"{theirs}feed_forward.w3.weight", (F, E), 0),
            Part(f"{ours}input_layernorm.weight", f"{theirs}attention_norm.weight", (E,)),
            Part(f"{ours}post_attention_layernorm.weight", f"{theirs}ffn_norm.weight", (E,)),
        ]
    found.append(Part("model.norm.weight", "norm.weight", (E,)))
    found.append(Part("lm_head.weight", "output.weight", (V, E), split=0))
    return found


def halves(rows: Tensor, heads: int) -> Tensor:
    """Permute rows [heads * D, ...] from Meta's order (adjacent pairs) to halves.

    >>> halves(torch.tensor([0, 1, 2, 3]), 1).tolist()
    [0, 2, 1, 3]
    """
    turned: Tensor = rows.unflatten(0, (heads, -1, 2)).transpose(1, 2)
    return turned.flatten(0, 2).contiguous()


def neighbours(rows: Tensor, heads: int) -> Tensor:
    """Inverse of `halves`.

    >>> neighbours(torch.tensor([0, 2, 1, 3]), 1).tolist()
    [0, 1, 2, 3]
    """
    turned: Tensor = rows.unflatten(0, (heads, 2, -1)).transpose(1, 2)
    return turned.flatten(0, 2).contiguous()


def merged(part: Part, shards: Sequence[Tensor]) -> Tensor:
    """Merge a tensor's parts in Meta's files into the complete tensor in transformers' order."""
    if part.is_head_norm:
        heads = part.shape[0]
        norms = torch.stack([halves(shard, 1) for shard in shards])
        return norms.repeat_interleave(heads // len(shards), dim=0)
    if part.split is None:
        return _mean(shards)
    whole = shards[0] if len(shards) == 1 else torch.cat(list(shards), dim=part.split)
    return whole if part.heads is None else halves(whole, part.heads)


def split(part: Part, whole: Tensor, num_shards: int) -> list[Tensor]:
    """Inverse of `merged`. Raises `ValueError` if heads in one file have different norms."""
    if part.is_head_norm:
        norms = whole.unflatten(0, (num_shards, -1))
        if not torch.equal(norms, norms[:, :1].expand_as(norms)):
            raise ValueError(f"heads differ in {part.hugging_face}")
        return [neighbours(norm, 1) for norm in norms[:, 0]]
    if part.split is None:
        return [whole] * num_shards
    whole = whole if part.heads is None else neighbours(whole, part.heads)
    return [one.contiguous() for one in whole.chunk(num_shards, dim=part.split)]


def fewest_norms(whole: Tensor, key_heads: int) -> int:
    """Return the smallest number of files over which norms [heads, D] can be split; 0 if impossible.

    >>> fewest_norms(torch.tensor([[1.0], [1.0], [2.0], [2.0]]), 2)
    2
    """
    for number in range(1, key_heads + 1):
        if key_heads % number == 0 and len(whole) % number == 0:
            norms = whole.unflatten(0, (number, -1))
            if torch.equal(norms, norms[:, :1].expand_as(norms)):
                return number
    return 0


def _mean(shards: Sequence[Tensor]) -> Tensor:
    """Return the mean of copies in all files; the copy itself if they agree."""
    if all(torch.equal(shard, shards[0]) for shard in shards[1:]):
        return shards[0]
    wide = torch.stack([shard.to(torch.float32) for shard in shards]).mean(0)
    return wide.to(shards[0].dtype)
