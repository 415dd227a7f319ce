"""What a prompt asks the memory for, and which documents have a word of it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm3run.checkpoint.words import singulars_of, words_of

if TYPE_CHECKING:
    from cm3core.interfaces.retriever import RetrieverConfig


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


def has_these_words(thing: str, text: str) -> bool:
    """Whether a text has every word of another as it is spelled. False where that has no words.

    >>> has_these_words("bird cage", "cage bird, filled"), has_these_words("bird cages", "bird cage, filled")
    (True, False)
    """
    asked = words_of(thing)
    return bool(asked) and set(words_of(text)).issuperset(asked)


def is_named(thing: str, text: str) -> bool:
    """Whether what stands before the first comma of a text has the words of another, and no more.

    >>> is_named("bird cage", "cage bird, filled"), is_named("cage", "cage bird, filled")
    (True, False)
    """
    return sorted(words_of(thing)) == sorted(words_of(text.split(",")[0]))


def has_a_phrase(text: str, phrases: Collection[str]) -> bool:
    """Whether a text has all words of one of the phrases.

    >>> has_a_phrase("apple, full colour", ["duotone", "full colour"]), has_a_phrase("a full glass", ["full colour"])
    (True, False)
    """
    words = set(words_of(text))
    return any(words.issuperset(asked) for asked in map(words_of, phrases) if asked)


@dataclass(frozen=True)
class Wording:
    """Words in which the memory is asked for what a prompt names.

    Args:
        query: the text to search for.
        thing: what of it names the thing.
    """

    query: str
    thing: str


def wordings(config: RetrieverConfig, prompt: str, known: Collection[str] | None) -> list[Wording]:
    """A prompt's wordings, in the order in which they are tried: the thing as the prompt has it, without the words before
    it that name nothing, without such words anywhere, in the singular, by the memory's name. What is said of the thing
    is in the memory's words in all of them.

    Args:
        config: of the retriever; the last wording is its `asked`.
        prompt: any text.
        known: words of the training texts, as `words_of` gives them; None: not known.
    """

    def as_it_is(text: str) -> str:
        return text

    def singular(text: str) -> str:
        return in_singular(text, known) if config.query_singular and known is not None else text

    def renamed(text: str) -> str:
        return config.in_other_words(singular(text))

    thing = prompt.split(",")[0]
    rest = config.without_fillers(renamed(prompt[len(thing) :]))
    begun = config.without_fillers(thing, first=True)  # "a nut and bolt" is a nut and bolt
    tried = [Wording(thing + rest, thing), Wording(begun + rest, begun)]
    thing = config.thing(prompt)
    rest = renamed(prompt[len(thing) :])
    for change in (as_it_is, singular):
        query = config.without_fillers(change(thing) + rest)
        tried.append(Wording(query, config.without_fillers(change(thing))))
    tried.append(Wording(config.asked(singular(prompt)), config.asked(singular(thing))))
    return list(dict.fromkeys(reversed(tried)))[::-1]


def _forms(text: str) -> set[str]:
    words = words_of(text)
    return {*words, *(one for word in words for one in singulars_of(word))}
