"""What stands between a recipe's data set and its batches: codes, neighbours, masking, packing; for training and validation alike."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


from cm3core.build import Components
from cm3core.data import BatchLoader, CodeCache, NeighbourTable, TrainingData
from cm3core.document import MaskedSequence
from cm3core.files import cache_directory
from cm3core.interfaces import DocumentSource, MaskingObjective
from cm3core.packing import Packer, TrainingBatch, collate


class Preparation:
    """Makes data of sources, once the pictures' codes and the neighbours are computed (and kept on disk).

    Args:
        components: built for the stage "train".
        progress: show bars.
    """

    def __init__(self, components: Components, *, progress: bool = True) -> None:
        self.components, self.recipe, self.progress = components, components.recipe, progress
        self.cache_dir = Path(self.recipe.data.cache_dir).expanduser() if self.recipe.data.cache_dir else cache_directory()
        retriever = self.recipe.retriever
        self.retrieves = retriever is not None and retriever.num_retrieved > 0
        self._training = self.data(components.source, components.objective, retrieve=self.retrieves, training=True)

    @property
    def fingerprint(self) -> str:
        """Hash of what decides the training documents; stored with checkpoints."""
        return self.components.source.fingerprint

    def data(self, source: DocumentSource, objective: MaskingObjective, *, retrieve: bool, training: bool) -> TrainingData:
        """Sequences of a source, masked by `objective`.

        Args:
            source: the training split or another one; its own documents are never retrieved for themselves.
            objective: masks them.
            retrieve: put retrieved documents in front.
            training: as in training, where the recipe may draw how many; else always as many as there are.
        """
        recipe, components = self.recipe, self.components
        codes = CodeCache(source, components.image_tokenizer)
        return TrainingData(source, components.serializer, objective, codes, None, components.memory, recipe.retriever,
                            recipe.train.seed, components.decoder.context_length, recipe.data.max_text_tokens)

    def loader(self, rank: int = 0, world_size: int = 1) -> BatchLoader:
        """Endless batches of the training split, for one of `world_size` processes."""
        recipe = self.recipe
        return BatchLoader(self._training, recipe.train.batch_rows, self.components.decoder.context_length, recipe.train.seed, recipe.data.pack,
                           rank=rank, world_size=world_size)

    def pack(self, sequences: Iterable[MaskedSequence]) -> list[TrainingBatch]:
        """Batches of given sequences, in order of packing; the last one may have fewer rows."""
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
