"""Training a codebook: k-means initialisation, moving averages, revival of dead codes.

Shape legend: N positions, D code dimension, K codebook entries, R vectors in the reservoir. Source:
van den Oord et al. 2017 appendix A.1 (moving averages); a reservoir of encoder outputs for
re-initialisation as in CasualGANPapers/Make-A-Scene `models/vqvae.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cm3plugins.image_tokenizers.vqgan.model import VectorQuantizer, VQModel


@torch.no_grad()
def align_with_pixels(
    model: VQModel, z_BDYX: Tensor, generator: torch.Generator, step: float = 0.05
) -> Tensor:
    """Change the basis of the code space so that squared distances in it are squared pixel errors.

    A code space that was learned without quantisation has no reason to weight its directions as the
    picture does: nearest codes would then spend all bits on a few directions of large variance
    (here: mean colour), and the commitment term would shrink the others to nothing. With G = E[J^T
    J], J the decoder's Jacobian at a position, and L^T L = G, codes become L z. `quant_conv` and
    `post_quant_conv` absorb L and its inverse, so the autoencoder computes the same as before.

    Args:
        model: changed in place.
        z_BDYX: features of some pictures, where G is measured.
        generator: of the random signs that keep neighbouring positions' effects apart.
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
    # invertible even if a direction is unused
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
        quantizer: the codebook is its `embedding.weight`, changed in place.
        use_ema: move codes by moving averages of the vectors assigned to them; otherwise the
            optimiser moves them, and only initialisation and revival are done here.
        decay: of the moving averages, per step.
        revive_after_steps: a code unused for this many steps is dead.
        reservoir_size: R, recent encoder outputs that initialisation and revival draw from.
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
        """Apply a linear map to the reservoir, after the features themselves changed by it."""
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
        """One step: remember `z_ND`, move the codes (EMA), revive dead codes.

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
        """Everything that the next step depends on."""
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
