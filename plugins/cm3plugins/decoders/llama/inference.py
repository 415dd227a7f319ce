"""The Llama-style decoder for generation; see `decoders/packed.py` for what it shares.

Legend: B rows, T tokens, M = B * T rows of a product (padded), H query heads, K key heads, D head
dimension, E model dimension, F feed-forward dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3plugins.decoders.adapters import merged_weight
from cm3plugins.decoders.cm3leon.cache import CM3LeonCache, Reading
from cm3plugins.decoders.cm3leon.products import Product
from cm3plugins.decoders.llama.block import Block, RMSNorm
from cm3plugins.decoders.llama.codes import CodeHead, by_head
from cm3plugins.decoders.llama.rotary import Rotary, rotated
from cm3plugins.decoders.llama.settings import LlamaSettings
from cm3plugins.decoders.packed import PackedInference, TrainedParts


class TrainedLlama(TrainedParts, Protocol):
    """The parts of the training decoder that are read."""

    config: LlamaSettings
    rotary: Rotary
    norm: RMSNorm
    own_head: range | None
    codes_out: CodeHead | None

    def blocks(self) -> Sequence[Block]: ...


@dataclass(frozen=True)
class Layer:
    """A block's products: one for q, k and v, one for gate and up; and the block, for its norms."""

    qkv: Product
    bias: Tensor | None
    out: Product
    gate_up: Product
    down: Product
    block: Block


class LlamaInference(PackedInference):
    """A snapshot of a decoder's weights, laid out for `Engine`.

    Args:
        decoder: owner of the weights.
        precision: see `Decoder.for_inference`.
    """

    def __init__(self, decoder: TrainedLlama, precision: str = "auto") -> None:
        self.decoder, config = decoder, decoder.config
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
        """Logits [..., len(codes)] of image codes, by their own head."""
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
        return Layer(
            self.product(*map(merged_weight, three)),
            bias,
            self.product(merged_weight(block.o_proj)),
            self.product(merged_weight(block.gate_proj), merged_weight(block.up_proj)),
            self.product(merged_weight(block.down_proj)),
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
