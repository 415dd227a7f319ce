"""Configs of the attention backends. Light: no torch here.

| name | what | where |
| --- | --- | --- |
| `by_device` | `triton` for tensors on CUDA that it takes, else `sdpa` | everywhere
|
| `sdpa` | torch's fused function; on the CPU packed documents one by one, in bfloat16 by plain products | everywhere
|
| `triton` | this project's kernels: masked tiles are skipped, bitwise reproducible | CUDA (or
Triton's interpreter) |
| `flex` | torch's FlexAttention, compiled | CUDA; on the CPU without gradients, uncompiled |
| `xformers` | memory-efficient attention of mslk or xformers | CUDA |
| `reference` | all scores in memory | everywhere |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import DeviceError, MissingPackageError
from cm3core.interfaces.attention import AttentionConfig
from cm3plugins.attention.refusals import USE_SDPA, cuda_only, no_backward

if TYPE_CHECKING:
    from cm3core.interfaces.attention import AttentionBackend

#: As in `cm3kernels.attention.sdpa`, which would import torch.
LONGEST_PRODUCT = 512


@dataclass(kw_only=True)
class SDPAAttentionConfig(AttentionConfig):
    """`torch.nn.functional.scaled_dot_product_attention`.

    Flash kernels on CPU and GPU, forward and backward; on a GPU packed documents take a dense mask, and
    nothing is skipped.
    """

    def build(self) -> AttentionBackend:
        """The backend; runs wherever torch runs."""
        from cm3plugins.attention.kernels import KernelAttention

        return KernelAttention("sdpa")

    def kept_bytes(self, rows: int, length: int, num_heads: int, itemsize: int) -> int:
        """A mask in the type of the scores, where rows are not attended document by document; in 16 bits
        the probabilities of short documents."""
        scores = num_heads * min(length, LONGEST_PRODUCT) if itemsize == 2 else 0
        return rows * length * max(length, scores) * itemsize


@dataclass(kw_only=True)
class ByDeviceAttentionConfig(AttentionConfig):
    """Chosen by the device of each call: this project's kernels on CUDA, else `sdpa`.

    On CUDA, heads that the kernels don't take (above 128) and a torch without Triton fall back to
    `sdpa`, with a warning.
    """

    def build(self) -> AttentionBackend:
        """The backend; runs wherever torch runs."""
        from cm3plugins.attention.kernels import KernelAttention

        return KernelAttention("auto")

    def for_device(self, device: str) -> AttentionConfig:
        """`triton` on "cuda", else `sdpa`."""
        return TritonAttentionConfig() if device == "cuda" else SDPAAttentionConfig()

    def kept_bytes(self, rows: int, length: int, num_heads: int, itemsize: int) -> int:
        """That of `sdpa`, the larger one."""
        return SDPAAttentionConfig().kept_bytes(rows, length, num_heads, itemsize)


@dataclass(kw_only=True)
class ReferenceAttentionConfig(AttentionConfig):
    """All scores in memory, float32 or wider: slow and plain; defines what the others compute."""

    def build(self) -> AttentionBackend:
        """The backend; runs wherever torch runs."""
        from cm3plugins.attention.kernels import KernelAttention

        return KernelAttention("reference")

    def kept_bytes(self, rows: int, length: int, num_heads: int, itemsize: int) -> int:
        """Scores, and their softmax, in float32."""
        return 2 * rows * num_heads * length * length * 4


@dataclass(kw_only=True)
class TritonAttentionConfig(AttentionConfig):
    """The kernels of `cm3kernels.attention`, on CUDA; head dimensions up to 128.

    No gradients through a cache.
    """

    largest_head_dim: ClassVar[int | None] = 128

    def build(self) -> AttentionBackend:
        """The backend.

        Raises:
            MissingPackageError: Triton is not installed.
            DeviceError: there is neither CUDA nor Triton's interpreter.
        """
        import importlib.util

        if importlib.util.find_spec("triton") is None:
            raise MissingPackageError(
                "attention 'triton'",
                "Triton is not installed",
                f"pip install 'cm3leon[triton]', or {USE_SDPA}",
            )
        import torch

        from cm3kernels import interprets
        from cm3plugins.attention.kernels import KernelAttention

        if not torch.cuda.is_available() and not interprets():
            raise DeviceError(
                "attention 'triton'",
                "there is no CUDA device",
                f"{USE_SDPA}; to try the kernels slowly on the "
                "CPU, set TRITON_INTERPRET=1 before starting",
            )
        return KernelAttention("triton")


@dataclass(kw_only=True)
class FlexAttentionConfig(AttentionConfig):
    """`torch.nn.attention.flex_attention`, compiled with a block mask on CUDA.

    On the CPU it has no backward, and is not compiled here (that takes a C++ compiler and about ten
    seconds): all scores in memory, for comparison only.
    """

    def check_training(self, device: str) -> None:
        """Raise `DeviceError` on the CPU."""
        if device == "cpu":
            raise no_backward()

    def build(self) -> AttentionBackend:
        """The backend; on the CPU `attend` raises `DeviceError` if gradients are required."""
        from cm3plugins.attention.flex import FlexAttention

        return FlexAttention()


@dataclass(kw_only=True)
class XFormersAttentionConfig(AttentionConfig):
    """`memory_efficient_attention` of mslk or, without it, xformers; CUDA only.

    The modules are `mslk.attention.fmha` and `xformers.ops.fmha`.
    """

    def check_training(self, device: str) -> None:
        """Raise `DeviceError` on the CPU."""
        if device == "cpu":
            raise cuda_only()

    def build(self) -> AttentionBackend:
        """The backend.

        Raises:
            DeviceError: there is no CUDA device.
            MissingPackageError: neither package can be imported.
        """
        import torch

        if not torch.cuda.is_available():
            raise cuda_only()
        from cm3plugins.attention.xformers import XFormersAttention, load_fmha

        return XFormersAttention(load_fmha())
