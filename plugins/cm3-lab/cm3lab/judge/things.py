"""Train the reader of icons: `python -m cm3lab.judge.things` (half an hour of one core).

It learns from the grey drawings of `train` of the closed splits. Each step has pairs of drawings of one thing, of two sets
where there are two. A drawing must find its own name, or one of its tags, among the names of the step, random names, and
names that share a word with it (`bell off`: `bell ring`); and the other drawing of its pair among those of the step. Names
of nearly the same meaning are no wrong answers. Drawings are turned, stretched, bent, thickened, blurred and made noisy,
as generated ones are. Seeds are fixed; the last bits of the weights may differ between machines.

Legend: N drawings, S side, B rows of a step, C names of a step, D numbers of a vector.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cm3apps.judge.reader import Reader, ReaderSizes, save_reader
from cm3apps.judge.things import WEIGHTS, Names
from cm3plugins.datasets.icons.corpus import IconCorpus, IconEntry
from cm3plugins.trained.weights_file import channels_last
from cm3run.nearness import placed_ink
from cm3run.progress import make_bar

#: Tags of more things are categories.
_MAX_OF_TAG = 20
#: Names of at least this cosine are no wrong answers; names that share a word are more alike at any rate.
_NEARLY_THE_SAME, _NEARLY_THE_SAME_WORDS = 0.75, 0.9
_LABEL_TAGS = 0.3
_PICTURES_WEIGHT = 1.0


@dataclass(frozen=True)
class ReaderTraining:
    """Settings of a training.

    Args:
        num_steps: optimiser steps.
        batch_size: B.
        num_names: random names of a step.
        learning_rate: its peak, see `optimizer_of`.
        seed: of all draws.
    """

    num_steps: int
    batch_size: int = 256
    num_names: int = 2048
    learning_rate: float = 2e-3
    seed: int = 0


class Drawings:
    """The drawings to learn from, and the draws of a step.

    Args:
        entries: of the drawings.
        inks_NSS: their ink.
        names: gives their vectors.
        seed: of all draws.
    """

    def __init__(
        self, entries: Sequence[IconEntry], inks_NSS: NDArray[np.uint8], names: Names, seed: int
    ) -> None:
        self._inks_NSS, self._rng = inks_NSS, np.random.default_rng(seed)
        self._sets = [entry.set_name for entry in entries]
        self._words = [entry.words for entry in entries]
        of_tag: dict[str, set[str]] = defaultdict(set)
        for entry in entries:
            for tag in entry.tags:
                of_tag[tag].add(entry.words)
        own = sorted(set(self._words))
        tags = sorted(
            {tag for tag, things in of_tag.items() if len(things) <= _MAX_OF_TAG} - {*own}
        )
        place = {text: index for index, text in enumerate([*own, *tags])}
        self.texts = torch.from_numpy(names([*own, *tags]))
        self._num_names = len(own)
        self._own = [place[words] for words in self._words]
        self._tags = [[place[tag] for tag in entry.tags if tag in place] for entry in entries]
        self._versions: dict[str, list[int]] = defaultdict(list)
        self._with_word: dict[str, list[int]] = defaultdict(list)
        for row, words in enumerate(self._words):
            self._versions[words].append(row)
        for name in own:
            for word in sorted({word for word in name.split() if len(word) > 2}):
                self._with_word[word].append(place[name])

    def __len__(self) -> int:
        return len(self._words)

    def rows(self, number: int) -> list[int]:
        """Half of them at random, then another set's drawing of each, itself if there is none."""
        half = self._rng.integers(len(self), size=number // 2).tolist()
        return [*half, *map(self._other, half)]

    def inks(self, rows: Sequence[int]) -> Tensor:
        """Ink of some drawings, float [B, 1, S, S]."""
        return torch.from_numpy(self._inks_NSS[list(rows)]).float()[:, None] / 255

    def labels(self, rows: Sequence[int]) -> list[int]:
        """Place of each one's name, or of one of its tags."""
        return [
            self._any(self._tags[row])
            if self._tags[row] and self._rng.random() < _LABEL_TAGS
            else self._own[row]
            for row in rows
        ]

    def own(self, rows: Sequence[int]) -> list[int]:
        """Place of each one's name."""
        return [self._own[row] for row in rows]

    def sharing(self, rows: Sequence[int]) -> list[int]:
        """Place of a name that shares a word with each one's; its own if there is none."""
        found = []
        for row in rows:
            words = [word for word in self._words[row].split() if len(self._with_word[word]) > 1]
            word = words[int(self._rng.integers(len(words)))] if words else ""
            found.append(self._any(self._with_word[word]) if word else self._own[row])
        return found

    def random_names(self, number: int) -> list[int]:
        """Places of names."""
        places: list[int] = self._rng.integers(self._num_names, size=number).tolist()
        return places

    def _other(self, row: int) -> int:
        others = [
            other
            for other in self._versions[self._words[row]]
            if self._sets[other] != self._sets[row]
        ]
        return self._any(others) if others else row

    def _any(self, places: Sequence[int]) -> int:
        return places[int(self._rng.integers(len(places)))]


def train(drawings: Drawings, sizes: ReaderSizes, how: ReaderTraining) -> Reader:
    """Train a network from scratch."""
    torch.manual_seed(how.seed)
    generator = torch.Generator().manual_seed(how.seed)
    network = channels_last(Reader(sizes)).train()
    log_scales = nn.Parameter(torch.tensor([20.0, 10.0]).log())
    learned = [*network.parameters(), log_scales]
    optimizer, schedule = optimizer_of(learned, how.num_steps, how.learning_rate)
    bar = make_bar(range(how.num_steps), desc="training the reader", unit="step", mininterval=5)
    for _ in bar:
        rows = drawings.rows(how.batch_size)
        ink = bent(drawings.inks(rows), generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            read_BD = network(ink)
        scales = log_scales.exp().clamp(max=60)
        loss = _names_loss(drawings, rows, read_BD, scales[0], how.num_names)
        loss = loss + _PICTURES_WEIGHT * _pictures_loss(drawings, rows, read_BD, scales[1])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    network.eval()
    return network


def optimizer_of(
    learned: Sequence[Tensor], num_steps: int, learning_rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW; its learning rate rises over a twentieth of the steps and decays as a cosine."""
    matrices = [value for value in learned if value.ndim > 1]
    others = [value for value in learned if value.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": 0.05}, {"params": others}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            20 * (step + 1) / num_steps, 0.5 + 0.5 * math.cos(math.pi * step / num_steps)
        ),
    )
    return optimizer, schedule


def _names_loss(
    drawings: Drawings, rows: Sequence[int], read_BD: Tensor, scale: Tensor, num_names: int
) -> Tensor:
    """Cross-entropy of each drawing's name among those of the step, random ones, and ones that share a word."""
    labels = drawings.labels(rows)
    places = [*labels, *drawings.random_names(num_names), *drawings.sharing(rows)]
    names_CD, count = drawings.texts[places], len(rows)
    alike_BC = drawings.texts[labels] @ names_CD.T
    near = alike_BC >= _NEARLY_THE_SAME
    near[:, -count:] = alike_BC[:, -count:] >= _NEARLY_THE_SAME_WORDS
    near[:, :count].fill_diagonal_(False)
    logits_BC = (scale * read_BD @ names_CD.T).masked_fill(near, -1e4)
    return F.cross_entropy(logits_BC, torch.arange(count))


def _pictures_loss(
    drawings: Drawings, rows: Sequence[int], read_BD: Tensor, scale: Tensor
) -> Tensor:
    """Cross-entropy of the other drawing of each pair among those of the step."""
    first, second = read_BD.chunk(2)
    names_BD = drawings.texts[drawings.own(rows)]
    of_first, of_second = names_BD.chunk(2)
    near = (of_first @ of_second.T >= _NEARLY_THE_SAME).fill_diagonal_(False)
    logits = (scale * first @ second.T).masked_fill(near, -1e4)
    own = torch.arange(len(first))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def bent(ink_B1SS: Tensor, generator: torch.Generator) -> Tensor:
    """Return drawings turned, stretched, moved, bent, thickened or blurred, fainter and noisy."""
    count, side = len(ink_B1SS), ink_B1SS.shape[-1]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, wide, tall = uniform(-0.15, 0.15), uniform(0.88, 1.2), uniform(0.88, 1.2)
    matrix = torch.stack(
        [
            torch.stack([wide * angle.cos(), -tall * angle.sin(), uniform(-0.08, 0.08)], 1),
            torch.stack([wide * angle.sin(), tall * angle.cos(), uniform(-0.08, 0.08)], 1),
        ],
        1,
    )
    coarse = torch.randn(count, 2, 5, 5, generator=generator)
    coarse = coarse * uniform(0, 0.04)[:, None, None, None]
    moves = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    grid = F.affine_grid(matrix, list(ink_B1SS.shape), align_corners=False)
    moved = F.grid_sample(ink_B1SS, grid + moves.permute(0, 2, 3, 1), align_corners=False)
    chance = torch.rand(count, generator=generator)[:, None, None, None]
    moved = torch.where(chance < 0.2, F.max_pool2d(moved, 3, 1, 1), moved)
    moved = torch.where(chance > 0.85, F.avg_pool2d(moved, 3, 1, 1), moved)
    noise = torch.randn(moved.shape, generator=generator) * uniform(0, 0.06)[:, None, None, None]
    return (moved * uniform(0.7, 1.1)[:, None, None, None] + noise).clamp(0, 1)


def learnt(entries: Sequence[IconEntry]) -> list[int]:
    """Positions of the drawings to learn from: grey ones of `train`."""
    return [
        index
        for index, entry in enumerate(entries)
        if entry.split == "train" and not entry.has_colour
    ]


def main() -> None:
    """Read the drawings, train, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of weights to write")
    args = parser.parse_args()
    corpus = IconCorpus(held_out="closed")
    rows, sizes = learnt(corpus.entries), ReaderSizes()
    pictures = corpus.pictures(64)
    inks = np.empty((len(rows), sizes.side, sizes.side), np.uint8)
    for place, row in enumerate(make_bar(rows, desc="placing drawings")):
        inks[place] = placed_ink(pictures[row], sizes.side)
    drawings = Drawings([corpus.entries[row] for row in rows], inks, Names(), args.seed)
    network = train(drawings, sizes, ReaderTraining(args.steps, seed=args.seed))
    save_reader(network, sizes, args.out)
    print(
        f"{args.out}: {args.out.stat().st_size:,} bytes; {args.steps} steps, {len(rows):,} drawings"
    )


if __name__ == "__main__":
    main()
