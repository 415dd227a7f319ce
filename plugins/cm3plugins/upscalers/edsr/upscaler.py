"""`EDSRUpscaler`: the network, its weights file, and the framework's upscaler interface.

Source: EDSR (Lim et al. 2017, arXiv 1707.02921), section 3: residual blocks without batch
normalisation, one skip around them all, sub-pixel convolution (Shi et al. 2016). It differs from EDSR
in three ways. The picture's bicubic interpolation is added at the end (VDSR, Kim et al. 2016), so an
untrained network already upscales. Nothing else is added where the picture is flat (`contrast`), so
colours are preserved, even those unseen in training. And a single pixel shuffle maps small to large
pixels, so no convolution runs at the large size.

Shape legend: B or N pictures, C channels, H W small pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cm3core.document import PixelArray
from cm3core.interfaces.upscaler import Upscaler
from cm3plugins.trained.bundled import weights_path
from cm3plugins.trained.weights_file import WeightsFormat, check_architecture, filled
from cm3plugins.upscalers.edsr.settings import EDSRArchitecture
from cm3plugins.upscalers.tiles import upscale_in_tiles
from cm3run.devices import choose_device


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(num_channels, num_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        delta_BCHW: Tensor = self.conv2(F.relu(self.conv1(x_BCHW)))
        return x_BCHW + delta_BCHW


def contrast(pixels_BCHW: Tensor) -> Tensor:
    """Return the local contrast of a picture, [B, 1, H, W] in 0..1.

    0 where the surrounding 5 x 5 pixels (the support of bicubic interpolation) are equal, 1 where
    they differ by two levels of 255 or more in some channel, 0.5 for one level.
    """
    lightest_BCHW, darkest_BCHW = (
        F.max_pool2d(pixels_BCHW, 5, 1, 2),
        -F.max_pool2d(-pixels_BCHW, 5, 1, 2),
    )
    return ((lightest_BCHW - darkest_BCHW).amax(1, keepdim=True) * (255 / 2)).clamp(max=1.0)


class EDSR(nn.Module):
    """Small pictures [B, 3, H, W] in [0, 1] -> large [B, 3, scale * H, scale * W], not clamped.

    Args:
        arch: its architecture.
    """

    def __init__(self, arch: EDSRArchitecture) -> None:
        super().__init__()
        self.arch = arch
        self.head = nn.Conv2d(3, arch.num_channels, 3, padding=1)
        self.blocks = nn.Sequential(
            *(ResidualBlock(arch.num_channels) for _ in range(arch.num_blocks))
        )
        self.tail = nn.Conv2d(arch.num_channels, 3 * arch.scale**2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        assert self.tail.bias is not None
        nn.init.zeros_(self.tail.bias)

    @property
    def radius(self) -> int:
        """Receptive field in small pixels: at least 4; bicubic interpolation needs 2."""
        return 2 * self.arch.num_blocks + 2

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        # antialias=True is Pillow's cubic (a = -0.5), with weights that add up to one at the
        # borders too.
        smooth_BCHW = F.interpolate(
            pixels_BCHW, scale_factor=float(self.arch.scale), mode="bicubic", antialias=True
        )
        x_BCHW = self.head(pixels_BCHW - 0.5)
        x_BCHW = x_BCHW + self.blocks(x_BCHW)
        return smooth_BCHW + F.pixel_shuffle(
            self.tail(x_BCHW) * contrast(pixels_BCHW), self.arch.scale
        )


FORMAT = WeightsFormat(
    "edsr_architecture",
    EDSRArchitecture,
    how_to_train="train an upscaler with `cm3 upscaler train`",
    foreign="use weights written by the trainer; other networks need upscaler=external",
)


def save_weights(
    path: str | Path,
    arch: EDSRArchitecture,
    state: Mapping[str, Tensor],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write `state` as fp16, atomically. `notes` are further metadata."""
    FORMAT.save(path, arch, {name: tensor.half() for name, tensor in state.items()}, notes)


def load_weights(path: str | Path) -> tuple[EDSRArchitecture, dict[str, Tensor]]:
    """Read architecture and fp32 tensors of a file written by `save_weights`; see `WeightsFormat.load`."""
    return FORMAT.load(path)


def build_model(arch: EDSRArchitecture, state: Mapping[str, Tensor], place: str) -> EDSR:
    """Return the network with `state` loaded, in evaluation mode.

    Raises:
        CheckpointError: keys or shapes differ.
    """
    return filled(EDSR(arch), state, place)


#: Pixels per side of a tile. Activations take about 100 MB.
TILE = 192


def to_input(pixels_NHWC: PixelArray) -> Tensor:
    """Convert pictures uint8 [N, H, W, 3] to network input, fp32 [N, 3, H, W] in [0, 1], channels-last."""
    pixels_NHWC = np.ascontiguousarray(pixels_NHWC)
    pixels_NCHW = rearrange(torch.from_numpy(pixels_NHWC), "N H W C -> N C H W")
    return (pixels_NCHW.float() / 255.0).contiguous(memory_format=torch.channels_last)


def to_pixels(output_NCHW: Tensor) -> PixelArray:
    """Convert the network's output to pictures uint8 [N, H, W, 3], clamped and rounded."""
    pixels_NCHW = (output_NCHW.float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return np.ascontiguousarray(rearrange(pixels_NCHW, "N C H W -> N H W C").cpu().numpy())


class EDSRUpscaler(Upscaler):
    """Upscales with the network, in fp32; pictures larger than a tile are processed in tiles.

    Args:
        model: the network; set to evaluation mode.
        device: device to run on.
    """

    def __init__(self, model: EDSR, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)

    @classmethod
    def from_file(cls, path: Path, arch: EDSRArchitecture, device: str = "auto") -> EDSRUpscaler:
        """Load the upscaler from a weights file.

        Args:
            path: the file.
            arch: expected architecture.
            device: device to run on; "auto" is a CUDA device if there is one.

        Raises:
            CheckpointError: the file can't be read, or has another architecture.
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
    """Return the path for a recipe's `weights`.

    Raises:
        CheckpointError: `weights` is an unknown bundled name, or None.
    """
    assets = Path(__file__).parent / "assets"
    return weights_path(
        weights,
        {path.parent.name: path for path in assets.glob("*/model.safetensors")},
        owner="edsr",
        section="upscaler",
        component="upscaler",
        trainer="cm3 upscaler train",
    )
