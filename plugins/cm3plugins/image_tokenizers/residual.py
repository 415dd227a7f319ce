"""`residual`: squares of pixels as several codes each, every code correcting those before it.

Legend: N pictures, P squares of d numbers, k stages, K centres of a stage, c = rows * columns * k codes of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.document import IntArray, PixelArray
from cm3core.errors import DataError
from cm3core.picture_form import CodeRules, PictureForm
from cm3plugins.image_tokenizers.by_arrays import (
    NUM_SQUARES,
    Arrays,
    ArrayTokenizer,
    PatchArraysConfig,
    Rounds,
    Shapes,
    centres_of,
    nearest,
    pictures_of,
    squares_of,
    to_pixels,
)

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True)
class ResidualTokenizerConfig(PatchArraysConfig):
    """A grid of squares with `depth` codes each: k-means of the squares, then of what is left, and so on.

    Code j of a place is of stage j: ids j * stage_size up to (j + 1) * stage_size. A square is the sum of its centres.
    Residual vector quantisation (multistage: Gray 1984; SoundStream, arXiv:2107.03312), without a network. Has the keys
    of `PatchArraysConfig`, and:

    Args:
        depth: codes of a place.
        stage_size: centres of a stage; the codebook has depth * stage_size codes.

    Limits: each stage is chosen greedily, so the sum is not the best one; squares are encoded alone, so their borders
    can show.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "resolution": (1, 2**14),
        "patch_size": (1, 2**10),
        "depth": (1, 64),
        "stage_size": (2, 2**16),
        "seed": (0, 2**63 - 1),
    }
    label: ClassVar[str] = "residual"

    depth: int = 4
    stage_size: int = 64

    @property
    def codes_per_place(self) -> int:
        """`depth`."""
        return self.depth

    @property
    def codebook_size(self) -> int:
        """The centres of all stages."""
        return self.depth * self.stage_size

    @property
    def form(self) -> PictureForm:
        """`depth` codes a square, one of each stage."""
        rules = CodeRules.by_slot([self.stage_size] * self.depth)
        return PictureForm.of_grid(*self.places, self.depth, rules)

    @property
    def sizes(self) -> dict[str, int]:
        """See the base."""
        return {
            "patch_size": self.patch_size,
            "depth": self.depth,
            "stage_size": self.stage_size,
        }

    @property
    def shapes(self) -> Shapes:
        """See the base."""
        return {"centres": ("int16", (self.depth, self.stage_size, self.patch_size**2 * 3))}

    def of_arrays(self, arrays: Arrays) -> ResidualTokenizer:
        """See the base."""
        return ResidualTokenizer(self, arrays)

    def learn(self, images_NHWC: PixelArray, rounds: Rounds) -> dict[str, npt.NDArray[Any]]:
        """The centres of one stage after the other.

        Raises:
            DataError: there are fewer different squares than centres.
        """
        squares_Pd = np.unique(squares_of(images_NHWC, self.patch_size), axis=0)
        if len(squares_Pd) < self.stage_size:
            raise DataError(
                "training pictures",
                f"hold {len(squares_Pd):,} different squares, fewer than "
                f"image_tokenizer.stage_size {self.stage_size:,}",
                "give more pictures, or lower image_tokenizer.stage_size",
            )
        rng = np.random.default_rng(self.seed)
        chosen = np.sort(rng.permutation(len(squares_Pd))[:NUM_SQUARES])
        left_Pd = squares_Pd[chosen].astype(np.float64)
        stages = []
        for _ in range(self.depth):
            centres_Kd = centres_of(left_Pd, self.stage_size, rounds(1 / self.depth), rng)
            left_Pd = left_Pd - centres_Kd[nearest(left_Pd, centres_Kd)]
            stages.append(centres_Kd.astype(np.int16))
        return {"centres": np.stack(stages)}


class ResidualTokenizer(ArrayTokenizer):
    """Pixels <-> centres of k stages for each square.

    Args:
        config: its keys.
        arrays: centres int16 [k, K, d].
    """

    def __init__(self, config: ResidualTokenizerConfig, arrays: Arrays) -> None:
        super().__init__(config, arrays)
        self._side, self._places = config.patch_size, config.places
        self._centres_kKd = np.asarray(arrays["centres"], np.float64)

    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        left_Pd = squares_of(pixels_NHWC, self._side).astype(np.float64)
        depth, size, _ = self._centres_kKd.shape
        codes_Pk = np.zeros((len(left_Pd), depth), np.int32)
        for stage, centres_Kd in enumerate(self._centres_kKd):
            chosen_P = nearest(left_Pd, centres_Kd)
            left_Pd = left_Pd - centres_Kd[chosen_P]
            codes_Pk[:, stage] = stage * size + chosen_P
        return codes_Pk.reshape(len(pixels_NHWC), self.form.num_codes)

    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        depth, _, dim = self._centres_kKd.shape
        codes_Pk = codes_Nc.reshape(-1, depth)
        squares_Pd = self._centres_kKd.reshape(-1, dim)[codes_Pk].sum(1)
        pictures: PixelArray = pictures_of(to_pixels(squares_Pd), self._side, self._places)
        return pictures

    def codebook(self) -> torch.Tensor:
        """The centres of all stages, 255 levels as 1, float32 [k * K, d]."""
        import torch

        centres = self._centres_kKd.reshape(self.codebook_size, -1) / 255
        return torch.from_numpy(centres.astype(np.float32))
