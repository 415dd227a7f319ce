"""Notes on a data set before long work on it: its licences, how well codes keep its pictures, and which words are
new.

Licences are counted, stored with the run, and refused if the recipe does not list them (`train.licences`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cm3core.document import Image, text_of
from cm3core.errors import CM3Error, DataError
from cm3core.files import write_text
from cm3core.interfaces.dataset import DocumentSource, Provenance
from cm3run.checkpoint.layout import PROVENANCE, provenance_file
from cm3run.checkpoint.words import TrainingWords
from cm3run.evaluation.kept import Kept, kept_by_codes
from cm3run.words import words_of

if TYPE_CHECKING:
    from cm3core.interfaces import ImageTokenizer


_FORMAT = "cm3 provenance 1"


def counted(source: DocumentSource) -> list[dict[str, Any]]:
    """Each licence, source and attribution with its number of documents, largest first."""
    numbers = source.provenances()
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], str(item[0])))
    return [{**provenance.stated(), "documents": number} for provenance, number in ordered]


def licences_of(source: DocumentSource) -> dict[str, int]:
    """Licence -> number of documents with it, largest first."""
    numbers: Counter[str] = Counter()
    for provenance, number in source.provenances().items():
        numbers[provenance.licence] += number
    return dict(sorted(numbers.items(), key=lambda item: (-item[1], item[0])))


def check_licences(source: DocumentSource, allowed: Sequence[str]) -> None:
    """Raise `DataError` for the first document whose licence is not in the list; an empty list allows all.

    A missing licence counts as "unknown"."""
    if not allowed or all(one.licence in allowed for one in source.provenances()):
        return
    for index in range(len(source)):
        licence = source.provenance(index).licence
        if licence not in allowed:
            raise DataError(
                f"document {source.id(index)!r}",
                f"has the licence {licence!r}; train.licences allows {', '.join(allowed)}",
                "remove such documents from the data set, or add the licence to train.licences",
            )


def write_provenance(folder: Path, source: DocumentSource, memory: DocumentSource | None) -> None:
    """Write the provenance of the data for training and retrieval to the run's folder."""
    values = {
        "format": _FORMAT,
        "trained_on": counted(source),
        "memory": None if memory is None else counted(memory),
    }
    write_text(folder / PROVENANCE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def of_documents(memory: DocumentSource, ids: Sequence[str]) -> dict[str, Provenance]:
    """Provenance of documents of a memory, by id; unknown ids are omitted."""
    wanted = set(ids)
    return {
        memory.id(index): memory.provenance(index)
        for index in range(len(memory))
        if memory.id(index) in wanted
    }


def stored_provenance(checkpoint: Path) -> dict[str, Any]:
    """Read the provenance written by `write_provenance` for the run of a checkpoint or of an exported model; empty if
    the file is missing."""
    if (path := provenance_file(checkpoint)) is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CM3Error(str(path), f"is not JSON ({error})", "remove it") from error
    return found if isinstance(found, dict) else {}


#: Pictures to measure: their median is within 1.3 dB of that of all icons in nine of ten cases.
NUM_PICTURES = 32
#: Documents whose captions are read, and the share of new words from which a note is given.
NUM_TEXTS, LEAST_NEW = 2_000, 0.2
#: Number of new words to name, the most frequent first.
MOST_NAMED = 6


def note_on_codes(source: DocumentSource, tokenizer: ImageTokenizer) -> str | None:
    """A note about an image tokenizer that doesn't keep the pictures; None: no note. See `codes_kept`."""
    found = codes_kept(source, tokenizer)
    return None if found is None else note_of_codes(found)


def note_of_codes(kept: Kept) -> str | None:
    """The note for the result of `codes_kept`; None if the codes suit the pictures."""
    if kept.suits:
        return None
    return (
        f"the image tokenizer's codes keep little of the pictures: {kept.in_words()}. "
        "The model's pictures can't be better than its codes; docs/data.md, 'What the codes keep of your pictures', shows "
        "how to check this, and how to train an image tokenizer on the pictures"
    )


def codes_kept(source: DocumentSource, tokenizer: ImageTokenizer) -> Kept | None:
    """What the codes keep of a few pictures, evenly spaced over the data set; None: no pictures can be measured, or all
    are blank.

    Skipped if pictures are already codes or stored remotely.
    """
    return kept_by_codes(_some_pictures(source), tokenizer)


def note_on_words(source: DocumentSource, known: TrainingWords | None) -> str | None:
    """A note about new words in the captions before a model is tuned on them; None: no note.

    Args:
        source: the tuning data; the first documents are read.
        known: the words of the model's training captions; None: unknown.
    """
    if known is None or source.is_far:
        return None
    texts = [text_of(source.document(index)) for index in range(min(len(source), NUM_TEXTS))]
    counts = Counter(word for text in texts for word in set(words_of(text)))
    new = [(word, number) for word, number in counts.most_common() if word not in known.words]
    if len(new) < LEAST_NEW * len(counts):
        return None
    named = ", ".join(repr(word) for word, _ in new[:MOST_NAMED])
    return (
        f"{len(new):,} of the {len(counts):,} words of the captions did not occur in the model's training ({named}"
        f"{', ...' if len(new) > MOST_NAMED else ''}): the model learns them from these pictures alone. Use words that "
        "the model knows if possible, or tune it longer"
    )


def _some_pictures(source: DocumentSource) -> list[Image]:
    if source.is_far:
        return []
    chosen = np.linspace(0, len(source), NUM_PICTURES, endpoint=False).astype(int)
    found = []
    for index in dict.fromkeys(chosen.tolist()):
        with suppress(DataError):  # reported when all documents are read
            segments = source.document(index)
            found += [segment for segment in segments if isinstance(segment, Image)][:1]
    return found
