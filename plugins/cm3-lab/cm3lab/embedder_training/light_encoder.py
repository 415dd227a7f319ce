"""Train the `light_encoder`: `cm3 embedder train light_encoder`.

It is trained on the train split of the icon corpus. Each step takes many things, easily confused ones together, and
two versions of each: the first gives the query, a caption in a random form or a picture, and the second the document
that it is to find, whose vector is made as retrieval makes it, of its caption and its picture. Losses are InfoNCE
between queries and documents, between queries and captions of many more things (words cost little beside pictures),
between captions and pictures, and a small one that prefers the version of the query's own set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3core.document import PixelArray
from cm3core.progress import make_bar
from cm3lab.embedder_training.contrastive import augment, contrast
from cm3lab.embedder_training.icon_batches import IconBatches
from cm3plugins.datasets.icons.captions import caption
from cm3plugins.datasets.icons.corpus import IconCorpus
from cm3plugins.datasets.icons.entries import IconEntry
from cm3plugins.embedders.inputs import square
from cm3plugins.embedders.light_encoder.embedder import Towers, TowerSizes, save_towers
from cm3run.devices import choose_device

_PIXELS = 64
_NUM_STEPS = 500
_SHARPNESS = 30.0
"""Initial scale of similarities that have to do with pictures: the larger, the closer together pictures may be, and
the less they blur what a document's caption says."""
_WEIGHTS = {"documents": 2.0, "captions": 1.0, "pictures": 1.0, "looks": 0.5, "sets": 0.1}


@dataclass(frozen=True)
class TowerTraining:
    """How both towers are trained.

    Args:
        sizes: of the towers.
        num_steps: optimiser steps; the learning rate rises for a twentieth of them and falls as a
            cosine to 0.
        num_documents: things of a step of which a document with its picture is looked for.
        num_captions: further things, of which a caption is looked for.
        learning_rate: at its peak.
        seed: of weights, batches and augmentation.
    """

    sizes: TowerSizes
    num_steps: int
    num_documents: int = 192
    num_captions: int = 768
    learning_rate: float = 3e-3
    seed: int = 0

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """Of the learning rate."""
        warmup = max(1, self.num_steps // 20)
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(
                (step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / self.num_steps)
            ),
        )


def train(
    entries: Sequence[IconEntry], pictures_N3RR: Tensor, how: TowerTraining, *, quiet: bool = False
) -> Towers:
    """Train both towers from scratch on the given entries.

    Args:
        entries: training entries only.
        pictures_N3RR: uint8, of the entries, in the sizes' resolution.
        how: sizes, steps and seed.
        quiet: no progress bar.
    """
    torch.manual_seed(how.seed)
    generator = torch.Generator().manual_seed(how.seed)
    device = choose_device(None)
    batches, towers = IconBatches(entries, how.seed), Towers(how.sizes).train().to(device)
    nn.init.constant_(towers.log_scale, math.log(_SHARPNESS))
    # how sharply documents are told apart; captions and pictures have the towers' own
    log_scale = nn.Parameter(torch.tensor(3.0, device=device))
    optimizer = torch.optim.AdamW(
        [*towers.parameters(), log_scale],
        lr=how.learning_rate,
        weight_decay=0.05,
        betas=(0.9, 0.98),
    )
    schedule = how.schedule(optimizer)
    bar = make_bar(
        range(how.num_steps),
        desc="training the light encoder",
        unit="step",
        mininterval=2,
        disable=quiet,
    )
    for _ in bar:
        rows = batches.rows(how.num_documents)
        others = [batches.other_version(row) for row in rows]
        pixels = augment(pictures_N3RR[[*rows, *others]].float() / 255, generator).to(device)
        asked = _asked(batches, rows, others, batches.rows(how.num_captions))
        losses = _losses(towers, log_scale.exp().clamp(max=60), asked, pixels)
        optimizer.zero_grad(set_to_none=True)
        none = torch.zeros((), device=device)
        total = sum((_WEIGHTS[name] * loss for name, loss in losses.items()), none)
        total.backward()
        nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        shown = {name: f"{loss.item():.3f}" for name, loss in losses.items()}
        bar.set_postfix(shown, refresh=False)
    return towers.eval()


@dataclass(frozen=True)
class _Asked:
    """The texts of a step, in groups.

    Args:
        queries, captions: of the things that are asked for, those with a picture first, and of their documents.
        own: queries of what the pictures show: of the things, then of their documents.
        farther: captions of versions in another set, and the places of the queries that should rather find one of their
            own set.
    """

    queries: list[str]
    captions: list[str]
    own: list[str]
    farther: list[tuple[int, str]]


def _asked(
    batches: IconBatches, rows: Sequence[int], others: Sequence[int], more: Sequence[int]
) -> _Asked:
    """The texts of a step.

    Args:
        batches: what the rows are of.
        rows: of the things that are asked for.
        others: rows of their documents.
        more: rows of things of which captions alone are compared.
    """
    queried = [*rows, *more]
    found = [*others, *(batches.other_version(row) for row in more)]
    pairs = [
        (place, other)
        for place, row in enumerate(queried)
        if batches.entries[found[place]].set_name == batches.entries[row].set_name
        and (other := batches.of_other_set(row)) is not None
    ]
    return _Asked(
        [batches.query(row) for row in queried],
        [caption(batches.entries[row]) for row in found],
        [batches.query(row) for row in (*rows, *others)],
        [(place, caption(batches.entries[other])) for place, other in pairs],
    )


def _losses(towers: Towers, scale: Tensor, asked: _Asked, pixels: Tensor) -> dict[str, Tensor]:
    """The losses of a step by name.

    Args:
        towers: that are trained.
        scale: of similarities between queries and documents.
        asked: its texts.
        pixels: float [2 D, 3, R, R], pictures of the D things asked for by picture, then the documents'.
    """
    num_pictures = len(pixels) // 2
    parts = (asked.queries, asked.captions, asked.own, [text for _, text in asked.farther])
    vectors = F.normalize(towers.text([text for part in parts for text in part]), dim=1)
    queries, captions, own, farther = vectors.split([len(part) for part in parts])
    pictures = F.normalize(towers.image(pixels), dim=1)
    pictured = list(zip(own.chunk(2), pictures.chunk(2), strict=True))
    looks, of_documents = pictures.chunk(2)
    documents = F.normalize(captions[:num_pictures] + of_documents, dim=1)
    sharpness = towers.log_scale.exp().clamp(max=100)
    places = torch.tensor([place for place, _ in asked.farther], dtype=torch.long).to(scale.device)
    gaps = (queries[places] * (captions[places] - farther)).sum(1)
    return {
        "documents": contrast(queries[:num_pictures], documents, scale),
        "captions": contrast(queries, captions, scale),
        "pictures": torch.stack([contrast(*pair, sharpness) for pair in pictured]).mean(),
        "looks": contrast(looks, documents, sharpness),
        "sets": F.softplus(-scale * gaps).sum() / max(1, len(asked.farther)),
    }


def small_pictures(
    picture: Callable[[int], PixelArray], rows: Sequence[int], resolution: int, *, quiet: bool
) -> Tensor:
    """Pictures as the image tower takes them, but uint8: [N, 3, R, R]."""
    small_N3RR = torch.empty(len(rows), 3, resolution, resolution, dtype=torch.uint8)
    for place, row in enumerate(make_bar(rows, desc="scaling pictures", disable=quiet)):
        small_N3RR[place] = (square(picture(row), resolution)[0] * 255).round().to(torch.uint8)
    return small_N3RR


def train_on_corpus(
    corpus: IconCorpus, path: Path, *, steps: int | None, seed: int, quiet: bool = False
) -> None:
    """Train on the corpus's train split, and write the weights."""
    rows = [row for row, entry in enumerate(corpus.entries) if entry.split == "train"]
    sizes = TowerSizes()
    towers = train(
        [corpus.entries[row] for row in rows],
        small_pictures(corpus.pictures(_PIXELS).__getitem__, rows, sizes.resolution, quiet=quiet),
        TowerTraining(sizes, steps or _NUM_STEPS, seed=seed),
        quiet=quiet,
    )
    save_towers(towers, path)
