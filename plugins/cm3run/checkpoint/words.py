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
from cm3run.words import singulars_of, words_of

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource

#: Maximum number of texts to collect words from: with more, the list would be long, and incomplete anyway.
MAX_TEXTS = 2_000_000
#: Word length from which a word counts as misspelt if it is one edit away from a known word, and from which two edits
#: are allowed, see `edits`. Chosen to correct many common misspellings and few correct words.
_SHORTEST, _TWO_SLIPS = 3, 10


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
        for one in singulars_of(word):
            if one in self.words:
                return one
        most = _slips(word)
        letters = set(word)
        alike = (
            (
                slips,
                own[:1] != word[:1],
                -len(own),
                own,
            )  # omitting letters is more common than adding them
            for own in self.words
            if abs(len(own) - len(word)) <= most
            and len(letters.symmetric_difference(own)) <= 2 * most
            and 0 < (slips := edits(word, own)) <= most
            # two edits can lead to an unrelated word; the first letter is seldom wrong
            and (slips == 1 or own[:1] == word[:1])
        )
        return min(alike, default=(0, False, 0, None))[-1]


def _slips(word: str) -> int:
    """Maximum number of edits in a misspelt word of this length."""
    return 0 if len(word) < _SHORTEST else 1 if len(word) < _TWO_SLIPS else 2


def edits(one: str, other: str) -> int:
    """The minimum number of insertions, deletions, replacements and swaps of adjacent letters between two words.

    Optimal string alignment: Damerau (1964), without changes between exchanged letters.

    >>> edits("recieve", "receive"), edits("launching", "punching"), edits("", "ab")
    (1, 2, 2)
    """
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        row = [i]
        for j, right in enumerate(other, start=1):
            cost = min(row[-1] + 1, last[j] + 1, last[j - 1] + (left != right))
            if i > 1 and j > 1 and left == other[j - 2] and one[i - 2] == right:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


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
