"""`EDSRUpscaler`: the network behind the framework's interface of upscalers.

Shape legend: N pictures, H W pixels, C channels.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError
from cm3core.interfaces.upscaler import Upscaler
from cm3core.training.device import choose_device
from cm3plugins.upscalers.edsr.config import BUNDLED, EDSRConfig
from cm3plugins.upscalers.edsr.model import EDSR
from cm3plugins.upscalers.edsr.weights import build_model, load_weights
from cm3plugins.upscalers.tiles import upscale_in_tiles

#: Pixels a side of a tile. Activations take some 100 MB.
TILE = 192


def to_input(pixels_NHWC: PixelArray) -> Tensor:
    """Pictures uint8 [N, H, W, 3] to the network's input, fp32 [N, 3, H, W] in [0, 1],
    channels-last."""
    pixels_NCHW = torch.from_numpy(np.ascontiguousarray(pixels_NHWC)).permute(0, 3, 1, 2)
    return (pixels_NCHW.float() / 255.0).contiguous(memory_format=torch.channels_last)


def to_pixels(output_NCHW: Tensor) -> PixelArray:
    """The network's output to pictures uint8 [N, H, W, 3], clamped and rounded."""
    pixels_NCHW = (output_NCHW.float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return np.ascontiguousarray(pixels_NCHW.permute(0, 2, 3, 1).cpu().numpy())


class EDSRUpscaler(Upscaler):
    """Enlarges by the network, in fp32; pictures larger than a tile go in tiles.

    Args:
        model: the network; put in evaluation mode.
        device: where it computes.
    """

    def __init__(self, model: EDSR, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)

    @property
    def scale(self) -> int:
        return self.model.arch.scale

    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        return upscale_in_tiles(pixels_NHWC, self.scale, TILE, self.model.radius, self._forward)

    @torch.inference_mode()
    def _forward(self, pixels_NHWC: PixelArray) -> PixelArray:
        return to_pixels(self.model(to_input(pixels_NHWC).to(self.device)))


def weights_file(weights: str) -> Path:
    """The path that a recipe's `weights` means; raises `CheckpointError` for an unknown bundled
    name."""
    if not weights.startswith(BUNDLED):
        return Path(weights).expanduser()
    assets, name = Path(__file__).parent / "assets", weights.removeprefix(BUNDLED)
    known = sorted(path.parent.name for path in assets.glob("*/model.safetensors"))
    if name not in known:
        raise CheckpointError(
            f"upscaler.weights={weights}",
            "no such bundled upscaler",
            f"bundled: {', '.join(known) or 'none'}; or give a path",
        )
    return assets / name / "model.safetensors"


def build_upscaler(config: EDSRConfig) -> EDSRUpscaler:
    """The upscaler that a recipe describes, its weights loaded.

    Raises:
        CheckpointError: there are no weights, they can't be read, or they are of another shape.
        DeviceError: the device can't be used.
    """
    if config.weights is None:
        raise CheckpointError(
            "upscaler.weights",
            "is null: there are no weights to use",
            "train some with `cm3 upscaler train`, then set upscaler.weights to the file",
        )
    path = weights_file(config.weights)
    arch, state = load_weights(path)
    given, found = asdict(config.architecture), asdict(arch)
    if differing := [
        f"{key} is {found[key]} there and {given[key]} in the recipe"
        for key in given
        if given[key] != found[key]
    ]:
        raise CheckpointError(
            str(path),
            "weights of another shape: " + ", ".join(differing),
            "set these keys of upscaler, or give other weights",
        )
    return EDSRUpscaler(
        build_model(arch, state, str(path)),
        choose_device(None if config.device == "auto" else config.device),
    )
