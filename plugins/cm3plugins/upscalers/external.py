"""`external`: a third-party super-resolution network from a local file, loaded with spandrel."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError, MissingPackageError
from cm3core.files import user_path
from cm3core.interfaces.component import check_device
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3core.interfaces.upscaler import Upscaler, UpscalerConfig

if TYPE_CHECKING:
    import torch

#: Suffixes of pickle files, which are read with `weights_only=True`: tensors and plain containers,
#: no code.
PICKLES = (".pth", ".pt", ".ckpt")


@dataclass(kw_only=True)
class ExternalUpscalerConfig(UpscalerConfig):
    """Any super-resolution network that spandrel recognises by its weights.

    ESRGAN, SPAN, SwinIR, HAT and about thirty others.

    Args:
        path: the file, `.safetensors` or `.pth`. The network's code is spandrel's; the weights' author
            sets their licence.
        scale: expected upscaling factor per side of the file; None: any.
        tile: side of a tile in pixels: larger pictures are processed in tiles, unless the network
            tiles itself. 0: never.
        margin: pixels of context around a tile.
        device: device to run on; "auto" is a CUDA device if there is one.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its weights"),
        "device": TEXT,
    }

    packages: ClassVar[Mapping[str, str]] = {"spandrel": "pip install 'cm3leon[upscale]'"}

    path: str
    scale: int | None = None
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "scale": (1, 64),
        "tile": (0, 2**16),
        "margin": (0, 2**16),
    }

    tile: int = 256
    margin: int = 32
    device: str = "auto"

    def check(self) -> None:
        """Raise `RecipeError` for values that can't be used."""
        super().check()
        check_device("upscaler.device", self.device)

    def build(self) -> ExternalUpscaler:
        """Return the upscaler.

        Raises:
            CheckpointError: the file can't be used.
            MissingPackageError: spandrel is not installed.
        """
        from cm3run.devices import choose_device

        self.check()
        path = user_path(self.path)
        model = load_network(path)
        if self.scale is not None and model.scale != self.scale:
            raise CheckpointError(
                str(path),
                f"upscales each side by {model.scale}, but upscaler.scale is {self.scale}",
                "correct the key, or use another file",
            )
        return ExternalUpscaler(
            model,
            self.tile,
            self.margin,
            choose_device(None if self.device == "auto" else self.device),
        )


def load_network(path: Path) -> Any:
    """Load a network as spandrel's `ImageModelDescriptor`, RGB to RGB, on the CPU.

    No code in the file is run.

    Raises:
        CheckpointError: there is no such file, it can't be read without running code, or spandrel
            does not know the network.
        MissingPackageError: spandrel is not installed.
    """
    state = _read(path)
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
    except ImportError as error:
        raise MissingPackageError.extra("upscaler external", "spandrel", "upscale") from error
    try:
        model = ModelLoader("cpu").load_from_state_dict(state)
    except UnsupportedModelError as error:
        raise CheckpointError(
            str(path),
            "is not a network that spandrel recognises by its weights",
            "use weights of an architecture supported by spandrel",
        ) from error
    except Exception as error:
        # its detectors infer shapes from names: other files may fail in any of them
        raise CheckpointError(
            str(path),
            f"spandrel can't load it ({type(error).__name__}: {error})",
            "use weights of an architecture supported by spandrel",
        ) from error
    if not isinstance(model, ImageModelDescriptor) or (
        model.input_channels,
        model.output_channels,
    ) != (3, 3):
        raise CheckpointError(
            str(path),
            f"its network ({model.architecture.name}) does not map one RGB picture to another",
            "use a super-resolution network for RGB pictures",
        )
    return model


def _read(path: Path) -> dict[str, Any]:
    """Read the tensors of a file, by name, possibly in nested dicts."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix.lower() not in (".safetensors", *PICKLES):
        raise CheckpointError(
            str(path), "is neither a .safetensors nor a .pth file", "use a file of weights"
        )
    if not path.is_file():
        raise CheckpointError(str(path), "there is no such file", "correct upscaler.path")
    try:
        if path.suffix.lower() == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # torch's message suggests running the file's code anyway
        reason = str(error) if isinstance(error, SafetensorError) else type(error).__name__
        raise CheckpointError(
            str(path),
            f"does not hold plain tensors ({reason})",
            "save only the weights; files that run code when loaded are rejected",
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            str(path),
            f"holds a {type(state).__name__} instead of named weights",
            "save only the weights",
        )
    return state


class ExternalUpscaler(Upscaler):
    """Upscales with a spandrel network, one picture at a time, in fp32.

    Args:
        model: from `load_network`.
        tile, margin: see `ExternalUpscalerConfig`.
        device: device to run on.
    """

    def __init__(
        self, model: Any, tile: int, margin: int, device: torch.device | str = "cpu"
    ) -> None:
        from spandrel import ModelTiling

        self.model = model.eval().to(device)
        # INTERNAL: it tiles itself. DISCOURAGED (it depends on the whole picture): tiled anyway, to
        # limit memory
        self.tile, self.margin = (0 if model.tiling == ModelTiling.INTERNAL else tile), margin

    @property
    def scale(self) -> int:
        return int(self.model.scale)

    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        from cm3plugins.upscalers.tiles import upscale_in_tiles

        tile = self.tile or max(pixels_NHWC.shape[1:3])
        return upscale_in_tiles(pixels_NHWC, self.scale, tile, self.margin, self._forward)

    def _forward(self, pixels_NHWC: PixelArray) -> PixelArray:
        from cm3plugins.upscalers.edsr.upscaler import to_input, to_pixels

        inputs = (to_input(pixels_HWC[None]).to(self.model.device) for pixels_HWC in pixels_NHWC)
        return np.concatenate([to_pixels(self.model(input_1CHW)) for input_1CHW in inputs])
