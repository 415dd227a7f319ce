"""Train the `light_encoder`: `cm3 embedder train light_encoder`; and fit how it compares pictures: `cm3 embedder train looks`.

It is trained on the train split of the icon corpus. Each step uses many objects, easily confused ones together, and two
versions of each: the first gives the query, a caption in a random form or a picture, and the second the document to find,
whose vector is computed as in retrieval, from its caption and its picture. The losses are InfoNCE between queries and
documents, between queries and captions of many more objects (words are cheap compared with pictures), between captions
and pictures, and a small one that prefers the version from the query's own set.

Half of a batch are objects whose names share a word (`bell off`, `bell ring`), the other half objects in one set and
style, so that neither half a name nor the drawing style distinguishes them.

Looks are a linear discriminant analysis over the versions of objects, in closed form, so nothing is random. Legend: N
pictures, K objects, R side of a picture in pixels, F features, E dimension.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3core.document import PixelArray
from cm3core.errors import CM3Error
from cm3lab.embedder_training.contrastive import Steps, augment, contrast
from cm3plugins.datasets.icons.captions import DEFAULT_TEMPLATES, caption
from cm3plugins.datasets.icons.corpus import IconCorpus, IconEntry
from cm3plugins.datasets.vector.captions import CaptionTemplate
from cm3plugins.embedders.inputs import square
from cm3plugins.embedders.light_encoder.embedder import Towers, TowerSizes, save_towers
from cm3plugins.embedders.light_encoder.looks import (
    DIMENSION,
    RESOLUTION,
    Looks,
    features,
    save_looks,
)
from cm3run.devices import choose_device
from cm3run.progress import make_bar

_CLUSTER = 8
"""Share of objects that share a word."""
_TURNED_SHARE = 0.1
"""Share of queries whose words are reordered."""
_MAX_OF_TAG = 20
"""Tags of more objects are categories (`ui actions`), which name none of them."""
_OTHER_SET_SHARE = 0.3
"""Share of documents from another set if the query's own set has a version."""

TEMPLATES = (
    *DEFAULT_TEMPLATES,
    CaptionTemplate("{words}, {set} style", 0.06),
    CaptionTemplate("{words} in {set} style", 0.03),
    CaptionTemplate("some {words}s, {style}", 0.03),
    CaptionTemplate("{words} icon, {style}", 0.03),
    CaptionTemplate("a {style} {words} icon", 0.03),
    CaptionTemplate("{words}, {other}, {style}, {set}", 0.05),
)
"""The data set's own templates, and other phrasings."""


class IconBatches:
    """Draws the rows of batches by the names, sets and styles of entries.

    Args:
        entries: training entries.
        seed: seed of all draws.
    """

    def __init__(self, entries: Sequence[IconEntry], seed: int) -> None:
        self.entries = _without_categories(entries)
        self._rng = np.random.default_rng(seed)
        self._versions: dict[str, list[int]] = defaultdict(list)
        self._drawn_alike: dict[tuple[str, str], list[int]] = defaultdict(list)
        things: dict[str, dict[str, None]] = defaultdict(dict)
        for row, entry in enumerate(entries):
            self._versions[entry.words].append(row)
            self._drawn_alike[entry.set_name, entry.style].append(row)
            for word in entry.words.split():
                things[word][entry.words] = None
        self._with_word = {word: list(names) for word, names in things.items()}

    @property
    def num_things(self) -> int:
        """Number of different objects."""
        return len(self._versions)

    def rows(self, number: int) -> list[int]:
        """Draw rows of entries of this many different objects, at most all, with easily confused ones next to each other."""
        number = min(number, self.num_things)
        chosen: dict[str, int] = {}
        while len(chosen) < number // 2:
            self._add_cluster(chosen, number // 2)
        anchor = self.entries[self._any()]
        for row in self._shuffled(self._drawn_alike[anchor.set_name, anchor.style]):
            if len(chosen) == number:
                break
            chosen.setdefault(self.entries[row].words, row)
        while len(chosen) < number:
            row = self._any()
            chosen.setdefault(self.entries[row].words, row)
        return list(chosen.values())

    def other_version(self, row: int) -> int:
        """Draw another version of an entry's object, mostly from its set; the entry itself if there is none."""
        own = self.entries[row]
        others = [other for other in self._versions[own.words] if other != row]
        near = [other for other in others if self.entries[other].set_name == own.set_name]
        if near and self._rng.random() >= _OTHER_SET_SHARE:
            others = near
        return others[int(self._rng.integers(len(others)))] if others else row

    def of_other_set(self, row: int) -> int | None:
        """Draw a version from another set, None if there is none."""
        own = self.entries[row]
        others = [
            other
            for other in self._versions[own.words]
            if self.entries[other].set_name != own.set_name
        ]
        return others[int(self._rng.integers(len(others)))] if others else None

    def query(self, row: int) -> str:
        """Draw a caption of an entry in one of many forms."""
        entry = self.entries[row]
        if self._rng.random() < _TURNED_SHARE:
            words = self._rng.permutation(entry.words.split()).tolist()
            entry = entry._replace(words=" ".join(words))
        return caption(entry, self._rng, TEMPLATES)

    def _add_cluster(self, chosen: dict[str, int], limit: int) -> None:
        anchor = self.entries[self._any()]
        words = anchor.words.split()
        names = self._with_word[words[int(self._rng.integers(len(words)))]]
        for place in self._rng.integers(len(names), size=_CLUSTER).tolist():
            if len(chosen) < limit:
                chosen.setdefault(names[place], self._version_like(names[place], anchor))

    def _version_like(self, words: str, anchor: IconEntry) -> int:
        """Return a version in the anchor's set and style if there is one, otherwise any."""
        rows = self._versions[words]
        alike = [
            row
            for row in rows
            if (self.entries[row].set_name, self.entries[row].style)
            == (anchor.set_name, anchor.style)
        ]
        rows = alike or rows
        return rows[int(self._rng.integers(len(rows)))]

    def _any(self) -> int:
        return int(self._rng.integers(len(self.entries)))

    def _shuffled(self, rows: Sequence[int]) -> list[int]:
        return [int(row) for row in self._rng.permutation(rows)]


def _without_categories(entries: Sequence[IconEntry]) -> list[IconEntry]:
    """Keep only tags that are other names of an object."""
    of_tag: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        for tag in entry.tags:
            of_tag[tag].add(entry.words)
    return [
        entry._replace(tags=tuple(tag for tag in entry.tags if len(of_tag[tag]) <= _MAX_OF_TAG))
        for entry in entries
    ]


_BLOCK = 512
_RIDGE = 0.1
"""Added to each direction's variance within objects, relative to the mean over directions: the rarest directions are noise."""
_LEAST = 1e-9
"""Minimum variance to add, so that the matrix can be inverted even if all pictures are the same."""


def fit_looks(corpus: IconCorpus, path: Path, *, quiet: bool = False) -> None:
    """Fit on the train split's pictures of objects with at least two, and write the weights.

    Raises:
        CM3Error: fewer than two objects have two pictures.
    """
    trained = [row for row, entry in enumerate(corpus.entries) if entry.split == "train"]
    number = Counter(corpus.entries[row].words for row in trained)
    rows = [row for row in trained if number[corpus.entries[row].words] > 1]
    place: dict[str, int] = {}
    things = [place.setdefault(corpus.entries[row].words, len(place)) for row in rows]
    if len(place) < 2:
        raise CM3Error(
            "cm3 embedder train looks",
            f"only {len(place)} objects have two training pictures, but two are needed",
            "use a corpus with versions",
        )
    blocks = feature_blocks(corpus.pictures(RESOLUTION).__getitem__, rows, quiet=quiet)
    save_looks(Looks(*discriminants(blocks, things, DIMENSION)), path)


def feature_blocks(
    picture: Callable[[int], PixelArray], rows: Sequence[int], *, quiet: bool
) -> Iterable[Tensor]:
    """Yield features [up to 512, F] of the rows' pictures, in order."""
    starts = range(0, len(rows), _BLOCK)
    for start in make_bar(starts, desc="looking at pictures", unit="block", disable=quiet):
        block = rows[start : start + _BLOCK]
        yield features(torch.cat([square(picture(row), RESOLUTION) for row in block]))


def discriminants(
    blocks: Iterable[Tensor], things: Sequence[int], dimension: int, ridge: float = _RIDGE
) -> tuple[Tensor, Tensor]:
    """Return directions in which pictures of one object differ little, and objects differ much.

    Args:
        blocks: features [_, F] of N pictures in total, in order.
        things: the object of each, 0..K-1, each at least once.
        dimension: E.
        ridge: added to the variance within objects, relative to the mean over directions.

    Returns:
        The pictures' mean [F], and directions [F, E]: along each the (regularised) variance within objects is 1, and the
        variance between objects decreases from column to column; zeros if there are fewer than E.
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
    assert done == len(thing_N), "an object for every picture"
    mean_F = sum_KF.sum(0) / done
    of_things = sum_KF / count_K.sqrt()[:, None]
    within_FF = (square_FF - of_things.T @ of_things) / max(1, done - len(count_K))
    between_FF = square_FF / done - torch.outer(mean_F, mean_F) - within_FF
    added = (ridge * within_FF.trace() / width).clamp_min(_LEAST)
    within_FF += added * torch.eye(width, dtype=torch.float64)
    inverse = torch.linalg.inv(torch.linalg.cholesky(within_FF))
    _, directions = torch.linalg.eigh(inverse @ between_FF @ inverse.T)
    best = (inverse.T @ directions.flip(1))[:, :dimension]
    # A direction's sign is arbitrary: fix one that is the same on every machine.
    best *= torch.sign(best.gather(0, best.abs().argmax(0, keepdim=True)))
    projection_FE = torch.zeros(width, dimension)
    projection_FE[:, : best.shape[1]] = best.float()
    return mean_F.float(), projection_FE


_PIXELS = 64
_NUM_STEPS = 500
_SHARPNESS = 30.0
"""Initial scale of similarities with pictures: the larger it is, the closer together pictures may be, and the less they
blur a document's caption."""
_WEIGHTS = {"documents": 2.0, "captions": 1.0, "pictures": 1.0, "looks": 0.5, "sets": 0.1}


@dataclass(frozen=True)
class TowerTraining:
    """Training settings of both towers.

    Args:
        sizes: sizes of the towers.
        num_steps: optimiser steps; the learning rate rises for a twentieth of them and decays as a cosine
            to 0.
        num_documents: objects per step whose document, with picture, is searched for.
        num_captions: further objects, whose caption is searched for.
        learning_rate: peak learning rate.
        seed: seed of weights, batches and augmentation.
        minutes: the length, instead of the steps.
    """

    sizes: TowerSizes
    num_steps: int
    num_documents: int = 192
    num_captions: int = 768
    learning_rate: float = 3e-3
    seed: int = 0
    minutes: float | None = None

    def schedule(
        self, optimizer: torch.optim.Optimizer, steps: Steps
    ) -> torch.optim.lr_scheduler.LambdaLR:
        """Return the schedule of the learning rate."""
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(steps.rise(step), steps.cosine(step))
        )


def train(
    entries: Sequence[IconEntry], pictures_N3RR: Tensor, how: TowerTraining, *, quiet: bool = False
) -> Towers:
    """Train both towers from scratch on the given entries.

    Args:
        entries: training entries only.
        pictures_N3RR: uint8 pictures of the entries, in the sizes' resolution.
        how: training settings.
        quiet: no progress bar.
    """
    torch.manual_seed(how.seed)
    generator = torch.Generator().manual_seed(how.seed)
    device = choose_device(None)
    batches, towers = IconBatches(entries, how.seed), Towers(how.sizes).train().to(device)
    nn.init.constant_(towers.log_scale, math.log(_SHARPNESS))
    # scale of document similarities; captions and pictures use the towers' own
    log_scale = nn.Parameter(torch.tensor(3.0, device=device))
    optimizer = torch.optim.AdamW(
        [*towers.parameters(), log_scale],
        lr=how.learning_rate,
        weight_decay=0.05,
        betas=(0.9, 0.98),
    )
    steps = Steps(how.num_steps, how.minutes)
    schedule = how.schedule(optimizer, steps)
    for bar in steps.over("training the light encoder", quiet=quiet):
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
        queries, captions: of the objects to find, those with a picture first, and of their documents.
        own: queries for the pictures: of the objects, then of their documents.
        farther: captions of versions in another set, and the indices of the queries that should rather find one from their
            own set.
    """

    queries: list[str]
    captions: list[str]
    own: list[str]
    farther: list[tuple[int, str]]


def _asked(
    batches: IconBatches, rows: Sequence[int], others: Sequence[int], more: Sequence[int]
) -> _Asked:
    """Return the texts of a step.

    Args:
        batches: source of the rows.
        rows: rows of the objects to find.
        others: rows of their documents.
        more: rows of objects of which only captions are compared.
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
    """Return the losses of a step by name.

    Args:
        towers: towers in training.
        scale: scale of similarities between queries and documents.
        asked: texts of the step.
        pixels: float [2 D, 3, R, R], pictures of the D objects queried by picture, then the documents'.
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
    """Return pictures in the image tower's format, but uint8: [N, 3, R, R]."""
    small_N3RR = torch.empty(len(rows), 3, resolution, resolution, dtype=torch.uint8)
    for place, row in enumerate(make_bar(rows, desc="scaling pictures", disable=quiet)):
        small_N3RR[place] = (square(picture(row), resolution)[0] * 255).round().to(torch.uint8)
    return small_N3RR


def train_on_corpus(
    corpus: IconCorpus,
    path: Path,
    *,
    steps: int | None,
    seed: int,
    minutes: float | None = None,
    quiet: bool = False,
) -> None:
    """Train on the corpus's train split, and write the weights."""
    rows = [row for row, entry in enumerate(corpus.entries) if entry.split == "train"]
    sizes = TowerSizes()
    towers = train(
        [corpus.entries[row] for row in rows],
        small_pictures(corpus.pictures(_PIXELS).__getitem__, rows, sizes.resolution, quiet=quiet),
        TowerTraining(sizes, steps or _NUM_STEPS, seed=seed, minutes=minutes),
        quiet=quiet,
    )
    save_towers(towers, path)
