"""Op `add_norm`: its arguments, checked. Formula, shapes, costs: README.md in this folder; implementations:
`cm3kernels.dispatch`."""

from __future__ import annotations

import torch
from torch import Tensor

from cm3kernels._host import require
from cm3kernels.dispatch import ADD_NORM as IMPLEMENTATIONS
from cm3kernels.dispatch import choose

__all__ = ["IMPLEMENTATIONS", "add_norm"]


def add_norm(
    x: Tensor,
    added: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    centred: bool = True,
    dtype: torch.dtype | None = None,
    eps: float = 1e-5,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream, and normalise the sum.

    Args:
        x: floating [M, E], the residual stream; the last stride is 1.
        added: floating [M, E], the branch; the last stride is 1. None: nothing is added.
        weight: floating [E], contiguous; multiplies the normalised sum. None: nothing does.
        centred: the mean is subtracted (layer norm); otherwise the norm is by the root mean square.
        dtype: of the normalised sum; default that of x.
        eps: positive; added to the mean square.
        implementation: "auto" or a name in `IMPLEMENTATIONS`.

    Returns:
        x + added in the dtype of x (x itself if nothing is added), and its norm, both [M, E]. No gradient.

    Raises:
        ValueError: shapes, dtypes or devices are invalid; a gradient is required; or the implementation can't run.

    Source: pre-LN residual branches, Xiong et al. 2020 (arXiv:2002.04745); layer norm, Ba et al. 2016
    (arXiv:1607.06450); by the root mean square, Zhang and Sennrich 2019 (arXiv:1910.07467).

    >>> total, normed = add_norm(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]]), eps=1e-12)
    >>> total.tolist(), normed.tolist()
    ([[1.0, 3.0]], [[-1.0, 1.0]])
    """
    _check(x, added, weight, dtype, eps)
    found: tuple[Tensor, Tensor] = choose("add_norm", implementation, IMPLEMENTATIONS, x)(
        x, added, weight, centred, x.dtype if dtype is None else dtype, float(eps)
    )
    return found


def _check(
    x: Tensor,
    added: Tensor | None,
    weight: Tensor | None,
    dtype: torch.dtype | None,
    eps: float,
) -> None:
    op = "add_norm"
    require(
        x.ndim == 2 and x.shape[1] > 0 and x.is_floating_point(),
        op,
        lambda: f"x is {list(x.shape)} {x.dtype}, must be floating [rows, width]",
    )
    require(
        added is None or (added.shape == x.shape and added.is_floating_point()),
        op,
        lambda: (
            f"added is {list(added.shape)} {added.dtype}, must be floating {list(x.shape)}"
            if added is not None
            else ""
        ),
    )
    require(
        weight is None
        or (
            weight.shape == x.shape[1:]
            and weight.is_floating_point()
            and weight.is_contiguous()
            and weight.device == x.device
        ),
        op,
        lambda: f"weight must be contiguous floating {list(x.shape[1:])} on {x.device}",
    )
    require(
        dtype is None or dtype.is_floating_point,
        op,
        lambda: f"dtype is {dtype}, must be a floating one",
    )
    require(eps > 0, op, lambda: f"eps is {eps}, must be positive")
    given = [("x", x)] if added is None else [("x", x), ("added", added)]
    for name, tensor in given:
        require(
            tensor.stride(1) == 1 or tensor.shape[1] == 1,
            op,
            lambda name=name, tensor=tensor: (  # type: ignore[misc]  # called before the next turn
                f"{name} has strides {list(tensor.stride())}, the last one must be 1"
            ),
        )
        require(
            tensor.device == x.device,
            op,
            lambda tensor=tensor: (  # type: ignore[misc]  # called before the next turn
                f"x is on {x.device}, added on {tensor.device}"
            ),
        )
    require(
        not (
            torch.is_grad_enabled()
            and any(tensor.requires_grad for tensor in (x, added, weight) if tensor is not None)
        ),
        op,
        "an argument requires a gradient, which this op doesn't have; next: call it under "
        "torch.no_grad()",
    )
