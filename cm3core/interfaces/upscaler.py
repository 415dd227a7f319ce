"""Kind `upscaler`: a picture -> the same picture, several times as large.

It is the super-resolution stage after the image tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cm3core.document import PixelArray
from cm3core.errors import DataError, RecipeError
from cm3core.interfaces.component import ComponentConfig, broken, is_array, shown

if TYPE_CHECKING:
    from cm3core.interfaces.image_tokenizer import ImageTokenizer

#: Maximum pixels of an enlarged picture: more than any screen, and a few hundred MB of memory.
MAX_PIXELS = 64_000_000


@dataclass(kw_only=True)
class UpscalerConfig(ComponentConfig):
    """Base of upscalers' configs."""

    kind: ClassVar[str] = "upscaler"

    def build(self) -> Upscaler:
        """Return the upscaler with its weights loaded."""
        raise NotImplementedError

    @property
    def training_scale(self) -> int:
        """Factor by which training enlarges each side, available before there are weights.

        Upscalers that can't be trained keep this default, which raises `RecipeError`."""
        raise RecipeError(
            "upscaler",
            f"{type(self).__name__} can't be trained here",
            "choose edsr, or give weights",
        )

    def train(
        self,
        images_NHWC: PixelArray,
        out_dir: str | Path,
        *,
        image_tokenizer: ImageTokenizer,
        minutes: float | None = None,
        steps: int | None = None,
        resume: bool = False,
        validation_NHWC: PixelArray | None = None,
        show_progress: bool = True,
    ) -> Path:
        """Train from scratch on large pictures and return the path of the weights in `out_dir`.

        Args:
            images_NHWC: uint8 [N, H, W, 3], H and W `training_scale` times the image tokenizer's
                size.
            out_dir: receives the weights, the log and the state for resuming.
            image_tokenizer: the tokenizer whose output will be enlarged; its reconstructions are
                among the small pictures used for training.
            minutes: of wall clock, or `steps`: of the optimiser; exactly one.
            resume: continue an interrupted run in `out_dir`.
            validation_NHWC: large pictures on which quality is logged.
            show_progress: show a progress bar on stderr.
        """
        raise NotImplementedError


class Upscaler(ABC):
    """Enlarges pictures.

    Legend: N pictures, H height, W width (pixels of the small picture), C 3 channels. Pictures are
    RGB, uint8, 0..255, of any size. Equal pictures give equal results, whatever else is in the
    batch.
    """

    @property
    @abstractmethod
    def scale(self) -> int:
        """Factor by which each side is enlarged, at least 1."""

    @abstractmethod
    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        """Return pictures uint8 [N, scale * H, scale * W, 3] of pictures uint8 [N, H, W, 3].

        None of N, H and W is 0."""

    def upscale(self, pixels_HWC: PixelArray) -> PixelArray:
        """Return the picture uint8 [scale * H, scale * W, 3] of a picture uint8 [H, W, 3].

        Raises:
            DataError: another shape or dtype, no pixels, or more than `MAX_PIXELS` of them in the
                large picture.
        """
        self._check(pixels_HWC, 3, "[height, width, 3]")
        return np.asarray(self._checked(self._upscale(pixels_HWC[None]), pixels_HWC[None])[0])

    def upscale_batch(self, pixels_NHWC: PixelArray) -> PixelArray:
        """Return pictures uint8 [N, scale * H, scale * W, 3] of pictures uint8 [N, H, W, 3].

        N may be 0. Raises as `upscale` does."""
        self._check(pixels_NHWC, 4, "[N, height, width, 3]")
        num, height, width, _ = pixels_NHWC.shape
        return (
            self._checked(self._upscale(pixels_NHWC), pixels_NHWC)
            if num
            else np.zeros((0, height * self.scale, width * self.scale, 3), np.uint8)
        )

    def _checked(self, large_NHWC: PixelArray, pixels_NHWC: PixelArray) -> PixelArray:
        """Return the result of `_upscale`. Raises `PluginError` if it is invalid."""
        *batch, height, width, _ = pixels_NHWC.shape
        shape = (*batch, height * self.scale, width * self.scale, 3)
        if not is_array(large_NHWC, np.uint8, shape):
            raise broken(
                self,
                "pictures_have_the_stated_shape",
                f"it returned {shown(large_NHWC)}, not uint8 {list(shape)}",
            )
        return large_NHWC

    def _check(self, pixels: PixelArray, num_axes: int, shape: str) -> None:
        if pixels.ndim != num_axes or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
            raise DataError(
                "picture",
                f"{pixels.dtype} {list(pixels.shape)}, but an upscaler takes uint8 {shape}",
                "open it with cm3core.images.open_image",
            )
        height, width = pixels.shape[-3:-1]
        if not height * width:
            raise DataError(
                "picture", f"is {width} x {height} pixels", "give a picture that has some"
            )
        if height * width * self.scale**2 > MAX_PIXELS:
            raise DataError(
                "picture",
                f"{width} x {height} pixels, {self.scale} times as large, are more than "
                f"{MAX_PIXELS:,}",
                "reduce its size first",
            )
