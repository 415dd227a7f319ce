"""The CM3leon decoder for generation: weights packed for few rows, one product for q, k and v.

Legend: B rows, T tokens, M = B * T rows of a product (padded), H heads, D head dimension, E model
dimension, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3core.devices import multiplies_bf16
from cm3core.errors import GenerationError
from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import InferenceDecoder, KVCache
from cm3plugins.decoders.cm3leon.block import Block
from cm3plugins.decoders.cm3leon.cache import CM3LeonCache, Reading
from cm3plugins.decoders.cm3leon.pool import CacheLayout
from cm3plugins.decoders.cm3leon.products import (
    Product,
    int8_product,
    layer_norm,
    normed,
    packed_product,
    packs,
    padded,
    rounds_inputs,
    why_not,
    with_activation,
)
from cm3plugins.decoders.cm3leon.settings import CM3LeonSettings

#: Slices of the head that are kept packed. How a text ends differs from hole to hole, so that there
#: may be hundreds of slices.
NUM_HEADS = 4


class TrainedDecoder(Protocol):
    """The parts of the training decoder that are read."""

    config: CM3LeonSettings
    backend: AttentionBackend
    context_length: int
    vocab_size: int

    def head_weight(self) -> Tensor: ...

    def blocks(self) -> Sequence[Block]: ...

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, cells_BT: Tensor | None) -> Tensor: ...


def _automatic(weight: Tensor) -> torch.dtype:
    """bfloat16 on a CUDA device that multiplies it: half the bytes a token. Else as stored."""
    if weight.device.type == "cuda" and multiplies_bf16(weight.device):
        return torch.bfloat16
    return weight.dtype


class CM3LeonInference(InferenceDecoder):
    """A snapshot of a decoder's weights, laid out for `Engine`.

    Args:
        decoder: owner of the weights.
        precision: see `Decoder.for_inference`.
    """

    def __init__(self, decoder: TrainedDecoder, precision: str = "auto") -> None:
        weight = decoder.head_weight()
        refusal = why_not(precision, weight)
        if refusal is not None:
            raise GenerationError("precision", refusal[0], refusal[1])
        self.decoder, self.precision = decoder, precision
        self.context_length, self.vocab_size = decoder.context_length, decoder.vocab_size
        self.num_layers, self.num_heads = decoder.config.num_layers, decoder.config.num_heads
        self.head_dim = decoder.config.d_model // self.num_heads
        self._device = weight.device
        self.on_cpu = weight.device.type == "cpu"
        rounds = precision == "int8" and rounds_inputs(weight.device)
        #: Input and output type of products.
        self.dtype = {
            "auto": _automatic(weight),
            "fp32": torch.float32,
            "int8": torch.float32 if rounds else torch.bfloat16,
        }.get(precision, torch.bfloat16)
        #: Type of keys and values. A CPU attends to bfloat16 several times slower than to
        #: float32 (7 times, measured on AVX512 with its bfloat16 instructions), which costs more
        #: than half the bytes save.
        cache_dtype = torch.float32 if self.on_cpu and self.dtype == torch.bfloat16 else self.dtype
        self.layout = CacheLayout(
            self.num_layers,
            self.num_heads,
            self.head_dim,
            cache_dtype,
            weight.device,
            decoder.backend,
            self.on_cpu,
        )
        self._heads: dict[tuple[int, int], Product] = {}
        self.reset()

    def reset(self) -> None:
        """Take the decoder's current weights."""
        decoder, make = self.decoder, self._product
        with torch.no_grad():
            self._head_weight_VE = decoder.head_weight().detach()
            self._layers = [
                (
                    make(
                        torch.cat([block.q_proj.weight, block.k_proj.weight, block.v_proj.weight])
                    ),
                    make(block.out_proj.weight),
                    make(block.fc1.weight, decoder.config.activation),
                    make(block.fc2.weight),
                    block.q_norm,
                    block.k_norm,
                )
                for block in decoder.blocks()
            ]
        self._heads.clear()

    def _product(self, weight: Tensor, activation: str | None = None) -> Product:
        """x -> activation(x @ weight.T), with the weight in this decoder's precision and layout."""
        weight = weight.detach()
        if self.precision == "int8":
            return with_activation(int8_product(weight), activation)
        weight = weight.to(self.dtype)
        if weight.device.type != "cpu":
            return with_activation(lambda x: F.linear(x, weight), activation)
        if packs(self.dtype):
            return packed_product(weight, activation)
        transposed = weight.T.contiguous()
        return with_activation(lambda x: x @ transposed, activation)

    # ---- the calls of `InferenceDecoder`

    @property
    def device(self) -> torch.device:
        return self._device

    def allocate_cache(self, num_rows: int, max_length: int) -> CM3LeonCache:
        if max_length > self.context_length:
            raise GenerationError(
                "prompt",
                f"{max_length} tokens including those to be generated, but the context is "
                f"{self.context_length}",
                "shorten the prompt, retrieve fewer documents, or generate less",
            )
        return CM3LeonCache(self.layout, num_rows, max_length)

    def cache_bytes(self, num_tokens: int) -> int:
        return (
            2
            * num_tokens
            * self.num_layers
            * self.num_heads
            * self.head_dim
            * self.layout.dtype.itemsize
        )

    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        cache: KVCache,
        positions_BT: Tensor | None = None,
        cells_BT: Tensor | None = None,
    ) -> Tensor:
        assert isinstance(cache, CM3LeonCache)
        assert cache.layout is self.layout, "a cache comes from this decoder's allocate_cache"
        own_positions_BT, reading = cache.begin(tokens_BT.shape[1])
        positions_BT = own_positions_BT if positions_BT is None else positions_BT
        # past the end there is only padding of ragged chunks
        positions_BT = positions_BT.clamp(max=self.context_length - 1)
        x_BTE = self.decoder.embed(tokens_BT, positions_BT, cells_BT)
        return self._through(x_BTE, cache, reading)

    def _through(self, x_BTE: Tensor, cache: CM3LeonCache, reading: Reading) -> Tensor:
        """All blocks, and the final normalisation.

        The residual stream keeps the embeddings' dtype; products have their own.
        """
        B, T, E = x_BTE.shape
        M, dtype = B * T, self.dtype
        x_ME = x_BTE.reshape(M, E)
        if self.on_cpu:
            x_ME = padded(x_ME)
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
            x_ME += out(attended_ME)
            x_ME += down(up(layer_norm(x_ME).to(dtype)))
        return layer_norm(x_ME[:M]).view(B, T, E)

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        everything = range(self.vocab_size)
        ids = everything if ids is None else ids
        x_ME = hidden.reshape(-1, hidden.shape[-1]).to(self.dtype)
        M = len(x_ME)
        if self.on_cpu:
            x_ME = padded(x_ME)
        # on a CPU each slice of the head is a copy, packed: large ones share that of all ids
        packed = everything if self.on_cpu and 2 * len(ids) >= len(everything) else ids
        logits_MV = self._head(packed)(x_ME)[:M]
        if len(packed) > len(ids):
            logits_MV = logits_MV[:, ids.start : ids.stop].contiguous()
        return logits_MV.view(*hidden.shape[:-1], len(ids))

    def _head(self, ids: range) -> Product:
        """The head's product for a slice of the ids; the last few that were used are kept."""
        key = (ids.start, ids.stop)
        product = self._heads.pop(key, None)
        if product is None:
            product = self._product(self._head_weight_VE[ids.start : ids.stop])
        self._heads[key] = product  # the last one now
        if len(self._heads) > NUM_HEADS:
            self._heads.pop(next(iter(self._heads)), None)
        return product
