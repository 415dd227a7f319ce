"""The errors of attention backends that can't run somewhere. Light: no torch here."""

from __future__ import annotations

from cm3core.errors import DeviceError

USE_SDPA = "use `attention: sdpa`, which runs everywhere"


def no_backward() -> DeviceError:
    """The error of `flex` where gradients are required on the CPU."""
    return DeviceError(
        "attention 'flex'",
        "FlexAttention has no backward on the CPU, so it can't train there",
        "use `attention: sdpa`, train on a CUDA device, or call under torch.no_grad()",
    )


def cuda_only() -> DeviceError:
    """The error of `xformers` where there is no CUDA device."""
    return DeviceError(
        "attention 'xformers'",
        "there is no CUDA device, and none of its kernels runs on a CPU",
        USE_SDPA,
    )
