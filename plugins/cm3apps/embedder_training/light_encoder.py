"""Train the `light_encoder`: `cm3 embedder train light_encoder`.

It is trained on the train split of the bundled corpus. Each step takes many concepts and, of each,
two pictures in random styles and two captions in random forms that name random styles: what differs
between them, above all the style, can't help to distinguish concepts, and is unlearned. Loss:
InfoNCE between texts and pictures, texts and texts, pictures and pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cm3apps.embedder_training.contrastive import (
    augment,
    by_concept,
    contrast,
    random_caption,
    two_of,
)
from cm3core.progress import make_bar
from cm3plugins.datasets.emoji.corpus import EmojiCorpus, EmojiEntry
from cm3plugins.embedders.inputs import square
from cm3plugins.embedders.light_encoder.embedder import save_towers
from cm3plugins.embedders.light_encoder.towers import Towers, TowerSizes

_PIXELS = 64
_NUM_STEPS = 500


def train(
    entries: Sequence[EmojiEntry],
    pictures: npt.NDArray[np.uint8],
    *,
    sizes: TowerSizes,
    num_steps: int,
    batch_concepts: int = 256,
    learning_rate: float = 3e-3,
    seed: int = 0,
    keep_style: bool = False,
    quiet: bool = False,
) -> Towers:
    """Train both towers from scratch on the given entries.

    Args:
        entries: training entries only.
        pictures: uint8 [num_entries, H, W, 3], of the entries.
        num_steps: optimiser steps; the learning rate rises for a twentieth of them and falls as a
            cosine to 0.
        batch_concepts: concepts a step; two pictures and two captions of each.
        keep_style: captions name their picture's own style, which distinguishes the two pictures
            of a concept: both look and meaning count. Otherwise the style is unlearned.
    """
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    small = torch.cat([square(picture, sizes.resolution) for picture in pictures])
    members = by_concept(entries)
    batch_concepts = min(batch_concepts, len(members))
    towers = Towers(sizes).train()
    optimizer = torch.optim.AdamW(
        towers.parameters(), lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98)
    )
    warmup = max(1, num_steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / num_steps)),
    )
    bar = make_bar(
        range(num_steps),
        desc="training the light encoder",
        unit="step",
        mininterval=2,
        disable=quiet,
    )
    for _ in bar:
        chosen = [members[i] for i in rng.choice(len(members), batch_concepts, replace=False)]
        first, second = zip(*(two_of(rng, group) for group in chosen), strict=True)
        images = F.normalize(towers.image(augment(small[[*first, *second]], generator)), dim=1)
        captions = [
            random_caption(entries[i], rng, keep_style=keep_style) for i in (*first, *second)
        ]
        texts = F.normalize(towers.text(captions), dim=1)
        image_a, image_b = images.chunk(2)
        text_a, text_b = texts.chunk(2)
        scale = towers.log_scale.exp().clamp(max=50)
        if keep_style:
            loss = crossed = contrast(texts, images, scale)
        else:
            crossed = (contrast(text_a, image_a, scale) + contrast(text_b, image_b, scale)) / 2
            loss = (
                crossed
                + 0.5 * contrast(text_a, text_b, scale)
                + 0.5 * contrast(image_a, image_b, scale)
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(
            loss=f"{loss.item():.3f}", text_image=f"{crossed.item():.3f}", refresh=False
        )
    return towers.eval()


def train_on_corpus(
    corpus: EmojiCorpus,
    path: Path,
    *,
    steps: int | None,
    seed: int,
    keep_style: bool = False,
    quiet: bool = False,
) -> None:
    """Train on the corpus's train split, and write the weights."""
    rows = [i for i, entry in enumerate(corpus.entries) if entry.split == "train"]
    towers = train(
        [corpus.entries[i] for i in rows],
        corpus.render_all(_PIXELS)[rows],
        sizes=TowerSizes(),
        num_steps=steps or _NUM_STEPS,
        seed=seed,
        keep_style=keep_style,
        quiet=quiet,
    )
    save_towers(towers, path)
