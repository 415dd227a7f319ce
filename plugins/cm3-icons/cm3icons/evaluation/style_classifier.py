"""A classifier for the set and style of an icon's picture: a small convolutional network on pictures of
32 x 32 pixels, trained on real pictures of `train` in under a minute on one core.

The same pictures, seed and thread count give the same weights; they are kept in the cache folder.
Legend: N pictures, K classes, which are pairs (set, style words).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from cm3core.document import PixelArray
from cm3core.files import cache_folder
from cm3icons.evaluation.ranking import RealPictures, order, shrunk
from cm3plugins.svg import renderer_version
from cm3run.built_once import computed_once
from cm3run.progress import make_bar

if TYPE_CHECKING:
    from cm3icons.data.corpus import IconEntry

NUM_TRAINED = 10000
NUM_HELD_OUT = 1000
EPOCHS = 6
BATCH = 128
LEARNING_RATE = 6e-3
SEED = 0
_VERSION = 2
#: The most visible difference between styles. The finish of a style is the first of these words
#: that it has.
FINISHES = ("duotone", "colour", "broken", "filled", "outline")

Class = tuple[str, str]


class StyleClassifier:
    """Classifies a picture's set and style.

    Args:
        network: pictures [N, 3, 32, 32] -> logits [N, K].
        classes: K pairs (set, style words).
    """

    def __init__(self, network: nn.Module, classes: Sequence[Class]) -> None:
        self._network, self.classes = network.eval(), tuple(classes)

    def classify(self, pictures_NHWC: Sequence[PixelArray] | PixelArray) -> list[Class]:
        """The most probable pair of each picture."""
        with torch.inference_mode():
            logits = [self._network(part) for part in _inputs(pictures_NHWC).split(4 * BATCH)]
        return [self.classes[place] for place in torch.cat(logits).argmax(1).tolist()]

    def accuracy(
        self, pictures_NHWC: Sequence[PixelArray] | PixelArray, entries: Sequence[IconEntry]
    ) -> dict[str, float]:
        """Shares of pictures with the requested set and style, style words, and finish (see
        `finish_of`)."""
        found = self.classify(pictures_NHWC)
        pairs = list(zip(found, entries, strict=True))
        return {
            "set_and_style": float(
                np.mean([one == (entry.set_name, entry.style) for one, entry in pairs])
            ),
            "style": float(np.mean([one[1] == entry.style for one, entry in pairs])),
            "finish": float(
                np.mean([finish_of(one[1]) == finish_of(entry.style) for one, entry in pairs])
            ),
        }


def finish_of(style: str) -> str:
    """The finish of a style, one of `FINISHES`; "" if it has none.

    >>> finish_of("outline duotone rounded"), finish_of("filled sharp"), finish_of("")
    ('duotone', 'filled', '')
    """
    return next((finish for finish in FINISHES if finish in style.split()), "")


def style_classifier(
    real: RealPictures,
    image_size: tuple[int, int],
    *,
    folder: Path | None = None,
) -> tuple[StyleClassifier, dict[str, float]]:
    """The classifier, trained or read from the cache, and its accuracy on held-out real pictures.

    Args:
        real: the corpus's pictures.
        image_size: their size; they are reduced to 32 x 32.
        folder: the folder for the classifier; None: the user's cache folder.
    """
    entries = real.corpus.entries
    classes = sorted({(one.set_name, one.style) for one in entries})
    folder = cache_folder("icon-style-classifier") if folder is None else folder
    path = folder / f"{classifier_key(real, image_size)}.safetensors"
    network = _network(len(classes))

    def train() -> dict[str, float]:
        _train(network, real, _chosen(entries, NUM_TRAINED, True), classes)
        held_out = _chosen(entries, NUM_HELD_OUT, False)
        return StyleClassifier(network, classes).accuracy(
            [real[index] for index in held_out], [entries[index] for index in held_out]
        )

    def write(path: Path, accuracy: dict[str, float]) -> None:
        save_file(network.state_dict(), path, {"accuracy": json.dumps(accuracy)})

    accuracy = computed_once(
        path, "training the style classifier", lambda path: _read(path, network), train, write
    )
    return StyleClassifier(network, classes), accuracy


def classifier_key(real: RealPictures, image_size: tuple[int, int]) -> str:
    """Hash of everything that determines the classifier's weights on a machine."""
    facts = (_VERSION, real.corpus.data_sha256, renderer_version(), image_size, NUM_TRAINED)
    more = (EPOCHS, BATCH, LEARNING_RATE, SEED, NUM_HELD_OUT)
    way = real.corpus.held_out
    ways = [] if way == "by_name" else [way]  # the first way has no name in keys
    return hashlib.sha256(json.dumps([*facts, *ways, *more]).encode()).hexdigest()[:16]


def _chosen(entries: Sequence[IconEntry], num: int, trained: bool) -> list[int]:
    """Positions of some pictures of `train` (and `near`), or of the held-out splits."""
    learnt = ("train", "near")
    indices = [i for i, entry in enumerate(entries) if (entry.split in learnt) == trained]
    return sorted(indices, key=lambda index: order("style", entries[index].id))[:num]


def _network(num_classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 96, 3, padding=1),
            nn.BatchNorm2d(96),
            nn.ReLU(),
            nn.AvgPool2d(4),
            nn.Flatten(),
            nn.Linear(4 * 96, num_classes),
        )


def _train(
    network: nn.Module,
    real: RealPictures,
    indices: Sequence[int],
    classes: Sequence[Class],
) -> None:
    entries = real.corpus.entries
    place = {one: index for index, one in enumerate(classes)}
    bar = make_bar(indices, desc="  pictures for the style classifier", leave=False, unit="picture")
    small_N3HW = _inputs([shrunk(real[index]) for index in bar])
    label_N = torch.tensor([place[entries[i].set_name, entries[i].style] for i in indices])
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    steps = EPOCHS * -(-len(indices) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    network.train()
    with make_bar(
        desc="  training the style classifier", total=steps, leave=False, file=sys.stderr
    ) as progress:
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(indices), generator=generator).split(BATCH):
                loss = F.cross_entropy(network(small_N3HW[chosen]), label_N[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()
    network.eval()


def _inputs(pictures_NHWC: Sequence[PixelArray] | PixelArray) -> Tensor:
    small: NDArray[np.uint8] = np.stack([shrunk(pixels) for pixels in pictures_NHWC])
    return rearrange(1 - torch.from_numpy(small).float() / 255, "N H W C -> N C H W").contiguous()


def _read(path: Path, network: nn.Module) -> dict[str, float] | None:
    """Load the classifier of an earlier call; None if it is missing or incomplete."""
    if not path.is_file():
        return None
    try:
        network.load_state_dict(load_file(path))
        with safe_open(path, "pt") as file:
            accuracy: dict[str, float] = json.loads(file.metadata()["accuracy"])
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError):
        return None
    return accuracy
