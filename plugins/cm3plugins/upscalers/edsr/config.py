"""Config of `edsr`: the network's shape, its weights and its training. Light: no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cm3core.document import PixelArray
from cm3core.errors import RecipeError
from cm3core.interfaces.upscaler import UpscalerConfig
from cm3plugins.trained.bundled import BUNDLED
from cm3plugins.upscalers.edsr.settings import EDSRArchitecture, EDSRTraining

if TYPE_CHECKING:
    from cm3plugins.upscalers.edsr.upscaler import EDSRUpscaler


@dataclass(kw_only=True)
class EDSRConfig(EDSRArchitecture, UpscalerConfig):
    """Residual blocks without normalisation and a pixel shuffle, added to bicubic interpolation.

    EDSR (Lim et al. 2017). Has the keys of `EDSRArchitecture`, and:

    Args:
        weights: "bundled:emoji256", the path of a file that training wrote, or None for none yet.
            The file's architecture must be the one given here.
        device: where it trains and runs; "auto" is a CUDA device if there is one. Results differ
            slightly between devices.
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
        """Upscaling factor per side that training learns."""
        return self.scale

    def check(self) -> None:
        """Ranges and combinations; raises a `RecipeError` that names the key."""
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
        """The upscaler with its weights.

        Raises:
            CheckpointError: there are no weights, they can't be read, or they have another shape.
            DeviceError: the device can't be used.
        """
        from cm3plugins.upscalers.edsr.upscaler import EDSRUpscaler, weights_file

        self.check()
        return EDSRUpscaler.from_file(weights_file(self.weights), self.architecture, self.device)

    def train(self, images_NHWC: PixelArray, out_dir: str | Path, **options: Any) -> Path:
        """Train from scratch; options as in `cm3plugins.upscalers.edsr.training.train_upscaler`."""
        from cm3plugins.upscalers.edsr.training import train_upscaler

        self.check()
        return train_upscaler(
            self.architecture, self.training, images_NHWC, out_dir, device=self.device, **options
        )
