"""Config of `edsr`, a trained upscaler (architecture, weights, training). No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cm3core.document import PixelArray
from cm3core.interfaces.component import check_device
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3core.interfaces.upscaler import UpscalerConfig
from cm3plugins.trained.bundled import BUNDLED
from cm3plugins.upscalers.edsr.settings import TRAINING_RANGES, EDSRArchitecture, EDSRTraining

if TYPE_CHECKING:
    from cm3core.interfaces.image_tokenizer import ImageTokenizer
    from cm3plugins.upscalers.edsr.upscaler import EDSRUpscaler


@dataclass(kw_only=True)
class EDSRConfig(EDSRArchitecture, UpscalerConfig):
    """Residual blocks without normalisation and a pixel shuffle, added to bicubic interpolation.

    EDSR (Lim et al. 2017). Has the keys of `EDSRArchitecture`, and:

    Args:
        weights: "bundled:emoji256", the path of a file written by training, or None if there is none yet.
            The file's architecture must match the one given here.
        device: device to train and run on; "auto" is a CUDA device if there is one. Results differ
            slightly between devices.
        training: see `EDSRTraining`.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "weights": Outside(
            READS,
            "its weights",
            shipped="bundled:",
            needed="train them with cm3 upscaler train, or leave the key out, which takes the bundled ones",
        ),
        "device": TEXT,
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        f"training.{key}": limits for key, limits in TRAINING_RANGES.items()
    }
    is_default: ClassVar[bool] = True
    weights: str | None = BUNDLED + "emoji256"
    device: str = "auto"
    training: EDSRTraining = field(default_factory=EDSRTraining)

    def check(self) -> None:
        """Raise `RecipeError` for values that can't be used."""
        super().check()
        check_device("upscaler.device", self.device)

    @property
    def architecture(self) -> EDSRArchitecture:
        """The network's architecture alone."""
        return EDSRArchitecture(
            **{item.name: getattr(self, item.name) for item in fields(EDSRArchitecture)}
        )

    @property
    def training_scale(self) -> int:
        """Upscaling factor per side in training."""
        return self.scale

    def build(self) -> EDSRUpscaler:
        """Return the upscaler with its weights.

        Raises:
            CheckpointError: there are no weights, they can't be read, or they have another architecture.
            DeviceError: the device can't be used.
        """
        from cm3plugins.upscalers.edsr.upscaler import EDSRUpscaler, weights_file

        self.check()
        return EDSRUpscaler.from_file(weights_file(self.weights), self.architecture, self.device)

    def train(
        self,
        images_NHWC: PixelArray,
        out_dir: str | Path,
        *,
        image_tokenizer: ImageTokenizer,
        **options: Any,
    ) -> Path:
        """Train from scratch; options as in `cm3plugins.trained.training_run.RunOptions`."""
        from cm3plugins.trained.training_run import RunOptions
        from cm3plugins.upscalers.edsr.training import UpscalerTrainer, train_upscaler

        self.check()
        trainer = UpscalerTrainer(self.architecture, self.training, self.device)
        return train_upscaler(trainer, image_tokenizer, images_NHWC, out_dir, RunOptions(**options))
