"""Losses of the VQGAN tokenizer.

Pixels, perceptual, codebook, and a PatchGAN with an adaptive weight.

Shape legend: B pictures, C channels, H W pixels. Source: CompVis/taming-transformers
`taming/modules/losses/vqperceptual.py` (hinge losses, adaptive weight),
`taming/modules/discriminator/model.py` (PatchGAN); VQGAN (Esser et al. 2021) section 3.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3plugins.trained.layout import channels_last
from cm3plugins.vision.efficientnet_lite import EfficientNetLite, load_efficientnet_lite


class PerceptualLoss(nn.Module):
    """Distance in the feature space of a frozen EfficientNet-Lite0.

    Like LPIPS without its learned weights.

    Every feature vector is scaled to unit length; the squared distance is averaged over positions
    and summed over stages. LPIPS itself needs VGG weights, which no package ships.

    Args:
        source: "package" or a path, as `load_efficientnet_lite` takes it.
        stages: stages of the network to compare (0..6, strides 2, 4, 8, 16, 16, 32, 32).
        resolution: pictures are first resized to this many pixels per side; None: unchanged.
    """

    def __init__(
        self,
        source: str = "package",
        stages: tuple[int, ...] = (0, 1, 2, 4),
        resolution: int | None = None,
    ):
        super().__init__()
        self.network = channels_last(load_efficientnet_lite("lite0", source).fuse())
        self.stages, self.resolution = stages, resolution

    def _features(self, pixels_BCHW: Tensor) -> list[Tensor]:
        if self.resolution is not None and pixels_BCHW.shape[-1] != self.resolution:
            pixels_BCHW = F.interpolate(
                pixels_BCHW, size=self.resolution, mode="bilinear", align_corners=False
            )
        maps = self.network.features(EfficientNetLite.normalize(pixels_BCHW), self.stages)
        return [F.normalize(map_BCHW, dim=1, eps=1e-6) for map_BCHW in maps]

    def forward(self, reconstruction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """Mean over pictures and positions, a scalar >= 0; both inputs in [-1, 1]."""
        with torch.no_grad():
            targets = self._features(target_BCHW)
        total = reconstruction_BCHW.new_zeros(())
        for map_BCHW, target_map_BCHW in zip(
            self._features(reconstruction_BCHW), targets, strict=True
        ):
            total = total + (map_BCHW - target_map_BCHW).square().sum(1).mean()
        return total


class PatchDiscriminator(nn.Module):
    """PatchGAN (pix2pix): one logit per overlapping patch; three strided layers see 70 x 70 pixels.

    Args:
        num_layers: strided layers, including the first convolution; taming: 3.
        ndf: channels of the first layer; taming: 64.
    """

    def __init__(self, num_layers: int = 3, ndf: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, ndf, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = ndf
        for i in range(1, num_layers + 1):
            out_channels = ndf * min(2**i, 8)
            stride = 2 if i < num_layers else 1
            layers += [
                nn.Conv2d(channels, out_channels, 4, stride, 1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.LeakyReLU(0.2),
            ]
            channels = out_channels
        layers.append(nn.Conv2d(channels, 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        logits_B1YX: Tensor = self.main(pixels_BCHW)
        return logits_B1YX


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """0.5 * (mean max(0, 1 - real) + mean max(0, 1 + fake))."""
    return 0.5 * (F.relu(1.0 - real_logits).mean() + F.relu(1.0 + fake_logits).mean())


def adaptive_weight(
    reconstruction_loss: Tensor, generator_loss: Tensor, last_layer: Tensor, weight: float
) -> Tensor:
    """`weight` * clamp(|grad reconstruction| / (|grad generator| + 1e-4), 0, 1e4).

    The gradients are those at the last layer. Keeps the adversarial gradient as large as the
    reconstruction's (VQGAN eq. 7). No gradient flows through it.
    """
    (reconstruction_grad,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (generator_grad,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    ratio: Tensor = reconstruction_grad.norm() / (generator_grad.norm() + 1e-4)
    clamped: Tensor = ratio.clamp(0.0, 1e4).detach()
    return clamped * weight
