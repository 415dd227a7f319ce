"""Looks of drawings, compared without their place and size: which drawings show nearly the same.

Used by the closed splits of the icons, and by data sets of a user's own pictures to keep look-alikes in one split
(`file_source`, `split_by: look`).

The ink of a drawing is cut out, scaled to 24 pixels and compared in two renderings by correlation: `sharp`, the ink
itself, and `soft`, blurred to 12 pixels with its darkest spot at full ink, in which lines of different weight and
small shifts count less. The values are whole numbers up to `LEVELS`, so every sum is exact and the result does not
depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from cm3core.document import PixelArray

_Name = TypeVar("_Name", str, int)

SIDE = 24
LEVELS = 15
#: Thresholds of the correlations. Of pairs of different sets on either side of them, sheets show: above, the same
#: drawing with another line weight, or two drawings in equal frames; below, drawings that a person tells apart.
SHARP, SOFT = 0.85, 0.94
#: Drawings that are less alike than this when blurred are not compared any further.
_CANDIDATE = 0.88
_MIN_INK = 32
_BLUR = (1, 4, 6, 4, 1)
_BLOCK = 512
#: Pixels per side in which colours are compared, and the greatest root mean square of their differences, of 255 levels.
#: Of pairs with alike ink in four collections of coloured pictures, sheets show: below, one drawing in other details or
#: shades; above, different things of one outline, such as two flags.
COLOUR_SIDE, COLOUR = 12, 40.0
#: Larger pictures are reduced first, which is faster.
_LARGE = 4 * SIDE
#: Changes with the bytes that `look_of` returns.
VERSION = 1


def cut_out(picture_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture's ink, without the white around it, scaled to `SIDE` and centred.

    Args:
        picture_HW3: dark on white.

    Returns:
        uint8 [24, 24], 255 is black; all zeros for an empty picture.
    """
    ink_HW = 255 - picture_HW3.min(2)
    if (box := _inked(ink_HW)) is None:
        return np.zeros((SIDE, SIDE), np.uint8)
    return _in_square(ink_HW[box], SIDE, around=0)


def look_of(picture_HW3: PixelArray) -> bytes:
    """Return what `look_alikes` compares of a coloured picture: its ink, as `cut_out` returns it, and its colours.

    Args:
        picture_HW3: of any size, usually on white.
    """
    if (factor := max(picture_HW3.shape) // _LARGE) > 1:
        picture_HW3 = np.asarray(Pillow.fromarray(picture_HW3).reduce(factor))
    ink_HW = 255 - picture_HW3.min(2)
    if (box := _inked(ink_HW)) is None:
        return bytes(SIDE**2) + bytes([255]) * (3 * COLOUR_SIDE**2)
    ink = _in_square(ink_HW[box], SIDE, around=0)
    return ink.tobytes() + _in_square(picture_HW3[box], COLOUR_SIDE, around=255).tobytes()


def look_alikes(looks: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Yield the pairs (i, j), i < j, of pictures that look alike: their ink does, and their colours are near.

    Args:
        looks: results of `look_of`.
    """
    if not looks:
        return
    both_NB = np.stack([np.frombuffer(look, np.uint8) for look in looks])
    colours_ND = both_NB[:, SIDE**2 :].astype(np.float32)
    drawings, every = Looks(both_NB[:, : SIDE**2].reshape(-1, SIDE, SIDE)), np.arange(len(looks))
    for start in range(0, len(looks), _BLOCK):
        for first_M, second_M in drawings.pairs(every[start : start + _BLOCK], every[start:]):
            first_M, second_M = (one[first_M < second_M] for one in (first_M, second_M))
            for part in np.array_split(np.arange(len(first_M)), len(first_M) // 10_000 + 1):
                i, j = first_M[part], second_M[part]
                near = np.square(colours_ND[i] - colours_ND[j]).mean(1) <= COLOUR**2
                yield from zip(i[near].tolist(), j[near].tolist(), strict=True)


def _inked(ink_HW: NDArray[np.uint8]) -> tuple[slice, slice] | None:
    """The box of the ink; None if there is none."""
    rows, columns = (np.flatnonzero((ink_HW > _MIN_INK).any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _in_square(cut: NDArray[np.uint8], size: int, around: int) -> NDArray[np.uint8]:
    """Put a cut into the middle of a square of its longer side, and scale that."""
    height, width = cut.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, *cut.shape[2:]), around, np.uint8)
    square[top : top + height, left : left + width] = cut
    scaling = Pillow.Resampling.BOX if side >= size else Pillow.Resampling.BILINEAR
    return np.asarray(Pillow.fromarray(square).resize((size, size), scaling))


@dataclass(frozen=True)
class _Rendering:
    """Pictures of one rendering, with a border of one pixel, and the sums of which correlations are made."""

    values_ND: NDArray[np.float32]
    num_pixels: int
    sum_N: NDArray[np.float64]
    spread_N: NDArray[np.float64]

    @classmethod
    def of(cls, ink_NHW: NDArray[np.float32]) -> _Rendering:
        count, side, _ = ink_NHW.shape
        values_ND = np.rint(ink_NHW * np.float32(LEVELS / 255)).reshape(count, side * side)
        num_pixels = (side + 2) ** 2
        sum_N = values_ND.sum(1, dtype=np.float64)
        spread_N = num_pixels * np.square(values_ND).sum(1, dtype=np.float64) - sum_N**2
        return cls(values_ND, num_pixels, sum_N, np.maximum(spread_N, 1))

    def correlation(
        self, first_M: NDArray[np.intp], second_M: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Correlations of pairs."""
        product_M = np.einsum("md,md->m", self.values_ND[first_M], self.values_ND[second_M])
        own_M = self.num_pixels * product_M.astype(np.float64)
        own_M -= self.sum_N[first_M] * self.sum_N[second_M]
        spread_M: NDArray[np.float64] = np.sqrt(self.spread_N[first_M] * self.spread_N[second_M])
        correlation_M: NDArray[np.float64] = own_M / spread_M
        return correlation_M

    def units(self) -> NDArray[np.float32]:
        """Vectors whose products are the correlations, up to rounding."""
        mean_N1 = (self.sum_N / self.num_pixels)[:, None]
        border = np.sqrt(self.num_pixels - self.values_ND.shape[1])
        centred = np.concatenate([self.values_ND - mean_N1, -border * mean_N1], axis=1)
        return (centred / np.sqrt(self.spread_N / self.num_pixels)[:, None]).astype(np.float32)


class Looks:
    """Drawings in both renderings.

    Args:
        ink_NHW: results of `cut_out`, uint8 [N, 24, 24].
    """

    def __init__(self, ink_NHW: NDArray[np.uint8]) -> None:
        ink = ink_NHW.astype(np.float32)
        self._sharp, self._soft = _Rendering.of(ink), _Rendering.of(_blurred(ink))
        self._units_ND = self._soft.units()

    def __len__(self) -> int:
        return len(self._units_ND)

    def pairs(
        self,
        first: NDArray[np.intp],
        second: NDArray[np.intp],
        sharp: float = SHARP,
        soft: float = SOFT,
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Yield, in blocks, the pairs of a drawing of `first` with another one of `second` that look alike.

        Args:
            first, second: positions of drawings.
            sharp, soft: thresholds; one of the two correlations must reach its own.
        """
        others_DM = np.ascontiguousarray(self._units_ND[second].T)
        for start in range(0, len(first), _BLOCK):
            block = first[start : start + _BLOCK]
            rows, columns = np.nonzero(self._units_ND[block] @ others_DM >= _CANDIDATE - 0.001)
            for part in range(0, len(rows), 100_000):
                i, j = block[rows[part : part + 100_000]], second[columns[part : part + 100_000]]
                soft_M = self._soft.correlation(i, j)
                alike = (soft_M >= soft) | (
                    (soft_M >= _CANDIDATE) & (self._sharp.correlation(i, j) >= sharp)
                )
                alike &= i != j
                yield i[alike], j[alike]

    def graph(self, sharp: float = SHARP, soft: float = SOFT) -> Alike:
        """Return which drawings look like which."""
        every = np.arange(len(self))
        found = [
            np.stack(pair)
            for start in range(0, len(self), _BLOCK)
            for pair in self.pairs(every[start : start + _BLOCK], every[start:], sharp, soft)
        ]
        pairs_2M = np.concatenate([np.zeros((2, 0), np.intp), *found], axis=1)
        return Alike(len(self), pairs_2M)


class Alike:
    """Which drawings look like which.

    Args:
        num: number of drawings.
        pairs_2M: pairs of them, in either order.
    """

    def __init__(self, num: int, pairs_2M: NDArray[np.intp]) -> None:
        first_M, second_M = pairs_2M
        keys = np.unique(np.concatenate([first_M * num + second_M, second_M * num + first_M]))
        self._starts = np.searchsorted(keys, np.arange(num + 1) * num)
        self._others = keys % max(num, 1)

    def to(self, index: int) -> list[int]:
        """Return the drawings that look like one."""
        found: list[int] = self._others[self._starts[index] : self._starts[index + 1]].tolist()
        return found


def _blurred(ink_NHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blur, halve, and stretch to full ink."""
    weights = np.array(_BLUR, np.float32) / sum(_BLUR)
    padded = np.pad(ink_NHW, ((0, 0), (2, 2), (2, 2)))
    tall = sum(w * padded[:, i : i + SIDE, :] for i, w in enumerate(weights))
    wide = sum(w * tall[:, :, i : i + SIDE] for i, w in enumerate(weights))
    half: NDArray[np.float32] = wide.reshape(len(wide), SIDE // 2, 2, SIDE // 2, 2).mean((2, 4))
    full: NDArray[np.float32] = (
        half / np.maximum(half.max((1, 2), keepdims=True), 1) * np.float32(255)
    )
    return full


class Groups(Generic[_Name]):
    """Sets of names or numbers, joined by pairs.

    Args:
        names: each is alone at first.

    >>> groups = Groups("abcd")
    >>> groups.join("d", "b")
    >>> groups.join("d", "c")
    >>> [groups.first(name) for name in "abcd"]
    ['a', 'b', 'b', 'b']
    """

    def __init__(self, names: Iterable[_Name]) -> None:
        self._before: dict[_Name, _Name] = {name: name for name in names}

    def first(self, name: _Name) -> _Name:
        """Return the smallest name of its set."""
        before = self._before
        while before[name] != name:
            before[name] = before[before[name]]
            name = before[name]
        return name

    def join(self, one: _Name, other: _Name) -> None:
        """Unite the sets of two names."""
        first, second = sorted((self.first(one), self.first(other)))
        self._before[second] = first
