"""The `patches` tokenizer at work, and its file.

Legend: N pictures, P squares, K codes, d numbers of a square (pixels times 3).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cm3core.document import IntArray, PixelArray
from cm3core.errors import CheckpointError
from cm3core.files import atomic_path
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3plugins.image_tokenizers.patches.config import BUNDLED, PatchTokenizerConfig

SAVED = "patches.safetensors"
_FORMAT = "cm3leon patches 1"
#: Squares that are compared with all codes at once.
_CHUNK = 8192


def squares(pixels_NHWC: npt.NDArray[np.uint8], patch_size: int) -> npt.NDArray[np.uint8]:
    """The pictures' squares in raster order, [N * rows * columns, d].

    >>> squares(np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), 1).tolist()
    [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    """
    N, H, W, _ = pixels_NHWC.shape
    f = patch_size
    return (
        pixels_NHWC.reshape(N, H // f, f, W // f, f, 3)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(-1, f * f * 3)
    )


def nearest(squares_Pd: npt.NDArray[np.uint8], codebook_Kd: npt.NDArray[np.uint8]) -> IntArray:
    """The nearest code of each square, the first of equals. Whole numbers in float64: exact,
    whatever is computed together."""
    centres_Kd = codebook_Kd.astype(np.float64)
    half_K = (centres_Kd**2).sum(1) / 2
    codes = [
        np.argmin(
            half_K - squares_Pd[start : start + _CHUNK].astype(np.float64) @ centres_Kd.T, axis=1
        )
        for start in range(0, len(squares_Pd), _CHUNK)
    ]
    return np.concatenate(codes).astype(np.int32) if codes else np.zeros(0, np.int32)


class PatchTokenizer(ImageTokenizer):
    """Pixels <-> codes by comparing squares.

    Args:
        config: sizes.
        codebook_Kd: the squares, row by row, RGB.
        bundled: they come with this package, so that checkpoints need no copy.
    """

    def __init__(
        self,
        config: PatchTokenizerConfig,
        codebook_Kd: npt.NDArray[np.uint8],
        *,
        bundled: bool = False,
    ) -> None:
        assert codebook_Kd.shape == (config.codebook_size, config.patch_size**2 * 3)
        self.config, self.bundled, self._codebook_Kd = config, bundled, codebook_Kd

    @property
    def image_size(self) -> tuple[int, int]:
        return self.config.image_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.grid

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def fingerprint(self) -> str:
        """SHA-256 over sizes and squares."""
        sizes = json.dumps(
            [self.config.resolution, self.config.patch_size, self.config.codebook_size]
        )
        return hashlib.sha256(sizes.encode() + self._codebook_Kd.tobytes()).hexdigest()

    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        rows, columns = self.grid
        return nearest(squares(pixels_NHWC, self.config.patch_size), self._codebook_Kd).reshape(
            -1, rows * columns
        )

    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        (rows, columns), f = self.grid, self.config.patch_size
        parts = self._codebook_Kd[codes_Nc].reshape(-1, rows, columns, f, f, 3)
        return np.ascontiguousarray(parts.transpose(0, 1, 3, 2, 4, 5)).reshape(
            -1, *self.image_size, 3
        )

    def save(self, folder: Path) -> None:
        """Write the squares, unless they are bundled."""
        if not self.bundled:
            save_codebook(folder / SAVED, self.config.patch_size, self._codebook_Kd)

    def codebook(self) -> torch.Tensor:
        """The squares in 0..1, float32 [K, d]."""
        return torch.from_numpy(self._codebook_Kd.astype(np.float32) / 255)


def save_codebook(path: Path, patch_size: int, codebook_Kd: npt.NDArray[np.uint8]) -> None:
    """Write a file of squares, atomically."""
    with atomic_path(path) as temporary:
        save_file(
            {"codebook": np.ascontiguousarray(codebook_Kd)},
            temporary,
            {"format": _FORMAT, "patch_size": str(patch_size)},
        )


def read_codebook(path: Path, config: PatchTokenizerConfig) -> npt.NDArray[np.uint8]:
    """Read what `save_codebook` wrote. Raises `CheckpointError` when the file is missing, damaged,
    foreign or of other sizes."""
    next_step = "give the file that `cm3 tokenizer train-image` wrote, or leave image_tokenizer.weights at bundled:emoji32"
    if not path.is_file():
        raise CheckpointError(str(path), "there is no such file", next_step)
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            codebook = file.get_tensor("codebook") if "codebook" in file.keys() else None  # noqa: SIM118  # not a dictionary
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            str(path), f"is not a whole safetensors file ({error})", next_step
        ) from error
    if (
        metadata.get("format") != _FORMAT
        or codebook is None
        or codebook.dtype != np.uint8
        or codebook.ndim != 2
    ):
        raise CheckpointError(str(path), f"is not of the format {_FORMAT!r}", next_step)
    found = (codebook.shape[0], metadata.get("patch_size", ""), codebook.shape[1])
    wanted = (config.codebook_size, str(config.patch_size), config.patch_size**2 * 3)
    if found != wanted:
        raise CheckpointError(
            str(path),
            f"holds {found[0]:,} squares of {found[1]} pixels a side, the recipe says "
            f"{wanted[0]:,} of {wanted[1]}",
            "set image_tokenizer.codebook_size and patch_size as in the file, or give another file",
        )
    return np.asarray(codebook)


def build_tokenizer(config: PatchTokenizerConfig) -> PatchTokenizer:
    """The tokenizer that a recipe describes."""
    if config.weights is None:
        raise CheckpointError(
            "image_tokenizer.weights",
            "is null: there are no squares to use",
            "train some with `cm3 tokenizer train-image`, then set image_tokenizer.weights to "
            "the file",
        )
    path = Path(config.weights).expanduser()
    bundled = config.weights.startswith(BUNDLED)
    if bundled:
        path = (
            Path(__file__).parent / "assets" / f"{config.weights.removeprefix(BUNDLED)}.safetensors"
        )
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.safetensors")))
            raise CheckpointError(
                f"image_tokenizer.weights={config.weights}",
                "no such bundled tokenizer",
                f"bundled: {known}; or give a path",
            )
    return PatchTokenizer(config, read_codebook(path, config), bundled=bundled)


def load_tokenizer(config: PatchTokenizerConfig, folder: Path) -> PatchTokenizer:
    """The tokenizer that `PatchTokenizer.save` wrote."""
    return PatchTokenizer(config, read_codebook(folder / SAVED, config))
