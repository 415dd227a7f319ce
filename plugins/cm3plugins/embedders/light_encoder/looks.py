"""Compares drawings by features that all versions of an object share.

The features are the ink against its ground, regardless of colour, cropped to its bounding box, regardless of the margin;
and the ink's silhouette, which outline and filled versions share. Blurred pixels and histograms of gradients (Dalal and
Triggs 2005) of both are projected so that versions of one object lie close together and different objects far apart
(linear discriminant analysis, Rao 1948). Text is not used.

Legend: N pictures, R side of a picture in pixels, H x W pixels, B bins of orientation, F features, E dimension.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3core.files import sha256_file
from cm3plugins.embedders.weights import fill, read_weights

RESOLUTION = 64
"""R."""
DIMENSION = 128
"""E of the weights' file."""
#: Part of the fingerprint: raise it when features of the same picture change.
FEATURES_VERSION = 1

_SIDE, _MARGIN = 32, 2
"""Side of the bounding box in pixels."""
_CELL, _BINS = 4, 8
"""Histograms: side of a cell in pixels; number of orientations in half a turn."""
_FAINT = 0.2
"""The bounding box ignores ink below this share of the strongest ink."""
_FLAT = 4 / 255
"""A picture whose ink is weaker than this is blank."""
NUM_FEATURES = 2 * ((_SIDE // 2) ** 2 + _BINS * (_SIDE // _CELL) ** 2)
"""F: 1,536."""

_FORMAT = "cm3leon looks 1"
_NEXT = "leave out embedder.looks for the shipped weights"


class Looks(nn.Module):
    """A linear map of the features.

    Args:
        mean_F: mean features of the training pictures.
        projection_FE: its columns are directions, the most discriminative first.
    """

    mean_F: Tensor
    projection_FE: Tensor

    def __init__(self, mean_F: Tensor, projection_FE: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_F", mean_F)
        self.register_buffer("projection_FE", projection_FE)

    def forward(self, pixels_N3RR: Tensor) -> Tensor:
        """Return vectors [N, E] of pictures, float 0..1."""
        vectors_NE: Tensor = (features(pixels_N3RR) - self.mean_F) @ self.projection_FE
        return vectors_NE


def load_looks(path: Path) -> tuple[Looks, str]:
    """Read a map and its fingerprint; raises `CheckpointError` if the file can't be used."""
    _, tensors = read_weights(path, _FORMAT, _NEXT)
    looks = Looks(torch.empty(NUM_FEATURES), torch.empty(NUM_FEATURES, DIMENSION))
    fill(looks, tensors, path, _NEXT)
    digest = hashlib.sha256(f"{sha256_file(path)}:{FEATURES_VERSION}".encode()).hexdigest()
    return looks.eval(), f"looks-{digest[:16]}"


def features(pixels_N3RR: Tensor) -> Tensor:
    """Return features [N, F] of pictures, float 0..1: four parts, each of length 1, or 0 if it is empty."""
    drawn = boxed(ink(pixels_N3RR))
    parts = [F.avg_pool2d(one[:, None], 2) for one in (drawn, filled(drawn))]
    parts += [gradients(one) for one in (drawn, filled(drawn))]
    # Square roots, so that histograms are compared by Hellinger's distance.
    return torch.cat([F.normalize(part.flatten(1).sqrt(), dim=1) for part in parts], dim=1)


def ink(pixels_N3RR: Tensor) -> Tensor:
    """Return each pixel's distance from the ground, [N, R, R], at most 1; the ground is the border's median colour.

    >>> ink(torch.tensor([0.2, 0.2, 0.2, 0.2, 1.0, 0.2, 0.2, 0.2, 0.2]).view(1, 1, 3, 3).expand(1, 3, 3, 3))[0, 1]
    tensor([0., 1., 0.])
    """
    edges = (
        pixels_N3RR[..., 0, :],
        pixels_N3RR[..., -1, :],
        pixels_N3RR[..., 0],
        pixels_N3RR[..., -1],
    )
    ground_N311 = torch.cat(edges, dim=2).median(2).values[..., None, None]
    distance = (pixels_N3RR - ground_N311).abs().amax(1)
    most = distance.amax((1, 2), keepdim=True)
    return torch.where(most < _FLAT, torch.zeros_like(distance), distance / most.clamp_min(_FLAT))


def boxed(ink_NHW: Tensor, side: int = _SIDE, margin: int = _MARGIN) -> Tensor:
    """Centre the ink's bounding box in a square with a margin, keeping its aspect ratio: [N, side, side]."""
    height, width = ink_NHW.shape[1:]
    there = ink_NHW > _FAINT
    (top, bottom), (left, right) = _ends(there.any(2)), _ends(there.any(1))
    shown = torch.maximum(bottom - top, right - left) * side / (side - 2 * margin)
    matrix = ink_NHW.new_zeros(len(ink_NHW), 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = shown / width, shown / height
    matrix[:, 0, 2], matrix[:, 1, 2] = (left + right) / width - 1, (top + bottom) / height - 1
    grid = F.affine_grid(matrix, [len(ink_NHW), 1, side, side], align_corners=False)
    return F.grid_sample(ink_NHW[:, None], grid, align_corners=False)[:, 0]


def _ends(there_NL: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each row's true values begin and end; the whole range for a row without any."""
    length = there_NL.shape[1]
    place_L = torch.arange(length, device=there_NL.device)
    first = torch.where(there_NL, place_L, length).amin(1)
    last = torch.where(there_NL, place_L + 1, 0).amax(1)
    none = last == 0
    return first.masked_fill(none, 0).float(), last.masked_fill(none, length).float()


def filled(ink_NHW: Tensor) -> Tensor:
    """Return the silhouette: each pixel takes the darkest value on each of its four sides, and of these the palest.

    >>> filled(torch.tensor([[[1.0, 1, 1], [1, 0, 1], [1, 1, 1]]]))[0, 1]
    tensor([1., 1., 1.])
    """
    sides = [
        side
        for dim in (1, 2)
        for side in (
            ink_NHW.cummax(dim).values,
            ink_NHW.flip(dim).cummax(dim).values.flip(dim),
        )
    ]
    return torch.stack(sides).amin(0)


def gradients(ink_NHW: Tensor, cell: int = _CELL, bins: int = _BINS) -> Tensor:
    """Return the ink's mean gradient strength by orientation, in overlapping cells: [N, B, H / cell, W / cell].

    Opposite edges have the same orientation, which is shared between the two nearest bins.
    """
    blurred = F.avg_pool2d(ink_NHW[:, None], 3, 1, padding=1)[:, 0]
    around = F.pad(blurred, (1, 1, 1, 1))
    across = around[:, 1:-1, 2:] - around[:, 1:-1, :-2]
    down = around[:, 2:, 1:-1] - around[:, :-2, 1:-1]
    strength = torch.hypot(across, down)
    bin_NHW = (torch.atan2(down, across) / torch.pi * bins).remainder(bins)
    lower = bin_NHW.floor()
    share, first = bin_NHW - lower, lower.long() % bins
    of_bin = ink_NHW.new_zeros(len(ink_NHW), bins, *ink_NHW.shape[1:])
    of_bin.scatter_add_(1, first[:, None], (strength * (1 - share))[:, None])
    of_bin.scatter_add_(1, ((first + 1) % bins)[:, None], (strength * share)[:, None])
    return F.avg_pool2d(of_bin, 2 * cell - 1, cell, padding=cell // 2)
