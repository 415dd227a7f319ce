"""Train the `bi_encoder` on the train split of the bundled corpus: `python -m cm3plugins.embedders.train_bi_encoder`.

Each step takes many concepts and, of each, two pictures in random styles and two captions in random forms that name random
styles: whatever differs between them, the style above all, can't help to tell concepts apart and is learned away.
Loss: InfoNCE (van den Oord et al. 2018) between texts and pictures, texts and texts, pictures and pictures.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cm3core.files import write_text
from cm3plugins.datasets.emoji.corpus import STYLES, EmojiCorpus, EmojiEntry
from cm3plugins.embedders.bi_encoder import BUNDLED_WEIGHTS
from cm3plugins.embedders.bi_encoder_embedder import BiEncoder, save_towers, square
from cm3plugins.embedders.bi_encoder_figures import figures
from cm3plugins.embedders.bi_encoder_towers import Towers, TowerSizes

_PIXELS = 64


def random_caption(entry: EmojiEntry, rng: np.random.Generator) -> str:
    """One of many ways to name the concept of an entry: with or without tags, article, plural, and any style's name."""
    tags = list(rng.permutation(entry.tags))[:rng.integers(0, 5)] if entry.tags else []
    if tags and rng.random() < 0.15:
        name = tags.pop(0)  # by its keywords alone
    else:
        name = str(rng.choice(["", "", "", "", "a ", "some ", "the ", "picture of a "])) + entry.label
        name += "s" if rng.random() < 0.1 else ""
    style = str(rng.choice(STYLES))
    tail = str(rng.choice(["", f", {style} style", f", {style} style", f" in {style} style", f", {style}"]))
    if rng.random() < 0.5:
        tags = []
    return ", ".join([name, *tags]) + tail


def augment(pixels_N3RR: Tensor, generator: torch.Generator) -> Tensor:
    """Small random zooms, shifts and turns over white, contrast and brightness. No mirroring: left and right are words here."""
    count = len(pixels_N3RR)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, zoom = uniform(-0.2, 0.2), uniform(0.85, 1.25)
    matrix = torch.stack([torch.stack([zoom * angle.cos(), -zoom * angle.sin(), uniform(-0.15, 0.15)], 1),
                          torch.stack([zoom * angle.sin(), zoom * angle.cos(), uniform(-0.15, 0.15)], 1)], 1)
    grid = F.affine_grid(matrix, list(pixels_N3RR.shape), align_corners=False)
    moved = 1 - F.grid_sample(1 - pixels_N3RR, grid, align_corners=False)
    return (moved * uniform(0.85, 1.0)[:, None, None, None] + uniform(-0.1, 0.1)[:, None, None, None]).clamp(0, 1)


def contrast(left_BE: Tensor, right_BE: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE in nats: row i of one side belongs to row i of the other.

    >>> float(contrast(torch.eye(2), torch.eye(2), torch.tensor(0.0)))  # scale 0: nothing told apart, ln 2
    0.6931471824645996
    """
    logits = scale * left_BE @ right_BE.T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train(entries: Sequence[EmojiEntry], pictures: npt.NDArray[np.uint8], *, sizes: TowerSizes, num_steps: int,
          batch_concepts: int, learning_rate: float = 3e-3, seed: int = 0) -> Towers:
    """Train both towers from nothing on the entries given.

    Args:
        entries: training entries only.
        pictures: uint8 [num_entries, H, W, 3], theirs.
        num_steps: optimiser steps; the learning rate rises for a twentieth of them and falls as a cosine to 0.
        batch_concepts: concepts a step; two pictures and two captions of each.
    """
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    small = torch.cat([square(picture, sizes.resolution) for picture in pictures])
    of_concept: dict[str, list[int]] = defaultdict(list)
    for i, entry in enumerate(entries):
        of_concept[entry.concept].append(i)
    members = list(of_concept.values())
    batch_concepts = min(batch_concepts, len(members))
    towers = Towers(sizes).train()
    optimizer = torch.optim.AdamW(towers.parameters(), lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    warmup = max(1, num_steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / num_steps)))
    bar = tqdm(range(num_steps), desc="training the bi-encoder", unit="step", mininterval=2)
    for _ in bar:
        chosen = [members[i] for i in rng.choice(len(members), batch_concepts, replace=False)]
        first, second = zip(*(_two(rng, group) for group in chosen), strict=True)
        images = F.normalize(towers.image(augment(small[[*first, *second]], generator)), dim=1)
        texts = F.normalize(towers.text([random_caption(entries[i], rng) for i in (*first, *second)]), dim=1)
        image_a, image_b = images.chunk(2)
        text_a, text_b = texts.chunk(2)
        scale = towers.log_scale.exp().clamp(max=50)
        crossed = (contrast(text_a, image_a, scale) + contrast(text_b, image_b, scale)) / 2
        loss = crossed + 0.5 * contrast(text_a, text_b, scale) + 0.5 * contrast(image_a, image_b, scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", text_image=f"{crossed.item():.3f}", refresh=False)
    return towers.eval()


def _two(rng: np.random.Generator, group: Sequence[int]) -> tuple[int, int]:
    """Two members of a concept, different ones when it has two."""
    first, second = rng.choice(group, 2, replace=len(group) < 2)
    return int(first), int(second)


def main() -> None:
    """Train, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-concepts", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=BUNDLED_WEIGHTS, help="file of weights to write; figures go beside it")
    args = parser.parse_args()
    corpus = EmojiCorpus()
    pictures = corpus.render_all(_PIXELS)
    rows = [i for i, entry in enumerate(corpus.entries) if entry.split == "train"]
    towers = train([corpus.entries[i] for i in rows], pictures[rows], sizes=TowerSizes(), num_steps=args.steps,
                   batch_concepts=args.batch_concepts, seed=args.seed)
    save_towers(towers, args.out)
    measured = figures(BiEncoder.load(args.out), corpus.entries, pictures)
    write_text(args.out.with_suffix(".figures.json"), json.dumps(measured, indent=1) + "\n")
    for name, values in measured.items():
        print(f"{name:58s}", "  ".join(f"{key} {value:.3f}" for key, value in values.items()))


if __name__ == "__main__":
    main()
