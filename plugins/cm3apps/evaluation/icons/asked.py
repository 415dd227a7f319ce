"""What a model of icons is asked for: a fixed sample of each split, and the documents that may be
prepended to each.

    none             nothing
    version          another drawing of the same thing, known by its name: what a perfect retriever finds
    retrieved-train  what the recipe's retriever finds in the recipe's memory, as many as the recipe retrieves
    retrieved-all    what it finds when held-out drawings are in the memory too
    random           a drawing of something else, as a control

A document is never prepended to itself. The sample depends on names alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from cm3apps.evaluation.icons.drawing import AskedPicture
from cm3core.document import Document, Text, text_of
from cm3core.errors import DataError
from cm3run.training.neighbours import own_names

if TYPE_CHECKING:
    from cm3core.interfaces import DocumentSource, Retriever
    from cm3plugins.datasets.icons.entries import IconEntry
    from cm3plugins.datasets.icons.source import IconSource
    from cm3run.model import Model

#: Documents, best first, and the thing that the first one shows (None: there is none).
Prepended: TypeAlias = tuple[tuple[Document, ...], str | None]


@dataclass(frozen=True, eq=False)
class Asked(AskedPicture):
    """One icon to draw.

    Args:
        entry: what is known of it.
        shown: condition -> the thing that the first document prepended shows.
        same_set: whether the version is of the same set, so usually of the same hand.
    """

    entry: IconEntry
    shown: dict[str, str | None]
    same_set: bool


class Samples:
    """The samples of all splits of a model's data set.

    Args:
        model: trained on `icons`.
        retrieved: with the conditions that the recipe's retriever answers, whose indexes take seconds
            to build.
    """

    def __init__(self, model: Model, *, retrieved: bool = True) -> None:
        self.model = model
        self.everything = _icons(model, "all")
        self._position: dict[str, int] = {}
        self._versions: dict[str, list[int]] = defaultdict(list)
        for index in range(len(self.everything)):
            self._position[self.everything.id(index)] = index
            self._versions[self.everything.group(index)].append(index)
        self._retrievers = _retrievers(model, self.everything) if retrieved else {}
        config = model.recipe.retriever
        self._num_retrieved = 0 if config is None else config.num_retrieved

    def of(self, split: str, num: int) -> list[Asked]:
        """At most `num` different things of a split that have another version, in a fixed random
        order.

        Raises:
            DataError: the split has no document with another version.
        """
        source = _icons(self.model, split)
        chosen: dict[str, int] = {}
        for index in sorted(range(len(source)), key=lambda index: order(source.id(index))):
            thing = source.group(index)
            if len(self._versions[thing]) > 1:
                chosen.setdefault(thing, index)
            if len(chosen) == num:
                break
        indices = list(chosen.values())
        if not indices:
            raise DataError(
                f"split {split!r}",
                f"none of its {len(source)} icons has another version in the model's data set",
                "leave it out of --splits, or measure a model that was trained on more of the corpus",
            )
        found = {
            condition: _retrieved(retriever, source, indices, self._num_retrieved)
            for condition, retriever in self._retrievers.items()
        }
        return [
            self._asked(source, index, {name: one[place] for name, one in found.items()})
            for place, index in enumerate(indices)
        ]

    def _asked(self, source: IconSource, index: int, retrieved: dict[str, Prepended]) -> Asked:
        everything, entry, document = self.everything, source.entry(index), source.document(index)
        version = best_version(
            entry, [everything.entry(other) for other in self._versions[entry.words]]
        )
        prepended: dict[str, Prepended] = {
            "none": ((), None),
            "version": _prepended(everything, [self._position[version.id]]),
            **retrieved,
            "random": _prepended(everything, [_something_else(everything, entry)]),
        }
        return Asked(
            text_of(document),
            document,
            {condition: one for condition, (one, _) in prepended.items()},
            entry,
            {condition: thing for condition, (_, thing) in prepended.items()},
            version.set_name == entry.set_name,
        )


def order(*names: str) -> str:
    """A key that sorts names in a fixed random order.

    >>> sorted(["a", "b", "c"], key=order) == sorted(["c", "b", "a"], key=order)
    True
    """
    return hashlib.sha256("\0".join(names).encode()).hexdigest()


def best_version(entry: IconEntry, versions: Sequence[IconEntry]) -> IconEntry:
    """Another version of a thing: of the same set if there is one; among equals, one in a fixed
    random order."""
    others = [other for other in versions if other.id != entry.id]
    return min(
        others, key=lambda other: (other.set_name != entry.set_name, order(entry.id, other.id))
    )


def _something_else(source: IconSource, entry: IconEntry) -> int:
    """A drawing of another thing, by a hash; of what there is if there is nothing else."""
    start = int(order("random", entry.id)[:12], 16) % len(source)
    for step in range(len(source)):
        index = (start + step) % len(source)
        if source.group(index) != entry.words:
            return index
    return start


def _icons(model: Model, split: str) -> IconSource:
    source: IconSource = model.components.memory_of_split(split)  # type: ignore[assignment]  # its recipe says so
    return source


def _retrievers(model: Model, everything: DocumentSource) -> dict[str, Retriever]:
    """The recipe's retriever over the bank or what was trained on, and over all splits."""
    config, components = model.recipe.retriever, model.components
    if config is None or config.num_retrieved == 0:
        return {}
    memory = components.memory_of_split(None) if config.bank is None else components.memory
    return {
        "retrieved-train": config.build(memory, components.embedder),
        "retrieved-all": config.build(everything, components.embedder),
    }


def _retrieved(
    retriever: Retriever, source: IconSource, indices: Sequence[int], number: int
) -> list[Prepended]:
    """The first documents found for each caption, never the document itself."""
    queries: list[Document] = [(Text(text_of(source.document(index))),) for index in indices]
    own = [own_names(source, index) for index in indices]
    return [
        _prepended(retriever.memory, [found.index for found in results])
        for results in retriever.retrieve(queries, number, own)
    ]


def _prepended(memory: DocumentSource, indices: Sequence[int]) -> Prepended:
    documents = tuple(memory.document(index) for index in indices)
    return documents, memory.group(indices[0]) if indices else None
