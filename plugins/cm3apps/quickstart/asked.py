"""What the quickstart asks the trained model for: documents of each split, and what is prepended to
each. A prompt's own picture is never among the documents prepended to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cm3apps.experiments.judging import first_picture, order
from cm3core.document import Document, Image, PixelArray, Text, text_of
from cm3core.errors import CM3Error
from cm3core.images import fit
from cm3core.interfaces import DocumentSource, Retriever
from cm3core.model import Model
from cm3core.training.neighbours import own_names

#: Prompts of each split that are generated and judged, and how many of them are shown.
NUM_JUDGED = {"train": 48, "comp": 96, "compose": 48, "unseen": 96, "valid": 48}
NUM_SHOWN = {"train": 12, "comp": 24, "compose": 12, "unseen": 24, "valid": 12}
#: Least of each that is left of these numbers where time is short.
LEAST = 2
#: Splits of things that the training never showed: only a memory with them can know them.
NEW_THINGS = ("compose", "unseen")


@dataclass(frozen=True, eq=False)
class Asked:
    """One document of a split: the prompt, the right answer, the prepended documents."""

    text: str
    group: str
    id: str
    document: Document
    pixels: PixelArray
    in_front: tuple[Document, ...]

    @property
    def picture(self) -> Image:
        """The document's first picture."""
        return first_picture(self.document)

    def front(self, condition: str) -> tuple[Document, ...]:
        """What is prepended: "with" documents, or "without"."""
        return self.in_front if condition == "with" else ()

    def copied(self, size: tuple[int, int]) -> PixelArray | None:
        """The first prepended picture, uint8 [H, W, 3]; None where there is none."""
        for document in self.in_front:
            for segment in document:
                if isinstance(segment, Image):
                    return fit(segment.load(), size)
        return None


def number_retrieved(model: Model) -> int:
    """How many documents the model's recipe prepends."""
    config = model.recipe.retriever
    return 0 if config is None else config.num_retrieved


def limited(number: int, share: float) -> int:
    """A share of a number, at least `LEAST`.

    >>> limited(100, 1.0), limited(100, 0.45), limited(48, 0.01), limited(0, 0.01)
    (100, 45, 2, 0)
    """
    return max(min(number, LEAST), round(number * share))


def asked_of(model: Model, split: str, share: float = 1.0) -> list[Asked]:
    """The split's prompts, with the documents retrieved for each.

    One document of each group first, then more, in a fixed order; a share of the usual number.
    Empty where the data set has no such split.
    """
    try:
        source = model.components.source if split == "train" else model.components.split(split)
    except CM3Error:
        return []
    in_order = order(source.id(index) for index in range(len(source)))
    one_of_each = {source.group(index) or source.id(index): index for index in reversed(in_order)}
    first = set(one_of_each.values())
    chosen = [index for index in in_order if index in first]
    chosen += [index for index in in_order if index not in first]
    chosen = chosen[: limited(min(len(chosen), NUM_JUDGED[split]), share)]
    if not chosen:
        return []
    documents = [source.document(index) for index in chosen]
    in_front = _retrieved(model, source, split, chosen, documents)
    return [
        Asked(
            text_of(document),
            source.group(index),
            source.id(index),
            document,
            fit(first_picture(document).load(), model.image_size),
            front,
        )
        for index, document, front in zip(chosen, documents, in_front, strict=True)
    ]


def _retrieved(
    model: Model,
    source: DocumentSource,
    split: str,
    chosen: Sequence[int],
    documents: Sequence[Document],
) -> list[tuple[Document, ...]]:
    """The documents prepended to each prompt, never the prompt's own.

    They are from the training data; for new things from a memory that knows them.
    """
    retriever: Retriever | None = model.components.retriever
    if retriever is None or number_retrieved(model) == 0:
        return [()] * len(chosen)
    if split in NEW_THINGS:
        assert model.recipe.retriever is not None
        memory = _everything(model, source)
        retriever = model.recipe.retriever.build(memory, model.components.embedder)
    queries: list[Document] = [(Text(text_of(document)),) for document in documents]
    found = retriever.retrieve(
        queries, number_retrieved(model), [own_names(source, index) for index in chosen]
    )
    return [
        tuple(retriever.memory.document(result.index) for result in results) for results in found
    ]


def _everything(model: Model, source: DocumentSource) -> DocumentSource:
    """All splits of the data set as one source where it has such a split, else the split itself."""
    config = model.recipe.dataset
    if config is not None and "all" in type(config).splits:
        return replace(config, split="all").build()
    return source


def copies(model: Model, asked: Sequence[Asked]) -> list[PixelArray]:
    """What copying the prepended document would give; white where there is none."""
    white = np.full((*model.image_size, 3), 255, np.uint8)
    found = [one.copied(model.image_size) for one in asked]
    return [white if one is None else one for one in found]
