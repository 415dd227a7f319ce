"""Config of `edsr`: the network's shape, its weights, and how it is trained. Nothing here imports
torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cm3core.document import PixelArray
from cm3core.errors import RecipeError
from cm3core.interfaces.upscaler import UpscalerConfig

if TYPE_CHECKING:
    from cm3plugins.upscalers.edsr.upscaler import EDSRUpscaler

#: Prefix of `weights` that names a file of this package: "bundled:emoji256".
BUNDLED = "bundled:"


@dataclass(kw_only=True)
class EDSRArchitecture:
    """Shape of the network. The defaults are those of the bundled `emoji256`.

    Args:
        scale: pixels a side that one becomes.
        num_channels: of every layer between the first and the last.
        num_blocks: residual blocks of two 3x3 convolutions each.
    """

    scale: int = 4
    num_channels: int = 48
    num_blocks: int = 8


@dataclass(kw_only=True)
class EDSRTraining:
    """How the upscaler is trained. The defaults trained the bundled `emoji256`.

    "Progress" is the share of the budget (steps or minutes) that is behind. Losses are means over
    the elements of large pictures in [0, 1].

    Args:
        seed: of weights, order, crops and turns.
        batch_size: crops a step.
        crop_size: pixels a side of a crop of the small picture.
        num_tried_crops: of so many places the one with the largest contrast is taken: flat ground
            teaches nothing.
        reconstructed_share: crops cut from the image tokenizer's reconstruction; the others are of
            the small picture itself.
        learning_rate: of AdamW after `warmup_steps`; falls to 0 as a cosine of progress.
        betas, weight_decay: of AdamW.
        warmup_steps: steps in which the learning rate grows from 0.
        clip_norm: largest norm of all gradients together.
        l1_weight, edge_weight: absolute error, absolute error of first differences.
        turn: mirror and turn crops at random, in the eight ways of a square.
        weight_ema_decay: of the averaged weights that are saved.
        precision: "fp32", "bf16" (autocast; weights stay fp32), or "auto": bf16 where the machine
            computes it.
        log_every_steps, checkpoint_every_minutes, checkpoint_every_steps: steps also write a
            checkpoint when given.
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


@dataclass(kw_only=True)
class EDSRConfig(EDSRArchitecture, UpscalerConfig):
    """Residual blocks without normalisation and a pixel shuffle, added to bicubic interpolation
    (EDSR, Lim et al. 2017).

    The keys of `EDSRArchitecture`, and:

    Args:
        weights: "bundled:emoji256", the path of a file that training wrote, or None for none yet.
            The file's own shape must be the one given here.
        device: where it learns and computes; "auto" is a CUDA device if there is one. Two devices
            differ slightly.
        training: see `EDSRTraining`.
    """

    is_default: ClassVar[bool] = True
    weights: str | None = BUNDLED + "emoji256"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    training: EDSRTraining = field(default_factory=EDSRTraining)

    @property
    def architecture(self) -> EDSRArchitecture:
        """The network's shape alone."""
        return EDSRArchitecture(
            **{item.name: getattr(self, item.name) for item in fields(EDSRArchitecture)}
        )

    @property
    def training_scale(self) -> int:
        """Pixels a side that training makes of one."""
        return self.scale

    def check(self) -> None:
        """Ranges and combinations; raises `RecipeError` that names the key."""
        training = self.training
        at_least_1 = {name: getattr(self, name) for name in ("scale", "num_channels", "num_blocks")}
        at_least_1 |= {
            f"training.{name}": getattr(training, name)
            for name in (
                "batch_size",
                "crop_size",
                "num_tried_crops",
                "warmup_steps",
                "log_every_steps",
            )
        }
        for name, value in at_least_1.items():
            if value < 1:
                raise RecipeError(
                    f"upscaler.{name}",
                    f"is {value}, must be at least 1",
                    "correct it in the recipe",
                )
        if not 0 <= training.reconstructed_share <= 1:
            raise RecipeError(
                "upscaler.training.reconstructed_share",
                f"is {training.reconstructed_share}, must be from 0 to 1",
                "correct it in the recipe",
            )

    def build(self) -> EDSRUpscaler:
        """The upscaler with its weights."""
        from cm3plugins.upscalers.edsr.upscaler import build_upscaler

        self.check()
        return build_upscaler(self)

    def train(self, images_NHWC: PixelArray, out_dir: str | Path, **options: Any) -> Path:
        """Train from nothing; the options are those of
        `cm3plugins.upscalers.edsr.training.train_upscaler`."""
        from cm3plugins.upscalers.edsr.training import train_upscaler

        return train_upscaler(self, images_NHWC, out_dir, **options)
