"""The Llama-style decoder: rotary positions, its block, the training decoder and the generation decoder.

x + attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x)) (Touvron et al. 2023, arXiv:2302.13971), with
rotary positions (Su et al. 2021, arXiv:2104.09864) in the sequence or in a picture's grid (LlamaGen,
arXiv:2406.06525), grouped-query attention (Ainslie et al. 2023,
arXiv:2305.13245) and, optionally, normalised queries and keys and Swin v2's norms at the end
of each branch (Chameleon, arXiv:2405.09818, section 2.3). Written from those papers; equal to
Chameleon and Llama in transformers, as the tests check.

Dimension d of a head is rotated with d + D/2, as in transformers. Meta's files rotate d with d + 1;
they are permuted on conversion.

Image codes can be separate from the token table, as in Janus (Wu et al. 2024, arXiv:2410.13848): two layers project a
code's vector, which has the image tokenizer's few dimensions, to the decoder's width, and two others predict codes from
its states. Written from the paper; equal to `JanusVQVAEAlignerMLP` and `JanusVQVAEHead` of transformers
(Apache-2.0), as the tests check.

Legend: B rows, T tokens, M = B * T rows of a product (padded), H query heads, K key heads, D head dimension, E model
dimension, F feed-forward dimension, G norms. In rotary positions: P positions, C cells. For separate image codes: C
codes, P dimensions of a code's vector, W width between the head's layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cm3core.interfaces.attention import AttentionBackend
from cm3core.vocab import Vocabulary
from cm3kernels import HeadNorms, Turn, add_norm, linear_cross_entropy, silu_gate
from cm3plugins.decoders.cache import CM3LeonCache, Heads, Reading
from cm3plugins.decoders.llama.settings import LlamaSettings
from cm3plugins.decoders.packed import PackedInference, TrainedParts
from cm3plugins.decoders.products import Product, faster_precisions
from cm3plugins.decoders.transformer import (
    FIRST_MIX,
    AxisEmbeddings,
    Context,
    TransformerDecoder,
    codebook_rows,
    merged_weight,
    projections,
    shifted_projections,
)


class Rotary(ABC):
    """Cosines and sines of the rotation angles of queries and keys; float32, computed once per device."""

    def __init__(self, head_dim: int, theta: float) -> None:
        self.head_dim, self.theta = head_dim, theta
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def of_tokens(self, positions_BT: Tensor, cells_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [B, T, 1, D] of tokens.

        Args:
            positions_BT: int64 positions in the sequence.
            cells_BT: int64; raster index of an image code in its picture, -1 elsewhere. None: all
                -1.
        """

    @abstractmethod
    def table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """All cosines and sines [number, D]."""

    def rows(self, indices_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [B, T, 1, D] of the tables."""
        device = indices_BT.device
        if device not in self._tables:
            self._tables[device] = self.table(device)
        cosines, sines = self._tables[device]
        return cosines[indices_BT][:, :, None], sines[indices_BT][:, :, None]

    def angles(self, count: int, size: int, device: torch.device) -> Tensor:
        """Angles [count, size / 2] of the positions 0..count-1 in `size` dimensions."""
        even = torch.arange(0, size, 2, dtype=torch.float32, device=device)
        frequency = 1.0 / (self.theta ** (even / size))
        return torch.arange(count, device=device).float()[:, None] * frequency


class SequenceRotary(Rotary):
    """Rotation by the position in the sequence."""

    def __init__(self, num_positions: int, head_dim: int, theta: float) -> None:
        super().__init__(head_dim, theta)
        self.num_positions = num_positions

    def of_tokens(self, positions_BT: Tensor, cells_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.rows(positions_BT)

    def table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        angle_PD = self.angles(self.num_positions, self.head_dim, device).repeat(1, 2)
        return angle_PD.cos(), angle_PD.sin()


class GridRotary(Rotary):
    """Rotation by the grid: half of the angles by the row of an image code's cell, half by its column.

    For other tokens cosines and sines are zero, and so are their queries and keys: they attend to all
    other tokens equally, and are attended to equally. LlamaGen (arXiv:2406.06525; FoundationVision/LlamaGen,
    `autoregressive/models/gpt.py`) treats the tokens of its condition this way.
    """

    def __init__(self, grid: tuple[int, int], head_dim: int, theta: float) -> None:
        super().__init__(head_dim, theta)
        self.grid = grid

    def of_tokens(self, positions_BT: Tensor, cells_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        # the last row (index -1) is for tokens without a cell
        cells_BT = torch.full_like(positions_BT, -1) if cells_BT is None else cells_BT
        return self.rows(cells_BT)

    def table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        rows, columns = self.grid
        of_row, of_column = (self.angles(n, self.head_dim // 2, device) for n in self.grid)
        cell_C = torch.arange(rows * columns, device=device)
        angle_CD = torch.cat([of_row[cell_C // columns], of_column[cell_C % columns]], -1)
        angle_CD = angle_CD.repeat(1, 2)
        none_1D = angle_CD.new_zeros(1, self.head_dim)
        return torch.cat([angle_CD.cos(), none_1D]), torch.cat([angle_CD.sin(), none_1D])


def rotated(x_BTHD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate dimension d with d + D/2 by the angles of `Rotary.of_tokens`, in float32 or wider."""
    cosine, sine = turn
    wide = x_BTHD.to(torch.promote_types(x_BTHD.dtype, torch.float32))
    first, second = wide.chunk(2, dim=-1)
    return (wide * cosine + torch.cat([-second, first], dim=-1) * sine).to(x_BTHD.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), in float32 or wider, times a weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight.to(x.dtype)


class HeadNorm(nn.Module):
    """Normalisation of queries or keys [..., heads, D] over D; each of G norms has its own heads."""

    def __init__(self, num_heads: int, config: LlamaSettings) -> None:
        super().__init__()
        groups, size = config.norm_groups(num_heads), config.head_size
        self.repeats, self.eps = num_heads // groups, config.norm_eps
        self.weight = nn.Parameter(torch.ones(groups, size))
        self.bias = (
            nn.Parameter(torch.zeros(groups, size)) if config.qk_norm == "layer_norm" else None
        )

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.bias is None:
            wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
            return wide.to(x.dtype) * self.of_heads(self.weight).to(x.dtype)
        wide = F.layer_norm(wide, wide.shape[-1:], eps=self.eps)
        weight, bias = self.of_heads(self.weight), self.of_heads(self.bias)
        return wide.to(x.dtype) * weight.to(x.dtype) + bias.to(x.dtype)

    def of_heads(self, values_GD: Tensor) -> Tensor:
        """The values of each norm, for each of its heads."""
        return values_GD.repeat_interleave(self.repeats, dim=0)


@dataclass
class Turned(Context):
    """Inputs shared by all blocks of a forward pass, including the rotation of its tokens."""

    turn: tuple[Tensor, Tensor]


class Block(nn.Module):
    """Attention and SwiGLU, each normalised at its start or, with `swin_norm`, at its end."""

    def __init__(self, config: LlamaSettings) -> None:
        super().__init__()
        E, D, inner = config.d_model, config.head_size, config.inner
        H, K, bias = config.num_heads, config.key_heads, config.qkv_bias
        self.config = config
        self.q_proj = nn.Linear(E, H * D, bias=bias)
        self.k_proj = nn.Linear(E, K * D, bias=bias)
        self.v_proj = nn.Linear(E, K * D, bias=bias)
        self.o_proj = nn.Linear(H * D, E, bias=False)
        self.gate_proj = nn.Linear(E, inner, bias=False)
        self.up_proj = nn.Linear(E, inner, bias=False)
        self.down_proj = nn.Linear(inner, E, bias=False)
        self.attention_norm = RMSNorm(E, config.norm_eps)
        self.ffn_norm = RMSNorm(E, config.norm_eps)
        self.k_mix: nn.Parameter | None = None
        if config.token_shift:
            self.k_mix = nn.Parameter(torch.full((E,), FIRST_MIX))
        normed = config.qk_norm != "none"
        self.q_norm = HeadNorm(H, config) if normed else nn.Identity()
        self.k_norm = HeadNorm(K, config) if normed else nn.Identity()

    def forward(self, x_BTE: Tensor, context: Turned) -> Tensor:
        if self.config.swin_norm:
            x_BTE = x_BTE + self._drop(self.attention_norm(self.attention(x_BTE, context)))
            return x_BTE + self._drop(self.ffn_norm(self.feed_forward(x_BTE)))
        x_BTE = x_BTE + self._drop(self.attention(self.attention_norm(x_BTE), context))
        return x_BTE + self._drop(self.feed_forward(self.ffn_norm(x_BTE)))

    def _drop(self, x_BTE: Tensor) -> Tensor:
        return F.dropout(x_BTE, self.config.dropout, self.training)

    def attention(self, x_BTE: Tensor, context: Turned) -> Tensor:
        three = self.q_proj, self.k_proj, self.v_proj
        projected = shifted_projections(x_BTE, three, self.k_mix, context.kv_start_BT)
        q_BTHD, k_BTKD, v_BTKD = (
            rearrange(one, "B T (H D) -> B T H D", D=self.config.head_size) for one in projected
        )
        attended_BTHD = context.attention.attend(
            rotated(self.q_norm(q_BTHD), context.turn),
            rotated(self.k_norm(k_BTKD), context.turn),
            v_BTKD,
            kv_start_BT=context.kv_start_BT,
            plan=context.plan,
        )
        return cast(Tensor, self.o_proj(rearrange(attended_BTHD, "B T H D -> B T (H D)")))

    def feed_forward(self, x_BTE: Tensor) -> Tensor:
        gate_BTF, up_BTF = projections(x_BTE, (self.gate_proj, self.up_proj))
        return cast(Tensor, self.down_proj(F.silu(gate_BTF) * up_BTF))


class CodeEmbedding(nn.Module):
    """Codes -> input of the first block: a table [C, P], then two layers with a GELU between them."""

    def __init__(self, num_codes: int, dim: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_codes, dim)
        self.fc1 = nn.Linear(dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, codes: Tensor) -> Tensor:
        """Return embeddings [..., E] of int64 codes 0..C-1."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(self.embed(codes)))))


class CodeHead(nn.Module):
    """Final hidden states -> logits of codes: two layers with a GELU between them."""

    def __init__(self, width: int, inner: int, num_codes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, num_codes)

    def inner(self, hidden: Tensor) -> Tensor:
        """Return the input of the last layer, [..., W]."""
        weight, bias = self.fc1.weight, self.fc1.bias
        return F.gelu(F.linear(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype)))

    def forward(self, hidden: Tensor, codes: slice = slice(None)) -> Tensor:
        """Return logits [..., c] of a slice of codes from hidden states [..., E]."""
        weight, bias = self.fc2.weight[codes], self.fc2.bias[codes]
        return F.linear(self.inner(hidden), weight.to(hidden.dtype), bias.to(hidden.dtype))


def table_rows(ids: Tensor, own: range) -> Tensor:
    """Rows of ids in a table that leaves out the ids of `own`; for those ids, an arbitrary row.

    >>> table_rows(torch.tensor([0, 1, 2, 3, 4]), range(2, 4)).tolist()
    [0, 1, 0, 0, 2]
    """
    rows = ids - len(own) * (ids >= own.stop)
    return torch.where((ids >= own.start) & (ids < own.stop), 0, rows)


def by_head(
    ids: range, own: range, others: Callable[[range], Tensor], codes: Callable[[range], Tensor]
) -> Tensor:
    """Return logits [..., len(ids)] of ids predicted by two heads.

    Args:
        ids: the ids to return.
        own: ids of the second head.
        others, codes: functions that return logits of a range of the first head's rows, and of the second's.
    """
    below = range(ids.start, min(ids.stop, own.start))
    within = range(max(ids.start, own.start) - own.start, min(ids.stop, own.stop) - own.start)
    above = range(max(ids.start, own.stop) - len(own), ids.stop - len(own))
    parts = [
        head(rows) for head, rows in ((others, below), (codes, within), (others, above)) if rows
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class LlamaDecoder(TransformerDecoder):
    """A Llama-style decoder; see `LlamaConfig` for the options and `Decoder` for the methods."""

    #: Class of its blocks.
    block: ClassVar[type[Block]] = Block

    def __init__(
        self,
        config: LlamaSettings,
        vocab_size: int,
        attention: AttentionBackend,
        grid: tuple[int, int],
        image: range = range(0),
    ) -> None:
        own = image if config.has_own_codes else range(0)
        super().__init__(config, vocab_size, attention, vocab_size - len(own))
        self.config = config
        self.own_head = own if config.has_own_codes else None
        self.rotary = self.make_rotary(grid)
        self.embed_axes: AxisEmbeddings | None = None
        if config.code_axes:
            self.embed_axes = AxisEmbeddings(config.code_axes, grid[0] * grid[1], config.d_model)
        self.layers = nn.ModuleList(self.block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.make_head()
        self.codes_in: CodeEmbedding | None = None
        self.codes_out: CodeHead | None = None
        if config.code_embed_dim is not None and config.code_head_dim is not None:
            self.codes_in = CodeEmbedding(len(own), config.code_embed_dim, config.d_model)
            self.codes_out = CodeHead(config.d_model, config.code_head_dim, len(own))
        self.reset_parameters()

    def make_rotary(self, grid: tuple[int, int]) -> Rotary:
        """Return what rotates queries and keys."""
        size, theta = self.config.head_size, self.config.rope_theta
        if self.config.rope == "2d":
            return GridRotary(grid, size, theta)
        return SequenceRotary(self.config.context_length, size, theta)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the parameters. Random numbers are drawn in their order."""
        residual = (2 * self.config.num_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("k_mix"):
                nn.init.constant_(parameter, FIRST_MIX)
            else:
                std = self.config.init_std
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    std *= residual
                nn.init.trunc_normal_(parameter, std=std, a=-3.0 * std, b=3.0 * std)

    def context(self, shared: Context, positions_BT: Tensor, cells_BT: Tensor | None) -> Turned:
        turn = self.rotary.of_tokens(positions_BT, cells_BT)
        return Turned(shared.attention, shared.kv_start_BT, shared.plan, turn)

    def normed(self, x_BTE: Tensor) -> Tensor:
        return cast(Tensor, self.norm(x_BTE))

    def faster_precisions(self) -> tuple[str, ...]:
        return faster_precisions(self)

    def arranged(self, precision: str) -> LlamaInference:
        return LlamaInference(self, precision)

    def blocks(self) -> list[Block]:
        """`layers`, typed."""
        return cast(list[Block], list(self.layers))

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, cells_BT: Tensor | None) -> Tensor:
        """Return the token embeddings, with those of codes' axes. Otherwise positions and cells only rotate queries and
        keys."""
        x_BTE = self.embed_ids(tokens_BT)
        if self.embed_axes is None or cells_BT is None:
            return x_BTE
        if x_BTE.device.type == "cpu":  # weights are bfloat16, sums aren't
            x_BTE = x_BTE.to(torch.promote_types(x_BTE.dtype, torch.float32))
        return x_BTE + cast(Tensor, self.embed_axes(cells_BT))

    def embed_ids(self, tokens_BT: Tensor) -> Tensor:
        """The embedding of each token, [B, T, E]."""
        if self.own_head is None or self.codes_in is None:
            return cast(Tensor, self.embed_tokens(tokens_BT))
        own = self.own_head
        is_code_BT1 = ((tokens_BT >= own.start) & (tokens_BT < own.stop))[..., None]
        codes_BT = (tokens_BT - own.start).clamp(0, len(own) - 1)
        others_BTE = self.embed_tokens(table_rows(tokens_BT, own))
        return torch.where(is_code_BT1, self.codes_in(codes_BT), others_BTE)

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        own, head = self.own_head, self.codes_out
        if own is None or head is None:
            return super().logits(hidden, ids)
        weight = self.head_weight()

        def others(rows: range) -> Tensor:
            return hidden @ weight[rows.start : rows.stop].to(hidden.dtype).T

        ids = range(self.vocab_size) if ids is None else ids
        return by_head(ids, own, others, lambda codes: head(hidden, slice(codes.start, codes.stop)))

    def loss_sums(
        self,
        hidden_NE: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        groups_N: Tensor,
        *,
        num_groups: int = 4,
        z_loss: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        own, head = self.own_head, self.codes_out
        if own is None or head is None:
            return super().loss_sums(
                hidden_NE, targets_N, weights_N, groups_N, num_groups=num_groups, z_loss=z_loss
            )
        is_code_N = (targets_N >= own.start) & (targets_N < own.stop)
        inner_NW = head.inner(hidden_NE)
        # the last layer's bias as an extra column, whose input is one
        weight_CW = torch.cat([head.fc2.weight, head.fc2.bias[:, None]], dim=1)
        inner_NW = torch.cat([inner_NW, torch.ones_like(inner_NW[:, :1])], dim=1)
        codes_N = (targets_N - own.start).clamp(0, len(own) - 1)
        parts = (
            (hidden_NE, self.head_weight(), table_rows(targets_N, own), ~is_code_N),
            (inner_NW, weight_CW, codes_N, is_code_N),
        )
        sums = [
            linear_cross_entropy(
                state, weight, rows, weights_N * chosen, groups_N,
                num_groups=num_groups, z_loss=z_loss,
            )
            for state, weight, rows, chosen in parts
        ]  # fmt: skip  # one argument per line is harder to read
        return sums[0][0] + sums[1][0], sums[0][1] + sums[1][1]

    @torch.no_grad()
    def start_from_codebook(self, codebook: Tensor, vocabulary: Vocabulary) -> None:
        """As in other decoders, but the codes' own embeddings start as the code vectors, and their head keeps
        its initialisation."""
        if self.codes_in is None:
            super().start_from_codebook(codebook, vocabulary)
            return
        weight = self.codes_in.embed.weight
        std = self.config.codebook_scale * self.config.init_std
        weight.copy_(codebook_rows(codebook, vocabulary, weight.shape[1], std))

    def parameter_groups(self) -> dict[str, list[Any]]:
        """As by default, but norms count as vectors whatever their shape."""
        groups: dict[str, list[Any]] = {"matrix": [], "embedding": [], "vector": []}
        for name, parameter in self.named_parameters():
            vector = parameter.ndim < 2 or "norm" in name
            table = "embed" in name or name == "codes_out.fc2.weight"
            groups["vector" if vector else "embedding" if table else "matrix"].append(parameter)
        return groups


class TrainedLlama(TrainedParts, Protocol):
    """The parts of the training decoder that are read here."""

    config: LlamaSettings
    rotary: Rotary
    norm: RMSNorm
    own_head: range | None
    codes_out: CodeHead | None

    def blocks(self) -> Sequence[Block]: ...


def head_norms(block: Block) -> HeadNorms | None:
    """The norms of the heads of queries and keys. None: they aren't normalised."""
    norms = [norm for norm in (block.q_norm, block.k_norm) if isinstance(norm, HeadNorm)]
    if not norms:
        return None
    weight = torch.cat([norm.of_heads(norm.weight) for norm in norms]).detach()
    biases = [norm.of_heads(norm.bias) for norm in norms if norm.bias is not None]
    bias = torch.cat(biases).detach() if biases else None
    return HeadNorms(weight, bias, centred=bias is not None, eps=norms[0].eps)


@dataclass(frozen=True)
class Layer:
    """A block's products (one for q, k and v, one for gate and up), what is done to heads, and the block for its norms. With
    `token_shift`, keys have a product of their own."""

    qkv: Product
    keys: Product | None
    bias: Tensor | None
    out: Product
    gate_up: Product
    down: Product
    heads: Heads
    block: Block


class LlamaInference(PackedInference):
    """A snapshot of a decoder's weights, laid out for `Engine`.

    Args:
        decoder: the decoder that owns the weights.
        precision: see `Decoder.for_inference`.
    """

    def __init__(self, decoder: TrainedLlama, precision: str = "auto") -> None:
        self.decoder, config = decoder, decoder.config
        self.keeps_inputs = config.token_shift
        super().__init__(
            decoder,
            precision,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            head_dim=config.head_size,
            num_key_heads=config.key_heads,
        )

    def take_layers(self) -> None:
        self._layers = [self._layer(block) for block in self.decoder.blocks()]
        self._codes_out: tuple[Product, Product] | None = None
        if (head := self.decoder.codes_out) is not None:
            self._codes_out = self.head_product(head.fc1.weight), self.head_product(head.fc2.weight)

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        own = self.decoder.own_head
        if own is None:
            return super().logits(hidden, ids)
        return by_head(
            range(self.vocab_size) if ids is None else ids,
            own,
            lambda rows: self.rows_of_head(hidden, rows),
            lambda codes: self._code_logits(hidden, codes),
        )

    def _code_logits(self, hidden: Tensor, codes: range) -> Tensor:
        """Return logits [..., len(codes)] of image codes from their own head."""
        assert self._codes_out is not None
        assert self.decoder.codes_out is not None
        head = self.decoder.codes_out
        first, second = self._codes_out
        x_ME = self.head_input(hidden)
        inner_MW = F.gelu(first(x_ME) + head.fc1.bias.to(x_ME.dtype))
        logits_MC = second(inner_MW.to(x_ME.dtype)) + head.fc2.bias.to(x_ME.dtype)
        logits_MC = logits_MC[: hidden[..., 0].numel(), codes.start : codes.stop]
        return logits_MC.reshape(*hidden.shape[:-1], len(codes))

    def _layer(self, block: Block) -> Layer:
        three = block.q_proj, block.k_proj, block.v_proj
        bias = None
        if self.decoder.config.qkv_bias:
            bias = torch.cat([project.bias for project in three]).detach().to(self.dtype)
        shifts = block.k_mix is not None
        return Layer(
            self.product(*map(merged_weight, three[::2] if shifts else three)),
            self.product(merged_weight(block.k_proj)) if shifts else None,
            bias,
            self.product(merged_weight(block.o_proj)),
            self.product(merged_weight(block.gate_proj), merged_weight(block.up_proj)),
            self.product(merged_weight(block.down_proj)),
            Heads(head_norms(block), bias),
            block,
        )

    def through_layers(
        self,
        x_ME: Tensor,
        positions_BT: Tensor,
        cells_BT: Tensor | None,
        cache: CM3LeonCache,
        reading: Reading,
    ) -> Tensor:
        turn = self.decoder.rotary.of_tokens(positions_BT, cells_BT)
        swin = self.decoder.config.swin_norm
        if reading.by_turns and not swin and not self.keeps_inputs:
            return self._by_turns(x_ME, turn, cache, reading)
        for number, layer in enumerate(self._layers):
            block = layer.block
            if swin:
                attended_ME = self._attention(number, layer, x_ME, turn, cache, reading)
                x_ME += block.attention_norm(attended_ME)
                x_ME += block.ffn_norm(self._feed_forward(layer, x_ME))
            else:
                normed_ME = block.attention_norm(x_ME)
                x_ME += self._attention(number, layer, normed_ME, turn, cache, reading)
                x_ME += self._feed_forward(layer, block.ffn_norm(x_ME))
        normed: Tensor = self.decoder.norm(x_ME)
        return normed

    def _by_turns(
        self, x_ME: Tensor, turn: tuple[Tensor, Tensor], cache: CM3LeonCache, reading: Reading
    ) -> Tensor:
        """`through_layers` for few new tokens of each row on a device, where launches cost most: ten in each layer.

        The sum of the stream and a branch is left to the norm that reads it.
        """
        B, T = len(cache.rows), reading.num_tokens
        cosines, sines = (one.expand(B, T, 1, -1).reshape(B * T, -1) for one in turn)
        x_ME, turned = x_ME[: B * T], Turn(cosines, sines)
        added_ME: Tensor | None = None
        for number, layer in enumerate(self._layers):
            x_ME, normed_ME = self._added(layer.block.attention_norm, x_ME, added_ME, self.dtype)
            attended_ME = cache.attend_heads(
                number, layer.qkv(normed_ME), layer.heads, turned, reading
            )
            added_ME = layer.out(attended_ME.to(self.dtype))
            x_ME, normed_ME = self._added(layer.block.ffn_norm, x_ME, added_ME, self.dtype)
            added_ME = layer.down(silu_gate(layer.gate_up(normed_ME)))
        return self._added(self.decoder.norm, x_ME, added_ME, x_ME.dtype)[1]

    def _added(
        self, norm: RMSNorm, x_ME: Tensor, added_ME: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The sum, and its norm in a dtype."""
        weight = norm.weight.detach()
        return add_norm(x_ME, added_ME, weight=weight, centred=False, dtype=dtype, eps=norm.eps)

    def _attention(
        self,
        number: int,
        layer: Layer,
        x_ME: Tensor,
        turn: tuple[Tensor, Tensor],
        cache: CM3LeonCache,
        reading: Reading,
    ) -> Tensor:
        B, T, D = len(cache.rows), reading.num_tokens, self.head_dim
        H, K, M = self.num_heads, self.num_key_heads, B * T
        qkv_MC = layer.qkv(x_ME.to(self.dtype))
        if layer.keys is not None:
            assert layer.block.k_mix is not None
            mix_E = layer.block.k_mix.detach()
            keys_ME = self.shifted_inputs(number, x_ME.to(self.dtype), mix_E, cache, reading)
            q_ME, v_ME = qkv_MC.chunk(2, dim=-1)
            qkv_MC = torch.cat([q_ME, layer.keys(keys_ME), v_ME], dim=-1)
        if layer.bias is not None:
            qkv_MC = qkv_MC + layer.bias
        q_BTHD, k_BTKD, v_BTKD = qkv_MC[:M].view(B, T, H + 2 * K, D).split([H, K, K], dim=2)
        q_BTHD = rotated(layer.block.q_norm(q_BTHD), turn)
        k_BTKD = rotated(layer.block.k_norm(k_BTKD), turn)
        attended_MC = qkv_MC.new_zeros(len(x_ME), H * D)
        attended_MC[:M].view(B, T, H, D).copy_(
            cache.attend(number, q_BTHD, k_BTKD, v_BTKD, reading)
        )
        return layer.out(attended_MC)

    def _feed_forward(self, layer: Layer, x_ME: Tensor) -> Tensor:
        gate_MF, up_MF = layer.gate_up(x_ME.to(self.dtype)).chunk(2, dim=-1)
        return layer.down(F.silu(gate_MF) * up_MF)
