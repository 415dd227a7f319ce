"""Pixel-wise similarity of pictures and their references: PSNR and SSIM."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.interfaces.metric import Group, Score
from cm3plugins.metrics.collecting import ValueMetric, mean_score

#: PSNR of equal pictures, which would be infinite: as for half a grey level in one of 64,000 pixels.
MAX_PSNR = 100.0
_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03
Array = npt.NDArray[np.float64]


class PairMetric(ValueMetric):
    """A mean over pairs of pictures of equal size."""

    needs: ClassVar[tuple[Group, ...]] = (("pictures", "reference_pictures"),)

    def _of(self, one: PixelArray, other: PixelArray) -> float:
        """Compute the value of a pair."""
        raise NotImplementedError

    def _value(self, sample: Mapping[str, Any]) -> float:
        one, other = sample["pictures"], sample["reference_pictures"]
        if one.shape != other.shape:
            raise DataError(
                "a picture and its reference",
                f"are {list(one.shape)} and {list(other.shape)}",
                "resize them to the same size first",
            )
        return self._of(one, other)


class PSNRMetric(PairMetric):
    """Mean peak signal-to-noise ratio over pictures, dB."""

    def _of(self, one: PixelArray, other: PixelArray) -> float:
        error = float(((one.astype(np.float64) - other) ** 2).mean())
        return min(MAX_PSNR, 10 * math.log10(255**2 / error)) if error else MAX_PSNR

    def _result(self) -> Sequence[Score]:
        return [mean_score("psnr", self.values, higher_is_better=True)]


class SSIMMetric(PairMetric):
    """Structural similarity (Wang et al. 2004), Gaussian window of 11 x 11 with sigma 1.5, averaged over
    channels and over positions where the window fits."""

    def _of(self, one: PixelArray, other: PixelArray) -> float:
        if min(one.shape[:2]) < _WINDOW:
            raise DataError(
                "a picture",
                f"is {list(one.shape[:2])}, smaller than SSIM's window {_WINDOW} x {_WINDOW}",
                "evaluate larger pictures",
            )
        return ssim(one, other)

    def _result(self) -> Sequence[Score]:
        return [mean_score("ssim", self.values, higher_is_better=True)]


def ssim(one: PixelArray, other: PixelArray) -> float:
    """Compute the SSIM of two pictures uint8 [H, W, 3]."""
    x, y = one.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x**2
    variance_y = _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
    values = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return float(values.mean())


def _blurred(x_HWC: Array) -> Array:
    """Return weighted means of windows, only where the whole window is in the picture."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        num = x_HWC.shape[axis] - _WINDOW + 1
        parts = (w * np.take(x_HWC, range(k, k + num), axis) for k, w in enumerate(weights))
        x_HWC = sum(parts, start=np.zeros(()))
    return x_HWC
