"""What the quickstart asks a model for, and how it tells whether a picture shows it.

Of icons: the samples and the judge of `cm3 experiment icons`, so that the figures are the same kind as
those of any model of icons. Of any other data set: documents of its splits, with what the recipe's
retriever finds for their captions; pictures are compared with the real ones of the same split.
A prompt's own picture is never prepended to it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from cm3apps.evaluation.icons.asked import Samples, order
from cm3apps.evaluation.icons.drawing import AskedPicture
from cm3apps.evaluation.icons.ranking import NUM_CANDIDATES, RealPictures, blurred, judges
from cm3core.document import Document, Image, PixelArray, Text, text_of
from cm3core.errors import CM3Error
from cm3core.interfaces import DocumentSource
from cm3plugins.datasets.icons import IconSourceConfig
from cm3plugins.metrics.ranking import chance_among_first, distances
from cm3run.model import Model
from cm3run.training.neighbours import own_names

KS = (1, 5)


class Subjects(Protocol):
    """What can be asked for.

    splits: names of splits, those of held-out documents first.
    documents: the condition under which a document is prepended; None: the model reads none.
    """

    splits: tuple[str, ...]
    documents: str | None

    def of(self, split: str, num: int) -> Sequence[AskedPicture]:
        """At most `num` pictures of a split, in a fixed random order; none if there is no such split."""
        ...

    def ranks(
        self, asked: Sequence[AskedPicture], pictures: Sequence[PixelArray] | PixelArray
    ) -> dict[str, float]:
        """`r1` and `r5`: how often the real picture is among the first of `among` (a number)."""
        ...


class IconSubjects:
    """Icons that have another version, and the version.

    Args:
        model: trained on icons.
        dataset: their config.
    """

    splits: tuple[str, ...] = ("comp", "compose", "unseen", "train")

    def __init__(self, model: Model, dataset: IconSourceConfig) -> None:
        self.documents: str | None = "version" if reads_documents(model) else None
        self._samples = Samples(model, retrieved=False)
        real = RealPictures(
            self._samples.everything.corpus,
            dataset.image_size,
            model.image_size,
            dataset.cache_dir,
        )
        self._judge = judges(["pixels"], real)["pixels"]

    def of(self, split: str, num: int) -> Sequence[AskedPicture]:
        """See `Subjects`."""
        try:
            return self._samples.of(split, num)
        except CM3Error as error:
            print(f"note: nothing is asked of {split!r}: {error.cause}", file=sys.stderr)
            return []

    def ranks(
        self, asked: Sequence[Any], pictures: Sequence[PixelArray] | PixelArray
    ) -> dict[str, float]:
        """See `Subjects`; among real pictures of the same set and style."""
        found = self._judge.chances(pictures, [one.entry for one in asked], KS)
        return {**{f"r{k}": value for k, value in found.items()}, "among": NUM_CANDIDATES}


class OtherSubjects:
    """Documents of the splits of any data set.

    Args:
        model: trained on it.
    """

    splits: tuple[str, ...] = ("comp", "unseen", "valid", "train")

    def __init__(self, model: Model) -> None:
        self._model = model
        self.documents: str | None = "retrieved" if reads_documents(model) else None

    def of(self, split: str, num: int) -> Sequence[AskedPicture]:
        """See `Subjects`."""
        components = self._model.components
        try:
            source = components.source if split == "train" else components.split(split)
        except CM3Error:
            return []  # this data set has no such split
        chosen = sorted(range(len(source)), key=lambda index: order(source.id(index)))
        documents = [(index, source.document(index)) for index in chosen[: 2 * num]]
        shown = [
            (index, document)
            for index, document in documents
            if text_of(document) and any(isinstance(segment, Image) for segment in document)
        ][:num]
        in_front = self._found(source, shown)
        return [
            AskedPicture(text_of(document), document, {"none": (), "retrieved": front})
            for (_, document), front in zip(shown, in_front, strict=True)
        ]

    def _found(
        self, source: DocumentSource, shown: Sequence[tuple[int, Document]]
    ) -> list[tuple[Document, ...]]:
        """The documents that are found for each caption, as many as the recipe retrieves."""
        retriever = self._model.components.retriever
        if retriever is None or self.documents is None:
            return [()] * len(shown)
        config = self._model.recipe.retriever
        number = 1 if config is None else config.num_retrieved
        queries: list[Document] = [(Text(text_of(document)),) for _, document in shown]
        own = [own_names(source, index) for index, _ in shown]
        return [
            tuple(retriever.memory.document(found.index) for found in results)
            for results in retriever.retrieve(queries, number, own)
        ]

    def ranks(
        self, asked: Sequence[AskedPicture], pictures: Sequence[PixelArray] | PixelArray
    ) -> dict[str, float]:
        """See `Subjects`; among the real pictures of what is asked for."""
        real_ND = blurred(np.stack([one.pixels(self._model.image_size) for one in asked]))
        total = dict.fromkeys(KS, 0.0)
        for place, drawn_D in enumerate(blurred(np.stack(list(pictures)))):
            others = [*range(place), *range(place + 1, len(asked))]
            distances_N = distances(drawn_D, real_ND[[place, *others]], centred=False)
            for k in KS:
                total[k] += chance_among_first(distances_N, k) / len(asked)
        return {**{f"r{k}": value for k, value in total.items()}, "among": len(asked)}


def subjects_of(model: Model) -> Subjects:
    """What can be asked of a model."""
    dataset = model.recipe.dataset and model.recipe.dataset.memory_config()
    if isinstance(dataset, IconSourceConfig):
        return IconSubjects(model, dataset)
    return OtherSubjects(model)


def reads_documents(model: Model) -> bool:
    """Whether the model was trained with documents in front."""
    config = model.recipe.retriever
    return config is not None and config.retrieves and config.num_retrieved > 0


def num_named(captions: Sequence[Mapping[str, str]], key: str = "written") -> int:
    """The number of captions that name the right thing.

    They contain the true text up to its first comma, as whole words.

    >>> num_named([{"real": "duck, noto style", "written": "a duck in twemoji style"}, {"real": "owl", "written": "a bowl"}])
    1
    """
    return sum(
        f" {_words(caption['real'].split(',')[0])} " in f" {_words(caption[key])} "
        for caption in captions
    )


def _words(text: str) -> str:
    """Lower-case words with one blank between them."""
    return " ".join("".join(char if char.isalnum() else " " for char in text.lower()).split())
