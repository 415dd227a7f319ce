"""The words of a model's training texts, stored with it, so that words of a prompt that it has
never seen can be reported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.errors import CheckpointError
from cm3core.files import read_text
from cm3run.checkpoint.layout import WORDS, damaged
from cm3run.words import nearest_word, words_of

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource

#: Maximum number of texts to collect words from: with more, the list would be long, and incomplete anyway.
MAX_TEXTS = 2_000_000


@dataclass(frozen=True)
class TrainingWords:
    """The distinct words of all training texts."""

    words: frozenset[str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> TrainingWords:
        """Collect the words of some texts."""
        return cls(frozenset(word for text in set(texts) for word in words_of(text)))

    @classmethod
    def read(cls, folder: Path) -> TrainingWords | None:
        """Read the words stored in a checkpoint; None if it has none (an older one, or one that was
        trained on too many texts).

        Raises:
            CheckpointError: the file can't be read.
        """
        path = folder / WORDS
        if not path.is_file():
            return None
        try:
            return cls(frozenset(read_text(path).split()))
        except (OSError, UnicodeDecodeError) as error:
            raise damaged(path, f"can't be read ({error})") from error

    def write(self, folder: Path) -> None:
        """Store the words: one per line, sorted."""
        lines = "".join(f"{word}\n" for word in sorted(self.words))
        (folder / WORDS).write_text(lines, encoding="utf-8")

    def united(self, other: TrainingWords | None) -> TrainingWords:
        """The union with the words of another training run, such as that of the model a run started from."""
        return self if other is None else TrainingWords(self.words | other.words)

    def unknown(self, text: str) -> Iterator[str]:
        """The words of a text that occur in no training text, each once, in order."""
        yield from dict.fromkeys(word for word in words_of(text) if word not in self.words)

    def nearest(self, word: str) -> str | None:
        """The known word that is the singular of `word`, or the one with the most similar spelling; None if none is
        close."""
        return nearest_word(word, self.words)


def knows_words(source: DocumentSource) -> bool:
    """Whether words are collected of a training on this source: not if reading its texts takes long, or if they are too
    many."""
    return not source.is_far and len(source) <= MAX_TEXTS


def words_of_training(source: DocumentSource, checkpoint: Path | None) -> TrainingWords | None:
    """The words that a run starts with: of its canonical texts, and of the checkpoint that it starts or resumes from.
    Training adds the words of the texts that it draws (`MaskedSequences.words`).

    Args:
        source: the training documents.
        checkpoint: its folder, if there is one.

    Returns:
        None if the complete list is unknown: see `knows_words`, or a checkpoint without a list.
    """
    if not knows_words(source):
        return None
    before = None
    if checkpoint is not None:
        try:
            before = TrainingWords.read(checkpoint)
        except CheckpointError:
            return None
        if before is None:
            return None
    return TrainingWords.of(source.texts()).united(before)
