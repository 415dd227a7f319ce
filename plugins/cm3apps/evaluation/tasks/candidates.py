"""The real pictures among which the one of a document is ranked (metric `judge`), the same for every
model: of icons 99 other things of the same set and style, else documents of the data set's `train`, one of
each group, that show other things.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

from cm3apps.evaluation.icons.ranking import NUM_CANDIDATES, RealPictures
from cm3apps.evaluation.judging import first_picture, order_of_groups
from cm3apps.evaluation.tasks.base import Candidates
from cm3core.document import PixelArray
from cm3core.images import fit
from cm3core.interfaces.dataset import DocumentSource, DocumentSourceConfig
from cm3plugins.datasets.icons import IconSourceConfig
from cm3plugins.datasets.icons.source import IconSource

#: Document -> its candidates.
Find = Callable[[int], Candidates]


def candidates_of(source: DocumentSource, config: DocumentSourceConfig, size: int) -> Find:
    """The candidates of a data set's documents.

    Args:
        source: the data set, in the protocol's split.
        config: its config; its training data are opened when they are first asked for.
        size: side of the pictures, in pixels.
    """
    if isinstance(source, IconSource) and isinstance(config, IconSourceConfig):
        real = _real_icons(source, config, size)
        return partial(_of_icon, source, real)
    return partial(_of_document, source, _others(source, config, size), size)


def _real_icons(
    source: IconSource, config: IconSourceConfig, size: int
) -> Callable[[], RealPictures]:
    return cache(
        lambda: RealPictures(source.corpus, config.image_size, (size, size), config.cache_dir)
    )


def _of_icon(source: IconSource, real: Callable[[], RealPictures], index: int) -> Candidates:
    pictures, entries = real(), source.corpus.entries
    found = pictures.candidates(source.entry(index))
    return [(entries[place].id, partial(pictures.__getitem__, place)) for place in found]


def _others(
    source: DocumentSource, config: DocumentSourceConfig, size: int
) -> Callable[[], list[tuple[str, str, Callable[[], PixelArray]]]]:
    """(group, id, picture) of one training document of each group, in a fixed random order."""

    def find() -> list[tuple[str, str, Callable[[], PixelArray]]]:
        train = source
        if "train" in config.splits and config.split != "train":
            train = replace(config, split="train").build()
        return [
            (group, train.id(index), cache(partial(_picture, train, index, size)))
            for group, index in order_of_groups(train)
        ]

    return cache(find)


def _of_document(
    source: DocumentSource,
    others: Callable[[], list[tuple[str, str, Callable[[], PixelArray]]]],
    size: int,
    index: int,
) -> Candidates:
    own = source.group(index) or source.id(index)
    found = [(name, load) for group, name, load in others() if group != own]
    first = (source.id(index), partial(_picture, source, index, size))
    return [first, *found[: NUM_CANDIDATES - 1]]


def _picture(source: DocumentSource, index: int, size: int) -> PixelArray:
    return fit(first_picture(source.document(index)).load(), (size, size))
