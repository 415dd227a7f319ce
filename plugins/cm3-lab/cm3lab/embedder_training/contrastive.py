"""Length, captions, augmentation and loss for contrastive training on the bundled corpus.

Legend: N pictures, B rows per batch, R side of a picture in pixels, E dimension of the shared
space.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cm3plugins.datasets.emoji.corpus import STYLES, EmojiEntry
from cm3run.progress import make_bar


class Steps:
    """The steps of a training, with a bar: so many, or as many as fit into the minutes.

    Args:
        number: of steps.
        minutes: the length, whatever the number; None: the number.
    """

    def __init__(self, number: int, minutes: float | None = None) -> None:
        self._number, self._seconds = number, None if minutes is None else 60 * minutes
        self._begin = time.monotonic()

    def over(self, what: str, *, quiet: bool) -> Iterator[tqdm]:
        """Yield the bar at each step, which may show values."""
        self._begin = time.monotonic()
        total = self._number if self._seconds is None else self._seconds
        with make_bar(
            total=total,
            desc=what,
            unit="step" if self._seconds is None else "s",
            mininterval=2,
            disable=quiet,
        ) as bar:
            step = 0
            while self._done(step)[0] < total:
                yield bar
                step += 1
                bar.update(min(self._done(step)[0], total) - bar.n)

    def _done(self, step: int) -> tuple[float, float]:
        """What is done before a step, and the whole of it."""
        if self._seconds is None:
            return step, self._number
        return time.monotonic() - self._begin, self._seconds

    def cosine(self, step: int) -> float:
        """A learning rate that falls from 1 to 0.

        >>> Steps(4).cosine(0), round(Steps(4).cosine(2), 6), Steps(4).cosine(4)
        (1.0, 0.5, 0.0)
        """
        done, whole = self._done(step)
        return 0.5 + 0.5 * math.cos(math.pi * min(done, whole) / whole)

    def rise(self, step: int) -> float:
        """A learning rate that reaches 1 after a twentieth of the length.

        >>> [Steps(40).rise(step) for step in range(3)]
        [0.5, 1.0, 1.5]
        """
        if self._seconds is None:
            return (step + 1) / max(1, self._number // 20)
        return max(20 * self._done(step)[0] / self._seconds, (step + 1) / 1000)


def random_caption(entry: EmojiEntry, rng: np.random.Generator) -> str:
    """Return one of many ways to name the concept of an entry.

    With or without tags, article, plural, and any style's name.
    """
    tags = list(rng.permutation(entry.tags))[: rng.integers(0, 5)] if entry.tags else []
    if tags and rng.random() < 0.15:
        name = tags.pop(0)  # by its keywords alone
    else:
        name = (
            str(rng.choice(["", "", "", "", "a ", "some ", "the ", "picture of a "])) + entry.label
        )
        name += "s" if rng.random() < 0.1 else ""
    style = str(rng.choice(STYLES))
    forms = [f", {style} style", f", {style} style", f" in {style} style", f", {style}"]
    tail = str(rng.choice(["", *forms]))
    if rng.random() < 0.5:
        tags = []
    return ", ".join([name, *tags]) + tail


def augment(pixels_N3RR: Tensor, generator: torch.Generator) -> Tensor:
    """Apply small random zooms, shifts and rotations over white, contrast and brightness.

    No mirroring: captions name left and right.
    """
    count = len(pixels_N3RR)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, zoom = uniform(-0.2, 0.2), uniform(0.85, 1.25)
    matrix = torch.stack(
        [
            torch.stack([zoom * angle.cos(), -zoom * angle.sin(), uniform(-0.15, 0.15)], 1),
            torch.stack([zoom * angle.sin(), zoom * angle.cos(), uniform(-0.15, 0.15)], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, list(pixels_N3RR.shape), align_corners=False)
    moved = 1 - F.grid_sample(1 - pixels_N3RR, grid, align_corners=False)
    return (
        moved * uniform(0.85, 1.0)[:, None, None, None] + uniform(-0.1, 0.1)[:, None, None, None]
    ).clamp(0, 1)


def contrast(left_BE: Tensor, right_BE: Tensor, scale: Tensor) -> Tensor:
    """Compute symmetric InfoNCE in nats (van den Oord et al. 2018).

    Row i of one side belongs to row i of the other.

    >>> float(contrast(torch.eye(2), torch.eye(2), torch.tensor(0.0)))  # scale 0: all equal, ln 2
    0.6931471824645996
    """
    logits = scale * left_BE @ right_BE.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def by_concept(entries: Sequence[EmojiEntry]) -> list[list[int]]:
    """Return the indices of each concept's entries, in order of first appearance."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        members[entry.concept].append(index)
    return list(members.values())


def two_of(rng: np.random.Generator, group: Sequence[int]) -> tuple[int, int]:
    """Draw two members of a concept, different ones if it has two."""
    first, second = rng.choice(group, 2, replace=len(group) < 2)
    return int(first), int(second)
