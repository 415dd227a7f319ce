"""Op `store_heads`: its arguments, checked. Formula, shapes, costs: README.md in this folder; implementations:
`cm3kernels.dispatch`."""

from __future__ import annotations

import torch
from torch import Tensor

from cm3kernels._host import require
from cm3kernels.dispatch import STORE_HEADS as IMPLEMENTATIONS
from cm3kernels.dispatch import choose

__all__ = ["IMPLEMENTATIONS", "store_heads"]


def store_heads(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    *,
    norms: Tensor | None = None,
    eps: float = 1e-5,
    implementation: str = "auto",
) -> Tensor:
    """Split the product of new tokens into heads, normalise queries and keys, and write keys and values to the
    cache.

    Args:
        qkv: floating [M, (H + 2 K) D], the heads of queries, keys and values of each token; the last stride is 1.
        keys, values: the pool of one layer, same dtype, [slots, K, D]; any strides, with the last one 1. Changed in
            place.
        slots: int64 [M], on the same device: where each token's key and value are written. Of several tokens with one
            slot, any may be kept.
        norms: floating [2, D], the weights of the layer norms of query and of key heads. None: they aren't normalised.
        eps: positive; added to the variance.
        implementation: "auto" or a name in `IMPLEMENTATIONS`.

    Returns:
        Queries [M, H, D], dtype of the pool. No gradient.

    Raises:
        ValueError: shapes, dtypes or devices are invalid; a gradient is required; on a CPU also slots outside the pool
            (on CUDA they are not checked); or the implementation can't run.

    >>> keys, values = torch.zeros(3, 1, 2), torch.zeros(3, 1, 2)
    >>> store_heads(torch.arange(6.0)[None], keys, values, torch.tensor([1])).tolist()
    [[[0.0, 1.0]]]
    >>> keys[:, 0].tolist(), values[1, 0].tolist()
    ([[0.0, 0.0], [2.0, 3.0], [0.0, 0.0]], [4.0, 5.0])
    """
    _check(qkv, keys, values, slots, norms, eps)
    q: Tensor = choose("store_heads", implementation, IMPLEMENTATIONS, keys)(
        qkv, keys, values, slots, norms, float(eps)
    )
    return q


def _check(
    qkv: Tensor, keys: Tensor, values: Tensor, slots: Tensor, norms: Tensor | None, eps: float
) -> None:
    op = "store_heads"
    require(
        keys.ndim == 3 and keys.shape == values.shape and keys.shape[1] * keys.shape[2] > 0,
        op,
        lambda: (
            f"keys are {list(keys.shape)}, values {list(values.shape)}, must be twice [slots, key "
            "heads, D]"
        ),
    )
    require(
        keys.dtype == values.dtype and keys.is_floating_point() and qkv.is_floating_point(),
        op,
        lambda: (
            f"qkv is {qkv.dtype}, keys {keys.dtype}, values {values.dtype}, must be floating, keys "
            "and values of one dtype"
        ),
    )
    key_heads, dim = keys.shape[1:]
    require(
        qkv.ndim == 2 and qkv.shape[1] % dim == 0 and qkv.shape[1] > 2 * key_heads * dim,
        op,
        lambda: (
            f"qkv is {list(qkv.shape)}, must be [tokens, (H + {2 * key_heads}) * {dim}] with H query "
            "heads"
        ),
    )
    require(
        slots.dtype == torch.int64 and slots.shape == qkv.shape[:1],
        op,
        lambda: f"slots is {list(slots.shape)} {slots.dtype}, must be int64 {[len(qkv)]}",
    )
    require(
        norms is None
        or (norms.shape == (2, dim) and norms.is_floating_point() and norms.is_contiguous()),
        op,
        lambda: f"norms must be contiguous floating {[2, dim]}",
    )
    require(eps > 0, op, lambda: f"eps is {eps}, must be positive")
    for name, tensor in (("qkv", qkv), ("keys", keys), ("values", values)):
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            require(
                False, op, f"{name} has strides {list(tensor.stride())}, the last one must be 1"
            )
    given = [qkv, keys, values, slots, *([] if norms is None else [norms])]
    require(
        not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)),
        op,
        "an argument requires a gradient, which this op doesn't have; next: call it under "
        "torch.no_grad()",
    )
    require(
        all(tensor.device == keys.device for tensor in given),
        op,
        lambda: (
            "everything must be on one device, got "
            f"{', '.join(str(tensor.device) for tensor in given)}"
        ),
    )
    if slots.device.type == "cpu" and not torch.compiler.is_compiling() and len(slots):
        least, most = (int(number) for number in slots.aminmax())
        require(
            least >= 0 and most < len(keys),
            op,
            lambda: f"slots are {least} to {most}, must be 0 to {len(keys) - 1}",
        )
