"""Named lists of concepts, each within the next: `starter` (40), `quickstart` (100, in all five
styles), `concrete` (300)."""

from __future__ import annotations

from pathlib import Path

from cm3core.errors import DataError, close_match
from cm3core.files import user_path
from cm3plugins.datasets.emoji.corpus import EmojiCorpus

FOLDER = Path(__file__).parent / "concepts"
ALL = "all"


def list_names() -> tuple[str, ...]:
    """Return the names of the bundled lists."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))


def read_concepts_file(path: Path, corpus: EmojiCorpus) -> frozenset[str]:
    """Read concepts from a text file: one label or concept a line, `#` opens a comment.

    Args:
        path: the file, UTF-8.
        corpus: where the concepts must exist.

    Returns:
        concepts, as in ``EmojiEntry.concept``.

    Raises:
        DataError: the file can't be read or names what the corpus lacks.
    """
    known = {entry.label: entry.concept for entry in corpus.entries}
    known |= {entry.concept: entry.concept for entry in corpus.entries}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            str(path),
            f"the list of concepts can't be read ({error})",
            "check the path and the file",
        ) from error
    concepts = set()
    for number, line in enumerate(lines, start=1):
        name = line.partition("#")[0].strip().lower()
        if not name:
            continue
        if name not in known:
            cause = f"the emoji corpus has no concept {name!r}; {_hint(name, known)}"
            raise DataError(
                f"{path}, line {number}", cause, "write labels as in the corpus, one a line"
            )
        concepts.add(known[name])
    return frozenset(concepts)


def select_concepts(concepts: str, corpus: EmojiCorpus) -> frozenset[str]:
    """Return the concepts that a recipe's `concepts` names.

    Args:
        concepts: "all", the name of a bundled list, or the path of a text file.
        corpus: where they must exist.

    Raises:
        DataError: it is neither, or the file is at fault.
    """
    if concepts == ALL:
        return frozenset(entry.concept for entry in corpus.entries)
    if concepts in list_names():
        return read_concepts_file(FOLDER / f"{concepts}.txt", corpus)
    path = user_path(concepts)
    if not path.is_file():
        hint = close_match(concepts, (ALL, *list_names()))
        cause = f"{concepts!r} is neither a list of concepts nor a file; {hint}"
        raise DataError(
            "dataset.concepts",
            cause,
            f"use {ALL}, {', '.join(list_names())}, or the path of a text file",
        )
    return read_concepts_file(path, corpus)


def _hint(name: str, known: dict[str, str]) -> str:
    hint = close_match(name, known)
    return hint if hint.startswith("did") else f"it has {len(set(known.values()))} others"
