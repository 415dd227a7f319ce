"""Op `store_heads`: its arguments, checked. Formula, shapes, costs: README.md in this folder; implementations:
`cm3kernels.dispatch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cm3kernels._host import require
from cm3kernels.dispatch import STORE_HEADS as IMPLEMENTATIONS
from cm3kernels.dispatch import choose
from cm3kernels.store_heads.heads import HeadNorms, Turn

__all__ = ["IMPLEMENTATIONS", "HeadNorms", "Turn", "store_heads"]

OP = "store_heads"


def store_heads(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    *,
    bias: Tensor | None = None,
    norms: HeadNorms | None = None,
    turn: Turn | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Split the product of new tokens into heads, prepare queries and keys for attention, and write keys and values to the
    cache: the bias is added, then heads of queries and keys are normalised, then rotated.

    Args:
        qkv: floating [M, (H + 2 K) D], the heads of queries, keys and values of each token; the last stride is 1.
        keys, values: the pool of one layer, same dtype, [slots, K, D]; any strides, with the last one 1. Changed in
            place.
        slots: int64 [M], on the same device: where each token's key and value are written. Of several tokens with one
            slot, any may be kept.
        bias: floating [(H + 2 K) D], of the product. None: there is none.
        norms: of the heads of queries and keys. None: they aren't normalised.
        turn: rotary positions of the tokens. None: there are none.
        implementation: "auto" or a name in `IMPLEMENTATIONS`.

    Returns:
        Queries [M, H, D], dtype of the pool. No gradient.

    Raises:
        ValueError: shapes, dtypes or devices are invalid; a gradient is required; on a CPU also slots outside the pool
            (on CUDA they are not checked); or the implementation can't run.

    Source: rotary positions, Su et al. 2021 (arXiv:2104.09864); norms of queries and keys, Dehghani et al. 2023
    (arXiv:2302.05442).

    >>> keys, values = torch.zeros(3, 1, 2), torch.zeros(3, 1, 2)
    >>> store_heads(torch.arange(6.0)[None], keys, values, torch.tensor([1])).tolist()
    [[[0.0, 1.0]]]
    >>> keys[:, 0].tolist(), values[1, 0].tolist()
    ([[0.0, 0.0], [2.0, 3.0], [0.0, 0.0]], [4.0, 5.0])
    """
    _check_pool(qkv, keys, values, slots)
    extra = {"bias": (bias, qkv.shape[1:])}
    if norms is not None:
        shape = torch.Size([qkv.shape[1] // keys.shape[2] - keys.shape[1], keys.shape[2]])
        extra |= {"norms.weight": (norms.weight, shape), "norms.bias": (norms.bias, shape)}
        require(norms.eps > 0, OP, lambda: f"norms.eps is {norms.eps}, must be positive")
    if turn is not None:
        shape = torch.Size([len(qkv), keys.shape[2]])
        extra |= {"turn.cosines": (turn.cosines, shape), "turn.sines": (turn.sines, shape)}
        require(shape[1] % 2 == 0, OP, lambda: f"heads of {shape[1]} dimensions can't be rotated")
    given = {name: (one, shape) for name, (one, shape) in extra.items() if one is not None}
    _check_extra(given)
    _check_places([qkv, keys, values, slots, *(one for one, _ in given.values())], slots, keys)
    q: Tensor = choose("store_heads", implementation, IMPLEMENTATIONS, keys)(
        qkv, keys, values, slots, bias, norms, turn
    )
    return q


def _check_pool(qkv: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    require(
        keys.ndim == 3 and keys.shape == values.shape and keys.shape[1] * keys.shape[2] > 0,
        OP,
        lambda: (
            f"keys are {list(keys.shape)}, values {list(values.shape)}, must be twice [slots, key "
            "heads, D]"
        ),
    )
    require(
        keys.dtype == values.dtype and keys.is_floating_point() and qkv.is_floating_point(),
        OP,
        lambda: (
            f"qkv is {qkv.dtype}, keys {keys.dtype}, values {values.dtype}, must be floating, keys "
            "and values of one dtype"
        ),
    )
    key_heads, dim = keys.shape[1:]
    require(
        qkv.ndim == 2 and qkv.shape[1] % dim == 0 and qkv.shape[1] > 2 * key_heads * dim,
        OP,
        lambda: (
            f"qkv is {list(qkv.shape)}, must be [tokens, (H + {2 * key_heads}) * {dim}] with H query "
            "heads"
        ),
    )
    require(
        slots.dtype == torch.int64 and slots.shape == qkv.shape[:1],
        OP,
        lambda: f"slots is {list(slots.shape)} {slots.dtype}, must be int64 {[len(qkv)]}",
    )
    for name, tensor in (("qkv", qkv), ("keys", keys), ("values", values)):
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            require(
                False, OP, f"{name} has strides {list(tensor.stride())}, the last one must be 1"
            )


def _check_extra(given: Mapping[str, tuple[Tensor, torch.Size]]) -> None:
    for name, (tensor, shape) in given.items():
        right = tensor.shape == shape and tensor.is_floating_point() and tensor.is_contiguous()
        if name.startswith("turn"):
            right = right and tensor.dtype in (torch.float32, torch.float64)
        if not right:
            cause = f"{name} is {list(tensor.shape)} {tensor.dtype}, must be contiguous floating"
            require(False, OP, f"{cause} {list(shape)}")


def _check_places(given: Sequence[Tensor], slots: Tensor, keys: Tensor) -> None:
    require(
        not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)),
        OP,
        "an argument requires a gradient, which this op doesn't have; next: call it under "
        "torch.no_grad()",
    )
    require(
        all(tensor.device == keys.device for tensor in given),
        OP,
        lambda: (
            "everything must be on one device, got "
            f"{', '.join(str(tensor.device) for tensor in given)}"
        ),
    )
    if slots.device.type == "cpu" and not torch.compiler.is_compiling() and len(slots):
        least, most = (int(number) for number in slots.aminmax())
        require(
            least >= 0 and most < len(keys),
            OP,
            lambda: f"slots are {least} to {most}, must be 0 to {len(keys) - 1}",
        )
