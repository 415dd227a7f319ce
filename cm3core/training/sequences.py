"""From documents to batches: which sequence an index stands for, and in which order sequences
become batches.

Everything here is a function of (seed, epoch, index); the state of a `BatchLoader` is a few
numbers, and a run that goes on from them gets bit for bit the batches that it would have got.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cm3core.document import Document, MaskedSequence, TokenSequence
from cm3core.errors import CheckpointError, DataError, DocumentError
from cm3core.sequence.infill import TOKENS_PER_SPAN
from cm3core.sequence.packing import Packer, TrainingBatch, collate
from cm3core.training.code_cache import CodeCache
from cm3core.training.neighbours import Neighbours, NeighbourTable, retriever_fingerprint

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.objective import MaskingObjective
    from cm3core.interfaces.retriever import RetrieverConfig
    from cm3core.sequence.serialize import Serializer

__all__ = ["BatchLoader", "CodeCache", "NeighbourTable", "TrainingData", "retriever_fingerprint"]

#: Spans for which retrieved documents leave room (a Poisson(1) number exceeds it once in 270); a
#: query alone may fill all.
_RESERVED_SPANS = 4
#: Sets the streams that order epochs apart from those that make sequences.
_EPOCH_ORDER = 1


class TrainingData:
    """Masked sequences of a source, with retrieved documents in front.

    Args:
        source: the query documents.
        serializer: documents -> tokens.
        objective: masks the sequences.
        code_cache: codes of the source's pictures; documents with unreadable ones are left out.
        neighbours: which memory documents may stand in front of each; None: none.
        memory: the documents that `neighbours` indexes; None: the source itself.
        retriever: the recipe's config, for `num_retrieved` and `random_num_retrieved`; None:
            nothing is retrieved.
        seed: of all randomness.
        context_length: inputs of the decoder; a sequence has at most one token more (its last token
            is only a target).
        max_text_tokens: each text is cut to so many tokens.
        memory_codes: codes of the memory's pictures; None: the memory is the source, or its
            documents hold codes (a memory bank).
        training: True: captions, the number of retrieved documents (where the config says so),
            which of the ranks kept, and their order are drawn. False: canonical captions, and the
            best `num_retrieved`, best first.
    """

    def __init__(
        self,
        source: DocumentSource,
        serializer: Serializer,
        objective: MaskingObjective,
        code_cache: CodeCache,
        neighbours: Neighbours | None,
        memory: DocumentSource | None,
        retriever: RetrieverConfig | None,
        seed: int,
        context_length: int,
        max_text_tokens: int | None,
        *,
        memory_codes: CodeCache | None = None,
        training: bool = True,
    ) -> None:
        self.source, self.serializer, self.objective, self.code_cache = (
            source,
            serializer,
            objective,
            code_cache,
        )
        self.memory = source if memory is None else memory
        self.memory_codes = (
            code_cache if self.memory is source and memory_codes is None else memory_codes
        )
        self.neighbours, self.seed, self.training = neighbours, seed, training
        self.num_retrieved = (
            0 if retriever is None or neighbours is None else retriever.num_retrieved
        )
        self.random_num_retrieved = (
            training and retriever is not None and retriever.random_num_retrieved
        )
        self.max_length, self.max_text_tokens = context_length + 1, max_text_tokens
        assert neighbours is None or len(neighbours) == len(source)
        #: Index into the source of each usable document, int64.
        self.indices: npt.NDArray[np.int64] = np.flatnonzero(code_cache.usable_N)
        self._warned = False
        if not len(self.indices):
            raise DataError(
                "data set", "has no usable document", "run 'cm3 data validate' to see why"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def sequence(self, epoch: int, index: int) -> MaskedSequence:
        """The masked sequence `index` (0..len-1) of an epoch: always the same.

        Raises:
            DocumentError: the query document alone is longer than the context.
        """
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, epoch, index)))
        return self.objective.mask(self.unmasked(index, rng), rng, self.max_length)

    def unmasked(self, index: int, rng: np.random.Generator) -> TokenSequence:
        """The sequence before masking."""
        place = int(self.indices[index])
        captions = rng if self.training else None
        query = self.code_cache.encoded(self.source.document(place, captions))
        retrieved = [self.memory.document(found, captions) for found in self._choose(place, rng)]
        if self.memory_codes is not None:
            retrieved = [self.memory_codes.encoded(document) for document in retrieved]
        sequence = self._fitting(query, retrieved)
        if len(sequence) > self.max_length:
            raise self._too_long(self.source.id(place), sequence)
        return sequence

    def _choose(self, place: int, rng: np.random.Generator) -> list[int]:
        """Indices into the memory of the documents in front, in their order."""
        if self.num_retrieved == 0:
            return []
        assert self.neighbours is not None
        number = (
            int(rng.integers(0, self.num_retrieved + 1))
            if self.random_num_retrieved
            else self.num_retrieved
        )
        found = self.neighbours.neighbours(place)
        if self.memory_codes is not None:
            usable_N = self.memory_codes.usable_N
            found = [index for index in found if usable_N[index]]
        return (
            [found[rank] for rank in rng.permutation(len(found))[:number]]
            if self.training
            else found[:number]
        )

    def _fitting(self, query: Document, retrieved: list[Document]) -> TokenSequence:
        """The sequence with as many of the documents, from the first on, as leave room for a few
        spans; the query always."""
        room = self.max_length - min(
            self.objective.max_added_tokens, _RESERVED_SPANS * TOKENS_PER_SPAN
        )
        whole = sequence = self.serializer.sequence(query, retrieved, self.max_text_tokens)
        number = len(retrieved)
        while number and len(sequence) > room:
            number -= 1
            sequence = self.serializer.sequence(query, retrieved[:number], self.max_text_tokens)
        if number < len(retrieved) and not self._warned and len(sequence) <= self.max_length:
            self._warned = True
            least = len(whole) + self.max_length - 1 - room
            warnings.warn(
                f"a query with {len(retrieved)} retrieved documents has {len(whole)} tokens, and "
                "decoder.context_length"
                f" {self.max_length - 1} has room for {room} beside those of masking: such "
                "queries get fewer, this one "
                f"{number} (said once); set retriever.num_retrieved={number}, or "
                f"decoder.context_length to {least} or "
                "more",
                stacklevel=2,
            )
        return sequence

    def _too_long(self, name: str, sequence: TokenSequence) -> DocumentError:
        """Says what would fit."""
        texts = sum(len(span) for span in sequence.segments if span.modality == "text")
        num_texts = sum(span.modality == "text" for span in sequence.segments)
        room = self.max_length - (len(sequence) - texts)
        cause = (
            f"{len(sequence)} tokens ({len(sequence) - texts} of pictures and separators, "
            f"{texts} of text), the context "
            f"holds {self.max_length}"
        )
        if room > 0 and num_texts:
            return DocumentError(
                f"document {name}",
                cause,
                f"set data.max_text_tokens to at most {room // num_texts}, "
                "or raise decoder.context_length",
            )
        return DocumentError(
            f"document {name}",
            cause,
            "raise decoder.context_length, or use a tokenizer with fewer codes",
        )


class BatchLoader:
    """Endless batches: each epoch's sequences in a new order, packed into rows.

    Args:
        data: the sequences.
        batch_rows: rows of a batch.
        length: inputs of a row.
        seed: of the order.
        pack: several sequences in a row; False: one.
        rank, world_size: this process gets every `world_size`-th sequence of an epoch, from the
            `rank`-th on; all get equally many.
        window: sequences that wait to fill rows, see `Packer`.
    """

    def __init__(
        self,
        data: TrainingData,
        batch_rows: int,
        length: int,
        seed: int,
        pack: bool = True,
        rank: int = 0,
        world_size: int = 1,
        window: int = 64,
    ) -> None:
        assert 0 <= rank < world_size
        if len(data) < world_size:
            raise DataError(
                "data set",
                f"{len(data)} documents for {world_size} processes",
                "use fewer processes",
            )
        self.data, self.batch_rows, self.length, self.seed = data, batch_rows, length, seed
        self.rank, self.world_size = rank, world_size
        self.packer: Packer[tuple[int, int]] = Packer(length, window if pack else 1)
        self.pack = pack
        #: The next sequence: its epoch, and its place in this process's part of the epoch's order.
        self.epoch, self.position = 0, 0
        self._order = self._epoch_order(0)

    def __iter__(self) -> Iterator[TrainingBatch]:
        return self

    def __next__(self) -> TrainingBatch:
        rows = []
        for _ in range(self.batch_rows):
            while not self.packer.is_full:
                self._add_next()
            rows.append(self.packer.next_row())
        return collate(rows, self.length, self.data.serializer.vocabulary)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, as plain numbers for JSON."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "waiting": [list(key) for key, _ in self.packer.waiting],
            "setting": self._setting(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; raises `CheckpointError` when it is of other data or another
        setting."""
        if set(state) != {"epoch", "position", "waiting", "setting"}:
            raise CheckpointError(
                "loader state", f"holds {sorted(state)}", "use a whole checkpoint"
            )
        for key, value in self._setting().items():
            if state["setting"].get(key) != value:
                raise CheckpointError(
                    "loader state",
                    f"{key} was {state['setting'].get(key)}, is now {value}",
                    "go on with the same data, recipe and number of processes",
                )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._order = self._epoch_order(self.epoch)
        self.packer.waiting.clear()
        for epoch, index in state["waiting"]:
            self.packer.add((epoch, index), self.data.sequence(epoch, index))

    def _setting(self) -> dict[str, Any]:
        """What must be the same for a state to mean the same batches."""
        return {
            "num_documents": len(self.data),
            "rank": self.rank,
            "world_size": self.world_size,
            "length": self.length,
            "batch_rows": self.batch_rows,
            "seed": self.seed,
            "pack": self.pack,
            "window": self.packer.window,
        }

    def _epoch_order(self, epoch: int) -> npt.NDArray[np.int64]:
        """This process's part of the epoch's order."""
        rng = np.random.default_rng(
            np.random.SeedSequence((self.seed, epoch), spawn_key=(_EPOCH_ORDER,))
        )
        order: npt.NDArray[np.int64] = rng.permutation(len(self.data))[self.rank :: self.world_size]
        return order[: len(self.data) // self.world_size]

    def _add_next(self) -> None:
        if self.position == len(self._order):
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._epoch_order(self.epoch)
        key = (self.epoch, int(self._order[self.position]))
        self.packer.add(key, self.data.sequence(*key))
        self.position += 1
