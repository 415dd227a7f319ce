"""Configs of the attention backends. Light: no torch here.

| name | what | where |
| --- | --- | --- |
| `by_device` | `triton` for supported tensors on CUDA, `sdpa` otherwise | everywhere
|
| `sdpa` | torch's fused function; on the CPU it runs packed documents one by one, in bfloat16 with plain matmuls | everywhere
|
| `triton` | this project's kernels: skips masked tiles, bitwise reproducible | CUDA (or
Triton's interpreter) |
| `flex` | torch's FlexAttention, compiled | CUDA; on the CPU without gradients, uncompiled |
| `xformers` | memory-efficient attention of mslk or xformers | CUDA |
| `reference` | materialises all scores | everywhere |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import DeviceError
from cm3core.interfaces.attention import AttentionConfig
from cm3plugins.attention.refusals import USE_SDPA, cuda_only, no_backward

if TYPE_CHECKING:
    from cm3core.interfaces.attention import AttentionBackend

#: As in `cm3kernels.attention.sdpa`, which would import torch.
LONGEST_PRODUCT, BLOCK = 1024, 128


@dataclass(kw_only=True)
class SDPAAttentionConfig(AttentionConfig):
    """`torch.nn.functional.scaled_dot_product_attention`.

    Flash kernels on CPU and GPU, forward and backward. On a GPU, packed documents use a dense mask, so
    no tiles are skipped.
    """

    def build(self) -> AttentionBackend:
        """Return the backend. It runs wherever torch runs."""
        from cm3plugins.attention.kernels import KernelAttention

        return KernelAttention("sdpa")

    def kept_bytes(self, rows: int, length: int, num_heads: int, itemsize: int) -> int:
        """Bytes of the mask, in the scores' dtype, unless rows are attended document by document; in 16 bits,
        bytes of short documents' probabilities."""
        scores = min(length, LONGEST_PRODUCT) if itemsize == 2 else 0
        if scores > 2 * BLOCK:  # of a block's queries, those of later keys are not computed
            scores = (scores + BLOCK) // 2
        return rows * length * max(length, num_heads * scores) * itemsize


@dataclass(kw_only=True)
class ByDeviceAttentionConfig(AttentionConfig):
    """Chooses by device at each call: this project's kernels on CUDA, `sdpa` elsewhere.

    On CUDA it falls back to `sdpa`, with a warning, for head dimensions that the kernels don't support
    (above 128) and when Triton is missing.
    """

    def build(self) -> AttentionBackend:
        """Return the backend. It runs wherever torch runs."""
        from cm3plugins.attention.kernels import KernelAttention

        return KernelAttention("auto")

    def for_device(self, device: str) -> AttentionConfig:
        """`triton` on "cuda", else `sdpa`."""
        return TritonAttentionConfig() if device == "cuda" else SDPAAttentionConfig()

    def kept_bytes(self, rows: int, length: int, num_heads: int, itemsize: int) -> int:
        """Bytes kept by `sdpa`, which keeps more."""
        return SDPAAttentionConfig().kept_bytes(rows, length, num_heads, itemsize)


@dataclass(kw_only=True)
class ReferenceAttentionConfig(AttentionConfig):
    """Materialises all scores in float32 or wider. Slow; the reference for the other backends."""

    def build(self) -> AttentionBackend:
        """Return the backend. It runs wherever torch runs."""
        from cm3plugins.attention.kernels import KernelAttention

        return KernelAttention("reference")

    def kept_bytes(self, rows: int, length: int, num_heads: int, itemsize: int) -> int:
        """Bytes of the scores and their softmax in float32."""
        return 2 * rows * num_heads * length * length * 4


@dataclass(kw_only=True)
class TritonAttentionConfig(AttentionConfig):
    """The kernels of `cm3kernels.attention`, on CUDA; head dimensions up to 128.

    No gradients through a cache.
    """

    largest_head_dim: ClassVar[int | None] = 128
    packages: ClassVar[Mapping[str, str]] = {
        "triton": f"pip install 'cm3leon[triton]', or {USE_SDPA}"
    }

    def check_machine(self, device: str) -> None:
        """Raise `DeviceError` where there is neither CUDA nor Triton's interpreter."""
        super().check_machine(device)
        if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise DeviceError(
                "attention 'triton'",
                "there is no CUDA device",
                f"{USE_SDPA}; to run the kernels (slowly) on the "
                "CPU, set TRITON_INTERPRET=1 before starting",
            )

    def build(self) -> AttentionBackend:
        """Return the backend.

        Raises:
            MissingPackageError: Triton is not installed.
            DeviceError: there is neither CUDA nor Triton's interpreter.
        """
        import torch

        from cm3plugins.attention.kernels import KernelAttention

        self.check_machine("cuda" if torch.cuda.is_available() else "cpu")
        return KernelAttention("triton")


@dataclass(kw_only=True)
class FlexAttentionConfig(AttentionConfig):
    """`torch.nn.attention.flex_attention`, compiled with a block mask on CUDA.

    On the CPU it has no backward and isn't compiled here (compiling needs a C++ compiler and takes about
    ten seconds): it materialises all scores, for comparison only.
    """

    def check_training(self, device: str) -> None:
        """Raise `DeviceError` on the CPU."""
        if device == "cpu":
            raise no_backward()

    def build(self) -> AttentionBackend:
        """Return the backend. On the CPU `attend` raises `DeviceError` if gradients are required."""
        from cm3plugins.attention.flex import FlexAttention

        return FlexAttention()


@dataclass(kw_only=True)
class XFormersAttentionConfig(AttentionConfig):
    """`memory_efficient_attention` of mslk or, without it, xformers; CUDA only.

    The modules are `mslk.attention.fmha` and `xformers.ops.fmha`.
    """

    def check_machine(self, device: str) -> None:
        """Raise `DeviceError` without CUDA."""
        super().check_machine(device)
        if device != "cuda":
            raise cuda_only()

    def build(self) -> AttentionBackend:
        """Return the backend.

        Raises:
            DeviceError: there is no CUDA device.
            MissingPackageError: neither package can be imported.
        """
        import torch

        self.check_machine("cuda" if torch.cuda.is_available() else "cpu")
        from cm3plugins.attention.xformers import XFormersAttention, load_fmha

        return XFormersAttention(load_fmha())
