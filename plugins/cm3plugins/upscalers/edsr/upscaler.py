"""`EDSRUpscaler`: the network behind the framework's upscaler interface.

Shape legend: N pictures, H W pixels, C channels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cm3core.document import PixelArray
from cm3core.interfaces.upscaler import Upscaler
from cm3plugins.trained.bundled import weights_path
from cm3plugins.trained.weights_file import check_architecture
from cm3plugins.upscalers.edsr.model import EDSR
from cm3plugins.upscalers.edsr.settings import EDSRArchitecture
from cm3plugins.upscalers.edsr.weights import build_model, load_weights
from cm3plugins.upscalers.tiles import upscale_in_tiles
from cm3run.training.device import choose_device

#: Pixels per side of a tile. Activations take about 100 MB.
TILE = 192


def to_input(pixels_NHWC: PixelArray) -> Tensor:
    """Pictures uint8 [N, H, W, 3] to network input, fp32 [N, 3, H, W] in [0, 1], channels-last."""
    pixels_NHWC = np.ascontiguousarray(pixels_NHWC)
    pixels_NCHW = rearrange(torch.from_numpy(pixels_NHWC), "N H W C -> N C H W")
    return (pixels_NCHW.float() / 255.0).contiguous(memory_format=torch.channels_last)


def to_pixels(output_NCHW: Tensor) -> PixelArray:
    """The network's output to pictures uint8 [N, H, W, 3], clamped and rounded."""
    pixels_NCHW = (output_NCHW.float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return np.ascontiguousarray(rearrange(pixels_NCHW, "N C H W -> N H W C").cpu().numpy())


class EDSRUpscaler(Upscaler):
    """Upscales with the network, in fp32; pictures larger than a tile are processed in tiles.

    Args:
        model: the network; put in evaluation mode.
        device: where it runs.
    """

    def __init__(self, model: EDSR, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)

    @classmethod
    def from_file(cls, path: Path, arch: EDSRArchitecture, device: str = "auto") -> EDSRUpscaler:
        """Load the upscaler from a weights file.

        Args:
            path: the file.
            arch: the shape that its network must have.
            device: where it runs; "auto" is a CUDA device if there is one.

        Raises:
            CheckpointError: the file can't be read, or has another shape.
            DeviceError: the device can't be used.
        """
        stored, state = load_weights(path)
        check_architecture(arch, stored, path, "upscaler")
        model = build_model(stored, state, str(path))
        return cls(model, choose_device(None if device == "auto" else device))

    @property
    def scale(self) -> int:
        return self.model.arch.scale

    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        return upscale_in_tiles(pixels_NHWC, self.scale, TILE, self.model.radius, self._forward)

    @torch.inference_mode()
    def _forward(self, pixels_NHWC: PixelArray) -> PixelArray:
        return to_pixels(self.model(to_input(pixels_NHWC).to(self.device)))


def weights_file(weights: str | None) -> Path:
    """The path that a recipe's `weights` means.

    Raises:
        CheckpointError: it is an unknown bundled name, or None.
    """
    assets = Path(__file__).parent / "assets"
    return weights_path(
        weights,
        {path.parent.name: path for path in assets.glob("*/model.safetensors")},
        section="upscaler",
        component="upscaler",
        trainer="cm3 upscaler train",
    )
