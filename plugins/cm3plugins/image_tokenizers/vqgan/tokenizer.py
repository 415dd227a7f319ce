"""`VQGANTokenizer`: the VQGAN network behind the framework's image tokenizer interface.

Shape legend: N pictures, H W pixels, C channels, Y X code grid, c = Y * X codes of a picture, K
codebook entries.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cm3core.document import IntArray, PixelArray
from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3plugins.image_tokenizers.vqgan.model import VQModel
from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture, facts
from cm3plugins.image_tokenizers.vqgan.weights import build_model, load_weights, save_weights
from cm3plugins.trained.bundled import weights_path
from cm3plugins.trained.weights_file import check_architecture

#: Pixels per forward pass (32 pictures at 64 px, on a GPU 16 at 256); larger pictures use smaller
#: batches.
_BATCH_PIXELS, _BATCH_PIXELS_ON_GPU = 32 * 64 * 64, 16 * 256 * 256
#: A checkpoint's copy of the weights.
SAVED = "model.safetensors"


def to_input(pixels_NHWC: PixelArray) -> Tensor:
    """Pictures uint8 [N, H, W, 3] to network input, fp32 [N, 3, H, W] in [-1, 1], channels-last."""
    pixels_NHWC = np.require(pixels_NHWC, requirements=["C", "W"])
    pixels_NCHW = rearrange(torch.from_numpy(pixels_NHWC), "N H W C -> N C H W")
    return (pixels_NCHW.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def to_pixels(output_NCHW: Tensor) -> PixelArray:
    """The network's output to pictures uint8 [N, H, W, 3], clamped and rounded."""
    pixels_NCHW = ((output_NCHW.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(rearrange(pixels_NCHW, "N C H W -> N H W C").cpu().numpy())


class VQGANTokenizer(ImageTokenizer):
    """Pixels <-> codes by a VQGAN, in fp32, on the CPU unless moved.

    On a GPU, encoding leaves out TF32, so that only codes that are nearly tied may differ from the
    CPU's; decoding, where a rounded pixel is all that could differ, uses it.

    Args:
        model: the network; put in evaluation mode.
        bundled: its weights come with this package, so that checkpoints need no copy.
    """

    def __init__(self, model: VQModel, *, bundled: bool = False) -> None:
        self.model, self.bundled = model.eval(), bundled
        self._fingerprint: str | None = None

    @classmethod
    def from_file(
        cls,
        path: Path,
        arch: VQGANArchitecture,
        *,
        sha256: str | None = None,
        bundled: bool = False,
    ) -> VQGANTokenizer:
        """Load the tokenizer from a weights file.

        Args:
            path: the file.
            arch: the shape that its network must have. `resolution` may differ if
                `attn_resolutions` is empty.
            sha256: if given, the file's hash must be this.
            bundled: see the class.

        Raises:
            CheckpointError: the file can't be read, or has another shape or hash.
        """
        stored, state = load_weights(path)
        if sha256 is not None and (found := sha256_file(path)) != sha256:
            raise CheckpointError(
                str(path),
                f"its SHA-256 is {found}, the recipe expects {sha256}",
                "give the right file, or correct image_tokenizer.weights_sha256",
            )
        if not stored.attn_resolutions:
            # convolutions, and attention in the middle, work at any size
            stored = replace(stored, resolution=arch.resolution)
        check_architecture(arch, stored, path, "image_tokenizer")
        return cls(build_model(stored, state, str(path)), bundled=bundled)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.model.arch.resolution, self.model.arch.resolution

    @property
    def grid(self) -> tuple[int, int]:
        side = self.model.arch.resolution // self.model.arch.downsampling
        return side, side

    @property
    def codebook_size(self) -> int:
        return self.model.arch.codebook_size

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the shape and the weights of encoder and codebook, which define the codes.

        The weights that only decode (`decoder`, `post_quant_conv`) are left out: training them
        further on frozen codes gives better pictures for the same codes, and need not invalidate
        code caches and decoders.
        """
        if self._fingerprint is None:
            arch = self.model.arch
            digest = hashlib.sha256(json.dumps(facts(arch, arch), sort_keys=True).encode())
            for name, tensor in sorted(self.model.state_dict().items()):
                if name.startswith(("decoder.", "post_quant_conv.")):
                    continue
                digest.update(f"{name}{list(tensor.shape)}".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def move_to(self, device: torch.device) -> None:
        self.model.to(device)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def _batch_size(self) -> int:
        pixels = _BATCH_PIXELS if self._device.type == "cpu" else _BATCH_PIXELS_ON_GPU
        return max(1, pixels // self.model.arch.resolution**2)

    @torch.inference_mode()
    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        with _exact_products(self._device):
            batches = [
                rearrange(
                    self.model.encode(
                        to_input(pixels_NHWC[i : i + self._batch_size]).to(self._device)
                    ),
                    "N Y X -> N (Y X)",
                )
                .to(torch.int32)
                .cpu()
                .numpy()
                for i in range(0, len(pixels_NHWC), self._batch_size)
            ]
        rows, columns = self.grid
        return np.concatenate(batches) if batches else np.zeros((0, rows * columns), np.int32)

    @torch.inference_mode()
    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        codes_NYX = rearrange(
            torch.from_numpy(codes_Nc).long(), "N (Y X) -> N Y X", Y=self.grid[0], X=self.grid[1]
        )
        batches = [
            to_pixels(self.model.decode(codes_NYX[i : i + self._batch_size].to(self._device)))
            for i in range(0, len(codes_NYX), self._batch_size)
        ]
        return np.concatenate(batches) if batches else np.zeros((0, *self.image_size, 3), np.uint8)

    def save(self, folder: Path) -> None:
        """Write the weights, unless they are bundled.

        Lossless: as fp16 only if that is exact (training stores fp16).
        """
        if self.bundled:
            return
        state = {name: tensor.cpu() for name, tensor in self.model.state_dict().items()}
        halved = [tensor for name, tensor in state.items() if not name.startswith("quantize.")]
        half = all(torch.equal(tensor.half().float(), tensor) for tensor in halved)
        save_weights(folder / SAVED, self.model.arch, state, half=half)

    def codebook(self) -> Tensor:
        """The code vectors, fp32 [K, embed_dim]; on the unit sphere if they are compared there."""
        return self.model.quantize.entries().detach().to("cpu", copy=True)


def _exact_products(device: torch.device) -> AbstractContextManager[Any]:
    """Context without TF32, which convolutions of a GPU use by default."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False
    )


def weights_file(weights: str | None) -> Path:
    """The path that a recipe's `weights` means.

    Raises:
        CheckpointError: it is an unknown bundled name, or None.
    """
    assets = Path(__file__).parent / "assets"
    return weights_path(
        weights,
        {path.parent.name: path for path in assets.glob("*/model.safetensors")},
        section="image_tokenizer",
        component="tokenizer",
        trainer="cm3 tokenizer train-image",
    )
