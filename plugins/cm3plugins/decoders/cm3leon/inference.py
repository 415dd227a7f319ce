"""The CM3leon decoder arranged for generation: weights packed for few rows at a time, one product
for query, key and value.

On a CPU a step of generation reads every weight and uses it for a few rows. oneDNN's packed layout
does that up to three times as fast as a plain product (2 to 16 rows, width 768, fp32, AVX512),
gives a row the same bits whatever stands beside it, and is fastest from four rows on: fewer are
padded.

Legend: B rows, T tokens, M = B * T rows of a product (padded), H heads, D head dimension, E model
dimension, V ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3core.errors import GenerationError, close_match
from cm3core.interfaces.decoder import Decoder, KVCache
from cm3plugins.decoders.cm3leon.cache import CM3LeonCache, Reading

if TYPE_CHECKING:
    from cm3plugins.decoders.cm3leon.model import CM3LeonDecoder

PRECISIONS = ("auto", "fp32", "bf16", "int8")
#: Rows that a product on a CPU has at least.
FEWEST_ROWS = 4

LAYER_NORM_EPS = 1e-5

#: Largest code of an int8 weight or of an input that is rounded to 8 bits, and what stands for an
#: input of 0.
MOST, ZERO = 127, 128

#: x [M, in] -> [M, out].
Product = Callable[[Tensor], Tensor]


class CM3LeonInference(Decoder):
    """A decoder's weights of one moment, for `Engine`. With a cache it reads them; without one it
    is the decoder itself.

    Args:
        decoder: whose weights.
        precision: see `Decoder.for_inference`.
    """

    def __init__(self, decoder: CM3LeonDecoder, precision: str = "auto") -> None:
        refusal = why_not(precision, decoder.embed_tokens.weight)
        if refusal is not None:
            raise GenerationError("precision", refusal[0], refusal[1])
        self.decoder, self.precision = decoder, precision
        self.backend, self.grid = decoder.backend, decoder.grid
        self.context_length, self.vocab_size = decoder.context_length, decoder.vocab_size
        self.num_layers, self.num_heads = decoder.config.num_layers, decoder.config.num_heads
        self.head_dim = decoder.config.d_model // self.num_heads
        self.device = decoder.embed_tokens.weight.device
        self.on_cpu = self.device.type == "cpu"
        rounds = precision == "int8" and rounds_inputs(self.device)
        #: What products take and give.
        self.dtype = {
            "auto": decoder.embed_tokens.weight.dtype,
            "fp32": torch.float32,
            "int8": torch.float32 if rounds else torch.bfloat16,
        }.get(precision, torch.bfloat16)
        #: What keys and values are kept in. A CPU attends to bfloat16 several times slower than to
        #: float32 (7 times, measured on AVX512 with its bfloat16 instructions), which costs more
        #: than half the bytes save.
        self.cache_dtype = (
            torch.float32 if self.on_cpu and self.dtype == torch.bfloat16 else self.dtype
        )
        self.training = False
        self._heads: dict[tuple[int, int], Product] = {}
        self.reset()

    def reset(self) -> None:
        """Take the decoder's present weights."""
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

    # ---- the calls of `Decoder`

    def parameters(self, recurse: bool = True) -> Any:
        return self.decoder.parameters(recurse)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Any:
        return self.decoder.named_parameters(prefix, recurse, remove_duplicate)

    def head_weight(self) -> Tensor:
        return self._head_weight_VE

    def for_inference(self, precision: str = "auto") -> Decoder:
        return self if precision == self.precision else self.decoder.for_inference(precision)

    def allocate_cache(self, num_rows: int, max_length: int) -> CM3LeonCache:
        if max_length > self.context_length:
            raise GenerationError(
                "prompt",
                f"{max_length} tokens with what is to be generated, the context is "
                f"{self.context_length}",
                "shorten the prompt, retrieve fewer documents, or generate less",
            )
        return CM3LeonCache(self, num_rows, max_length)

    def cache_bytes(self, num_tokens: int) -> int:
        return (
            2
            * num_tokens
            * self.num_layers
            * self.num_heads
            * self.head_dim
            * self.cache_dtype.itemsize
        )

    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        cells_BT: Tensor | None = None,
        kv_start_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        if cache is None:
            return self.decoder.hidden_states(
                tokens_BT, positions_BT=positions_BT, cells_BT=cells_BT, kv_start_BT=kv_start_BT
            )
        assert isinstance(cache, CM3LeonCache)
        assert cache.decoder is self, "a cache comes from this decoder's allocate_cache"
        assert kv_start_BT is None, "rows of a cache see all that they hold"
        own_positions_BT, reading = cache.begin(tokens_BT.shape[1])
        positions_BT = own_positions_BT if positions_BT is None else positions_BT
        # past the end there is only padding of ragged chunks
        positions_BT = positions_BT.clamp(max=self.context_length - 1)
        x_BTE = self.decoder.embed(tokens_BT, positions_BT, cells_BT)
        return self._through(x_BTE, cache, reading)

    def _through(self, x_BTE: Tensor, cache: CM3LeonCache, reading: Reading) -> Tensor:
        """All blocks, and the last normalisation. The residual stream keeps the embeddings' dtype,
        products have their own."""
        B, T, E = x_BTE.shape
        M, dtype = B * T, self.dtype
        x_ME = x_BTE.reshape(M, E)
        if self.on_cpu and M < FEWEST_ROWS:
            x_ME = F.pad(x_ME, (0, 0, 0, FEWEST_ROWS - M))
        heads = (B, T, 3, self.num_heads, self.head_dim)
        attended_ME = x_ME.new_zeros(x_ME.shape, dtype=dtype)
        for layer, (qkv, out, up, down, q_norm, k_norm) in enumerate(self._layers):
            q_BTHD, k_BTHD, v_BTHD = qkv(layer_norm(x_ME).to(dtype))[:M].view(heads).unbind(2)
            if self.decoder.config.qk_norm:
                q_BTHD, k_BTHD = (
                    _normed(norm, x) for norm, x in ((q_norm, q_BTHD), (k_norm, k_BTHD))
                )
            attended_ME[:M].view(B, T, self.num_heads, self.head_dim).copy_(
                cache.attend(layer, q_BTHD, k_BTHD, v_BTHD, reading)
            )
            x_ME += out(attended_ME)
            x_ME += down(up(layer_norm(x_ME).to(dtype)))
        return layer_norm(x_ME[:M]).view(B, T, E)

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        ids = range(self.vocab_size) if ids is None else ids
        key = (ids.start, ids.stop)
        if key not in self._heads:
            self._heads[key] = self._product(self._head_weight_VE[ids.start : ids.stop])
        x_ME = hidden.reshape(-1, hidden.shape[-1]).to(self.dtype)
        M = len(x_ME)
        if self.on_cpu and M < FEWEST_ROWS:
            x_ME = F.pad(x_ME, (0, 0, 0, FEWEST_ROWS - M))
        return self._heads[key](x_ME)[:M].view(*hidden.shape[:-1], len(ids))


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """What `norm` makes of x, computed in the precision of its weight, in that of x."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    normed: Tensor = norm(x.to(weight.dtype))
    return normed.to(x.dtype)


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last dimension without weight or bias."""
    return F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)


def with_activation(product: Product, activation: str | None) -> Product:
    """`product`, then relu or gelu."""
    if activation is None:
        return product
    function = cast(Callable[[Tensor], Tensor], getattr(F, activation))
    return lambda x: function(product(x))


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this dtype on this machine."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def packed_product(weight: Tensor, activation: str | None) -> Product:
    """By oneDNN, weights in the layout that it likes best, the activation in the same call."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    name, algorithm = (
        ("none", "") if activation is None else (activation, "none" if activation == "gelu" else "")
    )

    def product(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, name, [], algorithm)
        return result

    return product


def int8_product(weight: Tensor) -> Product:
    """Weights as int8 with a scale for each output (symmetric).

    Where the CPU multiplies bytes, inputs (float32) are rounded to 8 bits as well, with a scale for
    each row, so that a row's result depends on no other (Yao et al. 2022, ZeroQuant,
    arXiv:2206.01861: "token-wise"). Elsewhere inputs are bfloat16.
    """
    scale_V = (weight.float().abs().amax(1) / MOST).clamp(min=1e-12)
    codes = (weight.float() / scale_V[:, None]).round().clamp(-MOST, MOST).to(torch.int8)
    if rounds_inputs(weight.device):
        return rounded_product(codes, scale_V)
    scale_V = scale_V.to(torch.bfloat16)

    def product(x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x.contiguous(), codes, scale_V)

    return product


def rounded_product(codes: Tensor, scale_V: Tensor) -> Product:
    """By oneDNN: bytes times bytes. Inputs are unsigned with a zero at 128, which it has
    instructions for; its other forms take hundreds of times as long. It knows one scale for all
    inputs, so that the rows' are applied behind it.

    Args:
        codes: int8 [V, E].
        scale_V: float32 [V].
    """
    packed = torch.ops.onednn.qlinear_prepack(codes, [FEWEST_ROWS, codes.shape[1]])
    zero_V = torch.zeros(len(codes), dtype=torch.int64)
    half = torch.tensor(ZERO + 0.5)  # conversion to integers cuts off: this rounds

    def product(x: Tensor) -> Tensor:
        largest_M1 = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True).clamp_(min=1e-12)
        bytes_ME = torch.addcdiv(half, x, largest_M1, value=MOST).to(torch.uint8)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            bytes_ME,
            1 / MOST,
            ZERO,
            packed,
            scale_V,
            zero_V,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return result.mul_(largest_M1)

    return product


def rounds_inputs(device: torch.device) -> bool:
    """Whether int8 products round their inputs: on a CPU with instructions for sums of products of
    bytes (VNNI). Without them, sums of two products overflow."""
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.cpu._is_vnni_supported()
    )


def why_not(precision: str, weight: Tensor) -> tuple[str, str] | None:
    """(cause, next step) where weights like this one can't be used in this precision; None where
    they can."""
    if precision not in PRECISIONS:
        return f"{precision!r} is not known", close_match(precision, PRECISIONS)
    if precision == "int8":
        try:
            dtype = torch.float32 if rounds_inputs(weight.device) else torch.bfloat16
            int8_product(torch.ones(32, 32, device=weight.device))(
                torch.ones(1, 32, dtype=dtype, device=weight.device)
            )
        except (RuntimeError, NotImplementedError) as error:
            return (
                f"int8 weights don't run on {weight.device}: {str(error).splitlines()[0]}",
                "use bf16",
            )
    return None
