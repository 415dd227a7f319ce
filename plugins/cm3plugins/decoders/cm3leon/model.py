"""The CM3leon decoder: its block, the training decoder and the generation decoder (`decoders/packed.py`).

CM3leon paper, section 2.3: a decoder-only transformer like OPT / GPT-3 (pre-LN, learned absolute
positions), without biases, dropout or learnable normalisation; truncated normal initialisation of
0.006, with both residual output projections at zero. A block is x + attention(LN(x)), then x + feed_forward(LN(x)). Details the
paper leaves open follow facebookresearch/metaseq (branch scaling_racm3, flags `disable_bias`, `disable_affine_ln`):
LayerNorm eps 1e-5, a final LayerNorm, no sqrt(d_model) on embeddings, ReLU, output projection tied
to the embedding. metaseq's position table has two extra rows that are never read (fairseq's padding
offset); ours starts at 0 and has `context_length` rows.

Legend: B rows, T tokens, M = B * T rows of a product (padded), H heads, K key heads (= H), D head dimension, E model
dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cm3core.interfaces.attention import AttentionBackend
from cm3kernels import HeadNorms, add_norm
from cm3kernels.few_rows import DecoderStep, FewRowsProduct
from cm3plugins.decoders.cache import CM3LeonCache, Heads, Reading
from cm3plugins.decoders.cm3leon.settings import CM3LeonSettings
from cm3plugins.decoders.packed import PackedInference, TrainedParts, can_compile
from cm3plugins.decoders.products import (
    COMPILED_FROM,
    add_product,
    faster_precisions,
)
from cm3plugins.decoders.transformer import (
    FIRST_MIX,
    AxisEmbeddings,
    Context,
    TransformerDecoder,
    merged_weight,
    shifted_projections,
)

LAYER_NORM_EPS = 1e-5


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm` of x, computed in the precision of its weight and returned in that of x."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    normed: Tensor = norm(x.to(weight.dtype))
    return normed.to(x.dtype)


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last dimension without weight or bias."""
    return F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)


class Block(nn.Module):
    """x + attention(LN(x)), then x + feed_forward(LN(x)).

    The second matrix of both branches is initialised to zero.
    """

    def __init__(self, config: CM3LeonSettings, layer: int) -> None:
        super().__init__()
        E, F_ = config.d_model, config.d_ff or 4 * config.d_model
        self.layer, self.num_heads, self.dropout = layer, config.num_heads, config.dropout
        self.activation: Callable[[Tensor], Tensor] = getattr(F, config.activation)
        self.q_proj = nn.Linear(E, E, bias=False)
        self.k_proj = nn.Linear(E, E, bias=False)
        self.v_proj = nn.Linear(E, E, bias=False)
        self.out_proj = nn.Linear(E, E, bias=False)
        self.fc1 = nn.Linear(E, F_, bias=False)
        self.fc2 = nn.Linear(F_, E, bias=False)
        self.k_mix: nn.Parameter | None = None
        if config.token_shift:
            self.k_mix = nn.Parameter(torch.full((E,), FIRST_MIX))
        D = E // config.num_heads
        self.q_norm = (
            nn.LayerNorm(D, eps=LAYER_NORM_EPS, bias=False) if config.qk_norm else nn.Identity()
        )
        self.k_norm = (
            nn.LayerNorm(D, eps=LAYER_NORM_EPS, bias=False) if config.qk_norm else nn.Identity()
        )

    def forward(self, x_BTE: Tensor, context: Context) -> Tensor:
        x_BTE = x_BTE + F.dropout(
            self.attention(layer_norm(x_BTE), context), self.dropout, self.training
        )
        hidden_BTF = self.activation(self.fc1(layer_norm(x_BTE)))
        return x_BTE + F.dropout(self.fc2(hidden_BTF), self.dropout, self.training)

    def attention(self, x_BTE: Tensor, context: Context) -> Tensor:
        three = self.q_proj, self.k_proj, self.v_proj
        projected = shifted_projections(x_BTE, three, self.k_mix, context.kv_start_BT)
        q_BTHD, k_BTKD, v_BTKD = (
            rearrange(one, "B T (H D) -> B T H D", H=self.num_heads) for one in projected
        )
        q_BTHD, k_BTKD = self.q_norm(q_BTHD), self.k_norm(k_BTKD)
        attended_BTHD = context.attention.attend(
            q_BTHD, k_BTKD, v_BTKD, kv_start_BT=context.kv_start_BT, plan=context.plan
        )
        return cast(Tensor, self.out_proj(rearrange(attended_BTHD, "B T H D -> B T (H D)")))


def truncated_normal_(weight: Tensor, std: float) -> None:
    """Fill with a normal distribution of mean 0, truncated at 3 standard deviations."""
    nn.init.trunc_normal_(weight, std=std, a=-3.0 * std, b=3.0 * std)


class CM3LeonDecoder(TransformerDecoder):
    """The decoder-only transformer of CM3leon.

    See `CM3LeonConfig` for the options and `Decoder` for the methods.
    """

    def __init__(
        self,
        config: CM3LeonSettings,
        vocab_size: int,
        attention: AttentionBackend,
        grid: tuple[int, int],
    ) -> None:
        super().__init__(config, vocab_size, attention)
        self.config, self.grid = config, grid
        self.embed_positions = nn.Embedding(config.context_length, config.d_model)
        if config.grid_positions:
            self.embed_rows = nn.Embedding(grid[0], config.d_model)
            self.embed_columns = nn.Embedding(grid[1], config.d_model)
        self.embed_axes: AxisEmbeddings | None = None
        if config.code_axes:
            self.embed_axes = AxisEmbeddings(config.code_axes, grid[0] * grid[1], config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.make_head()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as in the paper; random numbers are drawn in the order of the parameters."""
        for name, parameter in self.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight")):
                nn.init.zeros_(parameter)
            elif name.endswith("_norm.weight"):
                nn.init.ones_(parameter)
            elif name.endswith("k_mix"):
                nn.init.constant_(parameter, FIRST_MIX)
            else:
                positions = name == "embed_positions.weight"
                truncated_normal_(
                    parameter, self.config.position_init_std if positions else self.config.init_std
                )

    def blocks(self) -> list[Block]:
        """`layers`, typed."""
        return cast(list[Block], list(self.layers))

    def embed_ids(self, tokens_BT: Tensor) -> Tensor:
        """The embedding of each token, [B, T, E]."""
        return cast(Tensor, self.embed_tokens(tokens_BT))

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, cells_BT: Tensor | None) -> Tensor:
        """Sum the embeddings of token and position (and, for image codes, of row and column, and of their axes)."""
        x_BTE = self.embed_ids(tokens_BT)
        if x_BTE.device.type == "cpu":  # weights are bfloat16, sums aren't
            x_BTE = x_BTE.to(torch.promote_types(x_BTE.dtype, torch.float32))
        x_BTE = x_BTE + self.embed_positions(positions_BT)
        if cells_BT is not None and self.config.grid_positions:
            raster_BT = cells_BT.clamp(min=0)
            if self.embed_axes is not None:  # else cells are the codes' indices
                raster_BT = raster_BT % (self.grid[0] * self.grid[1])
            grid_BTE = self.embed_rows(raster_BT // self.grid[1]) + self.embed_columns(
                raster_BT % self.grid[1]
            )
            x_BTE = x_BTE + grid_BTE * (cells_BT >= 0)[..., None].to(grid_BTE.dtype)
        if cells_BT is not None and self.embed_axes is not None:
            x_BTE = x_BTE + self.embed_axes(cells_BT)
        return F.dropout(x_BTE, self.config.dropout, self.training)

    def normed(self, x_BTE: Tensor) -> Tensor:
        return layer_norm(x_BTE)

    def faster_precisions(self) -> tuple[str, ...]:
        head_dim = self.config.d_model // self.config.num_heads
        return faster_precisions(self, lambda: DecoderStep.takes(head_dim) and can_compile())

    def arranged(self, precision: str) -> CM3LeonInference:
        return CM3LeonInference(self, precision)


def heads_of(block: Block) -> Heads:
    """What is done to the heads of a block's product."""
    weights = [
        norm.weight.detach().expand(block.num_heads, -1)
        for norm in (block.q_norm, block.k_norm)
        if isinstance(norm, nn.LayerNorm)
    ]
    return Heads(HeadNorms(torch.cat(weights), eps=LAYER_NORM_EPS) if weights else None)


class TrainedDecoder(TrainedParts, Protocol):
    """The parts of the training decoder that are read here."""

    config: CM3LeonSettings

    def blocks(self) -> Sequence[Block]: ...


class CM3LeonInference(PackedInference):
    """A snapshot of a decoder's weights, laid out for `Engine`.

    Args:
        decoder: the decoder that owns the weights.
        precision: see `Decoder.for_inference`.
    """

    def __init__(self, decoder: TrainedDecoder, precision: str = "auto") -> None:
        self.decoder, config = decoder, decoder.config
        head_dim = config.d_model // config.num_heads
        if DecoderStep.takes(head_dim):
            self.compiled_from = COMPILED_FROM
        self.keeps_inputs = config.token_shift
        super().__init__(
            decoder,
            precision,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            head_dim=head_dim,
        )

    def take_layers(self) -> None:
        make = self.product
        #: Products and mixes of keys with `token_shift`; the others then come without them.
        self._shifted = [
            (make(merged_weight(block.k_proj)), block.k_mix.detach())
            for block in self.decoder.blocks()
            if block.k_mix is not None
        ]
        self._layers = [
            (
                make(
                    *(
                        merged_weight(one)
                        for one in (block.q_proj, block.k_proj, block.v_proj)
                        if block.k_mix is None or one is not block.k_proj
                    )
                ),
                make(merged_weight(block.out_proj)),
                make(merged_weight(block.fc1), activation=self.decoder.config.activation),
                make(merged_weight(block.fc2)),
                block.q_norm,
                block.k_norm,
            )
            for block in self.decoder.blocks()
        ]
        self._heads_of = [heads_of(block) for block in self.decoder.blocks()]
        self._step = self._compiled_step()
        self.steps_by_runs = self._step is not None

    def _compiled_step(self) -> DecoderStep | None:
        """One call for all layers, for the new tokens of a step. None: layer by layer."""
        layout = self.layout
        if layout.dtype != torch.float32 or not layout.in_parts or layout.keeps_inputs:
            return None
        if not DecoderStep.takes(self.head_dim):
            return None
        layers, norms = [], []
        for qkv, out, up, down, *pair in self._layers:
            products = [one for one in (qkv, out, up, down) if isinstance(one, FewRowsProduct)]
            if len(products) < 4:
                return None
            layers.append((products[0], products[1], products[2], products[3]))
            weights = [norm.weight for norm in pair if isinstance(norm, nn.LayerNorm)]
            norms.append(
                (weights[0].detach().float(), weights[1].detach().float()) if weights else None
            )
        return DecoderStep(layers, norms, self.num_heads)

    def through_layers(
        self,
        x_ME: Tensor,
        positions_BT: Tensor,
        cells_BT: Tensor | None,
        cache: CM3LeonCache,
        reading: Reading,
    ) -> Tensor:
        if self._step is not None and reading.by_runs:
            num_tokens = reading.num_tokens
            rows_ME = x_ME[: len(cache.rows) * num_tokens]
            runs = cache.runs(num_tokens)
            return self._step(
                rows_ME, cache.keys_LKND, cache.values_LKND, runs, sees_new=num_tokens > 1
            )
        B, T, dtype = len(cache.rows), reading.num_tokens, self.dtype
        M = B * T
        if reading.by_turns and not self._shifted:
            return self._by_turns(x_ME[:M], cache, reading)
        heads = (B, T, -1, self.num_heads, self.head_dim)
        attended_ME = x_ME.new_zeros(x_ME.shape, dtype=dtype)
        for layer, (qkv, out, up, down, q_norm, k_norm) in enumerate(self._layers):
            normed_ME = layer_norm(x_ME).to(dtype)
            q_BTHD, *keys, v_BTHD = qkv(normed_ME)[:M].view(heads).unbind(2)
            k_BTHD = keys[0] if keys else self._keys(layer, normed_ME, cache, reading)
            if self.decoder.config.qk_norm:
                q_BTHD, k_BTHD = (
                    normed(norm, x) for norm, x in ((q_norm, q_BTHD), (k_norm, k_BTHD))
                )
            attended_ME[:M].view(B, T, self.num_heads, self.head_dim).copy_(
                cache.attend(layer, q_BTHD, k_BTHD, v_BTHD, reading)
            )
            add_product(x_ME, out, attended_ME)
            add_product(x_ME, down, up(layer_norm(x_ME).to(dtype)))
        return layer_norm(x_ME[:M])

    def _by_turns(self, x_ME: Tensor, cache: CM3LeonCache, reading: Reading) -> Tensor:
        """`through_layers` for few new tokens of each row on a device, where launches cost most: ten in each layer.

        The sum of the stream and a branch is left to the norm that reads it.
        """
        added_ME: Tensor | None = None
        for layer, (qkv, out, up, down, *_) in enumerate(self._layers):
            x_ME, normed_ME = add_norm(x_ME, added_ME, dtype=self.dtype, eps=LAYER_NORM_EPS)
            attended_ME = cache.attend_heads(
                layer, qkv(normed_ME), self._heads_of[layer], None, reading
            )
            added_ME = out(attended_ME.to(self.dtype))
            x_ME, normed_ME = add_norm(x_ME, added_ME, dtype=self.dtype, eps=LAYER_NORM_EPS)
            added_ME = down(up(normed_ME))
        return add_norm(x_ME, added_ME, eps=LAYER_NORM_EPS)[1]

    def _keys(self, layer: int, normed_ME: Tensor, cache: CM3LeonCache, reading: Reading) -> Tensor:
        """Keys [B, T, H, D] with `token_shift`, from the normalised inputs of a layer."""
        product, mix_E = self._shifted[layer]
        B, T = len(cache.rows), reading.num_tokens
        keys_ME = product(self.shifted_inputs(layer, normed_ME, mix_E, cache, reading))
        return keys_ME[: B * T].view(B, T, self.num_heads, self.head_dim)
