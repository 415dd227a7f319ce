"""The architecture of an EDSR network, and its training settings. Light: no torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

#: Smallest and largest values of `EDSRTraining`'s keys.
TRAINING_RANGES: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "batch_size": (1, 2**20),
    "crop_size": (1, 2**14),
    "num_tried_crops": (1, 2**10),
    "reconstructed_share": (0, 1),
    "learning_rate": (0, 1e3),
    "betas": (0, 1 - 1e-9),
    "weight_decay": (0, 1e3),
    "warmup_steps": (1, 2**63 - 1),
    "clip_norm": (0, 1e9),
    "l1_weight": (0, 1e6),
    "edge_weight": (0, 1e6),
    "weight_ema_decay": (0, 1),
    "log_every_steps": (1, 2**63 - 1),
    "checkpoint_every_minutes": (0, math.inf),
    "checkpoint_every_steps": (1, 2**63 - 1),
}


@dataclass(kw_only=True)
class EDSRArchitecture:
    """Architecture of the network. The defaults match the bundled `emoji256`.

    Args:
        scale: upscaling factor per side.
        num_channels: channels of every layer between the first and the last.
        num_blocks: residual blocks of two 3x3 convolutions each.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "scale": (1, 64),
        "num_channels": (1, 2**16),
        "num_blocks": (1, 2**12),
    }

    scale: int = 4
    num_channels: int = 48
    num_blocks: int = 8


@dataclass(kw_only=True)
class EDSRTraining:
    """Training settings of the upscaler. The defaults were used to train the bundled `emoji256`.

    "Progress" is the fraction of the budget (steps or minutes) spent. Losses are means over the
    elements of large pictures in [0, 1].

    Args:
        seed: seed of weights, order, crops and rotations.
        batch_size: crops per step.
        crop_size: pixels per side of a crop of the small picture.
        num_tried_crops: number of crops to try; the one with the largest contrast is used, since flat areas
            teach nothing.
        reconstructed_share: fraction of crops from the image tokenizer's reconstruction; the others
            come from the small picture itself.
        learning_rate: learning rate of AdamW after `warmup_steps`; decays to 0 as a cosine of progress.
        betas, weight_decay: settings of AdamW.
        warmup_steps: steps over which the learning rate rises from 0.
        clip_norm: maximum global gradient norm.
        l1_weight, edge_weight: weights of absolute error and absolute error of first differences.
        turn: mirror and rotate crops at random, in the eight symmetries of a square.
        weight_ema_decay: decay of the averaged weights, which are saved.
        precision: "fp32", "bf16" (autocast; weights stay fp32), or "auto": bf16 where the machine
            supports it.
        log_every_steps, checkpoint_every_minutes, checkpoint_every_steps: intervals; checkpoints are
            also written every `checkpoint_every_steps` steps, if given.
    """

    seed: int = 0
    batch_size: int = 16
    crop_size: int = 32
    num_tried_crops: int = 2
    reconstructed_share: float = 0.5
    learning_rate: float = 2.0e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup_steps: int = 100
    clip_norm: float = 1.0
    l1_weight: float = 1.0
    edge_weight: float = 0.5
    turn: bool = True
    weight_ema_decay: float = 0.999
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every_steps: int = 20
    checkpoint_every_minutes: float = 5.0
    checkpoint_every_steps: int | None = None
