"""One training step of a VQGAN tokenizer: losses, optimisers, codebook.

Everything random is a function of (seed, step). Shape legend: B pictures, C channels, H W pixels, D
code dimension, Y X code grid, N = B * Y * X positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from cm3plugins.image_tokenizers.vqgan.codebook import CodebookUpdater, align_with_pixels
from cm3plugins.image_tokenizers.vqgan.losses import (
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    hinge_discriminator_loss,
)
from cm3plugins.image_tokenizers.vqgan.model import VQModel
from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture, VQGANTraining
from cm3plugins.image_tokenizers.vqgan.weights import build_model
from cm3plugins.trained.layout import channels_last
from cm3plugins.trained.losses import edge_error
from cm3run.devices import choose_device


class TokenizerTrainer:
    """Network, losses, optimisers and codebook of one run, and one training step.

    Args:
        arch: shape of the network.
        training: how to train.
    """

    def __init__(self, arch: VQGANArchitecture, training: VQGANTraining) -> None:
        self.arch, self.training = arch, training
        torch.manual_seed(training.seed)
        self.device = choose_device(None if training.device == "auto" else training.device)
        self.model = channels_last(VQModel(arch)).to(self.device)
        self.codebook = CodebookUpdater(
            self.model.quantize,
            use_ema=training.codebook_update == "ema" or self.model.has_squares,
            decay=training.codebook_decay,
            revive_after_steps=training.revive_after_steps,
            reservoir_size=training.reservoir_size,
        )
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.average = {
            name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()
        }
        self.perceptual = (
            PerceptualLoss(
                training.perceptual_source,
                training.perceptual_stages,
                training.perceptual_resolution,
            ).to(self.device)
            if training.perceptual_weight > 0
            else None
        )
        self.discriminator: PatchDiscriminator | None = None
        self.disc_optimizer: torch.optim.Optimizer | None = None
        if training.disc_weight > 0:
            self.discriminator = PatchDiscriminator(
                training.disc_layers, training.disc_channels
            ).to(self.device)
            self.disc_optimizer = torch.optim.Adam(
                self.discriminator.parameters(), lr=training.disc_learning_rate, betas=(0.5, 0.9)
            )

    def step(self, pixels_BCHW: Tensor, step: int, progress: float) -> dict[str, float]:
        """One update on pictures in [-1, 1] [B, 3, H, W].

        Returns:
            the losses by name (floats; `loss` is their weighted sum).
        """
        training, model = self.training, self.model
        pixels_BCHW = pixels_BCHW.to(self.device)
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + step)
        if training.flip:
            flip_B = (torch.rand(len(pixels_BCHW), generator=generator) < 0.5).to(self.device)
            pixels_BCHW = torch.where(flip_B[:, None, None, None], pixels_BCHW.flip(3), pixels_BCHW)
        rate = (
            min(1.0, (step + 1) / training.warmup_steps)
            * 0.5
            * (1.0 + math.cos(math.pi * min(progress, 1.0)))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = training.learning_rate * rate
        if step == training.codebook_init_steps and step > 0 and not model.has_squares:
            if training.align_code_space:
                self._align_code_space(pixels_BCHW, generator)
            self.codebook.start_from_kmeans(generator)
        warming_up = step < training.codebook_init_steps and not model.has_squares
        with self._mixed_precision():
            z_BDYX = model.features(pixels_BCHW)
            quantized = model.quantize(z_BDYX)
            reconstruction_BCHW = model.decode_features(
                z_BDYX if warming_up else quantized.z_q_BDYX
            ).float()
        terms = self._terms(reconstruction_BCHW, pixels_BCHW, progress)
        loss = sum(terms.values(), start=pixels_BCHW.new_zeros(()))
        if not warming_up and not model.has_squares:
            terms["codebook"] = quantized.loss
            loss = loss + quantized.loss
        self._update_weights(loss)
        self._update_discriminator(reconstruction_BCHW, pixels_BCHW, progress)
        z_ND = rearrange(z_BDYX.detach().float(), "B D Y X -> (B Y X) D")
        if warming_up:
            self.codebook.remember(z_ND)
        elif not model.has_squares:
            self.codebook.update(z_ND, quantized.codes_BYX.flatten(), generator)
        self._update_average(step)
        report = {name: float(term.detach()) for name, term in terms.items()}
        return {
            "loss": float(loss.detach()),
            "learning_rate": training.learning_rate * rate,
            **report,
        }

    def has_codes(self, step: int) -> bool:
        """Whether pictures are quantised after `step` updates: the codebook has started."""
        return self.model.has_squares or step > self.training.codebook_init_steps

    def _mixed_precision(self) -> torch.autocast:
        """The context of the network's forward pass."""
        return torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.training.precision == "bfloat16",
        )

    @torch.no_grad()
    def _align_code_space(self, pixels_BCHW: Tensor, generator: torch.Generator) -> None:
        model = self.model
        self.codebook.change_basis(align_with_pixels(model, model.features(pixels_BCHW), generator))
        for name in ("quant_conv.weight", "quant_conv.bias", "post_quant_conv.weight"):
            # an average over two bases would be meaningless
            self.average[name].copy_(model.state_dict()[name])
            self.optimizer.state[model.get_parameter(name)].clear()

    def _terms(
        self, reconstruction_BCHW: Tensor, pixels_BCHW: Tensor, progress: float
    ) -> dict[str, Tensor]:
        """Weighted losses of the reconstruction."""
        training = self.training
        error_BCHW = reconstruction_BCHW - pixels_BCHW
        terms = {"l1": training.l1_weight * error_BCHW.abs().mean()}
        if training.l2_weight > 0:
            terms["l2"] = training.l2_weight * error_BCHW.square().mean()
        if training.edge_weight > 0:
            terms["edge"] = training.edge_weight * edge_error(reconstruction_BCHW - pixels_BCHW)
        if self.perceptual is not None and progress >= training.perceptual_start:
            terms["perceptual"] = training.perceptual_weight * self.perceptual(
                reconstruction_BCHW, pixels_BCHW
            )
        if self.discriminator is not None and progress >= training.disc_start:
            self.discriminator.requires_grad_(False)
            generator_loss = -self.discriminator(reconstruction_BCHW).mean()
            reconstruction_loss = sum(terms.values(), start=pixels_BCHW.new_zeros(()))
            weight = adaptive_weight(
                reconstruction_loss,
                generator_loss,
                self.model.decoder.conv_out.weight,
                training.disc_weight,
            )
            terms["generator"] = weight * generator_loss
        return terms

    def _update_weights(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
        self.optimizer.step()

    def _update_discriminator(
        self, reconstruction_BCHW: Tensor, pixels_BCHW: Tensor, progress: float
    ) -> None:
        if (
            self.discriminator is None
            or self.disc_optimizer is None
            or progress < self.training.disc_start
        ):
            return
        self.discriminator.requires_grad_(True)
        loss = hinge_discriminator_loss(
            self.discriminator(pixels_BCHW), self.discriminator(reconstruction_BCHW.detach())
        )
        self.disc_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.disc_optimizer.step()

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        """Moving average of the weights, slow only once it has history; the codebook is copied."""
        decay = min(self.training.weight_ema_decay, (step + 1) / (step + 10))
        state = self.model.state_dict()
        names = [name for name in state if not name.startswith("quantize.")]
        torch._foreach_lerp_(
            [self.average[n] for n in names], [state[n] for n in names], 1.0 - decay
        )
        self.average["quantize.embedding.weight"].copy_(state["quantize.embedding.weight"])

    def averaged_model(self) -> VQModel:
        """A copy of the network with the averaged weights, in evaluation mode."""
        return build_model(self.arch, self.average, "averaged weights")

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as plain containers of tensors."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "codebook": self.codebook.state_dict(),
        }
        if self.discriminator is not None and self.disc_optimizer is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["disc_optimizer"] = self.disc_optimizer.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)
        self.codebook.load_state_dict(state["codebook"])
        if self.discriminator is not None and self.disc_optimizer is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.disc_optimizer.load_state_dict(state["disc_optimizer"])
