"""From a recipe's components to batches: codes, neighbours, sequences, packing.

Used for both training and validation.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property

from tqdm import tqdm

from cm3core.document import Document, MaskedSequence
from cm3core.errors import RecipeError
from cm3core.files import user_path
from cm3core.interfaces import DocumentSource, MaskingObjective
from cm3core.interfaces.dataset import SkippedRecord
from cm3run.bank import MemoryBank
from cm3run.build import Components
from cm3run.prepending import in_order
from cm3run.processes import Processes
from cm3run.training.code_cache import CodeCache
from cm3run.training.neighbours import (
    NeighbourSettings,
    NeighboursOnDemand,
    NeighbourTable,
    Queries,
    retriever_fingerprint,
)
from cm3run.training.packing import (
    BatchLoader,
    Packer,
    RowSettings,
    TrainingBatch,
    collate,
    streams_of_new_run,
)
from cm3run.training.sequences import MaskedSequences, RetrievedDocuments, SequenceSettings
from cm3run.trust import refusal
from cm3run.trust.guard import section_reaches


class Preparation:
    """Makes sequences and batches from sources.

    The pictures' codes and the neighbours are computed first, and cached on disk.

    Args:
        components: built for the stage "train".
        progress: show bars.

    Raises:
        DataError: no document is usable.
    """

    def __init__(self, components: Components, *, progress: bool = True) -> None:
        self.components, self.recipe, self.progress = components, components.recipe, progress
        self._told: set[SkippedRecord] = set()
        if components.trust is not None and (
            refused := components.trust.refused(
                one for one in section_reaches(self.recipe) if one.key == "data.cache_dir"
            )
        ):
            raise refusal(f"recipe {self.recipe.name}", "", refused)
        folder = self.recipe.data.cache_dir
        self.cache_dir = None if folder is None else user_path(folder)
        self.retrieves = (
            self.recipe.retriever is not None and self.recipe.retriever.num_retrieved > 0
        )
        if self.retrieves and getattr(self.recipe.retriever, "own_memory", False):
            name = self.recipe.component_names.get("retriever", "")
            raise RecipeError(
                "retriever",
                f"is {name!r}, whose memory may change during training",
                "train on a memory bank, a copy of it: retriever=dense retriever.bank=FOLDER",
            )
        #: The documents to retrieve from; without retrieval, the training documents.
        self.memory: DocumentSource = components.memory if self.retrieves else components.source
        self._note_memory_without_pictures()
        self._memory_codes = (
            None if isinstance(self.memory, MemoryBank) else self._codes(self.memory)
        )
        self._training = self.sequences(
            components.source, components.objective, retrieve=self.retrieves, training=True
        )
        #: Hash of the training documents, and of the bank to retrieve from, if any; stored with
        #: checkpoints.
        self.fingerprint = components.source.content_fingerprint
        self.bank_fingerprint = (
            self.memory.fingerprint if isinstance(self.memory, MemoryBank) else None
        )

    def _note_memory_without_pictures(self) -> None:
        """Say that a memory of token shards is compared by text alone; a bank has vectors of the pictures."""
        needs = getattr(self.recipe.retriever, "needs", ())
        if not self.retrieves or isinstance(self.memory, MemoryBank) or "embedder" not in needs:
            return
        if self.memory.is_encoded:
            tqdm.write(
                "note: the memory is token shards, which have no pictures, so its documents are compared by their texts "
                "alone; to compare pictures, too, build a bank from the pictures (cm3 memory build) and set retriever.bank",
                file=sys.stderr,
            )

    def _codes(self, source: DocumentSource, only: Sequence[int] | None = None) -> CodeCache:
        tokenizer = self.components.image_tokenizer
        codes = CodeCache(source, tokenizer, self.cache_dir, progress=self.progress, only=only)
        self._note_skipped([*source.skipped, *codes.skipped])
        return codes

    def _note_skipped(self, skipped: Sequence[SkippedRecord]) -> None:
        """Print how many records are skipped, without those already reported: each split of a file, and a
        memory of the same documents, lists all of the file's."""
        new = [record for record in skipped if record not in self._told]
        if not new:
            return
        more = " more" if self._told else ""
        number = f"1{more} record is" if len(new) == 1 else f"{len(new)}{more} records are"
        self._told |= set(new)
        tqdm.write(
            f"note: {number} skipped; the first is {new[0].place}: {new[0].cause}; "
            "'cm3 data validate' lists them all",
            file=sys.stderr,
        )

    def sequences(
        self,
        source: DocumentSource,
        objective: MaskingObjective,
        *,
        retrieve: bool,
        training: bool,
        only: Sequence[int] | None = None,
    ) -> MaskedSequences:
        """Sequences of a source, masked by `objective`.

        Args:
            source: the training split or another one; a document is never retrieved for itself.
            objective: masks the sequences.
            retrieve: prepend retrieved documents.
            training: draw captions and retrieved documents at random, as in training; otherwise use
                canonical captions and the best documents, retrieved with the text alone, as for a
                prompt.
            only: the documents of the source that are used, and whose pictures are encoded; None: all.
        """
        recipe, components = self.recipe, self.components
        codes = (
            self._memory_codes
            if source is self.memory and self._memory_codes is not None and only is None
            else self._codes(source, only)
        )
        return MaskedSequences(
            source,
            components.serializer,
            objective,
            codes,
            self._retrieved_documents(source, codes, training) if retrieve else None,
            SequenceSettings(
                seed=recipe.train.seed,
                context_length=components.decoder.context_length,
                max_text_tokens=recipe.data.max_text_tokens,
                training=training,
            ),
        )

    def _retrieved_documents(
        self, source: DocumentSource, codes: CodeCache, training: bool
    ) -> RetrievedDocuments:
        components, config = self.components, self.recipe.retriever
        assert config is not None
        assert components.retriever is not None
        settings = NeighbourSettings(
            self._retriever_fingerprint,
            num_ranks=max(config.num_ranks, config.num_retrieved),
            query_dropout=config.query_dropout if training else 0.0,
            seed=self.recipe.train.seed,
            text_only=not training,
        )
        queries = Queries(components.retriever, source, settings, codes, components.image_tokenizer)
        neighbours = (
            NeighbourTable(queries, self.cache_dir, progress=self.progress)
            if training  # otherwise only few of its documents are used
            else NeighboursOnDemand(queries)
        )
        return RetrievedDocuments(
            neighbours,
            self.memory,
            self._memory_codes,
            config.num_retrieved,
            config.random_num_retrieved,
            config.own_share,
            config.full_share,
            config.num_facets,
            config.order,
        )

    @cached_property
    def _retriever_fingerprint(self) -> str:
        assert self.recipe.retriever is not None
        return retriever_fingerprint(self.recipe.retriever, self.components.embedder, self.memory)

    def retrieved(self, query: Document, exclude: Collection[str]) -> list[Document]:
        """The documents to prepend to a query, with pictures as codes.

        Empty if the recipe retrieves nothing.

        Args:
            query: the known part of the document (its text).
            exclude: id and content keys of the document itself.
        """
        config, retriever = (
            self.recipe.retriever,
            self.components.retriever if self.retrieves else None,
        )
        if retriever is None or config is None:
            return []
        found = retriever.retrieve([query], config.num_retrieved, [exclude])[0]
        documents = [self.memory.document(result.index) for result in found]
        codes = self._memory_codes
        if codes is not None:
            documents = [
                codes.encoded(document) for document in documents if codes.usable(document)
            ]
        return in_order(config.order, query, documents)

    def loader(
        self, processes: Processes | None = None, num_streams: int | None = None
    ) -> BatchLoader:
        """Endless batches of the training split; this process's rows, if there are several processes.

        `num_streams`: see `BatchLoader`; None: as a new run with these processes has."""
        if num_streams is None:
            number = 1 if processes is None else processes.world_size
            num_streams = streams_of_new_run(self.recipe.data.num_streams, number)
        section, length = self.recipe.train, self.components.decoder.context_length
        return BatchLoader(
            self._training,
            RowSettings(
                section.batch_rows,
                length,
                seed=section.seed,
                pack=self.recipe.data.pack,
                accumulate=section.accumulate,
                num_streams=num_streams,
            ),
            processes=processes,
        )

    def pack(self, sequences: Iterable[MaskedSequence]) -> list[TrainingBatch]:
        """Pack given sequences into batches; the last one may have fewer rows."""
        length, vocabulary = self.components.decoder.context_length, self.components.vocabulary
        packer: Packer[int] = Packer(length)
        rows: list[list[MaskedSequence]] = []
        for index, sequence in enumerate(sequences):
            packer.add(index, sequence)
            if packer.is_full:
                rows.append(packer.next_row())
        while row := packer.next_row():
            rows.append(row)
        size = self.recipe.train.batch_rows
        return [
            collate(rows[start : start + size], length, vocabulary)
            for start in range(0, len(rows), size)
        ]
