"""Op `few_rows`: products of few rows with a fixed weight on a CPU, and a complete step of a decoder's layers
in one call. Layout and formulas: README.md in this folder.

Legend: M rows, K inputs, V outputs, E width, F feed-forward width, H heads, D head dimension, L layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from cm3kernels._host import require
from cm3kernels.few_rows.native import Unavailable, is_compiled, library, refusal

__all__ = ["DecoderStep", "FewRowsProduct", "Unavailable", "is_compiled", "library", "refusal"]

OP = "few_rows"
#: Precision of the weights -> number in products.h, and inputs per group.
KINDS = {"bf16": (0, 2), "int8": (1, 4), "fp32": (2, 1)}
#: Function after a product -> number in products.h.
AFTER = {None: 0, "relu": 1, "gelu": 2}
ADD = 3
PANEL = 16  # outputs
TILE = 16  # groups of inputs
LARGE_PAGE = 2**21
#: Maximum rows of a call, which limits a thread's memory for inputs.
MOST_ROWS = 1024
LARGEST_HEAD_DIM = 128


class _Product(ctypes.Structure):
    _fields_ = (
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("zero", c_void_p),
        ("K", c_int64),
        ("V", c_int64),
        ("kind", c_int64),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Product) for name in ("qkv", "out", "up", "down")),
        *(("q_norm", c_void_p), ("k_norm", c_void_p)),
    )


class _Pool(ctypes.Structure):
    _fields_ = (
        *(("keys", c_void_p), ("values", c_void_p)),
        *((name, c_int64) for name in ("layer_stride", "head_stride", "num_heads", "head_dim")),
        *((name, c_void_p) for name in ("begin", "length", "runs_of")),
        *((name, c_int64) for name in ("longest", "sees_new")),
    )


class FewRowsProduct:
    """x -> activation(x @ weight.T); a row's result has the same bits whatever the other rows are.

    Args:
        weight: floating [V, K] on the CPU; copied.
        precision: precision of the weight in products. "bf16": inputs are rounded to bfloat16, sums are
            float32. "int8": codes -127..127 with a scale per output; inputs are rounded to 8 bits with a
            scale per row. "fp32": nothing is rounded.
        activation: None, "relu" or "gelu" (the exact one).
        folder: folder of the compiled library.

    Raises:
        Unavailable: the library can't be built or loaded on this machine.
        ValueError: unknown precision or activation, or a weight of another shape.
    """

    def __init__(
        self, weight: Tensor, precision: str, folder: Path, activation: str | None = None
    ) -> None:
        require(
            precision in KINDS,
            OP,
            f"precision {precision!r} is not one of {', '.join(KINDS)}",
        )
        require(activation in AFTER, OP, f"activation {activation!r} is not None, 'relu' or 'gelu'")
        require(
            weight.ndim == 2 and weight.is_floating_point() and weight.device.type == "cpu",
            OP,
            lambda: (
                f"weight is {list(weight.shape)} {weight.dtype} on {weight.device}, must be "
                "floating [outputs, inputs] on the CPU"
            ),
        )
        self._library = library(folder)
        self.activation = activation
        self.num_outputs, self.num_inputs = weight.shape
        kind, group = KINDS[precision]
        scale_V, zero_V, codes = None, None, weight
        if precision == "int8":
            codes, scale_V = int8_codes(weight)
            missing = -len(codes) % PANEL
            # sums of bytes are too large by 128 per input
            zero_V = torch.nn.functional.pad(128 * codes.sum(1, dtype=torch.int32), (0, missing))
            scale_V = torch.nn.functional.pad(scale_V / 127, (0, missing))
        elif precision == "bf16":
            codes = weight.bfloat16()
        else:
            codes = weight.float()
        #: Arrays read by the library; kept alive here.
        multiple = group if precision == "fp32" else group * TILE
        self._memory = panels(codes, group, multiple, self._library), scale_V, zero_V
        addresses = (0 if one is None else one.data_ptr() for one in self._memory)
        self.table = _Product(*addresses, self.num_inputs, self.num_outputs, kind)
        self._at = ctypes.addressof(self.table)

    def __call__(self, x: Tensor) -> Tensor:
        """Return float32 [M, V] for floating x [M, K]."""
        out = torch.empty(len(x), self.num_outputs)
        self._multiply(x, out, AFTER[self.activation])
        return out

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """total += product(x), for a product without an activation and a contiguous float32 total."""
        require(self.activation is None, OP, "only a product without an activation adds")
        require(
            total.dtype == torch.float32
            and total.is_contiguous()
            and total.shape == (len(x), self.num_outputs),
            OP,
            lambda: (
                f"total is {total.dtype} {list(total.shape)}, must be contiguous float32 "
                f"{[len(x), self.num_outputs]}"
            ),
        )
        self._multiply(x, total, ADD)

    def _multiply(self, x: Tensor, out: Tensor, after: int) -> None:
        require(
            x.ndim == 2 and x.shape[1] == self.num_inputs,
            OP,
            lambda: f"x is {list(x.shape)}, must be [rows, {self.num_inputs}]",
        )
        x, threads = x.float().contiguous(), torch.get_num_threads()
        for start in range(0, len(x), MOST_ROWS):
            rows, to = x[start : start + MOST_ROWS], out[start : start + MOST_ROWS]
            failed = self._library.cm3_product(
                self._at, rows.data_ptr(), len(rows), 0, after, to.data_ptr(), threads
            )
            if failed:
                raise MemoryError(f"{OP}: no memory for the inputs of {len(rows)} rows")


class DecoderStep:
    """All layers of a pre-norm decoder for new tokens, a row each, in one call:
    x + attention(LN(x)), then x + down(activation(up(LN(x)))), with LayerNorm without weights.

    Args:
        layers: for each layer the products of q, k and v together [3 E], of the attended values, up
            (followed by its activation) and down.
        norms: for each layer the float32 weights [D] of LayerNorm of queries and of keys; None: no norm.
        num_heads: H; E / H must be a multiple of 16, at most `LARGEST_HEAD_DIM`.
    """

    def __init__(
        self,
        layers: Sequence[tuple[FewRowsProduct, FewRowsProduct, FewRowsProduct, FewRowsProduct]],
        norms: Sequence[tuple[Tensor, Tensor] | None],
        num_heads: int,
    ) -> None:
        width = layers[0][3].num_outputs
        self.num_heads, self.head_dim = num_heads, width // num_heads
        require(
            self.takes(self.head_dim),
            OP,
            f"heads have {self.head_dim} dimensions, must be a multiple of 16 and at most "
            f"{LARGEST_HEAD_DIM}",
        )
        self._kept = layers, norms
        self._library = layers[0][0]._library
        self._after = AFTER[layers[0][2].activation]
        self._layers = (_Layer * len(layers))()
        for at, products, pair in zip(self._layers, layers, norms, strict=True):
            at.qkv, at.out, at.up, at.down = (product.table for product in products)
            at.q_norm, at.k_norm = (None, None) if pair is None else [n.data_ptr() for n in pair]

    @staticmethod
    def takes(head_dim: int) -> bool:
        """Whether heads with this many dimensions are supported."""
        return head_dim % 16 == 0 and 0 < head_dim <= LARGEST_HEAD_DIM

    def __call__(
        self,
        x_ME: Tensor,
        keys_LHND: Tensor,
        values_LHND: Tensor,
        runs: Sequence[Sequence[range]],
        *,
        sees_new: bool = False,
    ) -> Tensor:
        """Return LayerNorm of the layers' output, float32 [M, E]. `x_ME` is overwritten.

        Args:
            x_ME: float32, contiguous: embeddings of the new tokens.
            keys_LHND, values_LHND: float32, contiguous: the pool of N slots. Each row's new key and value are
                written to its last slot.
            runs: for each row, the slots that it sees in order, none empty; the last slot of the last run is
                the new token's.
            sees_new: whether a row sees another row's new token, as with several tokens of one sequence. Each row's
                result has the same bits as in a step of its own.
        """
        M, E = x_ME.shape
        for name, tensor in (("x_ME", x_ME), ("keys", keys_LHND), ("values", values_LHND)):
            require(
                tensor.dtype == torch.float32 and tensor.is_contiguous(),
                OP,
                f"{name} must be float32 and contiguous",
            )
        require(len(runs) == M and all(runs), OP, "each row needs its runs of slots")
        flat = [run for row in runs for run in row]
        begin = (c_int64 * len(flat))(*(run.start for run in flat))
        length = (c_int64 * len(flat))(*map(len, flat))
        counts = [0]
        for row in runs:
            counts.append(counts[-1] + len(row))
        runs_of = (c_int64 * len(counts))(*counts)
        slots = keys_LHND.shape[2] * self.head_dim
        pool = _Pool(
            keys_LHND.data_ptr(),
            values_LHND.data_ptr(),
            self.num_heads * slots,
            slots,
            self.num_heads,
            self.head_dim,
            ctypes.addressof(begin),
            ctypes.addressof(length),
            ctypes.addressof(runs_of),
            max(sum(map(len, row)) for row in runs),
            sees_new,
        )
        out = torch.empty(M, E)
        failed = self._library.cm3_step(
            self._layers,
            len(self._layers),
            x_ME.data_ptr(),
            M,
            self._after,
            ctypes.addressof(pool),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"{OP}: no memory for a step of {M} rows")
        return out


def int8_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes int8 [V, K] and scales float32 [V]: code * scale is the rounded weight; a row's largest
    weight is exact.

    >>> int8_codes(torch.tensor([[0.5, -1.0, 0.0, 0.1]]))
    (tensor([[  64, -127,    0,   13]], dtype=torch.int8), tensor([0.0079]))
    """
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scale_V = torch.empty(len(weight))
    for start in range(
        0, len(weight), MOST_ROWS
    ):  # in float32 they take many times the memory of the result
        rows = slice(start, start + MOST_ROWS)
        part = weight[rows].float()
        scale_V[rows] = (part.abs().amax(1) / 127).clamp(min=1e-12)
        codes[rows] = (part / scale_V[rows, None]).round_().clamp_(-127, 127).to(torch.int8)
    return codes, scale_V


def panels(codes: Tensor, group: int, multiple: int, native: ctypes.CDLL) -> Tensor:
    """Rearrange [V, K] to panels of 16 outputs: [V / 16, K / group, 16, group], padded with zeros to a multiple of so
    many inputs; uint8."""
    V, K = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -K % multiple, 0, -V % PANEL))
    V, K = padded.shape
    arranged = padded.view(V // PANEL, PANEL, K // group, group).permute(0, 2, 1, 3)
    num_bytes = padded.numel() * padded.element_size()
    memory = torch.empty(num_bytes + LARGE_PAGE, dtype=torch.uint8)
    start = -memory.data_ptr() % LARGE_PAGE
    aligned = memory[start : start + num_bytes]
    native.cm3_large_pages(aligned.data_ptr(), num_bytes)
    aligned.copy_(arranged.contiguous().view(torch.uint8).flatten())
    return aligned
