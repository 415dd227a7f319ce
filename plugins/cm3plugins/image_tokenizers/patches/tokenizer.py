"""The `patches` tokenizer, and its file.

Legend: N pictures of H x W pixels, Y X rows and columns of codes, c = Y * X codes per picture, P =
N * c squares, U different ones among them, y x pixels inside a square, C channels, K codes, d = y *
x * C numbers per square.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cm3core.document import IntArray, PixelArray
from cm3core.errors import CheckpointError
from cm3core.files import atomic_path
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3plugins.trained.bundled import weights_path

#: The file in the folder of `PatchTokenizer.save`.
SAVED = "patches.safetensors"
_FORMAT = "cm3leon patches 1"
#: Numbers in a table of distances, which should stay in the processor's cache, and its rows at most.
_CHUNK, _ROWS = 2**20, 2**13


def squares(pixels_NHWC: npt.NDArray[np.uint8], patch_size: int) -> npt.NDArray[np.uint8]:
    """Return the pictures' squares in raster order, [N * rows * columns, d].

    >>> squares(np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), 1).tolist()
    [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    """
    return rearrange(pixels_NHWC, "N (Y y) (X x) C -> (N Y X) (y x C)", y=patch_size, x=patch_size)


def pictures(
    squares_Pd: npt.NDArray[np.uint8], patch_size: int, grid: tuple[int, int]
) -> PixelArray:
    """Inverse of `squares`: return pictures [N, H, W, 3], each of `grid` = (rows, columns) squares.

    >>> pictures(np.arange(12, dtype=np.uint8).reshape(4, 3), 1, (2, 2))[0, 1].tolist()
    [[6, 7, 8], [9, 10, 11]]
    """
    return rearrange(
        squares_Pd,
        "(N Y X) (y x C) -> N (Y y) (X x) C",
        Y=grid[0],
        X=grid[1],
        y=patch_size,
        x=patch_size,
    )


def distinct(
    squares_Pd: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the different squares in ascending order, uint8 [U, d]; the place of each square among
    them, int [P]; how often each of them occurs, int [U].

    >>> [found.tolist() for found in distinct(np.array([[7, 0], [2, 9], [7, 0]], np.uint8))]
    [[[2, 9], [7, 0]], [1, 0, 1], [1, 2]]
    """
    number = squares_Pd.shape[1]
    # a square as one value of `number` bytes: 50 times as fast as np.unique(axis=0)
    values_P = np.ascontiguousarray(squares_Pd).view(np.dtype((np.void, number)))[:, 0]
    values_U, places_P, times_U = np.unique(values_P, return_inverse=True, return_counts=True)
    return values_U.view(np.uint8).reshape(-1, number), places_P, times_U


def nearest(squares_Pd: npt.NDArray[np.uint8], codebook_Kd: npt.NDArray[np.uint8]) -> IntArray:
    """Return the nearest code of each square, int32 [P], the first on a tie.

    Exact, so a code depends on nothing but its square and the codebook. A square x is nearest to the
    centre c of the smallest |c|^2 - 2 c x, both less 128, which changes no distance. These are whole
    numbers, and no sum of some of their terms exceeds 3 d 128^2: float32 holds all of them exactly,
    in whatever order they are added, for d up to 341 (10 x 10 pixels), and float64 beyond.
    """
    number = codebook_Kd.shape[1]
    dtype = np.float32 if 3 * number * 128**2 <= 2**24 else np.float64
    centres_dK = codebook_Kd.T.astype(dtype) - 128
    table_dK = np.concatenate([-2 * centres_dK, (centres_dK**2).sum(0, keepdims=True)])
    squares_Ud, places_P, _ = distinct(squares_Pd)
    size = min(_ROWS, max(1, _CHUNK // len(codebook_Kd)))
    codes_U = np.empty(len(squares_Ud), np.int32)
    rows_Rd = np.ones((size, number + 1), dtype)  # ends with 1, the factor of |c|^2
    distances_RK = np.empty((size, len(codebook_Kd)), dtype)
    for start in range(0, len(squares_Ud), size):
        some_Rd = squares_Ud[start : start + size]
        rows = len(some_Rd)
        np.subtract(some_Rd, 128, out=rows_Rd[:rows, :number], dtype=dtype)
        np.matmul(rows_Rd[:rows], table_dK, out=distances_RK[:rows])
        codes_U[start : start + rows] = distances_RK[:rows].argmin(1)
    return codes_U[places_P]


class PatchTokenizer(ImageTokenizer):
    """Encodes and decodes pixels by comparing squares.

    Args:
        resolution: pixels per side of a picture.
        patch_size: pixels per side of a square.
        codebook_Kd: the squares, row by row, RGB.
        bundled: whether the squares are part of this package, so that checkpoints need no copy.
    """

    def __init__(
        self,
        resolution: int,
        patch_size: int,
        codebook_Kd: npt.NDArray[np.uint8],
        *,
        bundled: bool = False,
    ) -> None:
        assert codebook_Kd.shape[1] == patch_size**2 * 3
        self.resolution, self.patch_size, self.bundled = resolution, patch_size, bundled
        self._codebook_Kd = codebook_Kd

    @classmethod
    def from_file(
        cls,
        path: Path,
        resolution: int,
        patch_size: int,
        codebook_size: int,
        *,
        bundled: bool = False,
    ) -> PatchTokenizer:
        """Load the tokenizer from a file written by `save_codebook`; see `read_codebook`."""
        codebook_Kd = read_codebook(path, patch_size, codebook_size)
        return cls(resolution, patch_size, codebook_Kd, bundled=bundled)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.resolution, self.resolution

    @property
    def grid(self) -> tuple[int, int]:
        side = self.resolution // self.patch_size
        return side, side

    @property
    def codebook_size(self) -> int:
        return len(self._codebook_Kd)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of sizes and squares."""
        sizes = json.dumps([self.resolution, self.patch_size, self.codebook_size])
        return hashlib.sha256(sizes.encode() + self._codebook_Kd.tobytes()).hexdigest()

    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        codes_P = nearest(squares(pixels_NHWC, self.patch_size), self._codebook_Kd)
        rows, columns = self.grid
        return rearrange(codes_P, "(N c) -> N c", c=rows * columns)

    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        squares_Pd = self._codebook_Kd[rearrange(codes_Nc, "N c -> (N c)")]
        return np.ascontiguousarray(pictures(squares_Pd, self.patch_size, self.grid))

    def save(self, folder: Path) -> None:
        """Write the squares, unless they are bundled."""
        if not self.bundled:
            save_codebook(folder / SAVED, self.patch_size, self._codebook_Kd)

    def codebook(self) -> torch.Tensor:
        """Return the squares in 0..1, float32 [K, d]."""
        return torch.from_numpy(self._codebook_Kd.astype(np.float32) / 255)


def save_codebook(path: Path, patch_size: int, codebook_Kd: npt.NDArray[np.uint8]) -> None:
    """Write a file of squares, atomically."""
    with atomic_path(path) as temporary:
        save_file(
            {"codebook": np.ascontiguousarray(codebook_Kd)},
            temporary,
            {"format": _FORMAT, "patch_size": str(patch_size)},
        )


def read_codebook(path: Path, patch_size: int, codebook_size: int) -> npt.NDArray[np.uint8]:
    """Read a file written by `save_codebook`.

    Raises:
        CheckpointError: the file is missing or damaged, or has another format or other sizes.
    """
    next_step = "use a file written by `cm3 tokenizer train-image`, or leave image_tokenizer.weights at bundled:emoji32"
    if not path.is_file():
        raise CheckpointError(str(path), "there is no such file", next_step)
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            codebook = file.get_tensor("codebook") if "codebook" in file.keys() else None  # noqa: SIM118  # not a dictionary
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            str(path), f"is not a complete safetensors file ({error})", next_step
        ) from error
    if (
        metadata.get("format") != _FORMAT
        or codebook is None
        or codebook.dtype != np.uint8
        or codebook.ndim != 2
    ):
        raise CheckpointError(str(path), f"does not have the format {_FORMAT!r}", next_step)
    found = (codebook.shape[0], metadata.get("patch_size", ""), codebook.shape[1])
    wanted = (codebook_size, str(patch_size), patch_size**2 * 3)
    if found != wanted:
        raise CheckpointError(
            str(path),
            f"holds {found[0]:,} squares of {found[1]} pixels a side, but the recipe expects "
            f"{wanted[0]:,} of {wanted[1]}",
            "set image_tokenizer.codebook_size and patch_size as in the file, or use another file",
        )
    return np.asarray(codebook)


def weights_file(weights: str | None) -> Path:
    """Return the path for a recipe's `weights`.

    Raises:
        CheckpointError: `weights` is an unknown bundled name, or None.
    """
    assets = Path(__file__).parent / "assets"
    return weights_path(
        weights,
        {path.stem: path for path in assets.glob("*.safetensors")},
        owner="patches",
        section="image_tokenizer",
        component="tokenizer",
        trainer="cm3 tokenizer train-image",
        content="squares",
    )
