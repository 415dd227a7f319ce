"""Op `linear_cross_entropy`: its arguments, checked. Formula, shapes, costs: README.md in this folder;
implementations: `cm3kernels.dispatch`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cm3kernels.dispatch import LINEAR_CROSS_ENTROPY as IMPLEMENTATIONS
from cm3kernels.dispatch import choose

__all__ = ["IMPLEMENTATIONS", "linear_cross_entropy"]

OP = "linear_cross_entropy"


def linear_cross_entropy(
    hidden_NE: Tensor,
    head_VE: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    groups_N: Tensor,
    *,
    num_groups: int = 4,
    z_loss: float = 0.0,
    chunk_bytes: int | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the tokens' losses in nats, in total and by group, from hidden states and the
    head's weight.

    Args:
        hidden_NE: hidden states, floating.
        head_VE: the head's weight, floating; logits are hidden @ head.T, computed in autocast's dtype if
            autocast is on, otherwise in the hidden states' dtype.
        targets_N: int64, the id that each hidden state predicts, 0 to V - 1.
        weights_N: floating, without a gradient. Tokens with weight 0 add no loss and no gradient, whatever
            their hidden state and target are.
        groups_N: integer, 0 to num_groups - 1 (the modality of the target).
        num_groups: number of groups.
        z_loss: adds z_loss * (log Z)^2 to each token's loss (PaLM, arXiv:2204.02311, section 5).
        chunk_bytes: maximum bytes of logits (and their gradient) at a time. None: 8 to 32 MiB ("torch"),
            1 GiB ("triton").
        implementation: "auto" or a name in `IMPLEMENTATIONS`.

    Returns:
        The scalar sum of weight * (nll + z loss), differentiable with respect to hidden states and
        head, once; and [G, 2]: sum of weight * nll (without the z loss) and sum of weights of each
        group. Float32, float64 for float64 hidden states.

    Raises:
        ValueError: shapes, dtypes, devices or settings are invalid; on a CPU also a target or group out of
            range (on CUDA, without waiting for the device, the loss of such a target and the sums of such a
            group are NaN).

    Source: logits in chunks with the gradient computed immediately: Liger Kernel
    (arXiv:2410.10989), section 3.2.

    >>> hidden = torch.ones(2, 1)
    >>> head = torch.tensor([[0.0], [math.log(3.0)]])  # probabilities 1/4 and 3/4
    >>> targets, groups = torch.tensor([0, 1]), torch.tensor([1, 2])
    >>> loss, sums = linear_cross_entropy(hidden, head, targets, torch.ones(2), groups)
    >>> round(loss.exp().item(), 4), sums[:, 1].tolist()  # 4 * 4/3
    (5.3333, [0.0, 1.0, 1.0, 0.0])
    """
    _check(hidden_NE, head_VE, targets_N, weights_N, groups_N, num_groups, z_loss, chunk_bytes)
    device = hidden_NE.device.type
    dtype = (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NE.dtype
    )
    run = choose(OP, implementation, IMPLEMENTATIONS, hidden_NE)
    loss_and_sums: tuple[Tensor, Tensor] = run(
        hidden_NE,
        head_VE,
        targets_N,
        weights_N,
        groups_N,
        num_groups=num_groups,
        z_loss=float(z_loss),
        dtype=dtype,
        chunk_bytes=chunk_bytes,
    )
    return loss_and_sums


def _wrong(cause: str) -> ValueError:
    return ValueError(f"{OP}: {cause}")


def _check(
    hidden_NE: Tensor,
    head_VE: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    groups_N: Tensor,
    num_groups: int,
    z_loss: float,
    chunk_bytes: int | None,
) -> None:
    for name, tensor in (("hidden_NE", hidden_NE), ("head_VE", head_VE)):
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise _wrong(
                f"{name} is {list(tensor.shape)} {tensor.dtype}, must be a floating matrix"
            )
    if not hidden_NE.shape[1] == head_VE.shape[1] > 0:
        raise _wrong(
            f"hidden_NE {list(hidden_NE.shape)} and head_VE {list(head_VE.shape)} differ in the "
            "model dimension, or it is 0"
        )
    if head_VE.shape[0] == 0:
        raise _wrong("head_VE has no rows")
    n = hidden_NE.shape[0]
    if targets_N.shape != (n,) or targets_N.dtype != torch.int64:
        raise _wrong(f"targets_N is {list(targets_N.shape)} {targets_N.dtype}, must be int64 [{n}]")
    if weights_N.shape != (n,) or not weights_N.is_floating_point():
        raise _wrong(
            f"weights_N is {list(weights_N.shape)} {weights_N.dtype}, must be floating [{n}]"
        )
    if torch.is_grad_enabled() and weights_N.requires_grad:
        raise _wrong(
            "weights_N requires a gradient, but only hidden states and head get one; next: "
            "weights_N.detach()"
        )
    if groups_N.shape != (n,) or groups_N.is_floating_point() or groups_N.dtype == torch.bool:
        raise _wrong(f"groups_N is {list(groups_N.shape)} {groups_N.dtype}, must be integer [{n}]")
    if num_groups <= 0:
        raise _wrong(f"num_groups is {num_groups}, must be positive")
    if not math.isfinite(z_loss) or z_loss < 0:
        raise _wrong(f"z_loss is {z_loss}, must be finite and not negative")
    if chunk_bytes is not None and chunk_bytes <= 0:
        raise _wrong(f"chunk_bytes is {chunk_bytes}, must be positive")
    devices = {
        "hidden_NE": hidden_NE.device,
        "head_VE": head_VE.device,
        "targets_N": targets_N.device,
        "weights_N": weights_N.device,
        "groups_N": groups_N.device,
    }
    if len(set(devices.values())) != 1:
        raise _wrong(
            "everything must be on one device, got "
            + ", ".join(f"{name} on {device}" for name, device in devices.items())
        )
    if hidden_NE.device.type == "cpu" and not torch.compiler.is_compiling() and n:
        counts_N = weights_N != 0
        for name, values_N, most in (
            ("targets_N", targets_N, head_VE.shape[0]),
            ("groups_N", groups_N, num_groups),
        ):
            outside_N = counts_N & ((values_N < 0) | (values_N >= most))
            if bool(outside_N.any()):
                token = int(outside_N.nonzero()[0])
                raise _wrong(f"{name}[{token}] is {int(values_N[token])}, must be 0 to {most - 1}")
