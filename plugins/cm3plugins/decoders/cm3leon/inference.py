"""The CM3leon decoder for generation: one product for q, k and v; see `decoders/packed.py`.

Legend: B rows, T tokens, M = B * T rows of a product (padded), H heads, D head dimension, E model
dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from cm3kernels.few_rows import DecoderStep, FewRowsProduct
from cm3plugins.decoders.adapters import merged_weight
from cm3plugins.decoders.cm3leon.block import Block
from cm3plugins.decoders.cm3leon.cache import CM3LeonCache, Reading
from cm3plugins.decoders.cm3leon.products import add_product, layer_norm, normed
from cm3plugins.decoders.cm3leon.settings import CM3LeonSettings
from cm3plugins.decoders.faster import COMPILED_FROM
from cm3plugins.decoders.packed import NUM_HEADS, PackedInference, TrainedParts

__all__ = ["NUM_HEADS", "CM3LeonInference", "TrainedDecoder"]


class TrainedDecoder(TrainedParts, Protocol):
    """The parts of the training decoder that are read."""

    config: CM3LeonSettings

    def blocks(self) -> Sequence[Block]: ...


class CM3LeonInference(PackedInference):
    """A snapshot of a decoder's weights, laid out for `Engine`.

    Args:
        decoder: owner of the weights.
        precision: see `Decoder.for_inference`.
    """

    def __init__(self, decoder: TrainedDecoder, precision: str = "auto") -> None:
        self.decoder, config = decoder, decoder.config
        head_dim = config.d_model // config.num_heads
        if DecoderStep.takes(head_dim):
            self.compiled_from = COMPILED_FROM
        super().__init__(
            decoder,
            precision,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            head_dim=head_dim,
        )

    def take_layers(self) -> None:
        make = self.product
        self._layers = [
            (
                make(*map(merged_weight, (block.q_proj, block.k_proj, block.v_proj))),
                make(merged_weight(block.out_proj)),
                make(merged_weight(block.fc1), activation=self.decoder.config.activation),
                make(merged_weight(block.fc2)),
                block.q_norm,
                block.k_norm,
            )
            for block in self.decoder.blocks()
        ]
        self._step = self._compiled_step()
        self.steps_by_runs = self._step is not None

    def _compiled_step(self) -> DecoderStep | None:
        """All layers in one call, for one new token of each row; None: layer by layer."""
        layout = self.layout
        if layout.dtype != torch.float32 or not layout.in_parts:
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
        if self._step is not None and reading.num_tokens == 1:
            rows_BE = x_ME[: len(cache.rows)]
            return self._step(rows_BE, cache.keys_LKND, cache.values_LKND, cache.runs())
        B, T, dtype = len(cache.rows), reading.num_tokens, self.dtype
        M = B * T
        heads = (B, T, 3, self.num_heads, self.head_dim)
        attended_ME = x_ME.new_zeros(x_ME.shape, dtype=dtype)
        for layer, (qkv, out, up, down, q_norm, k_norm) in enumerate(self._layers):
            q_BTHD, k_BTHD, v_BTHD = qkv(layer_norm(x_ME).to(dtype))[:M].view(heads).unbind(2)
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
