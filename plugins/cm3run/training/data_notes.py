"""What is said of a data set before a long work on it: its licences, what codes keep of its pictures, which words are
new.

Licences are counted, stored with the run, and refused where the recipe does not list them (`train.licences`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cm3core import images
from cm3core.document import Image, PixelArray, text_of
from cm3core.errors import CM3Error, DataError
from cm3core.files import write_text
from cm3core.interfaces.dataset import DocumentSource, Provenance
from cm3run.checkpoint.layout import PROVENANCE, provenance_file
from cm3run.checkpoint.words import TrainingWords
from cm3run.evaluation.quality import LEAST_PSNR, drawn_psnr_per_picture
from cm3run.words import words_of

if TYPE_CHECKING:
    from cm3core.interfaces import ImageTokenizer


_FORMAT = "cm3 provenance 1"


def counted(source: DocumentSource) -> list[dict[str, Any]]:
    """Each licence, source and attribution among the documents with their number, most first."""
    numbers = source.provenances()
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], str(item[0])))
    return [{**provenance.stated(), "documents": number} for provenance, number in ordered]


def licences_of(source: DocumentSource) -> dict[str, int]:
    """Licence -> number of documents that have it, most first."""
    numbers: Counter[str] = Counter()
    for provenance, number in source.provenances().items():
        numbers[provenance.licence] += number
    return dict(sorted(numbers.items(), key=lambda item: (-item[1], item[0])))


def check_licences(source: DocumentSource, allowed: Sequence[str]) -> None:
    """Raise `DataError` for the first document whose licence is not in the list; an empty list allows all.

    A licence that is not stated is "unknown"."""
    if not allowed or all(one.licence in allowed for one in source.provenances()):
        return
    for index in range(len(source)):
        licence = source.provenance(index).licence
        if licence not in allowed:
            raise DataError(
                f"document {source.id(index)!r}",
                f"has the licence {licence!r}; train.licences allows {', '.join(allowed)}",
                "leave such documents out of the data set, or add the licence to train.licences",
            )


def write_provenance(folder: Path, source: DocumentSource, memory: DocumentSource | None) -> None:
    """Write what a run is trained on, and what it retrieves from, to its folder."""
    values = {
        "format": _FORMAT,
        "trained_on": counted(source),
        "memory": None if memory is None else counted(memory),
    }
    write_text(folder / PROVENANCE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def of_documents(memory: DocumentSource, ids: Sequence[str]) -> dict[str, Provenance]:
    """Provenance of documents of a memory by their ids; those that it does not hold are left out."""
    wanted = set(ids)
    return {
        memory.id(index): memory.provenance(index)
        for index in range(len(memory))
        if memory.id(index) in wanted
    }


def stored_provenance(checkpoint: Path) -> dict[str, Any]:
    """What `write_provenance` wrote for the run of a checkpoint, or for that of an exported model; nothing where
    it is not there."""
    if (path := provenance_file(checkpoint)) is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CM3Error(str(path), f"is not JSON ({error})", "remove it") from error
    return found if isinstance(found, dict) else {}


#: Pictures that are looked at: the median of so many icons is within 1.3 dB of that of all in nine of ten cases.
NUM_PICTURES = 32
#: Documents whose captions are read, and the share of their words from which on new ones are told.
NUM_TEXTS, LEAST_NEW = 2_000, 0.2
#: New words that are named, those of most captions first.
MOST_NAMED = 6


def note_on_codes(source: DocumentSource, tokenizer: ImageTokenizer) -> str | None:
    """What a user should know of the image tokenizer before a long work on pictures; None: nothing.

    Of a few pictures, evenly spaced over the data set. Pictures that are codes already, or far away, are not looked at.
    """
    found = codes_psnr(source, tokenizer)
    return None if found is None else note_of_codes(*found)


def note_of_codes(psnr: float, num_pictures: int) -> str | None:
    """`note_on_codes` of what `codes_psnr` found."""
    if psnr >= LEAST_PSNR:
        return None
    return (
        f"the image tokenizer's codes keep little of the pictures: PSNR {psnr:.1f} dB where something is drawn, the median "
        f"of {num_pictures}. "
        "A model draws no better than its codes; docs/data.md, 'What the codes keep of your pictures', shows how to "
        "see that, and to train a tokenizer on them"
    )


def codes_psnr(source: DocumentSource, tokenizer: ImageTokenizer) -> tuple[float, int] | None:
    """What codes keep of pictures where something is drawn: PSNR in dB, the median, and the number of pictures.

    None: there are none that can be looked at, or nothing is drawn in them. See `note_on_codes`.
    """
    pictures = _some_pictures(source, tokenizer)
    if not pictures:
        return None
    # one by one: memory, and the same result as when a model draws them
    through = [tokenizer.decode(tokenizer.encode(one[None]))[0] for one in pictures]
    psnr_N = drawn_psnr_per_picture(np.stack(pictures), np.stack(through))
    drawn = psnr_N[~np.isnan(psnr_N)]
    # the median: few pictures that are kept to the last bit would outweigh all others
    return (float(np.median(drawn)), len(drawn)) if len(drawn) else None


def note_on_words(source: DocumentSource, known: TrainingWords | None) -> str | None:
    """What a user should know of the captions before a model is tuned on them; None: nothing.

    Args:
        source: what it is tuned on; the first documents are read.
        known: the words of the captions that the model was trained on; None: they are not known.
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
        f"{len(new):,} of the {len(counts):,} words of the captions are in none that the model was trained on ({named}"
        f"{', ...' if len(new) > MOST_NAMED else ''}): what they mean is learnt from these pictures alone. Use words that "
        "the model knows where there are some, or tune it longer"
    )


def _some_pictures(source: DocumentSource, tokenizer: ImageTokenizer) -> list[PixelArray]:
    size = tokenizer.image_size
    if source.is_far:
        return []
    chosen = np.linspace(0, len(source), NUM_PICTURES, endpoint=False).astype(int)
    found = []
    for index in dict.fromkeys(chosen.tolist()):
        try:
            found += [
                images.fit(segment.load(), size)
                for segment in source.document(index)
                if isinstance(segment, Image)
            ][:1]
        except DataError:
            continue  # which is reported where all documents are read
    return found
