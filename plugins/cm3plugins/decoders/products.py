"""Products with a fixed weight for generation: packed by oneDNN, in bfloat16, or with weights of 8 or 4
bits; and the precisions that "auto" tries.

On a CPU a generation step reads every weight and uses it for a few rows. oneDNN's packed layout does
that up to three times as fast as a plain product (2 to 16 rows, width 768, fp32, AVX512), gives a row
the same bits whatever its neighbours are, and is fastest from four rows on, so fewer rows are padded.

Legend: M rows of a product (padded), E inputs, V outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3core.errors import close_match
from cm3kernels.few_rows import FewRowsProduct
from cm3run.devices import cpu_multiplies_bf16
from cm3run.machine_memory import first_line

PRECISIONS = ("auto", "fp32", "bf16", "int8", "int4")
#: Minimum number of rows of a product on a CPU.
FEWEST_ROWS = 4
#: Maximum number of rows that oneDNN multiplies in one call. It compiles kernels for each number of
#: rows, half a megabyte per weight, and never frees them: a process that used every number of rows
#: would grow by gigabytes.
MOST_ROWS = 256

#: Largest code of an int8 weight or of an input rounded to 8 bits, and the code of an input
#: of 0.
MOST, ZERO = 127, 128

#: Number of a row's weights that share a scale and an offset in int4, and the number of int4 codes.
GROUP, NUM_CODES = 32, 16
#: Rows of a weight rounded at once: in float32 they take many times the memory of the result.
ROWS_AT_ONCE = 1024

#: x [M, in] -> [M, out].
Product = Callable[[Tensor], Tensor]


def in_blocks(product: Product) -> Product:
    """Return `product` applied to at most `MOST_ROWS` rows at a time."""

    def of_blocks(x: Tensor) -> Tensor:
        if len(x) <= MOST_ROWS:
            return product(x)
        return torch.cat([product(block) for block in x.split(MOST_ROWS)])

    return of_blocks


def with_activation(product: Product, activation: str | None) -> Product:
    """Return `product` followed by relu or gelu."""
    if activation is None:
        return product
    function = cast(Callable[[Tensor], Tensor], getattr(F, activation))
    return lambda x: function(product(x))


def side_by_side(weights: Sequence[Tensor]) -> Product:
    """Return the product with several unpacked weights, outputs concatenated."""
    if len(weights) == 1:
        return lambda x: F.linear(x, weights[0])
    return lambda x: torch.cat([F.linear(x, weight) for weight in weights], dim=-1)


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this dtype on this machine."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def packed_product(weight: Tensor, activation: str | None) -> Product:
    """Return oneDNN's product: weights in its preferred layout, the activation fused."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    name, algorithm = (
        ("none", "") if activation is None else (activation, "none" if activation == "gelu" else "")
    )

    def product(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, name, [], algorithm)
        return result

    return in_blocks(product)


def int8_product(weight: Tensor, activation: str | None = None) -> Product:
    """Return a product with int8 weights, one scale per output (symmetric).

    On a CPU with byte products, inputs (float32) are also rounded to 8 bits, with one scale per row, so
    that a row's result is independent of other rows (Yao et al. 2022, ZeroQuant, arXiv:2206.01861:
    "token-wise"). Elsewhere inputs are bfloat16.
    """
    scale_V = torch.empty(len(weight), device=weight.device)
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        part = weight[rows].float()
        scale_V[rows] = (part.abs().amax(1) / MOST).clamp(min=1e-12)
        codes[rows] = (part / scale_V[rows, None]).round_().clamp_(-MOST, MOST).to(torch.int8)
    if rounds_inputs(weight.device):
        relu = activation == "relu"
        product = RoundedProduct(codes, scale_V, relu=relu)
        return product if relu else with_activation(product, activation)
    scale_V = scale_V.to(torch.bfloat16)

    def weights_only(x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x.contiguous(), codes, scale_V)

    return with_activation(weights_only, activation)


def int4_product(weight: Tensor) -> Product:
    """Return a product with 4-bit weights. Each `GROUP` of a row has a scale and an offset, so that its
    smallest and its largest weight are exact. Inputs and outputs are bfloat16, sums float32.

    Args:
        weight: floating [V, E] on the CPU; V a multiple of 16, E of `GROUP`.
    """
    V, E = weight.shape
    codes = torch.empty(V, E, dtype=torch.int32)
    scales = torch.empty(E // GROUP, V, 2, dtype=torch.bfloat16)
    for start in range(0, V, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        part = weight[rows].float().unflatten(1, (-1, GROUP))
        least, most = part.aminmax(dim=-1)
        # as stored: codes are optimal for the rounded scale and offset
        scale = ((most - least) / (NUM_CODES - 1)).clamp(min=1e-12).bfloat16().float()
        middle = (least + NUM_CODES // 2 * scale).bfloat16().float()
        rounded = ((part - middle[..., None]) / scale[..., None] + NUM_CODES // 2).round_()
        codes[rows] = rounded.clamp_(0, NUM_CODES - 1).flatten(1).to(torch.int32)
        scales[:, rows] = torch.stack([scale.T, middle.T], -1).bfloat16()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)

    def product(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.contiguous(), packed, GROUP, scales
        )
        return result

    return product


class RoundedProduct:
    """oneDNN's product of bytes with bytes.

    Inputs are unsigned with a zero at 128, for which the CPU has instructions; oneDNN's other forms take hundreds of times
    as long. Sums are whole numbers, and all scales are applied afterwards: a row's result is the same
    with any other rows. oneDNN supports only one scale for all inputs, and for more rows (some CPUs from 6 on) it
    multiplies by scales in another order, which changes the last bit.

    Args:
        codes: int8 [V, E].
        scale_V: float32 [V].
        relu: apply relu to the result.
    """

    def __init__(self, codes: Tensor, scale_V: Tensor, *, relu: bool = False) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(codes, [FEWEST_ROWS, codes.shape[1]])
        self._scale_V = scale_V / MOST
        self._one_V = torch.ones(len(codes))
        self._zero_V = torch.zeros(len(codes), dtype=torch.int64)
        self._half = torch.tensor(ZERO + 0.5)  # conversion to integers truncates: this rounds
        self._post = "relu" if relu else "none"

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) > MOST_ROWS:
            return torch.cat([self(block) for block in x.split(MOST_ROWS)])
        result, largest_M1 = self._unscaled(x)
        return result.mul_(largest_M1)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """total += product(x)."""
        for part, block in zip(total.split(MOST_ROWS), x.split(MOST_ROWS), strict=True):
            result, largest_M1 = self._unscaled(block)
            part.addcmul_(result, largest_M1)

    def _unscaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the product with inputs divided by their row's maximum, and the rows' maxima [M, 1]."""
        largest_M1 = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True)
        # a row of zeros divides by zero and gets arbitrary codes; scaling makes it zero again
        bytes_ME = torch.addcdiv(self._half, x, largest_M1, value=MOST).to(torch.uint8)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            bytes_ME,
            1.0,
            ZERO,
            self._packed,
            self._one_V,
            self._zero_V,
            None,
            1.0,
            0,
            torch.float32,
            self._post,
            [],
            "",
        )
        return result.mul_(self._scale_V), largest_M1


def add_product(total: Tensor, product: Product, x: Tensor) -> None:
    """total += product(x), in one pass if the product supports it."""
    if isinstance(product, RoundedProduct | FewRowsProduct):
        product.add_to(total, x)
    else:
        total += product(x)


def rounds_inputs(device: torch.device) -> bool:
    """Whether int8 products round their inputs: only on a CPU with byte dot products (VNNI).

    Without those instructions, sums of two products overflow.
    """
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.cpu._is_vnni_supported()
    )


def why_not(precision: str, weight: Tensor) -> tuple[str, str] | None:
    """Return (cause, next step) if such weights can't be used in this precision, else None."""
    if precision not in PRECISIONS:
        return f"{precision!r} is not known", close_match(precision, PRECISIONS)
    if precision == "int4" and weight.device.type != "cpu":
        return f"int4 weights don't run on {weight.device}", "use bf16, or --device cpu"
    if precision == "int4" and weight.shape[1] % GROUP:
        cause = f"int4 needs widths that are multiples of {GROUP}, but one is {weight.shape[1]}"
        return cause, "use int8"
    if precision in ("int8", "int4"):
        try:
            dtype = torch.float32 if rounds_inputs(weight.device) else torch.bfloat16
            inputs = torch.ones(1, 32, dtype=dtype, device=weight.device)
            int8_product(torch.ones(32, 32, device=weight.device))(inputs)
            if precision == "int4":
                int4_product(torch.ones(32, 32))(inputs.bfloat16())
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            return (
                f"{precision} weights don't run on {weight.device}: {first_line(error)}",
                "use bf16",
            )
    return None


#: Number of parameters above which reading the weights takes most of a step on a CPU.
LARGE_DECODER = 30_000_000
#: The same when all layers are one call of compiled code (`cm3kernels.few_rows`): above these, bfloat16 is
#: faster than the stored dtype, and int8 faster than bfloat16. Without that call, Python and torch between
#: operations of microseconds take most of a small decoder's step.
COMPILED_FROM, COMPILED_INT8_FROM = 1_000_000, 10_000_000


class Weighted(Protocol):
    """The parts of a training decoder that are read here."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def head_weight(self) -> Tensor: ...


def faster_precisions(
    decoder: Weighted, in_one_call: Callable[[], bool] = lambda: False
) -> tuple[str, ...]:
    """See `Decoder.faster_precisions`.

    Args:
        decoder: the training decoder.
        in_one_call: whether one call of compiled code can compute all its layers; called only if it matters,
            since the first call on a machine compiles.
    """
    weight = decoder.head_weight()
    number = sum(one.numel() for one in decoder.parameters())
    if weight.device.type != "cpu" or number < COMPILED_FROM or weight.dtype != torch.float32:
        return ()
    tiles = torch.cpu._is_amx_tile_supported()
    compiled = (number < LARGE_DECODER or tiles) and in_one_call()
    return faster_on_cpu(
        number,
        weight.dtype,
        # with AMX, torch's products of bytes are slower than those of bfloat16; compiled ones are not
        bytes_too=rounds_inputs(weight.device) and (compiled or not tiles),
        bf16_too=cpu_multiplies_bf16(),
        in_one_call=compiled,
    )


def faster_on_cpu(
    parameters: int,
    stored: torch.dtype,
    *,
    bytes_too: bool,
    bf16_too: bool,
    in_one_call: bool = False,
) -> tuple[str, ...]:
    """Return the precisions that generate faster on a CPU than the stored dtype, fastest first.

    A step reads every weight for a few rows, so bytes decide if the CPU has the instructions and the
    weights exceed the caches. docs/decoding.md has tokens per second by size, and the command that
    measures them.

    Args:
        parameters: number of parameters.
        stored: dtype of the weights. bfloat16 stays bfloat16: that is exact and needs no measurement, which
            would take longer than arranging the weights.
        bytes_too: whether the CPU multiplies bytes (VNNI), and int8 was measured as faster there.
        bf16_too: whether it multiplies bfloat16.
        in_one_call: whether one call of compiled code computes all layers.

    >>> faster_on_cpu(100_000_000, torch.float32, bytes_too=True, bf16_too=True)
    ('int8', 'bf16')
    >>> faster_on_cpu(3_000_000, torch.float32, bytes_too=True, bf16_too=True, in_one_call=True)
    ('bf16',)
    >>> faster_on_cpu(7_000_000_000, torch.bfloat16, bytes_too=True, bf16_too=True)
    ()
    """
    if stored != torch.float32:
        return ()
    int8_from = COMPILED_INT8_FROM if in_one_call else LARGE_DECODER
    bf16_from = COMPILED_FROM if in_one_call else LARGE_DECODER
    rules = (("int8", bytes_too, int8_from), ("bf16", bf16_too, bf16_from))
    return tuple(name for name, native, least in rules if native and parameters >= least)
