"""Captions, augmentation and loss for contrastive training on the bundled corpus.

Legend: N pictures, B rows per batch, R side of a picture in pixels, E dimension of the shared
space.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cm3plugins.datasets.emoji.corpus import STYLES, EmojiEntry


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
