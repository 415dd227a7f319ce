"""Train the `bi_encoder`'s heads: `cm3 embedder train bi_encoder`.

They are trained on the train split of the bundled corpus. The frozen networks process every picture (and augmented
versions of it) and every caption once; their features are stored in the cache folder, block by block, so that an
interrupted run resumes. Then the heads are trained with InfoNCE: pictures and captions of a concept find each other, and
themselves in other styles, which makes the vectors independent of style. Legend: V versions, N pictures, C concepts, K
captions per concept, F features, B
concepts per step, E dimension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cm3core.files import cache_folder
from cm3lab.bi_encoder import check_packages
from cm3lab.bi_encoder.embedder import (
    NUM_PICTURE_FEATURES,
    NUM_TEXT_FEATURES,
    Heads,
    HeadSizes,
    Networks,
    save_heads,
)
from cm3lab.embedder_training.contrastive import (
    Steps,
    augment,
    by_concept,
    contrast,
    random_caption,
    two_of,
)
from cm3plugins.datasets.emoji.corpus import EmojiCorpus, EmojiEntry
from cm3run.built_once import computed_once
from cm3run.devices import choose_device
from cm3run.npy import load_array, save_array
from cm3run.progress import make_bar

_PIXELS = 64
_NUM_VERSIONS = 3
_NUM_CAPTIONS = 8
_NUM_STEPS = 600
_BLOCK = 256


def train_on_corpus(
    corpus: EmojiCorpus,
    path: Path,
    *,
    steps: int | None,
    seed: int,
    minutes: float | None = None,
    quiet: bool,
) -> None:
    """Train on the corpus's train split, and write the heads.

    Raises:
        MissingPackageError: the extra's packages are not installed.
    """
    check_packages("cm3 embedder train bi_encoder")
    networks = Networks()
    networks.move_to(choose_device(None))
    rows = [i for i, entry in enumerate(corpus.entries) if entry.split == "train"]
    entries = [corpus.entries[i] for i in rows]
    key = hashlib.sha256(
        f"{corpus.data_sha256} {networks.fingerprint} {_PIXELS} {seed}".encode()
    ).hexdigest()[:16]
    folder = cache_folder("bi_encoder", key)
    features_VNF = picture_features(
        networks, corpus.render_all(_PIXELS)[rows], folder, _NUM_VERSIONS, seed, quiet=quiet
    )
    captions = captions_of(entries, _NUM_CAPTIONS, seed)
    texts_CKF = text_features(networks, captions, folder, quiet=quiet)
    examples = Examples(features_VNF, by_concept(entries), texts_CKF)
    how = HeadTraining(steps or _NUM_STEPS, seed=seed, minutes=minutes)
    heads = train_heads(examples, how, quiet=quiet)
    save_heads(heads, networks.fingerprint, path)


def captions_of(entries: Sequence[EmojiEntry], num_captions: int, seed: int) -> list[list[str]]:
    """Return captions [C][K]: each concept's label, then random phrasings of it."""
    rng = np.random.default_rng(seed)
    return [
        [
            entries[group[0]].label,
            *(
                random_caption(entries[int(rng.choice(group))], rng)
                for _ in range(num_captions - 1)
            ),
        ]
        for group in by_concept(entries)
    ]


def picture_features(
    networks: Networks,
    pictures: npt.NDArray[np.uint8],
    folder: Path,
    num_versions: int,
    seed: int,
    *,
    quiet: bool = False,
) -> Tensor:
    """Return features float16 [V, N, F] of pictures (version 0) and of randomly augmented versions."""
    versions = []
    for version in range(num_versions):

        def look(start: int, stop: int, version: int = version) -> Tensor:
            pixels_N3RR = networks.scaled(list(pictures[start:stop]))
            if version:
                number = int(np.random.SeedSequence((seed, version, start)).generate_state(1)[0])
                pixels_N3RR = augment(pixels_N3RR, torch.Generator().manual_seed(number))
            return networks.picture_features(pixels_N3RR)

        versions.append(
            _blocks(
                _Kept(folder, f"pictures-v{version}", len(pictures), NUM_PICTURE_FEATURES),
                look,
                title=f"embedding pictures, version {version + 1} of {num_versions}",
                quiet=quiet,
            )
        )
    return torch.stack(versions)


def text_features(
    networks: Networks, captions: Sequence[Sequence[str]], folder: Path, *, quiet: bool = False
) -> Tensor:
    """Return features float16 [C, K, F] of captions [C][K].

    Equal captions are computed once, and captions of similar length together.
    """
    different = sorted(
        {text for group in captions for text in group}, key=lambda text: (len(text), text)
    )
    vectors = _blocks(
        _Kept(folder, "texts", len(different), NUM_TEXT_FEATURES),
        lambda start, stop: networks.text_features(different[start:stop]),
        title="embedding captions",
        quiet=quiet,
    )
    place = {text: i for i, text in enumerate(different)}
    return vectors[torch.tensor([[place[text] for text in group] for group in captions])]


@dataclass(frozen=True)
class _Kept:
    """Features stored in a folder, block by block: float16 [count, width]."""

    folder: Path
    name: str
    count: int
    width: int


def _blocks(
    kept: _Kept, compute: Callable[[int, int], Tensor], *, title: str, quiet: bool
) -> Tensor:
    """Return all blocks: reads existing files, and calls `compute(start, stop)` for the others."""
    blocks = []
    for start in make_bar(range(0, kept.count, _BLOCK), desc=title, unit="block", disable=quiet):
        stop, path = min(start + _BLOCK, kept.count), kept.folder / f"{kept.name}-{start:06d}.npy"

        def half(start: int = start, stop: int = stop) -> npt.NDArray[np.float16]:
            found: npt.NDArray[np.float16] = compute(start, stop).half().cpu().numpy()
            return found

        block = computed_once(
            path,
            title,
            partial(_read, shape=(stop - start, kept.width)),
            half,
            save_array,
        )
        blocks.append(torch.from_numpy(block))
    return torch.cat(blocks)


def _read(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.float16] | None:
    """Read a block with this shape; None if there is no complete one."""
    try:
        block: npt.NDArray[np.float16] = load_array(path)
    except (OSError, ValueError):
        return None
    return block if block.shape == shape and block.dtype == np.float16 else None


@dataclass(frozen=True)
class Examples:
    """Training data of the heads, on the CPU.

    Args:
        features_VNF: versions of each picture.
        members: rows of each concept's pictures.
        texts_CKF: captions of each concept, in the same order.
    """

    features_VNF: Tensor
    members: Sequence[Sequence[int]]
    texts_CKF: Tensor

    def drawn(self, rng: np.random.Generator, num_concepts: int) -> tuple[Tensor, Tensor]:
        """Draw features of two pictures and two captions per concept: both [2 B, F], all first ones first."""
        chosen = rng.choice(len(self.members), num_concepts, replace=False)
        rows_2B = np.array([two_of(rng, self.members[concept]) for concept in chosen]).T
        versions_2B = rng.integers(len(self.features_VNF), size=rows_2B.shape)
        forms_2B = rng.integers(self.texts_CKF.shape[1], size=rows_2B.shape)
        return (
            self.features_VNF[versions_2B.ravel(), rows_2B.ravel()].float(),
            self.texts_CKF[np.tile(chosen, 2), forms_2B.ravel()].float(),
        )


@dataclass(frozen=True)
class HeadTraining:
    """Training settings of the heads.

    Args:
        num_steps: optimiser steps; the learning rate decays as a cosine to 0.
        batch_concepts: B; each step uses two pictures and two captions per concept.
        sizes: sizes of the heads; None: those of the features, and the defaults.
        picture_dropout, text_dropout, learning_rate: settings of the heads.
        seed: seed of weights and batches.
        minutes: the length, instead of the steps.
    """

    num_steps: int
    batch_concepts: int = 384
    sizes: HeadSizes | None = None
    picture_dropout: float = 0.2
    text_dropout: float = 0.1
    learning_rate: float = 1e-3
    seed: int = 0
    minutes: float | None = None


def train_heads(examples: Examples, how: HeadTraining, *, quiet: bool = False) -> Heads:
    """Train both heads from scratch."""
    torch.manual_seed(how.seed)
    rng = np.random.default_rng(how.seed)
    features_VNF, texts_CKF = examples.features_VNF, examples.texts_CKF
    sizes = how.sizes or HeadSizes(features_VNF.shape[-1], texts_CKF.shape[-1])
    device = choose_device(None)
    heads = Heads(sizes, how.picture_dropout, how.text_dropout)
    heads.picture.standardise_by(features_VNF[0].float())
    heads.text.standardise_by(texts_CKF.flatten(0, 1).float())
    heads.to(device)
    optimizer = torch.optim.AdamW(
        heads.train().parameters(), lr=how.learning_rate, weight_decay=0.05
    )
    steps = Steps(how.num_steps, how.minutes)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, steps.cosine)
    num_concepts = min(how.batch_concepts, len(examples.members))
    for bar in steps.over("training the heads", quiet=quiet):
        pictures, texts = examples.drawn(rng, num_concepts)
        loss, crossed = _loss(heads, pictures.to(device), texts.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(
            loss=f"{loss.item():.3f}", text_picture=f"{crossed.item():.3f}", refresh=False
        )
    return heads.eval()


def _loss(heads: Heads, pictures: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of features from `Examples.drawn`, and its part between texts and pictures."""
    picture_a, picture_b = F.normalize(heads.picture(pictures), dim=1).chunk(2)
    text_a, text_b = F.normalize(heads.text(texts), dim=1).chunk(2)
    scale = heads.log_scale.exp().clamp(max=50)
    crossed = (contrast(text_a, picture_a, scale) + contrast(text_b, picture_b, scale)) / 2
    alike = 0.25 * contrast(text_a, text_b, scale), 0.25 * contrast(picture_a, picture_b, scale)
    return crossed + alike[0] + alike[1], crossed
