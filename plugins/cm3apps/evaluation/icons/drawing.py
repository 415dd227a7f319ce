"""The prompts for an icon model and its results: the likelihood of the real picture's codes, and generated pictures.

The prompts are a fixed sample of each split, under several conditions for the prepended documents:

    none             nothing
    version          another drawing of the same object, found by its name, like a perfect retriever
    retrieved-train  the results of the recipe's retriever in the recipe's memory, as many as the recipe retrieves
    retrieved-all    its results if the memory also has the held-out drawings
    random           a drawing of another object, as a control

A document is never prepended to itself. The sample depends on names alone.
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from cm3core.document import Codes, Document, Image, ImageHole, PixelArray, Text, text_of
from cm3core.errors import DataError
from cm3core.images import fit
from cm3run.model import Model
from cm3run.model.loaded import known_by_codes
from cm3run.progress import make_bar
from cm3run.training.neighbours import own_names

if TYPE_CHECKING:
    from cm3core.interfaces import DocumentSource, Retriever
    from cm3plugins.datasets.icons.corpus import IconEntry
    from cm3plugins.datasets.icons.source import IconSource
    from cm3run.model import Model


#: Documents per update of the progress bar.
_BATCH = 16


class Question(Protocol):
    """A picture to draw: its caption, its document, and the documents that may be prepended."""

    @property
    def text(self) -> str:
        """The caption."""

    @property
    def document(self) -> Document:
        """Caption and picture."""

    def front(self, condition: str) -> tuple[Document, ...]:
        """The documents prepended under a condition."""


@dataclass(frozen=True, eq=False)
class AskedPicture:
    """One picture to draw.

    Args:
        text: its canonical caption.
        document: caption and picture.
        prepended: condition -> the prepended documents; empty if none was found.
    """

    text: str
    document: Document
    prepended: dict[str, tuple[Document, ...]]

    def pixels(self, size: tuple[int, int]) -> PixelArray:
        """The real picture, uint8 [H, W, 3]."""
        return fit(_image(self).load(), size)

    def front(self, condition: str) -> tuple[Document, ...]:
        """The documents prepended under a condition."""
        return self.prepended[condition]

    def front_pixels(self, condition: str, model: Model) -> PixelArray | None:
        """The first prepended picture, uint8 [H, W, 3], or None."""
        return _front_pixels(self.front(condition), model)


def nats_of_codes(model: Model, asked: Sequence[Question], condition: str) -> list[float]:
    """The loss on each real picture in nats per code, given its caption and the prepended documents.

    Probabilities are over image codes, because the engine draws nothing else at these positions.
    """
    likelihood = model.components.likelihood
    found: list[float] = []
    with _bar(f"likelihood, {condition}", len(asked), "picture") as bar:
        for start in range(0, len(asked), _BATCH):
            part = asked[start : start + _BATCH]
            documents: list[Document] = [(Text(one.text), ImageHole()) for one in part]
            filled: list[Document] = [
                (Text(one.text), model.coded((_image(one),))[0]) for one in part
            ]
            contents = [
                likelihood.contents_of(*pair) for pair in zip(documents, filled, strict=True)
            ]
            retrieved = [[model.coded(front) for front in one.front(condition)] for one in part]
            values = likelihood.log_probability(documents, contents, retrieved=retrieved)
            found += [-value.per_token for value in values]
            bar.update(len(part))
    return found


def draw(
    model: Model, asked: Sequence[Question], condition: str, seed: int, sampling: dict[str, Any]
) -> PixelArray:
    """A picture for each caption, generated in one batch, uint8 [N, H, W, 3]."""
    cells = int(np.prod(model.components.image_tokenizer.grid))
    with _bar(f"drawing, {condition}", len(asked) * cells, "token") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        completions = model.complete(
            [(Text(one.text), ImageHole()) for one in asked],
            retrieved=[one.front(condition) for one in asked],
            seed=seed,
            truncate=True,
            progress=progress,
            **sampling,
        )
    return np.stack(
        [
            model.drawn(codes, [one.text], [] if front is None else [front])
            for one, completion in zip(asked, completions, strict=True)
            for front in [_front_pixels(one.front(condition), model)]
            for codes in completion.document
            if isinstance(codes, Codes)
        ]
    )


def reconstructed(model: Model, pictures: Sequence[PixelArray]) -> PixelArray:
    """Pictures reconstructed from their codes, uint8 [N, H, W, 3]."""
    return np.stack(model.decode(model.encode(pictures)))


def _front_pixels(front: Sequence[Document], model: Model) -> PixelArray | None:
    for document in front:
        for segment in document:
            if isinstance(segment, Image):
                return fit(segment.load(), model.image_size)
            if isinstance(segment, Codes):  # of a memory bank
                return known_by_codes(model, segment)
    return None


def _image(one: Question) -> Image:
    return next(segment for segment in one.document if isinstance(segment, Image))


def _bar(what: str, total: int, unit: str) -> Any:
    return make_bar(desc=f"  {what}", total=total, unit=unit, leave=False, file=sys.stderr)


#: Documents, best first, and the object of the first one (None if there is none).
Prepended: TypeAlias = tuple[tuple[Document, ...], str | None]


@dataclass(frozen=True, eq=False)
class Asked(AskedPicture):
    """One icon to draw.

    Args:
        entry: its entry in the corpus.
        shown: condition -> the object of the first prepended document.
        same_set: whether the version is from the same set, and so usually by the same designer.
    """

    entry: IconEntry
    shown: dict[str, str | None]
    same_set: bool


class Samples:
    """The samples of all splits of a model's data set.

    Args:
        model: a model trained on `icons`.
        retrieved: whether to include the conditions of the recipe's retriever, whose indexes take seconds
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
        """At most `num` different objects of a split that have another version, in a fixed random
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
    """Another version of an object, from the same set if there is one; among equals, the first in a fixed
    random order."""
    others = [other for other in versions if other.id != entry.id]
    return min(
        others, key=lambda other: (other.set_name != entry.set_name, order(entry.id, other.id))
    )


def _something_else(source: IconSource, entry: IconEntry) -> int:
    """A drawing of another object, chosen by a hash; of the same one if there is no other."""
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
    """The recipe's retriever over the bank or the training data, and over all splits."""
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
    """The best retrieved documents for each caption, without the document itself."""
    queries: list[Document] = [(Text(text_of(source.document(index))),) for index in indices]
    own = [own_names(source, index) for index in indices]
    return [
        _prepended(retriever.memory, [found.index for found in results])
        for results in retriever.retrieve(queries, number, own)
    ]


def _prepended(memory: DocumentSource, indices: Sequence[int]) -> Prepended:
    documents = tuple(memory.document(index) for index in indices)
    return documents, memory.group(indices[0]) if indices else None
