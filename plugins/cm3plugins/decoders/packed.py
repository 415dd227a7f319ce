"""Base of decoders in generation: weights packed for few rows, a cache of segments, the head.

A decoder adds the computation of its layers. Legend: B rows, T tokens, M = B * T rows of a product
(padded), E model dimension, V ids.
"""

from __future__ import annotations

import functools
import logging
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3core.errors import FileError, GenerationError
from cm3core.files import cache_directory
from cm3core.interfaces.attention import AttentionBackend
from cm3core.interfaces.decoder import InferenceDecoder, KVCache
from cm3kernels.few_rows import AFTER, FewRowsProduct, Unavailable, is_compiled, library
from cm3plugins.decoders.cache import CacheLayout, CM3LeonCache, Reading
from cm3plugins.decoders.products import (
    FEWEST_ROWS,
    LARGE_DECODER,
    MOST_ROWS,
    Product,
    int4_product,
    int8_product,
    packed_product,
    packs,
    rounds_inputs,
    side_by_side,
    why_not,
    with_activation,
)
from cm3plugins.decoders.transformer import mixed
from cm3run.built_once import built_once
from cm3run.devices import cpu_multiplies_bf16, multiplies_bf16
from cm3run.generation.weights import joined, only_generates
from cm3run.machine_memory import MachineMemory
from cm3run.mapped import is_mapped, release

_log = logging.getLogger("cm3plugins")

#: Slices of the head that stay packed. The stop tokens of a text differ from hole to hole, so there
#: may be hundreds of slices.
NUM_HEADS = 4

#: `InferenceDecoder.rows_at_once` on a CPU, of a whole step of the engine: where calls of torch take most of the time,
#: and elsewhere (compiled code, or weights too large for the caches). Fitted to steps of 2 to 32 rows.
ROWS_OF_CALLS, ROWS_OF_WEIGHTS = 24, 8

#: Share of the machine's memory that weights may take when they are rearranged. Larger weights are
#: read from the mapped file, which is slower.
ARRANGED_SHARE = 0.65


def _automatic(weight: Tensor) -> torch.dtype:
    """bfloat16 on a CUDA device that supports it, for half the bytes per token. Otherwise the stored dtype,
    with float32 in place of bfloat16 on a CPU without bfloat16 instructions."""
    if weight.device.type == "cuda":
        return torch.bfloat16 if multiplies_bf16(weight.device) else weight.dtype
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16:
        return torch.bfloat16 if cpu_multiplies_bf16() else torch.float32
    return weight.dtype


def compiled_folder() -> Path:
    """Folder of the libraries compiled for this machine."""
    return cache_directory() / "compiled"


def can_compile() -> bool:
    """Whether products can be compiled for this machine; logs the reason if not."""
    folder = compiled_folder()
    try:
        _compile(folder)
        library(folder)
    except Unavailable as reason:
        _log.info("using torch's products, which are slower than compiled ones: %s", reason)
        return False
    return True


@functools.cache
def _compile(folder: Path) -> None:
    """Compile the library in one process, while others wait; `library` says why it can't be compiled there."""

    def read(folder: Path) -> bool | None:
        return True if is_compiled(folder) else None

    with suppress(FileError, Unavailable):
        built_once(folder, "compiling products for this CPU", read, library, or_alone=False)


def num_padded(num_rows: int, fewest: int = FEWEST_ROWS) -> int:
    """Number of rows to which a product's input is padded on a CPU: at least `num_rows` and `fewest`.

    Products then have one of twenty sizes (see `in_blocks`) and, from 16 rows on, are at most a
    quarter larger than needed. A row's result does not depend on the number of rows.

    >>> [num_padded(number) for number in (1, 4, 5, 33, 130, 257, 700)]
    [4, 4, 8, 40, 160, 260, 704]
    >>> [num_padded(number, fewest=1) for number in (1, 2, 5, 33, 257)]
    [1, 2, 5, 40, 257]
    """
    blocks, rest = divmod(num_rows, MOST_ROWS)
    step = max(fewest, 1 << max(0, (rest - 1).bit_length() - 3))
    return max(fewest, blocks * MOST_ROWS + -(-rest // step) * step)


def padded(x_ME: Tensor, fewest: int = FEWEST_ROWS) -> Tensor:
    """`x_ME` padded with rows of zeros, see `num_padded`."""
    missing = num_padded(len(x_ME), fewest) - len(x_ME)
    return F.pad(x_ME, (0, 0, 0, missing)) if missing else x_ME


class TrainedParts(Protocol):
    """The parts of the training decoder that are read here."""

    backend: AttentionBackend
    context_length: int
    vocab_size: int

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def head_weight(self) -> Tensor: ...

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, cells_BT: Tensor | None) -> Tensor: ...


class PackedInference(InferenceDecoder):
    """A snapshot of a decoder's weights, laid out for `Engine`.

    Args:
        decoder: the decoder that owns the weights.
        precision: see `Decoder.for_inference`.
        num_layers, num_heads, head_dim: its sizes; `num_heads` counts query heads.
        num_key_heads: key and value heads, a divisor of `num_heads`. None: `num_heads`.
    """

    #: Smallest number of decoder parameters for which products are compiled for this CPU.
    compiled_from: int = LARGE_DECODER
    #: See `CacheLayout`.
    keeps_inputs: bool = False

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
        in_place, precision = precision == "stored", "auto" if precision == "stored" else precision
        refusal = why_not(precision, weight)
        if refusal is not None:
            raise GenerationError("precision", refusal[0], refusal[1])
        self._owner, self.precision = decoder, precision
        self.context_length, self.vocab_size = decoder.context_length, decoder.vocab_size
        self.num_layers, self.num_heads, self.head_dim = num_layers, num_heads, head_dim
        self.num_key_heads = num_heads if num_key_heads is None else num_key_heads
        self._device = weight.device
        self.on_cpu = weight.device.type == "cpu"
        #: Whether int8 products take float32 inputs and round them.
        self.rounds = rounds_inputs(weight.device)
        #: Dtype of weights that are not integers, and of their inputs.
        self.weight_dtype = {
            "auto": _automatic(weight),
            "fp32": torch.float32,
            "int8": torch.float32 if self.rounds else torch.bfloat16,
        }.get(precision, torch.bfloat16)
        taken = self.weight_dtype
        self.in_place = in_place or self._stays_mapped(weight)
        if self.in_place:
            self.weight_dtype = weight.dtype
        #: Precision of products compiled for this CPU. None: torch computes them.
        self.compiled = self._compiled()
        #: Input and output dtype of products.
        self.dtype = torch.float32 if self.compiled else self.weight_dtype
        #: Dtype of keys and values. A CPU attends to bfloat16 several times slower than to float32 (7 times, measured on
        #: AVX512 with its bfloat16 instructions), which costs more than halving the bytes saves.
        narrow = self.on_cpu and taken == torch.bfloat16
        cache_dtype = torch.float32 if narrow or self.compiled else taken
        self.layout = CacheLayout(
            self.num_layers,
            self.num_key_heads,
            self.head_dim,
            cache_dtype,
            weight.device,
            decoder.backend,
            self.on_cpu,
            queries_per_key=self.num_heads // self.num_key_heads,
            keeps_inputs=self.keeps_inputs,
        )
        # these products are no slower with fewer rows
        integers = precision == "int4" or (precision == "int8" and self.rounds)
        self._fewest = 1 if integers or self.compiled else FEWEST_ROWS
        self._heads: dict[tuple[int, int], Product] = {}
        self._heads_lock = Lock()  # sessions in several threads share a decoder
        #: Whether one call computes all layers for the new tokens of a step, using `cache.runs`.
        self.steps_by_runs = False
        self.reset()

    def _compiled(self) -> str | None:
        """ "bf16" or "int8" if products are compiled: the decoder is large enough, and the CPU and the system
        allow it. float32 stays in torch, whose results don't depend on a compiler."""
        precision = "int8" if self.precision == "int8" else "bf16"
        if not self.on_cpu or self.in_place or self.precision == "int4":
            return None
        if precision == "bf16" and self.weight_dtype != torch.bfloat16:
            return None
        if sum(one.numel() for one in self._owner.parameters()) < self.compiled_from:
            return None
        return precision if can_compile() else None

    def reset(self) -> None:
        """Take a new snapshot of the decoder's weights."""
        with torch.no_grad():
            self._head_weight_VE = self._owner.head_weight().detach()
            self.take_layers()
        self._heads.clear()
        if self.on_cpu:
            small = sum(one.numel() for one in self._owner.parameters()) < LARGE_DECODER
            called = small and not self.compiled
            self.rows_at_once = ROWS_OF_CALLS if called else ROWS_OF_WEIGHTS

    @abstractmethod
    def take_layers(self) -> None:
        """Arrange the layers' current weights with `product`."""

    @abstractmethod
    def through_layers(
        self,
        x_ME: Tensor,
        positions_BT: Tensor,
        cells_BT: Tensor | None,
        cache: CM3LeonCache,
        reading: Reading,
    ) -> Tensor:
        """Run all blocks and the final normalisation on the padded rows `x_ME`, which may be overwritten.

        Only the first B * T rows of the result are used."""

    def _bytes_a_weight(self) -> float:
        """Bytes per weight in this precision."""
        return {"int8": 1.0, "int4": 0.625}.get(self.precision, float(self.weight_dtype.itemsize))

    def _stays_mapped(self, weight: Tensor) -> bool:
        """Whether products read the mapped file of weights, because rearranged weights would leave too little
        memory.

        Raises `GenerationError` if mapped weights don't fit in memory in the required dtype.
        """
        limit = MachineMemory.find().limit if is_mapped(weight) else None
        if limit is None:
            return False
        number = sum(one.numel() for one in self._owner.parameters())
        needed = int(number * self._bytes_a_weight())
        if needed <= ARRANGED_SHARE * limit:
            return False
        if self.precision not in ("int8", "int4") and self.weight_dtype == weight.dtype:
            return True
        raise GenerationError(
            "precision",
            f"the weights take {needed / 1e9:,.1f} GB in {self.precision}, but only "
            f"{limit / 1e9:,.1f} GB of memory can be used for them",
            "use " + ("int4" if self.precision == "int8" else "int8 or int4")
            if self.precision != "int4"
            else "use a smaller model, or a larger machine",
        )

    def weight_bytes(self) -> int | None:
        weights = list(self._owner.parameters())
        own = sum(one.numel() * one.element_size() for one in weights if not is_mapped(one))
        shares = not self.on_cpu and self.weight_dtype == self._head_weight_VE.dtype
        if self.in_place or (shares and only_generates(self._head_weight_VE)):
            return own
        return own + int(sum(one.numel() for one in weights) * self._bytes_a_weight())

    def product(self, *weights: Tensor, activation: str | None = None) -> Product:
        """Return x -> activation(x @ w.T) for all weights w, outputs concatenated, in this decoder's
        precision and layout. Mapped weights are not needed afterwards."""
        if self.in_place:
            own = [weight.detach() for weight in weights]
            return with_activation(side_by_side(own), activation)
        made = self._arranged(joined(weights), activation)
        release(*weights)
        return made

    def _arranged(self, weight: Tensor, activation: str | None) -> Product:
        if self.compiled is not None:
            fused = activation if activation in AFTER else None
            made = FewRowsProduct(weight, self.compiled, compiled_folder(), fused)
            return made if fused == activation else with_activation(made, activation)
        if self.precision == "int8":
            return int8_product(weight, activation)
        if self.precision == "int4":
            return with_activation(int4_product(weight), activation)
        weight = weight.to(self.weight_dtype)
        if weight.device.type != "cpu":
            return with_activation(lambda x: F.linear(x, weight), activation)
        if packs(self.weight_dtype):
            return packed_product(weight, activation)
        transposed = weight.T.contiguous()
        return with_activation(lambda x: x @ transposed, activation)

    # ---- methods of `InferenceDecoder`

    @property
    def device(self) -> torch.device:
        return self._device

    def allocate_cache(self, num_rows: int, max_length: int) -> CM3LeonCache:
        if max_length > self.context_length:
            raise GenerationError(
                "prompt",
                f"{max_length} tokens including those to generate, but the context is "
                f"{self.context_length}",
                "shorten the prompt, retrieve fewer documents, or generate less",
            )
        return CM3LeonCache(self.layout, num_rows, max_length)

    def cache_bytes(self, num_tokens: int) -> int:
        return (
            (3 if self.layout.keeps_inputs else 2)
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
        by_runs = self.steps_by_runs and tokens_BT.shape[1] == 1
        return self._read(tokens_BT, cache, positions_BT, cells_BT, by_runs=by_runs)

    def hidden_states_ahead(
        self, tokens_BT: Tensor, *, cache: KVCache, cells_BT: Tensor | None = None
    ) -> Tensor:
        by_runs = self.steps_by_runs
        return self._read(tokens_BT, cache, None, cells_BT, by_runs=by_runs, by_turns=not by_runs)

    def _read(
        self,
        tokens_BT: Tensor,
        cache: KVCache,
        positions_BT: Tensor | None,
        cells_BT: Tensor | None,
        *,
        by_runs: bool,
        by_turns: bool = False,
    ) -> Tensor:
        assert isinstance(cache, CM3LeonCache)
        assert cache.layout is self.layout, "a cache comes from this decoder's allocate_cache"
        own_positions_BT, reading = cache.begin(
            tokens_BT.shape[1], by_runs=by_runs, by_turns=by_turns
        )
        positions_BT = own_positions_BT if positions_BT is None else positions_BT
        # positions beyond the table are padding of ragged chunks
        positions_BT = positions_BT.clamp(max=self.context_length - 1)
        # weights may be bfloat16; sums over many layers aren't
        x_BTE = self._owner.embed(tokens_BT, positions_BT, cells_BT)
        B, T, E = x_BTE.shape
        x_ME = x_BTE.reshape(B * T, E)
        wide = torch.promote_types(x_ME.dtype, torch.float32)
        x_ME = x_ME.to(torch.float32 if self.compiled else wide)
        if self.on_cpu:
            x_ME = padded(x_ME, self._fewest)
        through = self.through_layers(x_ME, positions_BT, cells_BT, cache, reading)
        return through[: B * T].view(B, T, E)

    def shifted_inputs(
        self, layer: int, x_ME: Tensor, mix_E: Tensor, cache: CM3LeonCache, reading: Reading
    ) -> Tensor:
        """The inputs of a layer's keys with `token_shift`, padded like its normalised inputs."""
        heads = len(cache.rows), reading.num_tokens, self.num_key_heads, self.head_dim
        own_ME = x_ME[: heads[0] * heads[1]]
        before_ME = cache.before(layer, own_ME.view(heads), reading).reshape(own_ME.shape)
        padded_ME = torch.zeros_like(x_ME)
        padded_ME[: len(own_ME)] = mixed(own_ME, before_ME, mix_E)
        return padded_ME

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        return self.rows_of_head(hidden, range(self.vocab_size) if ids is None else ids)

    def rows_of_head(self, hidden: Tensor, ids: range) -> Tensor:
        """Return logits [..., len(ids)] of rows of the head's weight."""
        everything = range(len(self._head_weight_VE))
        x_ME = self.head_input(hidden)
        M = hidden[..., 0].numel()
        # on a CPU each slice of the head is a packed copy: large slices share the one of all ids
        packed = everything if self.on_cpu and 2 * len(ids) >= len(everything) else ids
        logits_MV = self._head(packed)(x_ME)[:M]
        if len(packed) > len(ids):
            logits_MV = logits_MV[:, ids.start : ids.stop].contiguous()
        return logits_MV.view(*hidden.shape[:-1], len(ids))

    def head_input(self, hidden: Tensor) -> Tensor:
        """Return hidden states [..., E] as padded rows [M, E], the input of the head's products."""
        int8_head = self.precision == "int4" and self.rounds
        x_ME = hidden.reshape(-1, hidden.shape[-1]).to(torch.float32 if int8_head else self.dtype)
        return padded(x_ME, self._fewest) if self.on_cpu else x_ME

    def head_product(self, weight_VE: Tensor) -> Product:
        """Return x -> x @ weight.T for a head. int4 is used only for layers: rounding the head would change
        probabilities most."""
        return int8_product(weight_VE) if self.precision == "int4" else self.product(weight_VE)

    def _head(self, ids: range) -> Product:
        """Return the head's product for a slice of the ids; the most recently used ones are cached."""
        key = (ids.start, ids.stop)
        with self._heads_lock:
            product = self._heads.pop(key, None)
            if product is None:
                weight_VE = self._head_weight_VE[ids.start : ids.stop]
                product = self.head_product(weight_VE)
            self._heads[key] = product  # now the most recent
            if len(self._heads) > NUM_HEADS:
                self._heads.pop(next(iter(self._heads)))
            return product
