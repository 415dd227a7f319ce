"""The judgement of generated pictures of any data set: the rank of the real picture among 100 real ones.

The distance is the squared difference of blurred pictures of 32 x 32 pixels
(`cm3apps.evaluation.icons.ranking`); nothing in it is trained. The other 99 show other objects: icons of the
same set and style, or for other data any pictures of the split and the training data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cm3apps.evaluation.icons.ranking import NUM_CANDIDATES, RealPictures, blurred
from cm3core.document import Document, Image, PixelArray
from cm3core.images import fit
from cm3core.interfaces import DocumentSource
from cm3plugins.metrics.ranking import LEAST_CANDIDATES, chance_among_first
from cm3run.model import Model

if TYPE_CHECKING:
    from cm3apps.evaluation.icons.style_classifier import StyleClassifier

KS = (1, 5)


class Judged(Protocol):
    """A document of the data set, with which a generated picture is compared."""

    @property
    def id(self) -> str:
        """The document's id."""

    @property
    def group(self) -> str:
        """The object that it shows, see `DocumentSource.group`."""

    @property
    def pixels(self) -> PixelArray:
        """The real picture, uint8 [H, W, 3]."""


class Judging:
    """Ranks of real pictures among others.

    Args:
        model: provides the other pictures by its data set.
    """

    def __init__(self, model: Model) -> None:
        from cm3plugins.datasets.icons import IconSourceConfig

        self._model = model
        self._icons: RealPictures | None = None
        config = model.recipe.dataset and model.recipe.dataset.memory_config()
        self._drawn = drawn = model.components.memory_of_split(None)
        if isinstance(config, IconSourceConfig):
            corpus = drawn.corpus  # type: ignore[attr-defined]  # its config says so
            self._icons = RealPictures(
                corpus, config.image_size, model.image_size, config.cache_dir
            )
        self._train = order_of_groups(drawn)
        self._loaded: dict[int, PixelArray] = {}
        self._style: StyleClassifier | None = None

    def scores(
        self, asked: Sequence[Judged], pictures: dict[str, list[PixelArray]]
    ) -> dict[str, float]:
        """R@1 and R@5 of each list of pictures, which has one for each of `asked`: ``NAME_r1``, ``NAME_r5``.

        The result also has ``num_among``, the number of real pictures in each ranking. It is empty if there
        are too few.
        """
        totals = {f"{name}_r{k}": 0.0 for name in pictures for k in KS}
        num_among = NUM_CANDIDATES
        for place, one in enumerate(asked):
            real = self._among(one)
            num_among = min(num_among, len(real))
            if num_among < LEAST_CANDIDATES:
                return {}
            real_ND = blurred(np.stack(real))
            for name, own in pictures.items():
                distances_N = ((real_ND - blurred(own[place][None])) ** 2).sum(1)
                for k in KS:
                    totals[f"{name}_r{k}"] += chance_among_first(distances_N, k) / len(asked)
        return {"num_among": float(num_among), **totals}

    def finish(
        self, asked: Sequence[Judged], pictures: dict[str, list[PixelArray]]
    ) -> dict[str, float]:
        """For each list of pictures, how often a classifier of real icons recognises the finish (outline, filled,
        duotone, ...) of each of `asked`; empty if the data are not icons.

        The classifier is `cm3apps.evaluation.icons.style_classifier`, which is trained on first use.
        """
        if self._icons is None:
            return {}
        from cm3apps.evaluation.icons.style_classifier import style_classifier

        if self._style is None:
            self._style, _ = style_classifier(self._icons, self._model.image_size)
        corpus = self._icons.corpus
        entries = [corpus.entries[corpus.index(one.id)] for one in asked]
        return {
            name: self._style.accuracy(own, entries)["finish"] for name, own in pictures.items()
        }

    def _among(self, one: Judged) -> list[PixelArray]:
        """The right picture, then the others."""
        if self._icons is not None:
            entry = self._icons.corpus.entries[self._icons.corpus.index(one.id)]
            return [self._icons[index] for index in self._icons.candidates(entry)]
        others = [index for group, index in self._train if group != one.group]
        return [one.pixels, *map(self._training_picture, others[: NUM_CANDIDATES - 1])]

    def _training_picture(self, index: int) -> PixelArray:
        if index not in self._loaded:
            picture = first_picture(self._drawn.document(index))
            self._loaded[index] = fit(picture.load(), self._model.image_size)
        return self._loaded[index]


def order_of_groups(source: DocumentSource) -> list[tuple[str, int]]:
    """(group, position) of one document of each group, in a fixed random order."""
    found: dict[str, int] = {}
    for index in order(source.id(index) for index in range(len(source))):
        found.setdefault(source.group(index) or source.id(index), index)
    return list(found.items())


def order(names: Iterable[str]) -> list[int]:
    """A fixed shuffle that doesn't depend on the number of names."""
    keyed = [(hashlib.sha256(name.encode()).digest(), index) for index, name in enumerate(names)]
    return [index for _, index in sorted(keyed)]


def first_picture(document: Document) -> Image:
    """The first picture of a document that has one."""
    return next(segment for segment in document if isinstance(segment, Image))


def reconstructed(model: Model, asked: Sequence[Judged]) -> list[PixelArray]:
    """The real pictures reconstructed from their codes, the upper limit for any drawing."""
    return model.decode(model.encode([one.pixels for one in asked]))
