"""The conditions under which a decoder is measured: held-out documents, and the documents prepended to them.

    split     comp (this style of a known concept is held out) | unseen (the whole concept is)
    memory    train: the training documents | all: also held-out documents, but never a query's own
    documents 0..3 retrieved for the query's text; or the query's own document, i.e. the answer, to see
              whether a decoder uses prepended documents at all (memory `own`)

The measure is the loss on the query's image tokens, in nats per token. Prepended documents do not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from cm3core.document import Codes, Document, IntArray
from cm3core.errors import CM3Error
from cm3core.interfaces import DocumentSource, Retriever, RetrieverConfig
from cm3lab.experiments.retrieval import OWN
from cm3lab.experiments.retrieval.counting import Told, groups_of_codes, told
from cm3run.training.code_cache import CodeCache
from cm3run.training.neighbours import (
    NeighbourSettings,
    NeighbourTable,
    Queries,
    retriever_fingerprint,
)
from cm3run.training.packing import TrainingBatch
from cm3run.training.preparation import Preparation
from cm3run.training.sequences import MaskedSequences, RetrievedDocuments, SequenceSettings
from cm3run.training.validation import UnmaskedObjective, measured_loss, spread

if TYPE_CHECKING:
    from cm3core.interfaces.retriever import Region
    from cm3run.build import Components

#: Maximum number of prepended documents.
MOST = 3


@dataclass(frozen=True)
class Condition:
    """The condition of a loss. `memory` and `retriever` are "" if nothing is prepended."""

    split: str
    memory: str
    retriever: str
    number: int

    @property
    def name(self) -> str:
        """Name for JSON: `comp`, or `comp/all/dense/2`."""
        return (
            "/".join([self.split, self.memory, self.retriever, str(self.number)])
            if self.number
            else self.split
        )


class _Itself:
    """Makes every document its own neighbour."""

    def __init__(self, num_documents: int) -> None:
        self.num_documents = num_documents

    def __len__(self) -> int:
        return self.num_documents

    def neighbours(self, index: int) -> list[int]:
        """See `cm3run.training.neighbours.Neighbours`."""
        return [index]

    def parts(self, index: int) -> list[tuple[int, Region]]:
        """See `cm3run.training.neighbours.Neighbours`."""
        return []


class Measurement:
    """The losses of one decoder under all conditions.

    Args:
        preparation: preparation of the decoder's training.
        retrievers: name -> config; each searches each memory.
        splits: held-out splits of the data set.
        num_documents: number of held-out documents per split, spread evenly.
    """

    def __init__(
        self,
        preparation: Preparation,
        retrievers: dict[str, RetrieverConfig],
        splits: tuple[str, ...],
        num_documents: int,
    ) -> None:
        self.preparation, self.retrievers, self.num_documents = (
            preparation,
            retrievers,
            num_documents,
        )
        self.components: Components = preparation.components
        self.sources = {split: self.components.split(split) for split in splits}
        self.memories = {"train": self.components.source}
        try:
            self.memories["all"] = self.components.split("all")
        except CM3Error:  # a data set that can't combine its splits
            self.memories.pop("all", None)
        self._codes: dict[str, CodeCache] = {}
        self._built: dict[tuple[str, str], Retriever] = {}

    def conditions(self) -> Iterator[Condition]:
        """Yield all conditions, in the order of the tables."""
        for split in self.sources:
            yield Condition(split, "", "", 0)
            yield Condition(split, OWN, OWN, 1)
            for memory in self.memories:
                for name in self.retrievers:
                    yield from (
                        Condition(split, memory, name, number) for number in range(1, MOST + 1)
                    )

    @torch.inference_mode()
    def loss(self, condition: Condition) -> float:
        """Return the loss on the query's image tokens, in nats per token."""
        decoder = self.components.decoder
        return measured_loss(decoder, self._batches(condition))["image_loss"]

    def retriever(self, memory: str, name: str) -> Retriever:
        """Return the retriever over a memory, built on first use."""
        if (memory, name) not in self._built:
            self._built[memory, name] = self.retrievers[name].build(
                self.memories[memory], self.components.embedder
            )
        return self._built[memory, name]

    def _batches(self, condition: Condition) -> list[TrainingBatch]:
        recipe, source = self.preparation.recipe, self.sources[condition.split]
        codes = self._codes_of(f"split {condition.split}", source)
        sequences = MaskedSequences(
            source,
            self.components.serializer,
            UnmaskedObjective(),
            codes,
            self._retrieved(condition, source, codes),
            SequenceSettings(
                seed=recipe.train.seed,
                context_length=self.components.decoder.context_length,
                max_text_tokens=recipe.data.max_text_tokens,
                training=False,
            ),
        )
        return self.preparation.pack(sequences.fitting(spread(len(sequences), self.num_documents)))

    def _retrieved(
        self, condition: Condition, source: DocumentSource, codes: CodeCache
    ) -> RetrievedDocuments | None:
        """Return the documents prepended under a condition."""
        if condition.memory == OWN:
            return RetrievedDocuments(_Itself(len(source)), source, codes, 1)
        memory = self.memories.get(condition.memory)
        if memory is None:
            return None
        return RetrievedDocuments(
            self._neighbours(source, codes, condition.memory, condition.retriever),
            memory,
            self._codes_of(f"memory {condition.memory}", memory),
            condition.number,
        )

    def told(self) -> dict[str, Told]:
        """Return how well the first retrieved document predicts each split's pictures.

        Keys are "split/memory/retriever".
        """
        groups = groups_of_codes(self.components.image_tokenizer)
        found = {}
        for name in self.retrievers:
            train = self._pairs("train", self.components.source, "train", name)
            for split, source in self.sources.items():
                for memory in self.memories:
                    held = self._pairs(f"split {split}", source, memory, name)
                    if len(train[0]) and len(held[0]):
                        found[f"{split}/{memory}/{name}"] = told(*train, *held, groups)
        return found

    def _pairs(
        self, title: str, source: DocumentSource, memory: str, name: str
    ) -> tuple[IntArray, IntArray]:
        """Return codes [N, H, W] of a source's pictures and of the document retrieved for each.

        Pictures without a retrieved document are left out.
        """
        codes, memory_codes = (
            self._codes_of(title, source),
            self._codes_of(f"memory {memory}", self.memories[memory]),
        )
        table, own, front = self._neighbours(source, codes, memory, name), [], []
        for index in np.flatnonzero(codes.usable_N):
            places = [
                place for place in table.neighbours(int(index)) if memory_codes.usable_N[place]
            ]
            pictures = [_first_picture(codes.encoded(source.document(int(index))))]
            pictures += [
                _first_picture(memory_codes.encoded(self.memories[memory].document(place)))
                for place in places[:1]
            ]
            if len(pictures) == 2 and pictures[0] is not None and pictures[1] is not None:
                own.append(pictures[0])
                front.append(pictures[1])
        shape = (len(own), *self.components.image_tokenizer.grid)
        return np.array(own, np.int32).reshape(shape), np.array(front, np.int32).reshape(shape)

    def _neighbours(
        self, source: DocumentSource, codes: CodeCache, memory: str, name: str
    ) -> NeighbourTable:
        # the requested number has no effect here
        config = replace(self.retrievers[name], num_retrieved=1)
        fingerprint = retriever_fingerprint(config, self.components.embedder, self.memories[memory])
        return NeighbourTable(
            Queries(
                self.retriever(memory, name),
                source,
                NeighbourSettings(fingerprint, num_ranks=MOST, text_only=True),
                codes,
            ),
            self.preparation.cache_dir,
            progress=False,
        )

    def _codes_of(self, name: str, source: DocumentSource) -> CodeCache:
        if name not in self._codes:
            self._codes[name] = CodeCache(
                source, self.components.image_tokenizer, self.preparation.cache_dir
            )
        return self._codes[name]


def _first_picture(document: Document) -> IntArray | None:
    return next((segment.codes for segment in document if isinstance(segment, Codes)), None)
