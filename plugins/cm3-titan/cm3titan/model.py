"""The decoder `cm3leon` made of torchtitan's modules, which it can divide by tensors, layers and tokens.

The numbers are those of `cm3plugins.decoders.cm3leon`: same parameters, same initial distribution, same forward pass. The
names differ where torchtitan needs its own (`tok_embeddings`, `layers`, `norm`, `lm_head`); `adapter` maps them.

Legend: B rows, T tokens of a row, K keys (= T, or all tokens of a row divided among processes), H heads, D head
dimension, E model dimension, V ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchtitan.models.common.attention import FlexAttention
from torchtitan.models.common.embedding import Embedding
from torchtitan.models.common.linear import Linear
from torchtitan.models.common.nn_modules import LayerNorm
from torchtitan.models.utils import get_dense_model_nparams_and_flops
from torchtitan.protocols.model import BaseModel
from torchtitan.protocols.module import Module, ModuleDict

from cm3plugins.decoders.cm3leon.model import LAYER_NORM_EPS, truncated_normal_
from cm3plugins.decoders.cm3leon.settings import CM3LeonSettings


class PlainLayerNorm(Module):
    """LayerNorm over the last dimension without weight or bias."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        """No settings."""

    def __init__(self, config: Config) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:  # torchtitan's layouts name a norm's input so
        return F.layer_norm(input, input.shape[-1:], eps=LAYER_NORM_EPS)


class MaskedAttention(FlexAttention):
    """`scaled_dot_product_attention` with a mask [B, 1, T, K], which every device can differentiate. torchtitan treats it
    as FlexAttention: with context parallelism it gathers the keys."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        """No settings."""

    def __init__(self, config: Config) -> None:
        Module.__init__(self)

    def forward(
        self, q_BLNH: Tensor, k_BLNH: Tensor, v_BLNH: Tensor, *, attention_masks: Tensor
    ) -> Tensor:  # torchtitan's layouts name the arguments so: L tokens, N heads, H head dimension
        attended = F.scaled_dot_product_attention(
            q_BLNH.transpose(1, 2),
            k_BLNH.transpose(1, 2),
            v_BLNH.transpose(1, 2),
            attn_mask=attention_masks,
        )
        return attended.transpose(1, 2)


class Table(nn.Embedding, Module):
    """A small table that each process has as a whole; torchtitan's own is divided by ids."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        """As of `torch.nn.Embedding`."""

        num_embeddings: int
        embedding_dim: int

    def __init__(self, config: Config) -> None:
        super().__init__(config.num_embeddings, config.embedding_dim)

    def forward(self, input: Tensor) -> Tensor:
        weight: Tensor = self.weight
        return F.embedding(input, weight.to_local() if isinstance(weight, DTensor) else weight)


class Places(Module):
    """The embedding of each token's position and, for image codes, of row and column."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        """One table each; `rows` and `columns` are absent without grid positions."""

        positions: Table.Config
        rows: Table.Config | None = None
        columns: Table.Config | None = None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.positions = config.positions.build()
        self.rows = None if config.rows is None else config.rows.build()
        self.columns = None if config.columns is None else config.columns.build()
        self.num_columns = 1 if config.columns is None else config.columns.num_embeddings

    def forward(self, positions: Tensor, cells: Tensor) -> Tensor:
        x_BTE = self.positions(positions).float()
        if self.rows is not None and self.columns is not None:
            raster_BT = cells.clamp(min=0)
            grid_BTE = self.rows(raster_BT // self.num_columns)
            grid_BTE = grid_BTE + self.columns(raster_BT % self.num_columns)
            x_BTE = x_BTE + grid_BTE * (cells >= 0)[..., None]
        return cast(Tensor, x_BTE)


class Embeddings(Module):
    """The sum of the embeddings of tokens and their places, in float32 as under autocast."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        """The two parts."""

        tokens: Embedding.Config
        places: Places.Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens, self.places = config.tokens.build(), config.places.build()

    def forward(self, tokens: Tensor, positions: Tensor, cells: Tensor) -> Tensor:
        return cast(Tensor, self.tokens(tokens).float() + self.places(positions, cells))


class Attention(Module):
    """Projections, the inner attention over all visible tokens, and the output projection."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        """`q_norm` and `k_norm` are absent without `qk_norm`."""

        n_heads: int
        head_dim: int
        q_proj: Linear.Config
        k_proj: Linear.Config
        v_proj: Linear.Config
        out_proj: Linear.Config
        inner_attention: Module.Config
        q_norm: LayerNorm.Config | None = None
        k_norm: LayerNorm.Config | None = None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj, self.k_proj = config.q_proj.build(), config.k_proj.build()
        self.v_proj, self.out_proj = config.v_proj.build(), config.out_proj.build()
        self.inner_attention = config.inner_attention.build()
        self.q_norm = None if config.q_norm is None else config.q_norm.build()
        self.k_norm = None if config.k_norm is None else config.k_norm.build()

    def forward(self, x: Tensor, attention_masks: Any) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        attended = self.inner_attention(q, k, v, attention_masks=attention_masks)
        return cast(Tensor, self.out_proj(attended.contiguous().flatten(2)))


class FeedForward(Module):
    """fc1, the activation, fc2."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        """`activation`: a function of `torch.nn.functional`."""

        fc1: Linear.Config
        fc2: Linear.Config
        activation: str

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fc1, self.fc2 = config.fc1.build(), config.fc2.build()
        self.activation: Callable[[Tensor], Tensor] = getattr(F, config.activation)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(self.activation(self.fc1(x))))


class Block(Module):
    """x + attention(LN(x)), then x + feed_forward(LN(x)), in float32; the branches compute in the weights' dtype."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        """The two branches and their norms."""

        attention: Attention.Config
        feed_forward: FeedForward.Config
        attention_norm: PlainLayerNorm.Config = field(default_factory=PlainLayerNorm.Config)
        ffn_norm: PlainLayerNorm.Config = field(default_factory=PlainLayerNorm.Config)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm, self.attention = (
            config.attention_norm.build(),
            config.attention.build(),
        )
        self.ffn_norm, self.feed_forward = config.ffn_norm.build(), config.feed_forward.build()

    def forward(self, x: Tensor, attention_masks: Any) -> Tensor:
        dtype = self.attention.q_proj.weight.dtype
        x = x + self.attention(self.attention_norm(x).to(dtype), attention_masks)
        return cast(Tensor, x + self.feed_forward(self.ffn_norm(x).to(dtype)))


class CM3LeonModel(BaseModel):
    """The decoder and its head: tokens -> logits, or hidden states if the loss applies the head (`_skip_lm_head`)."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseModel.Config):
        """Made by `model_config`."""

        dim: int
        vocab_size: int
        context_length: int
        tok_embeddings: Embeddings.Config
        layers: list[Any]
        norm: PlainLayerNorm.Config
        lm_head: Linear.Config
        enable_weight_tying: bool

        @property
        def first_attention(self) -> Attention.Config:
            """The attention of the first layer, which is like all others."""
            return cast(Attention.Config, self.layers[0].attention)

        def update_from_config(self, *, config: Any, **kwargs: Any) -> None:
            """Choose how parameters and activations are divided (called by torchtitan before it builds the model)."""
            from cm3titan.sharding import set_sharding

            set_sharding(self, enable_sp=config.parallelism.enable_sequence_parallel)

        def get_nparams_and_flops(self, model: Module, seq_len: int) -> tuple[int, int]:
            """Number of parameters, and FLOPs per token of a training step."""
            attention = self.first_attention
            counts: tuple[int, int] = get_dense_model_nparams_and_flops(
                model,
                n_layers=len(self.layers),
                n_heads=attention.n_heads,
                head_dims=2 * attention.head_dim,
                seq_len=seq_len,
                enable_weight_tying=self.enable_weight_tying,
            )
            return counts

    #: Set by torchtitan where the loss applies the head by chunks.
    _skip_lm_head = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        # torchtitan sets those to None that another stage of a pipeline has
        self.tok_embeddings: Embeddings | None = config.tok_embeddings.build()
        self.layers = ModuleDict({str(i): one.build() for i, one in enumerate(config.layers)})
        self.norm: PlainLayerNorm | None = config.norm.build()
        self.lm_head: Linear | None = config.lm_head.build()
        self.enable_weight_tying = config.enable_weight_tying
        self._tie()

    def _tie(self) -> None:
        if self.enable_weight_tying:
            assert self.tok_embeddings is not None
            assert self.lm_head is not None
            self.tok_embeddings.tokens.weight = self.lm_head.weight

    def parallelize(self, parallel_dims: Any) -> None:
        """Divide the parameters; a tied one stays one."""
        super().parallelize(parallel_dims)
        self._tie()

    def init_states(self, *, buffer_device: torch.device | None = None) -> None:
        """Draw the weights, or leave them as they are until the checkpoint is read."""
        self._tie()
        super().init_states(buffer_device=buffer_device)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cells: Tensor | None = None,
        attention_masks: Any = None,
    ) -> Tensor:
        """`tokens`: [B, T] ids; in later stages of a pipeline, the stage's input [B, T, E]. The rest: see `data`."""
        x = tokens
        if self.tok_embeddings is not None:
            x = self.tok_embeddings(tokens, positions, cells)
        for layer in self.layers.values():
            x = layer(x, attention_masks)
        if self.norm is None or self.lm_head is None:
            return x
        x = self.norm(x).to(self._head_dtype())
        return x if self._skip_lm_head else cast(Tensor, self.lm_head(x))

    def _head_dtype(self) -> torch.dtype:
        assert self.lm_head is not None
        return cast(torch.dtype, self.lm_head.weight.dtype)


def model_config(
    settings: CM3LeonSettings, vocab_size: int, grid: tuple[int, int], *, flex: bool
) -> CM3LeonModel.Config:
    """The model of a recipe.

    Args:
        settings: the recipe's section `decoder`.
        vocab_size: V.
        grid: rows and columns of a picture's codes.
        flex: attend with FlexAttention, otherwise with `scaled_dot_product_attention` and a whole mask.
    """
    width, std = settings.d_model, settings.init_std

    def drawn(own_std: float) -> dict[str, Callable[[Tensor], object]]:
        return {"weight": partial(truncated_normal_, std=own_std)}

    def table(number: int, own_std: float) -> Table.Config:
        return Table.Config(num_embeddings=number, embedding_dim=width, param_init=drawn(own_std))

    grid_tables = [table(number, std) for number in grid] if settings.grid_positions else [None] * 2
    return CM3LeonModel.Config(
        dim=width,
        vocab_size=vocab_size,
        context_length=settings.context_length,
        tok_embeddings=Embeddings.Config(
            tokens=Embedding.Config(
                num_embeddings=vocab_size, embedding_dim=width, param_init=drawn(std)
            ),
            places=Places.Config(
                positions=table(settings.context_length, settings.position_init_std),
                rows=grid_tables[0],
                columns=grid_tables[1],
            ),
        ),
        layers=[_block(settings, flex=flex) for _ in range(settings.num_layers)],
        norm=PlainLayerNorm.Config(),
        lm_head=Linear.Config(in_features=width, out_features=vocab_size, param_init=drawn(std)),
        enable_weight_tying=settings.tie_embeddings,
    )


def _block(settings: CM3LeonSettings, *, flex: bool) -> Block.Config:
    width, inner = settings.d_model, settings.d_ff or 4 * settings.d_model
    head_dim = width // settings.num_heads

    def linear(inputs: int, outputs: int, init: Callable[[Tensor], object]) -> Linear.Config:
        return Linear.Config(in_features=inputs, out_features=outputs, param_init={"weight": init})

    def norm() -> LayerNorm.Config | None:
        if not settings.qk_norm:
            return None
        return HeadNorm.Config(
            normalized_shape=head_dim,
            eps=LAYER_NORM_EPS,
            param_init={"weight": nn.init.ones_},
        )

    drawn = partial(truncated_normal_, std=settings.init_std)
    return Block.Config(
        attention=Attention.Config(
            n_heads=settings.num_heads,
            head_dim=head_dim,
            q_proj=linear(width, width, drawn),
            k_proj=linear(width, width, drawn),
            v_proj=linear(width, width, drawn),
            out_proj=linear(width, width, nn.init.zeros_),
            inner_attention=FlexAttention.Config() if flex else MaskedAttention.Config(),
            q_norm=norm(),
            k_norm=norm(),
        ),
        feed_forward=FeedForward.Config(
            fc1=linear(width, inner, drawn),
            fc2=linear(inner, width, nn.init.zeros_),
            activation=settings.activation,
        ),
    )


class HeadNorm(nn.LayerNorm, Module):
    """LayerNorm of queries or keys over the head dimension, with a weight and no bias."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        """As of `torch.nn.LayerNorm`."""

        normalized_shape: int
        eps: float

    def __init__(self, config: Config) -> None:
        super().__init__(config.normalized_shape, eps=config.eps, bias=False)
