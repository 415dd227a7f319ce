"""Train the reader of hands: `python -m cm3lab.judge.hands` (ten minutes of one core).

It learns to tell the hands, pairs of a set and a style, of the grey drawings of `train` of the closed splits: each must be
nearest to its own hand's vector, which is learned too and then dropped. Drawings are mirrored and turned by right angles,
which changes no hand, and slightly blurred and made noisy, as generated ones are. Seeds are fixed; the last bits of the
weights may differ between machines. Legend: B drawings of a step, S side of a picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cm3apps.judge.hands import SIZES, WEIGHTS, page
from cm3apps.judge.reader import Reader, save_reader
from cm3lab.judge.things import learnt, optimizer_of
from cm3plugins.datasets.icons.corpus import IconCorpus
from cm3plugins.trained.weights_file import channels_last
from cm3run.progress import make_bar

_BATCH = 256
_SCALE = 20.0
#: Of the right hand's cosine in training, so that hands stay apart.
_MARGIN = 0.1


def train(inks_NSS: NDArray[np.uint8], hands: list[int], num_steps: int, seed: int) -> Reader:
    """Train a network from scratch.

    Args:
        inks_NSS: the drawings' ink.
        hands: the hand of each, 0, 1, ...
        num_steps: optimiser steps.
        seed: of weights and draws.
    """
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    network = channels_last(Reader(SIZES)).train()
    own_HD = nn.Parameter(torch.randn(max(hands) + 1, SIZES.dimension))
    optimizer, schedule = optimizer_of([*network.parameters(), own_HD], num_steps, 2e-3)
    hand_N = torch.tensor(hands)
    bar = make_bar(range(num_steps), desc="training the reader of hands", mininterval=5)
    for _ in bar:
        rows = rng.integers(len(hands), size=_BATCH)
        ink = varied(torch.from_numpy(inks_NSS[rows]).float()[:, None] / 255, generator)
        with torch.autocast("cpu", torch.bfloat16):
            read_BD = network(ink.contiguous(memory_format=torch.channels_last))
        cosine_BH = read_BD @ F.normalize(own_HD, dim=1).T
        wanted_B = hand_N[torch.from_numpy(rows)]
        cosine_BH = cosine_BH - _MARGIN * F.one_hot(wanted_B, len(own_HD))
        loss = F.cross_entropy(_SCALE * cosine_BH, wanted_B)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    network.eval()
    return network


def varied(ink_B1SS: Tensor, generator: torch.Generator) -> Tensor:
    """Return drawings mirrored and turned by right angles, a step together, and some of them blurred or noisy."""
    way = int(torch.randint(8, (), generator=generator))
    turned = torch.rot90(ink_B1SS.flip(3) if way >= 4 else ink_B1SS, way % 4, (2, 3))
    chance = torch.rand(len(turned), generator=generator)[:, None, None, None]
    soft = 0.5 * turned + 0.5 * F.avg_pool2d(turned, 3, 1, 1)
    noise = torch.randn(turned.shape, generator=generator) * 0.04 * (chance > 0.7)
    return (torch.where(chance < 0.3, soft, turned) + noise).clamp(0, 1)


def main() -> None:
    """Read the drawings, train, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of weights to write")
    args = parser.parse_args()
    corpus = IconCorpus(held_out="closed")
    entries, pictures = corpus.entries, corpus.pictures(SIZES.side)
    rows = learnt(entries)
    inks = np.stack([page(pictures[row], SIZES.side) for row in make_bar(rows, desc="reading")])
    place: dict[tuple[str, str], int] = {}
    hands = [
        place.setdefault((entries[row].set_name, entries[row].style), len(place)) for row in rows
    ]
    network = train(inks, hands, args.steps, args.seed)
    save_reader(network, SIZES, args.out)
    print(
        f"{args.out}: {args.out.stat().st_size:,} bytes; {len(place)} hands, {len(rows):,} drawings"
    )


if __name__ == "__main__":
    main()
