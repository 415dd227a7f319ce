"""Pictures that a trained decoder generates for held-out prompts, and their scores.

The distance from real pictures is the kernel inception distance (metric `kid`) of whole sets: unlike the Frechet
distance, it is unbiased for few pictures, so only the halves for its floor are drawn at random. Legend: N, M pictures of
the two sets, F features.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from cm3apps.evaluation.judging import Judging, reconstructed
from cm3apps.judge.judge import efficientnet_features
from cm3core.document import Codes, Document, Image, ImageHole, PixelArray, Text, text_of
from cm3core.errors import CM3Error
from cm3core.files import atomic_path
from cm3core.images import fit
from cm3core.interfaces import DocumentSource, RetrieverConfig
from cm3plugins.metrics.kid import mmd2
from cm3run.model import Model
from cm3run.progress import make_bar
from cm3run.training.neighbours import own_names
from cm3run.training.validation import spread

if TYPE_CHECKING:
    from cm3run.build import Components


Features = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class KID:
    """A distance, and the floor to compare it with.

    Args:
        distance: between the pictures and the real ones; about 0 if they can't be distinguished, and then
            below 0 as often as above.
        floor: the same between two halves of the real ones, averaged over random halvings.
        floor_spread: its standard deviation; smaller differences between distances are not significant.
    """

    distance: float
    floor: float
    floor_spread: float


def kid(features_NF: Features, real_MF: Features, *, num_halvings: int = 20, seed: int = 0) -> KID:
    """Return the distance of pictures from real ones, and the floor.

    Args:
        features_NF: features of the pictures, N >= 2.
        real_MF: features of real pictures, M >= 4.
        num_halvings, seed: settings of the floor.
    """
    rng = np.random.default_rng(seed)
    floors = []
    for _ in range(num_halvings):
        order = rng.permutation(len(real_MF))
        one, other = order[: len(order) // 2], order[len(order) // 2 :]
        floors.append(mmd2(real_MF[one], real_MF[other]))
    return KID(mmd2(features_NF, real_MF), float(np.mean(floors)), float(np.std(floors)))


#: Number of real training pictures to compare generated ones with.
NUM_REAL = 1000
_BATCH = 48
SEED = 1


class _Asked(NamedTuple):
    """A picture to draw, see `cm3apps.evaluation.judging.Judged`."""

    id: str
    group: str
    pixels: PixelArray


@dataclass(frozen=True)
class Scores:
    """Scores of one split's pictures; `real_` scores are for the prompts' own pictures.

    Args:
        kid, real_kid: distance from training pictures (see `kid`), times 1000.
        floor, floor_spread: the same between two halves of the training pictures.
        r5, real_r5: how often the real picture is among the five real ones nearest to the generated one, see
            `cm3apps.evaluation.judging`, and the same for the real picture after the image tokenizer;
            None: there are too few to compare with.
        copy_r5: the same for the first prepended picture; None if nothing is prepended.
        finish, real_finish, copy_finish: how often a classifier names the requested finish
            (`Judging.finish`); None if the data are not icons.
    """

    kid: float
    real_kid: float
    floor: float
    floor_spread: float
    r5: float | None
    real_r5: float | None
    copy_r5: float | None
    finish: float | None
    real_finish: float | None
    copy_finish: float | None


def draw(
    components: Components,
    retriever: RetrieverConfig | None,
    number: int,
    splits: tuple[str, ...],
    num_pictures: int,
    path: Path,
) -> None:
    """Generate a picture for documents of each split, and write them all to `path` (npz).

    The documents prepended to a prompt are retrieved by its text from the memory of all splits,
    without its own document.

    Args:
        components: components with the decoder's weights.
        retriever: retrieves `number` documents for each prompt; None: nothing is prepended.
        splits: splits of the data set; one with fewer than two documents is left out, since a distance needs
            two.
        num_pictures: pictures per split.
        path: output file: `<split>_drawn`, `<split>_real`, `<split>_front` (uint8 [N, H,
            W, 3]; white if nothing is prepended), `<split>_text`, and `<split>_index`, the
            documents' positions in the split (int64 [N]).
    """
    model = Model(components.recipe, components)
    memory = _whole(components)
    found = (
        None if retriever is None or number == 0 else retriever.build(memory, components.embedder)
    )
    arrays: dict[str, np.ndarray] = {}
    for split in splits:
        source = components.split(split)
        indices = spread(len(source), num_pictures)
        if len(indices) < 2:
            tqdm.write(
                f"note: nothing is generated for split {split!r}: it has fewer than 2 documents",
                file=sys.stderr,
            )
            continue
        documents = [source.document(index) for index in indices]
        queries: list[Document] = [(Text(text_of(document)),) for document in documents]
        front: list[tuple[Document, ...]] = [()] * len(documents)
        if found is not None:
            own = [own_names(source, index) for index in indices]
            front = [
                tuple(memory.document(one.index) for one in ones)
                for ones in found.retrieve(queries, number, own)
            ]
        arrays |= {
            f"{split}_drawn": np.stack(_drawn(model, queries, front, f"generating, {split}")),
            f"{split}_real": _pictures(source, indices, model.image_size),
            f"{split}_text": np.array([text_of(query) for query in queries]),
            f"{split}_front": np.stack([_first(one, model.image_size) for one in front]),
            f"{split}_index": np.array(indices),
        }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes the names for options


def _drawn(
    model: Model, queries: Sequence[Document], front: Sequence[tuple[Document, ...]], title: str
) -> list[PixelArray]:
    """Generate a picture for each query, with its prepended documents."""
    drawn: list[PixelArray] = []
    for start in make_bar(range(0, len(queries), _BATCH), desc=title, unit="batch"):
        part = slice(start, start + _BATCH)
        completions = model.complete(
            [(*query, ImageHole()) for query in queries[part]],
            retrieved=front[part],
            seed=SEED,
            truncate=True,
        )
        drawn += model.decode(
            [
                one
                for completion in completions
                for one in completion.document
                if isinstance(one, Codes)
            ]
        )
    return drawn


def score(
    components: Components, splits: tuple[str, ...], path: Path, *, prepended: bool
) -> dict[str, Scores]:
    """Return the scores of pictures written by `draw`.

    Args:
        components: components that the pictures were generated with.
        splits: splits passed to `draw`.
        path: its file.
        prepended: whether documents were prepended.
    """
    model = Model(components.recipe, components)
    features = efficientnet_features()
    of_train = features(
        _pictures(components.source, spread(len(components.source), NUM_REAL), model.image_size)
    )
    judging = Judging(model)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    scores: dict[str, Scores] = {}
    for split in splits:
        if f"{split}_drawn" not in arrays:
            continue
        source, drawn, real = (
            components.split(split),
            arrays[f"{split}_drawn"],
            arrays[f"{split}_real"],
        )
        asked = [
            _Asked(source.id(index), source.group(index), pixels)
            for index, pixels in zip(arrays[f"{split}_index"].tolist(), real, strict=True)
        ]
        pictures = {"drawn": list(drawn), "ceiling": reconstructed(model, asked)}
        if prepended:
            pictures["copy"] = list(arrays[f"{split}_front"])
        ranks, finishes = judging.scores(asked, pictures), judging.finish(asked, pictures)
        of_drawn, of_real = kid(features(drawn), of_train), kid(features(real), of_train)
        scores[split] = Scores(
            1000 * of_drawn.distance,
            1000 * of_real.distance,
            1000 * of_drawn.floor,
            1000 * of_drawn.floor_spread,
            *(ranks.get(f"{name}_r5") for name in ("drawn", "ceiling", "copy")),
            *(finishes.get(name) for name in ("drawn", "ceiling", "copy")),
        )
    return scores


def _whole(components: Components) -> DocumentSource:
    """Return the memory of all splits, or of the training split if the data set can't combine them."""
    try:
        return components.split("all")
    except CM3Error:
        return components.source


def _pictures(source: DocumentSource, indices: list[int], size: tuple[int, int]) -> PixelArray:
    """Return the first pictures of documents, uint8 [N, H, W, 3]; every document must have one."""
    return np.stack([_first((source.document(index),), size) for index in indices])


def _first(documents: tuple[Document, ...], size: tuple[int, int]) -> PixelArray:
    """Return the first picture of the first document; white if there is none."""
    picture = next(
        (
            segment
            for document in documents[:1]
            for segment in document
            if isinstance(segment, Image)
        ),
        None,
    )
    return np.full((*size, 3), 255, np.uint8) if picture is None else fit(picture.load(), size)
