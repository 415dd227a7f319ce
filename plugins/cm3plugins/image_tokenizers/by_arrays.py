"""What image tokenizers without a network share: a config whose weights are a few arrays, learnt in rounds, and their
file. Imports no torch.

Directions and centres are integers, so that codes are exact: sums of products of integers below 2**53 are the same in
float64 on every machine and in every batch.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from cm3core.document import IntArray, PixelArray
from cm3core.errors import CheckpointError, DataError, RecipeError
from cm3core.files import atomic_path, make_folder, write_text
from cm3core.interfaces.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from cm3core.interfaces.reach import READS, Outside
from cm3core.picture_form import PictureForm
from cm3plugins.image_tokenizers import NEEDED, check_multiple
from cm3plugins.trained.bundled import weights_path

if TYPE_CHECKING:
    from cm3plugins.trained.training_run import RunOptions

FloatArray: TypeAlias = npt.NDArray[np.float64]
#: Weights by name.
Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
#: The dtype and the shape that each array must have.
Shapes: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]

SAVED = "model.safetensors"
#: Number of training squares: more make no visible difference.
NUM_SQUARES = 60_000
#: Largest whole number of a direction.
_LARGEST = 2**15 - 1
#: Numbers in a table of distances.
_CHUNK = 2**22
#: Codes of a picture at most.
_MOST = 2**16
#: Directions that are followed beyond those asked for: rounds converge faster.
_EXTRA = 8


@dataclass(kw_only=True)
class ArrayTokenizerConfig(ImageTokenizerConfig):
    """Base of configs of tokenizers whose weights are a few arrays.

    Args:
        resolution: pixels per side.
        weights: the path of a file that `cm3 tokenizer train-image` wrote, or None for none yet. A checkpoint holds a
            copy.
        seed: for training.
        train_minutes: with `weights: null`, `cm3 train` first trains the tokenizer this long on the recipe's pictures;
            null: it asks for weights.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"train_minutes": (1e-3, 1e7)}
    later_keys: ClassVar[tuple[str, ...]] = ("train_minutes",)
    not_in_outputs: ClassVar[tuple[str, ...]] = ("train_minutes",)
    has_codebook: ClassVar[bool] = False
    outside: ClassVar[Mapping[str, Outside]] = {
        "weights": Outside(READS, "its weights", needed=NEEDED)
    }
    #: The component's name, written into its files.
    label: ClassVar[str]
    #: Weights that come with the package, by name.
    bundled: ClassVar[Mapping[str, Path]] = {}

    resolution: int = 32
    weights: str | None = None
    seed: int = 0
    train_minutes: float | None = None

    def check_ready(self) -> None:
        """Weights may be missing if `cm3 train` trains them first."""
        if self.weights is not None or self.train_minutes is None:
            super().check_ready()

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.resolution, self.resolution

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The keys that decide the shapes of the arrays, and their values."""

    @property
    @abstractmethod
    def shapes(self) -> Shapes:
        """The arrays that a file must hold."""

    @abstractmethod
    def of_arrays(self, arrays: Arrays) -> ArrayTokenizer:
        """The tokenizer with these weights."""

    @abstractmethod
    def learn(self, images_NHWC: PixelArray, rounds: Rounds) -> dict[str, npt.NDArray[Any]]:
        """The weights learnt from pictures."""

    def build(self) -> ArrayTokenizer:
        """The tokenizer with its weights.

        Raises:
            CheckpointError: there are none, or they don't match the recipe.
        """
        self.check()
        place = {"section": "image_tokenizer", "component": "tokenizer"}
        path = weights_path(
            self.weights,
            self.bundled,
            owner=self.label,
            trainer="cm3 tokenizer train-image",
            **place,
        )
        return self.of_arrays(read_arrays(path, self.label, self.sizes, self.shapes))

    def saved_in(self, folder: Path) -> Self:
        """With the arrays in `folder`."""
        return replace(self, weights=str(folder / SAVED))

    def train(self, images_NHWC: PixelArray, out_dir: str | Path, **options: Any) -> Path:
        """Learn the arrays; steps are rounds. It takes seconds: an interrupted run starts over.

        Raises:
            DataError: the pictures have another size, or are too few.
        """
        from cm3plugins.trained.training_run import RunOptions

        self.check()
        if images_NHWC.dtype != np.uint8 or images_NHWC.shape[1:] != (*self.image_size, 3):
            raise DataError(
                "training pictures",
                f"{images_NHWC.dtype} {list(images_NHWC.shape)}, expected uint8 "
                f"[N, {self.resolution}, {self.resolution}, 3]",
                "resize with cm3core.images.fit",
            )
        run = RunOptions(**options)
        rounds = Rounds(run)
        arrays = self.learn(images_NHWC, rounds)
        make_folder(folder := Path(out_dir))
        write_arrays(folder / SAVED, self.label, self.sizes, arrays)
        facts: dict[str, float] = {"rounds": rounds.number, "pictures": len(images_NHWC)}
        shown = images_NHWC if run.validation_NHWC is None else run.validation_NHWC
        if len(shown):
            tokenizer = self.of_arrays(arrays)
            again = tokenizer.decode(tokenizer.encode(shown))
            which = "training" if run.validation_NHWC is None else "validation"
            facts[f"{which}_psnr"] = round(psnr(again, shown), 3)
        write_text(folder / "training.json", json.dumps(facts))
        if run.show_progress:
            told = (f"{name.replace('_', ' ')} {value:,}" for name, value in facts.items())
            print(", ".join(told), file=sys.stderr)
        return folder / SAVED


@dataclass(kw_only=True)
class PatchArraysConfig(ArrayTokenizerConfig):
    """Base of those that encode squares of pixels. Has the keys of `ArrayTokenizerConfig`, and:

    Args:
        patch_size: pixels per side of a place; divides `resolution`.
    """

    patch_size: int = 4

    def check(self) -> None:
        """Ranges and combinations; raises a `RecipeError` that names the key."""
        super().check()
        check_multiple(self.resolution, "patch_size", self.patch_size)
        if (number := (self.resolution // self.patch_size) ** 2 * self.codes_per_place) > _MOST:
            raise RecipeError(
                "image_tokenizer.patch_size",
                f"is {self.patch_size}, and a picture would have {number:,} codes, more than {_MOST:,}",
                "use a larger patch_size, fewer codes per place or a smaller resolution",
            )

    @property
    @abstractmethod
    def codes_per_place(self) -> int:
        """Codes of a square."""

    @property
    def places(self) -> tuple[int, int]:
        """(rows, columns) of squares."""
        side = self.resolution // self.patch_size
        return side, side


class ArrayTokenizer(ImageTokenizer):
    """Pixels <-> codes by a few arrays.

    Args:
        config: its keys.
        arrays: weights of `config.shapes`.
    """

    def __init__(self, config: ArrayTokenizerConfig, arrays: Arrays) -> None:
        self._label, self._sizes, self._arrays = config.label, config.sizes, dict(arrays)
        self._form, self._codebook_size = config.form, config.codebook_size
        self._image_size = config.image_size

    @property
    def image_size(self) -> tuple[int, int]:
        return self._image_size

    @property
    def form(self) -> PictureForm:
        return self._form

    @property
    def codebook_size(self) -> int:
        return self._codebook_size

    @property
    def fingerprint(self) -> str:
        """SHA-256 over name, sizes and arrays."""
        digest = hashlib.sha256(json.dumps([self._label, self._sizes], sort_keys=True).encode())
        for name in sorted(self._arrays):
            digest.update(name.encode() + np.ascontiguousarray(self._arrays[name]).tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the arrays."""
        write_arrays(folder / SAVED, self._label, self._sizes, self._arrays)


class Rounds:
    """Iterates rounds of training until the budget is spent; `number` counts them.

    Args:
        options: `steps` is the number of rounds, or `minutes` the time; at least one round.
    """

    def __init__(self, options: RunOptions) -> None:
        self._options, self.number = options, 0

    def __call__(self, share: float = 1.0) -> Iterator[int]:
        """Rounds of one part of the training. `share`: of the time, for training with several parts; each has all the
        steps."""
        started, steps = time.monotonic(), self._options.steps
        seconds = 60 * (self._options.minutes or 0.0) * share
        done = 0
        while (
            done < max(1, steps)
            if steps is not None
            else time.monotonic() - started < seconds or not done
        ):
            done += 1
            self.number += 1
            yield done


def principal_directions(
    rows_Nd: FloatArray, number: int, rounds: Iterator[int], seed: int
) -> tuple[FloatArray, FloatArray]:
    """Mean [d] and principal directions [number, d] of rows, by subspace iteration (orthonormal, largest variance first).

    Stops when the variance in the subspace no longer grows.
    """
    mean_d = rows_Nd.mean(0)
    centred_Nd = rows_Nd - mean_d
    width = min(number + _EXTRA, *centred_Nd.shape)
    start = np.random.default_rng(seed).standard_normal((centred_Nd.shape[1], width))
    basis_dk = np.linalg.qr(start)[0]
    variance = 0.0
    for _ in rounds:
        basis_dk = np.linalg.qr(centred_Nd.T @ (centred_Nd @ basis_dk))[0]
        now = float(((centred_Nd @ basis_dk) ** 2).sum())
        if now <= variance * (1 + 1e-9):
            break
        variance = now
    turned_kk = np.linalg.svd(centred_Nd @ basis_dk, full_matrices=False)[2]
    directions = turned_kk @ basis_dk.T
    # a direction and its negative are the same: the largest number is positive
    largest = np.abs(directions).argmax(1)
    signs = np.sign(directions[np.arange(width), largest])
    return mean_d, (directions * signs[:, None])[:number]


def nearest(rows_Pd: FloatArray, centres_Kd: FloatArray) -> IntArray:
    """The nearest centre of each row, the first on a tie; exact for whole numbers."""
    half_K = (centres_Kd**2).sum(1) / 2
    size = max(1, _CHUNK // len(centres_Kd))
    codes = [
        np.argmin(half_K - rows_Pd[start : start + size] @ centres_Kd.T, axis=1)
        for start in range(0, len(rows_Pd), size)
    ]
    return np.concatenate(codes).astype(np.int32) if codes else np.zeros(0, np.int32)


def centres_of(
    rows_Pd: FloatArray,
    number: int,
    rounds: Iterator[int],
    rng: np.random.Generator,
    weights_P: FloatArray | None = None,
    fixed_Fd: FloatArray | None = None,
) -> FloatArray:
    """k-means of rows of whole numbers, rounded to whole numbers; a centre that no row is nearest to moves to a row
    that is far from its own.

    Args:
        rows_Pd: at least `number`.
        number: of centres.
        rounds: of the training.
        rng: chooses the first centres.
        weights_P: whole numbers, how often each row counts. None: once.
        fixed_Fd: centres that never move; the first ones of the result.
    """
    times_P = np.ones(len(rows_Pd)) if weights_P is None else weights_P
    fixed_Fd = rows_Pd[:0] if fixed_Fd is None else fixed_Fd
    moving = number - len(fixed_Fd)
    centres_Kd = np.concatenate([fixed_Fd, rows_Pd[rng.permutation(len(rows_Pd))[:moving]]])
    for _ in rounds:
        codes_P = nearest(rows_Pd, centres_Kd)
        counts_K, weight_K = (
            np.bincount(codes_P, minlength=number),
            np.bincount(codes_P, times_P, number),
        )
        # sums of whole numbers: their order does not matter
        used, starts = counts_K > 0, np.cumsum(counts_K) - counts_K
        sums_Kd = np.zeros_like(centres_Kd)
        order_P = np.argsort(codes_P)
        weighted_Pd = rows_Pd[order_P] * times_P[order_P, None]
        sums_Kd[used] = np.add.reduceat(weighted_Pd, starts[used])
        found_Kd = sums_Kd / np.maximum(weight_K, 1)[:, None]
        empty = np.flatnonzero(counts_K == 0)
        error_P = ((rows_Pd - centres_Kd[codes_P]) ** 2).sum(1) * times_P
        found_Kd[empty] = rows_Pd[np.argsort(-error_P, kind="stable")[: len(empty)]]
        found_Kd[: len(fixed_Fd)] = fixed_Fd
        same, centres_Kd = np.array_equal(found_Kd, centres_Kd), found_Kd
        if same:
            break
    whole_Kd: FloatArray = np.rint(centres_Kd)
    return whole_Kd


def whole_numbers(rows_kd: FloatArray) -> npt.NDArray[np.int16]:
    """Rows scaled to whole numbers, so that products with pixels are exact."""
    largest = np.abs(rows_kd).max(1, keepdims=True)
    scaled: npt.NDArray[np.int16] = np.rint(rows_kd / np.maximum(largest, 1e-12) * _LARGEST).astype(
        np.int16
    )
    return scaled


def to_pixels(values: FloatArray) -> npt.NDArray[np.uint8]:
    """Rounded and clipped to 0..255.

    >>> to_pixels(np.array([-3.0, 9.6, 300.0])).tolist()
    [0, 10, 255]
    """
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def psnr(again_NHWC: PixelArray, pictures_NHWC: PixelArray) -> float:
    """Mean peak signal-to-noise ratio in dB."""
    error_N = ((again_NHWC.astype(np.float64) - pictures_NHWC) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error_N, 1e-3))).mean())


def squares_of(pixels_NHWC: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """The pictures' squares in raster order, [N * rows * columns, side * side * 3]."""
    number, height, width, channels = pixels_NHWC.shape
    split = pixels_NHWC.reshape(number, height // side, side, width // side, side, channels)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side * channels)


def pictures_of(squares_Pd: npt.NDArray[Any], side: int, places: tuple[int, int]) -> Any:
    """Inverse of `squares_of`: pictures [N, H, W, 3] of (rows, columns) = `places` squares each."""
    rows, columns = places
    split = squares_Pd.reshape(-1, rows, columns, side, side, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(split).reshape(-1, rows * side, columns * side, 3)


def write_arrays(path: Path, label: str, sizes: Mapping[str, int], arrays: Arrays) -> None:
    """Write a file of arrays, atomically."""
    from safetensors.numpy import save_file

    metadata = {"format": f"cm3leon {label} 1", "sizes": json.dumps(sizes)}
    with atomic_path(path) as temporary:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},
            temporary,
            metadata,
        )


def read_arrays(
    path: Path, label: str, sizes: Mapping[str, int], shapes: Shapes
) -> dict[str, npt.NDArray[Any]]:
    """Read what `write_arrays` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, of another format or of other sizes.
    """
    from safetensors import SafetensorError, safe_open

    next_step = f"give the file that `cm3 tokenizer train-image` wrote for {label}"
    if not path.is_file():
        raise CheckpointError(str(path), "there is no such file", next_step)
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            str(path), f"is not a complete safetensors file ({error})", next_step
        ) from error
    if metadata.get("format") != f"cm3leon {label} 1":
        raise CheckpointError(
            str(path), f"is not of the format {f'cm3leon {label} 1'!r}", next_step
        )
    if (found := metadata.get("sizes", "")) != json.dumps(sizes):
        raise CheckpointError(
            str(path),
            f"was trained with the sizes {found}, the recipe has {json.dumps(sizes)}",
            "set these keys of image_tokenizer as in the file, or train again",
        )
    if {name: (str(one.dtype), one.shape) for name, one in arrays.items()} != dict(shapes) or any(
        not np.isfinite(one).all() for one in arrays.values()
    ):
        raise CheckpointError(
            str(path), "its arrays are not those that its sizes need", "train again"
        )
    return arrays
