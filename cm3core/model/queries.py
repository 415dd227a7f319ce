"""What a prompt asks the memory for, and which documents have a word of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from cm3core.checkpoint.words import singulars_of, words_of
from cm3core.document import Document, Text, text_of

if TYPE_CHECKING:
    from cm3core.interfaces.retriever import Retrieved, Retriever


def in_singular(text: str, known: Collection[str], *, known_plurals: bool = False) -> str:
    """A text in which each plural whose singular is known is that, unless the plural is known, too.

    Args:
        text: in English.
        known: words, as `words_of` gives them.
        known_plurals: these as well.

    >>> in_singular("two Cats, wolves and glasses", {"two", "cat", "wolf", "glass", "glasses"})
    'two cat, wolf and glasses'
    """

    def form(found: re.Match[str]) -> str:
        word = found[0].casefold()
        if word in known and not known_plurals:
            return found[0]
        return next((one for one in singulars_of(word) if one in known), found[0])

    return re.sub(r"[^\W\d_]+", form, text)


def shares_a_word(thing: str, text: str) -> bool:
    """Whether a text has a word of another; a plural is the same word. True where that has no words.

    >>> shares_a_word("bird cage", "birds, filled"), shares_a_word("bird", "cat, outline")
    (True, False)
    """
    asked = _forms(thing)
    return not asked or not asked.isdisjoint(_forms(text))


def has_every_word(thing: str, text: str) -> bool:
    """Whether a text has every word of another; a plural is the same word. False where that has no words.

    >>> has_every_word("bird cages", "cage bird, filled"), has_every_word("bird cage", "bird, filled")
    (True, False)
    """
    asked, said = words_of(thing), _forms(text)
    return bool(asked) and not any(_forms(word).isdisjoint(said) for word in asked)


def has_a_phrase(text: str, phrases: Collection[str]) -> bool:
    """Whether a text has all words of one of the phrases.

    >>> has_a_phrase("apple, full colour", ["duotone", "full colour"]), has_a_phrase("a full glass", ["full colour"])
    (True, False)
    """
    words = set(words_of(text))
    return any(words.issuperset(asked) for asked in map(words_of, phrases) if asked)


def with_a_word(
    retriever: Retriever,
    queries: Sequence[tuple[str, str]],
    number: int,
    exclude: Sequence[Collection[str]],
    depth: int,
) -> list[list[Retrieved]]:
    """For each query the best documents that share a word with its thing, of the `depth` nearest; empty: none does.

    Args:
        retriever: searches the memory.
        queries: each a text and the thing that it names.
        number: of documents at most.
        exclude: names of documents that must not be found, for each query.
        depth: at least `number`.
    """
    asked: list[Document] = [(Text(query),) for query, _ in queries]
    found = retriever.retrieve(asked, depth, exclude)

    def having(thing: str, results: Sequence[Retrieved]) -> Iterator[Retrieved]:
        for one in results:
            if shares_a_word(thing, text_of(retriever.memory.document(one.index))):
                yield one

    # no more documents are read than it takes: a memory may be a database far away
    return [
        list(islice(having(thing, results), number))
        for (_, thing), results in zip(queries, found, strict=True)
    ]


def _forms(text: str) -> set[str]:
    words = words_of(text)
    return {*words, *(one for word in words for one in singulars_of(word))}
