"""From a recipe's data set to its batches: codes, neighbours, masking, packing; for training and validation alike."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from cm3core.build import Components
from cm3core.data import BatchLoader, CodeCache, NeighbourTable, TrainingData, retriever_fingerprint
from cm3core.document import Document, MaskedSequence
from cm3core.interfaces import DocumentSource, MaskingObjective
from cm3core.packing import Packer, TrainingBatch, collate
from cm3core.precomputed import source_fingerprint


class Preparation:
    """Makes data of sources, once the pictures' codes and the neighbours are computed (and kept on disk).

    Args:
        components: built for the stage "train".
        progress: show bars.

    Raises:
        DataError: no document can be used.
    """

    def __init__(self, components: Components, *, progress: bool = True) -> None:
        self.components, self.recipe, self.progress = components, components.recipe, progress
        folder = self.recipe.data.cache_dir
        self.cache_dir = None if folder is None else Path(folder).expanduser()
        self.retrieves = self.recipe.retriever is not None and self.recipe.retriever.num_retrieved > 0
        self._memory_codes = self._codes(components.memory)
        self._training = self.data(components.source, components.objective, retrieve=self.retrieves, training=True)
        #: Hash of the training documents; stored with checkpoints.
        self.fingerprint = source_fingerprint(components.source)

    def _codes(self, source: DocumentSource) -> CodeCache:
        codes = CodeCache(source, self.components.image_tokenizer, self.cache_dir, progress=self.progress)
        skipped = [*source.skipped, *codes.skipped]
        if skipped:
            tqdm.write(f"note: {len(skipped)} records are skipped, the first is {skipped[0].place}: {skipped[0].cause}; "
                       "'cm3 data validate' names them all", file=sys.stderr)
        return codes

    def data(self, source: DocumentSource, objective: MaskingObjective, *, retrieve: bool, training: bool) -> TrainingData:
        """Sequences of a source, masked by `objective`.

        Args:
            source: the training split or another one; its own documents are never retrieved for themselves.
            objective: masks them.
            retrieve: put retrieved documents in front.
            training: captions and retrieved documents are drawn as in training; else canonical captions and the best documents.
        """
        recipe, components = self.recipe, self.components
        codes = self._memory_codes if source is components.memory else self._codes(source)
        neighbours = self._neighbours(source) if retrieve else None
        return TrainingData(source, components.serializer, objective, codes, neighbours, components.memory, recipe.retriever,
                            recipe.train.seed, components.decoder.context_length, recipe.data.max_text_tokens,
                            memory_codes=self._memory_codes, training=training)

    def _neighbours(self, source: DocumentSource) -> NeighbourTable:
        components, config = self.components, self.recipe.retriever
        assert config is not None
        assert components.retriever is not None
        fingerprint = retriever_fingerprint(config, components.embedder, components.memory)
        return NeighbourTable(components.retriever, source, self.cache_dir, fingerprint=fingerprint, progress=self.progress,
                              num_ranks=max(config.num_ranks, config.num_retrieved))

    def retrieved(self, query: Document, exclude: str) -> list[Document]:
        """The documents that belong in front of a query, pictures as codes; none where the recipe retrieves nothing.

        Args:
            query: what is known of the document (its text).
            exclude: id of the document itself.
        """
        config, retriever = self.recipe.retriever, self.components.retriever if self.retrieves else None
        if retriever is None or config is None:
            return []
        found = retriever.retrieve([query], config.num_retrieved, [{exclude}])[0]
        documents = [self.components.memory.document(result.index) for result in found]
        return [self._memory_codes.encoded(document) for document in documents if self._memory_codes.usable(document)]

    def loader(self, rank: int = 0, world_size: int = 1) -> BatchLoader:
        """Endless batches of the training split, for one of `world_size` processes."""
        section, length = self.recipe.train, self.components.decoder.context_length
        return BatchLoader(self._training, section.batch_rows, length, section.seed, self.recipe.data.pack, rank, world_size)

    def pack(self, sequences: Iterable[MaskedSequence]) -> list[TrainingBatch]:
        """Batches of given sequences; the last one may have fewer rows."""
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
        return [collate(rows[start:start + size], length, vocabulary) for start in range(0, len(rows), size)]
