"""Errors for attention backends that can't run on a device. Light: no torch here."""

from __future__ import annotations

from cm3core.errors import DeviceError

USE_SDPA = "use `attention: sdpa`, which runs everywhere"


def no_backward() -> DeviceError:
    """Error of `flex` when gradients are required on the CPU."""
    return DeviceError(
        "attention 'flex'",
        "FlexAttention has no backward pass on the CPU, so it can't train there",
        "use `attention: sdpa`, train on a CUDA device, or call under torch.no_grad()",
    )


def cuda_only() -> DeviceError:
    """Error of `xformers` without a CUDA device."""
    return DeviceError(
        "attention 'xformers'",
        "there is no CUDA device, and its kernels don't run on a CPU",
        USE_SDPA,
    )
