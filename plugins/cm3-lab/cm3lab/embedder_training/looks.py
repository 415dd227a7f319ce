"""Fit how `light_encoder` compares pictures: `cm3 embedder train looks`.

Linear discriminant analysis over the versions of things in the icon corpus' train split: in closed form, so that
nothing is random. Legend: N pictures, K things, R side of a picture in pixels, F features, E dimension.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cm3core.document import PixelArray
from cm3core.errors import CM3Error
from cm3core.progress import make_bar
from cm3plugins.datasets.icons.corpus import IconCorpus
from cm3plugins.embedders.inputs import square
from cm3plugins.embedders.light_encoder.looks import (
    DIMENSION,
    RESOLUTION,
    Looks,
    features,
    save_looks,
)

_BLOCK = 512
_RIDGE = 0.1
"""Added to each direction's variance within things, in means of all directions': the rarest ones are noise."""
_LEAST = 1e-9
"""Variance that is added at least: pictures that are all alike can be inverted, too."""


def fit_looks(corpus: IconCorpus, path: Path, *, quiet: bool = False) -> None:
    """Fit on those pictures of the train split whose thing has two of them or more, and write the weights.

    Raises:
        CM3Error: fewer than two things have two pictures.
    """
    trained = [row for row, entry in enumerate(corpus.entries) if entry.split == "train"]
    number = Counter(corpus.entries[row].words for row in trained)
    rows = [row for row in trained if number[corpus.entries[row].words] > 1]
    place: dict[str, int] = {}
    things = [place.setdefault(corpus.entries[row].words, len(place)) for row in rows]
    if len(place) < 2:
        raise CM3Error(
            "cm3 embedder train looks",
            f"{len(place)} things have two pictures in training, two are needed",
            "use a corpus with versions",
        )
    blocks = feature_blocks(corpus.pictures(RESOLUTION).__getitem__, rows, quiet=quiet)
    save_looks(Looks(*discriminants(blocks, things, DIMENSION)), path)


def feature_blocks(
    picture: Callable[[int], PixelArray], rows: Sequence[int], *, quiet: bool
) -> Iterable[Tensor]:
    """Features [up to 512, F] of the rows' pictures, in order."""
    starts = range(0, len(rows), _BLOCK)
    for start in make_bar(starts, desc="looking at pictures", unit="block", disable=quiet):
        block = rows[start : start + _BLOCK]
        yield features(torch.cat([square(picture(row), RESOLUTION) for row in block]))


def discriminants(
    blocks: Iterable[Tensor], things: Sequence[int], dimension: int, ridge: float = _RIDGE
) -> tuple[Tensor, Tensor]:
    """Directions in which pictures of one thing differ little, and things much.

    Args:
        blocks: features [_, F] of N pictures in all, in order.
        things: the thing of each, 0..K-1, every one at least once.
        dimension: E.
        ridge: added to the variance within things, in means over all directions.

    Returns:
        The pictures' mean [F], and directions [F, E]: along each of them the (regularised) variance within things is
        1, and the variance between things falls from column to column; zeros, where there are fewer than E.
    """
    thing_N = torch.tensor(things)
    count_K = torch.bincount(thing_N).double()
    done = 0
    for block in blocks:
        block = block.double()
        if not done:
            width = block.shape[1]
            sum_KF = torch.zeros(len(count_K), width, dtype=torch.float64)
            square_FF = torch.zeros(width, width, dtype=torch.float64)
        sum_KF.index_add_(0, thing_N[done : done + len(block)], block)
        square_FF += block.T @ block
        done += len(block)
    assert done == len(thing_N), "a thing for every picture"
    mean_F = sum_KF.sum(0) / done
    of_things = sum_KF / count_K.sqrt()[:, None]
    within_FF = (square_FF - of_things.T @ of_things) / max(1, done - len(count_K))
    between_FF = square_FF / done - torch.outer(mean_F, mean_F) - within_FF
    added = (ridge * within_FF.trace() / width).clamp_min(_LEAST)
    within_FF += added * torch.eye(width, dtype=torch.float64)
    inverse = torch.linalg.inv(torch.linalg.cholesky(within_FF))
    _, directions = torch.linalg.eigh(inverse @ between_FF @ inverse.T)
    best = (inverse.T @ directions.flip(1))[:, :dimension]
    # A direction's sign is any: one that no machine chooses differently.
    best *= torch.sign(best.gather(0, best.abs().argmax(0, keepdim=True)))
    projection_FE = torch.zeros(width, dimension)
    projection_FE[:, : best.shape[1]] = best.float()
    return mean_F.float(), projection_FE
