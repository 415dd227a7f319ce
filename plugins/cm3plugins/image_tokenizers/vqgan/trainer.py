"""One training step of a VQGAN tokenizer: codebook, losses, optimisers.

The codebook: k-means initialisation, moving averages (van den Oord et al. 2017 appendix A.1), revival of dead codes
from a reservoir of encoder outputs, as in CasualGANPapers/Make-A-Scene `models/vqvae.py`. The losses: pixels,
perceptual, codebook, and a PatchGAN with an adaptive weight; CompVis/taming-transformers
`taming/modules/losses/vqperceptual.py` (hinge losses, adaptive weight), `taming/modules/discriminator/model.py`
(PatchGAN); VQGAN (Esser et al. 2021) section 3.1.

Everything random is a function of (seed, step). Shape legend: B pictures, C channels, H W pixels, D
code dimension, Y X code grid, N = B * Y * X positions, K codebook entries, R vectors in the reservoir.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cm3plugins.image_tokenizers.vqgan.model import VectorQuantizer, VQModel
from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture, VQGANTraining
from cm3plugins.image_tokenizers.vqgan.tokenizer import build_model
from cm3plugins.trained.training_run import edge_error
from cm3plugins.trained.weights_file import channels_last
from cm3plugins.vision.efficientnet_lite import EfficientNetLite, Variant, load_efficientnet_lite
from cm3run.devices import choose_device


@torch.no_grad()
def align_with_pixels(
    model: VQModel, z_BDYX: Tensor, generator: torch.Generator, step: float = 0.05
) -> Tensor:
    """Change the basis of the code space so that its squared distances are squared pixel errors.

    A code space learned without quantisation has no reason to weight its directions as the picture
    does: nearest codes would then spend all bits on a few directions of large variance (here: mean
    colour), and the commitment term would shrink the others to nothing. With G = E[J^T J], J the
    decoder's Jacobian at a position, and L^T L = G, codes become L z. `quant_conv` and
    `post_quant_conv` absorb L and its inverse, so the autoencoder computes the same as before.

    Args:
        model: the model, changed in place.
        z_BDYX: features of some pictures, on which G is measured.
        generator: draws the random signs that separate the effects of neighbouring positions.
        step: length of the finite difference, in standard deviations of the features.

    Returns:
        L, [D, D].
    """
    dim = z_BDYX.shape[1]
    size = step * z_BDYX.std()
    signs_B1YX = (
        torch.randint(0, 2, (len(z_BDYX), 1, *z_BDYX.shape[2:]), generator=generator) * 2.0 - 1.0
    )
    signs_B1YX = signs_B1YX.to(z_BDYX.device)
    directions_DD = torch.eye(dim, device=z_BDYX.device)
    gram_DD = torch.zeros(dim, dim, dtype=torch.float64, device=z_BDYX.device)
    # one picture: memory is D pictures
    for z_1DYX, signs_11YX in zip(z_BDYX[:, None], signs_B1YX[:, None], strict=True):
        base_1CHW = model.decode_features(z_1DYX)
        effects_DP = torch.stack(
            [
                (
                    model.decode_features(z_1DYX + size * signs_11YX * direction_D[:, None, None])
                    - base_1CHW
                ).flatten()
                for direction_D in directions_DD
            ]
        )
        gram_DD += (effects_DP @ effects_DP.t()).double() / (
            size.double() ** 2 * signs_B1YX.numel()
        )
    # keeps it invertible if a direction is unused
    gram_DD += 1e-4 * gram_DD.trace() / dim * directions_DD.double()
    scale_DD = torch.linalg.cholesky(gram_DD).t()
    inverse_DD = torch.linalg.inv(scale_DD).float()
    basis_DD: Tensor = scale_DD.float()
    quant, post = model.quant_conv, model.post_quant_conv
    quant.weight.copy_((basis_DD @ quant.weight[:, :, 0, 0])[:, :, None, None])
    assert quant.bias is not None
    quant.bias.copy_(basis_DD @ quant.bias)
    post.weight.copy_((post.weight[:, :, 0, 0] @ inverse_DD)[:, :, None, None])
    return basis_DD


class CodebookUpdater:
    """Updates a quantiser's codebook without gradients.

    Args:
        quantizer: the quantiser; its codebook `embedding.weight` is changed in place.
        use_ema: move codes by moving averages of the vectors assigned to them; otherwise the optimiser
            moves them, and this class only initialises and revives codes.
        decay: decay of the moving averages per step.
        revive_after_steps: a code unused for this many steps is dead.
        reservoir_size: R, number of recent encoder outputs kept for initialisation and revival.
    """

    def __init__(
        self,
        quantizer: VectorQuantizer,
        *,
        use_ema: bool,
        decay: float,
        revive_after_steps: int,
        reservoir_size: int,
    ) -> None:
        self.quantizer, self.use_ema, self.decay = quantizer, use_ema, decay
        self.revive_after_steps = revive_after_steps
        quantizer.learn_codebook = not use_ema
        quantizer.embedding.weight.requires_grad_(not use_ema)
        weight_KD = quantizer.embedding.weight.detach()
        device = weight_KD.device
        self.count_K = torch.ones(weight_KD.shape[0], device=device)
        self.sum_KD = weight_KD.clone()
        self.unused_steps_K = torch.zeros(weight_KD.shape[0], dtype=torch.int64, device=device)
        self.reservoir_RD = torch.zeros(reservoir_size, weight_KD.shape[1], device=device)
        self.reservoir_position = 0
        self.num_revived = 0

    @torch.no_grad()
    def remember(self, z_ND: Tensor) -> None:
        """Add encoder outputs to the ring buffer of recent ones."""
        size = self.reservoir_RD.shape[0]
        z_ND = z_ND[-size:]
        rows_N = (torch.arange(z_ND.shape[0], device=z_ND.device) + self.reservoir_position) % size
        self.reservoir_RD[rows_N] = z_ND
        self.reservoir_position += z_ND.shape[0]

    @torch.no_grad()
    def change_basis(self, scale_DD: Tensor) -> None:
        """Apply to the reservoir a linear map that the features have undergone."""
        self.reservoir_RD.copy_(self.reservoir_RD @ scale_DD.t())

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:
        filled = min(self.reservoir_position, self.reservoir_RD.shape[0])
        drawn_nD: Tensor = self.reservoir_RD[
            torch.randint(filled, (count,), generator=generator).to(self.reservoir_RD.device)
        ]
        return drawn_nD

    @torch.no_grad()
    def start_from_kmeans(self, generator: torch.Generator, num_iterations: int = 10) -> None:
        """Set the codebook to k-means centres of the reservoir.

        Lloyd's algorithm; empty clusters restart at random vectors.
        """
        filled = min(self.reservoir_position, self.reservoir_RD.shape[0])
        z_ND = self.reservoir_RD[:filled]
        centres_KD = self._draw(self.count_K.shape[0], generator).clone()
        for _ in range(num_iterations):
            count_K, sum_KD = self._assigned(z_ND, self.quantizer.nearest(z_ND, centres_KD))
            fresh_KD = self._draw(count_K.shape[0], generator)
            centres_KD = torch.where(
                count_K[:, None] > 0, sum_KD / count_K[:, None].clamp(min=1), fresh_KD
            )
        self.quantizer.embedding.weight.copy_(centres_KD)
        self.sum_KD.copy_(centres_KD)
        self.count_K.fill_(1.0)
        self.unused_steps_K.zero_()

    def _assigned(self, z_ND: Tensor, codes_N: Tensor) -> tuple[Tensor, Tensor]:
        count_K = torch.bincount(codes_N, minlength=self.count_K.shape[0]).float()
        return count_K, torch.zeros_like(self.sum_KD).index_add_(0, codes_N, z_ND)

    @torch.no_grad()
    def update(self, z_ND: Tensor, codes_N: Tensor, generator: torch.Generator) -> Tensor:
        """Run one step: remember `z_ND`, move the codes (EMA), revive dead codes.

        Returns:
            the indices of the revived codes.
        """
        self.remember(z_ND)
        count_K, sum_KD = self._assigned(z_ND, codes_N)
        self.unused_steps_K.add_(1)
        self.unused_steps_K[count_K > 0] = 0
        weight_KD = self.quantizer.embedding.weight
        if self.use_ema:
            self.count_K.lerp_(count_K, 1 - self.decay)
            self.sum_KD.lerp_(sum_KD, 1 - self.decay)
            weight_KD.copy_(self.sum_KD / self.count_K[:, None].clamp(min=1e-6))
        dead_n = (self.unused_steps_K >= self.revive_after_steps).nonzero().squeeze(1)
        if len(dead_n) > 0:
            fresh_nD = self._draw(len(dead_n), generator)
            weight_KD[dead_n] = fresh_nD
            self.sum_KD[dead_n], self.count_K[dead_n] = fresh_nD, 1.0
            self.unused_steps_K[dead_n] = 0
            self.num_revived += len(dead_n)
        return dead_n

    def state_dict(self) -> dict[str, Tensor | int]:
        """Return everything that the next step depends on."""
        return {
            "count_K": self.count_K,
            "sum_KD": self.sum_KD,
            "unused_steps_K": self.unused_steps_K,
            "reservoir_RD": self.reservoir_RD,
            "reservoir_position": self.reservoir_position,
            "num_revived": self.num_revived,
        }

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Inverse of `state_dict`."""
        for name in ("count_K", "sum_KD", "unused_steps_K", "reservoir_RD"):
            getattr(self, name).copy_(state[name])
        self.reservoir_position = int(state["reservoir_position"])
        self.num_revived = int(state["num_revived"])


class PerceptualLoss(nn.Module):
    """Distance in the feature space of a frozen EfficientNet-Lite.

    Like LPIPS, without its learned weights.

    Every feature vector is scaled to unit length; the squared distance is averaged over positions
    and summed over stages. LPIPS itself needs VGG weights, which no package contains.

    Args:
        source: "package" or a path, see `load_efficientnet_lite`.
        stages: stages of the network to compare (0..6, strides 2, 4, 8, 16, 16, 32, 32).
        resolution: pictures are first resized to this many pixels per side; None: unchanged.
        variant: the network. A measure should use another one than training.
    """

    def __init__(
        self,
        source: str = "package",
        stages: tuple[int, ...] = (0, 1, 2, 4),
        resolution: int | None = None,
        variant: Variant = "lite0",
    ):
        super().__init__()
        self.network = channels_last(load_efficientnet_lite(variant, source).fuse())
        self.stages, self.resolution = stages, resolution

    def _features(self, pixels_BCHW: Tensor) -> list[Tensor]:
        if self.resolution is not None and pixels_BCHW.shape[-1] != self.resolution:
            pixels_BCHW = F.interpolate(
                pixels_BCHW, size=self.resolution, mode="bilinear", align_corners=False
            )
        maps = self.network.features(EfficientNetLite.normalize(pixels_BCHW), self.stages)
        return [F.normalize(map_BCHW, dim=1, eps=1e-6) for map_BCHW in maps]

    def forward(self, reconstruction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """Return the mean over pictures and positions, a scalar >= 0; both inputs in [-1, 1]."""
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
    """Return 0.5 * (mean max(0, 1 - real) + mean max(0, 1 + fake))."""
    return 0.5 * (F.relu(1.0 - real_logits).mean() + F.relu(1.0 + fake_logits).mean())


def adaptive_weight(
    reconstruction_loss: Tensor, generator_loss: Tensor, last_layer: Tensor, weight: float
) -> Tensor:
    """Return `weight` * clamp(|grad reconstruction| / (|grad generator| + 1e-4), 0, 1e4).

    Gradients are taken at the last layer. The factor keeps the adversarial gradient as large as the
    reconstruction's (VQGAN eq. 7). No gradient flows through it.
    """
    (reconstruction_grad,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (generator_grad,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    ratio: Tensor = reconstruction_grad.norm() / (generator_grad.norm() + 1e-4)
    clamped: Tensor = ratio.clamp(0.0, 1e4).detach()
    return clamped * weight


class TokenizerTrainer:
    """Network, losses, optimisers and codebook of one run, and one training step.

    Args:
        arch: architecture of the network.
        training: training settings.
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
        """Run one update on pictures in [-1, 1] [B, 3, H, W].

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
        """Whether pictures are quantised after `step` updates, i.e. the codebook is initialised."""
        return self.model.has_squares or step > self.training.codebook_init_steps

    def _mixed_precision(self) -> torch.autocast:
        """Return the autocast context of the network's forward pass."""
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
        """Return the weighted losses of the reconstruction."""
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
        """Update the moving average of the weights, which adapts faster at first; the codebook is copied."""
        decay = min(self.training.weight_ema_decay, (step + 1) / (step + 10))
        state = self.model.state_dict()
        names = [name for name in state if not name.startswith("quantize.")]
        torch._foreach_lerp_(
            [self.average[n] for n in names], [state[n] for n in names], 1.0 - decay
        )
        self.average["quantize.embedding.weight"].copy_(state["quantize.embedding.weight"])

    def averaged_model(self) -> VQModel:
        """Return a copy of the network with the averaged weights, in evaluation mode."""
        return build_model(self.arch, self.average, "averaged weights")

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, as plain containers of tensors."""
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
