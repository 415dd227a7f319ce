"""Makes Triton's interpreter correct for bfloat16, and refuses what would still be wrong.

The interpreter keeps a bfloat16 number as its 16 bits in a uint16, and computes on those integers:
`tl.dot` and `*` multiply bit patterns, a cast from float32 truncates instead of rounding, and no
error is raised (triton issue 11584, declined upstream). `install()` replaces, in the interpreter
only:

- `tl.dot` with a bfloat16 operand: both are widened to float32, the product is accumulated there,
  as the hardware does;
- float32 -> bfloat16: round to nearest, ties to even; NaN stays NaN;
- everything else that computes on bfloat16 bits: `TypeError`. A kernel casts to float32 first.

And, of any dtype, masks of a block and a scalar: the interpreter makes them int32, which Triton
3.9's then refuses.

Works for Triton 3.6 to 3.9. Loads, stores, `tl.where`, reshapes and bit casts only move bits and
are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

#: Operations that move bits without interpreting the number; any other on bfloat16 is refused.
BIT_OPERATIONS = (
    np.bitwise_and,
    np.bitwise_or,
    np.bitwise_xor,
    np.left_shift,
    np.right_shift,
    np.where,
)
REFUSED = (
    "{} on bfloat16 reached the interpreter, which computes on its bits: cast to float32 in the "
    "kernel first"
)


def is_bf16(handle: Any) -> bool:
    """Whether a handle holds bfloat16 numbers (and not, say, pointers to them)."""
    return bool(handle.dtype.scalar == tl.bfloat16)


def as_float32(handle: Any) -> np.ndarray[Any, Any]:
    """The numbers of a handle; bfloat16 widened, which is exact: its bits are the upper half of a
    float32's."""
    return (
        (handle.data.astype(np.uint32) << 16).view(np.float32) if is_bf16(handle) else handle.data
    )


def rounded_bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Bits (uint16) of the bfloat16 nearest to each float32, ties to even; any NaN becomes the
    quiet one."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    upper = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), upper)


def install() -> None:
    """Patch the interpreter, once."""
    if getattr(InterpreterBuilder, "is_right_for_bf16", False):
        return
    InterpreterBuilder.is_right_for_bf16 = True
    _install_dot()
    _install_cast()
    _install_masks()
    for name in ("binary_op", "ternary_op", "unary_op"):
        _refuse_in_operation(name)
    for name in ("create_fma", "create_idiv", "create_rsqrt", "create_erf", "create_histogram"):
        _refuse_always(InterpreterBuilder, name, lambda arguments: arguments)
    for owner in (interpreter.ReduceOps, interpreter.ScanOps):
        _refuse_always(
            owner, "apply_impl", lambda arguments: [tensor.handle for tensor in arguments[0]]
        )


def _install_dot() -> None:
    plain = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if is_bf16(d):
            raise TypeError(REFUSED.format("a dot's accumulator"))
        if not (is_bf16(a) or is_bf16(b)):
            return plain(self, a, b, d, *rest)
        product = np.matmul(as_float32(a), as_float32(b), dtype=np.float32)
        return TensorHandle(product.astype(d.data.dtype) + d.data, d.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot


def _install_cast() -> None:
    plain_cast, plain_convert = InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp

    def cast_with(
        plain: Callable[..., Any], self: Any, source: Any, target: Any, *rest: Any
    ) -> Any:
        from_, to = source.dtype.scalar, target.scalar
        if to == tl.bfloat16 and from_ == tl.float32:
            return TensorHandle(rounded_bits(source.data), to)
        if tl.bfloat16 in (from_, to) and from_ != to and (from_, to) != (tl.bfloat16, tl.float32):
            raise TypeError(REFUSED.format(f"a cast from {from_} to {to}"))
        return plain(self, source, target, *rest)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        return cast_with(plain_cast, self, source, target)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        return cast_with(plain_convert, self, source, target, rounding_mode)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp = cast_impl, create_fp_to_fp


def _install_masks() -> None:
    plain_load, plain_store = (
        InterpreterBuilder.create_masked_load,
        InterpreterBuilder.create_masked_store,
    )

    def as_bool(mask: Any) -> Any:
        return TensorHandle(mask.data.astype(bool), mask.dtype.scalar)

    def create_masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        return plain_load(self, pointers, as_bool(mask), *rest)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        return plain_store(self, pointers, value, as_bool(mask), *rest)

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = (
        create_masked_load,
        create_masked_store,
    )


def _refuse_in_operation(name: str) -> None:
    """`binary_op(a, b, op)` and the like: refused unless `op` only moves bits."""
    plain = getattr(InterpreterBuilder, name)

    def operation(self: Any, *arguments: Any) -> Any:
        *handles, op = arguments
        if op not in BIT_OPERATIONS and any(map(is_bf16, handles)):
            raise TypeError(REFUSED.format(getattr(op, "__name__", str(op))))
        return plain(self, *arguments)

    setattr(InterpreterBuilder, name, operation)


def _refuse_always(owner: type, name: str, handles_of: Callable[[tuple[Any, ...]], Any]) -> None:
    plain = getattr(owner, name)

    def operation(self: Any, *arguments: Any) -> Any:
        if any(is_bf16(handle) for handle in handles_of(arguments) if handle is not None):
            raise TypeError(REFUSED.format(f"{owner.__name__}.{name}"))
        return plain(self, *arguments)

    setattr(owner, name, operation)
