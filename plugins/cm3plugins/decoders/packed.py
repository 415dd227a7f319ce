"""What decoders share for generation: weights packed for few rows, a cache of segments, the head.

A decoder adds what its layers compute. Legend: B rows, T tokens, M = B * T rows of a product
(padded), E model dimension, V ids.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3core.devices import multiplies_bf16
from cm3core.errors import GenerationError
from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import InferenceDecoder, KVCache
from cm3plugins.decoders.cm3leon.cache import CM3LeonCache, Reading
from cm3plugins.decoders.cm3leon.pool import CacheLayout
from cm3plugins.decoders.cm3leon.products import (
    Product,
    int8_product,
    packed_product,
    packs,
    padded,
    rounds_inputs,
    why_not,
    with_activation,
)

#: Slices of the head that are kept packed. How a text ends differs from hole to hole, so that there
#: may be hundreds of slices.
NUM_HEADS = 4


def _automatic(weight: Tensor) -> torch.dtype:
    """bfloat16 on a CUDA device that multiplies it: half the bytes a token. Else as stored."""
    if weight.device.type == "cuda" and multiplies_bf16(weight.device):
        return torch.bfloat16
    return weight.dtype


class TrainedParts(Protocol):
    """The parts of the training decoder that are read here."""

    backend: AttentionBackend
    context_length: int
    vocab_size: int

    def head_weight(self) -> Tensor: ...

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, cells_BT: Tensor | None) -> Tensor: ...


class PackedInference(InferenceDecoder):
    """A snapshot of a decoder's weights, laid out for `Engine`.

    Args:
        decoder: owner of the weights.
        precision: see `Decoder.for_inference`.
        num_layers, num_heads, head_dim: its sizes; `num_heads` counts those of queries.
        num_key_heads: heads of keys and values, a divisor of `num_heads`. None: as many.
    """

    def __init__(
        self,
        decoder: TrainedParts,
        precision: str,
        *,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        num_key_heads: int | None = None,
    ) -> None:
        weight = decoder.head_weight()
        refusal = why_not(precision, weight)
        if refusal is not None:
            raise GenerationError("precision", refusal[0], refusal[1])
        self._owner, self.precision = decoder, precision
        self.context_length, self.vocab_size = decoder.context_length, decoder.vocab_size
        self.num_layers, self.num_heads, self.head_dim = num_layers, num_heads, head_dim
        self.num_key_heads = num_heads if num_key_heads is None else num_key_heads
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
            self.num_key_heads,
            self.head_dim,
            cache_dtype,
            weight.device,
            decoder.backend,
            self.on_cpu,
            queries_per_key=self.num_heads // self.num_key_heads,
        )
        self._heads: dict[tuple[int, int], Product] = {}
        self.reset()

    def reset(self) -> None:
        """Take the decoder's current weights."""
        with torch.no_grad():
            self._head_weight_VE = self._owner.head_weight().detach()
            self.take_layers()
        self._heads.clear()

    @abstractmethod
    def take_layers(self) -> None:
        """Arrange the current weights of the layers, by `product`."""

    @abstractmethod
    def through_layers(
        self,
        x_ME: Tensor,
        positions_BT: Tensor,
        cells_BT: Tensor | None,
        cache: CM3LeonCache,
        reading: Reading,
    ) -> Tensor:
        """All blocks, and the final normalisation, of the padded rows `x_ME`, which may be changed.

        The first B * T rows of the result count."""

    def product(self, weight: Tensor, activation: str | None = None) -> Product:
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
            * self.num_key_heads
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
        # the residual stream keeps the embeddings' dtype; products have their own
        x_BTE = self._owner.embed(tokens_BT, positions_BT, cells_BT)
        B, T, E = x_BTE.shape
        x_ME = x_BTE.reshape(B * T, E)
        if self.on_cpu:
            x_ME = padded(x_ME)
        through = self.through_layers(x_ME, positions_BT, cells_BT, cache, reading)
        return through[: B * T].view(B, T, E)

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
            product = self.product(self._head_weight_VE[ids.start : ids.stop])
        self._heads[key] = product  # the last one now
        if len(self._heads) > NUM_HEADS:
            self._heads.pop(next(iter(self._heads)), None)
        return product
