"""Base of image tokenizers that run a network: batches, device, weights.

Shape legend: N pictures, B pictures of a batch, H W pixels, Y rows and X codes of a row of the grid (columns, times
the codes of a place), c = Y * X codes per picture, K codebook entries, D code dimension.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import ClassVar, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from cm3core.document import IntArray, PixelArray
from cm3core.interfaces.image_tokenizer import ImageTokenizer

#: Pixels per forward pass on a GPU: 16 pictures of 256 px.
_BATCH_PIXELS_ON_GPU = 16 * 256 * 256
_flags_lock = Lock()


class CodeNetwork(Protocol):
    """The network's methods; it is also a torch module."""

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Encode pixels in [-1, 1] [B, 3, H, W] as codes, int64 [B, Y, X]."""

    def decode(self, codes_BYX: Tensor) -> Tensor:
        """Decode codes, int64 [B, Y, X], to pixels [B, 3, H, W], about [-1, 1]."""

    def entries(self) -> Tensor:
        """Return the code vectors as compared, fp32 [K, D]."""


def to_input(pixels_NHWC: PixelArray) -> Tensor:
    """Convert pictures uint8 [N, H, W, 3] to network input, fp32 [N, 3, H, W] in [-1, 1], channels-last."""
    pixels_NHWC = np.require(pixels_NHWC, requirements=["C", "W"])
    pixels_NCHW = rearrange(torch.from_numpy(pixels_NHWC), "N H W C -> N C H W")
    return (pixels_NCHW.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def to_pixels(output_NCHW: Tensor) -> PixelArray:
    """Convert the network's output to pictures uint8 [N, H, W, 3], clamped and rounded."""
    pixels_NCHW = ((output_NCHW.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(rearrange(pixels_NCHW, "N C H W -> N H W C").cpu().numpy())


class NetworkTokenizer(ImageTokenizer):
    """Encodes and decodes pixels with a network, in fp32, on the CPU unless moved.

    On a GPU, encoding avoids TF32, so that only nearly tied codes may differ from the CPU's; decoding
    uses it, since only rounded pixels may differ.

    Args:
        network: the network; set to evaluation mode.
    """

    #: Pixels per forward pass on a CPU.
    batch_pixels: ClassVar[int]

    def __init__(self, network: CodeNetwork) -> None:
        assert isinstance(network, nn.Module)
        self._network, self._module = network, network.eval()
        self._fingerprint: str | None = None

    @abstractmethod
    def facts_of_codes(self) -> str:
        """Return the facts besides the weights that define the codes, as text."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the facts and of the weights that define the codes: encoder and codebook.

        Weights that only decode (`decoder`, `post_quant_conv`) are left out: training them further on
        frozen codes improves the pictures of the same codes, and should not invalidate code caches and
        decoders.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256(self.facts_of_codes().encode())
            for name, tensor in sorted(self._module.state_dict().items()):
                if not name.startswith(("decoder.", "post_quant_conv.")):
                    digest.update(f"{name}{list(tensor.shape)}".encode())
                    digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def move_to(self, device: torch.device) -> None:
        self._module.to(device)

    @property
    def _device(self) -> torch.device:
        return next(self._module.parameters()).device

    @property
    def _batch_size(self) -> int:
        pixels = self.batch_pixels if self._device.type == "cpu" else _BATCH_PIXELS_ON_GPU
        height, width = self.image_size
        return max(1, pixels // (height * width))

    @torch.inference_mode()
    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        size, device = self._batch_size, self._device
        with _exact_products(device):
            batches = [
                self._network.encode(to_input(pixels_NHWC[i : i + size]).to(device))
                .flatten(1)
                .to(torch.int32)
                .cpu()
                .numpy()
                for i in range(0, len(pixels_NHWC), size)
            ]
        rows, columns = self.grid
        return np.concatenate(batches) if batches else np.zeros((0, rows * columns), np.int32)

    @torch.inference_mode()
    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        size, device = self._batch_size, self._device
        codes_NYX = rearrange(torch.from_numpy(codes_Nc).long(), "N (Y X) -> N Y X", Y=self.grid[0])
        batches = [
            to_pixels(self._network.decode(codes_NYX[i : i + size].to(device)))
            for i in range(0, len(codes_NYX), size)
        ]
        return np.concatenate(batches) if batches else np.zeros((0, *self.image_size, 3), np.uint8)

    def codebook(self) -> Tensor:
        """Return the code vectors, fp32 [K, D]; on the unit sphere if they are compared there."""
        return self._network.entries().detach().to("cpu", copy=True)


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Context that disables TF32, the default of convolutions on a GPU.

    cuDNN's flags belong to the process, so threads take turns: one would undo another's setting.
    """
    if device.type != "cuda":
        yield
        return
    flags = {"enabled": torch.backends.cudnn.enabled, "deterministic": True, "allow_tf32": False}
    with _flags_lock, torch.backends.cudnn.flags(**flags):
        yield
