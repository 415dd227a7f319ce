"""`word_lists`: rewrites prompts in the words of the memory's texts.

Wordings of a prompt are tried in order; the first that finds a document with every word of the subject wins.
Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from cm3core.document import Text
from cm3core.errors import RecipeError
from cm3core.interfaces.reach import TEXT, Outside
from cm3run.prompting import (
    Asked,
    Found,
    PromptRewriter,
    PromptRewriterConfig,
    Searching,
    best_of,
    is_near,
    with_texts,
)
from cm3run.words import forms_of, shares_a_word, singulars_of, words_of

if TYPE_CHECKING:
    from cm3core.interfaces.retriever import Retrieved

#: Number of extra documents to retrieve, so that some can be ranked last.
_SPARE = 4
#: Tests whether a text has the words of a subject.
_Has = Callable[[str, str], bool]


@dataclass(frozen=True)
class Wording:
    """One wording in which the memory is searched for a prompt's subject.

    Args:
        query: text to search for.
        subject: the part of it that names the subject.
    """

    query: str
    subject: str


@dataclass(kw_only=True)
class WordListsConfig(PromptRewriterConfig):
    """Rewrites prompts in the words of the memory's texts, using lists of words.

    A prompt is first searched for unchanged, and reworded only if no document has every word of its subject. Case is
    ignored.

    Args:
        leaves_out: phrases without meaning for retrieval, such as "a photo of"; dropped if another word follows. For memories
            whose texts don't contain them: embedders of words and BM25 give rare words the most weight.
        replaces: words and phrases with their replacements, such as `puppy: dog`.
        singular: replace a word that is in no training text by its singular, if a training text has that. English only.
        subject_ends_at: words such as "with": the subject ends before the first of them, or at the first comma.
        search_depth: if the best document lacks a word of the subject, use the best of this many documents that has every
            word; if none has and the best has no word, the best one with some word. 0: use the best one.
        unless_asked_for: documents with one of these words are ranked after similarly near documents
            (`retriever.alternative_margin`) without them, and don't take turns with those, unless the prompt has the word.
            For motifs that the model draws badly.
        same_subject_margin: overrides `retriever.alternative_margin`, if larger, for documents that have every word of the
            subject.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "leaves_out": TEXT,
        "replaces": TEXT,
        "subject_ends_at": TEXT,
        "unless_asked_for": TEXT,
    }
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "search_depth": (0, 2**20),
        "same_subject_margin": (0.0, 1.0),
    }
    leaves_out: list[str] = field(default_factory=list)
    replaces: dict[str, str] = field(default_factory=dict)
    singular: bool = False
    subject_ends_at: list[str] = field(default_factory=list)
    search_depth: int = 0
    unless_asked_for: list[str] = field(default_factory=list)
    same_subject_margin: float = 0.0

    def check(self) -> None:
        """Reject numbers out of range and phrases without a word."""
        super().check()
        for name in ("leaves_out", "subject_ends_at", "unless_asked_for"):
            if any(not one.split() for one in getattr(self, name)):
                raise RecipeError(
                    f"prompt_rewriter.{name}", "has a phrase without a word", "remove it"
                )
        for asked, instead in self.replaces.items():
            if not (asked.split() and instead.split()):
                raise RecipeError(
                    "prompt_rewriter.replaces",
                    f"replaces {asked!r} by {instead!r}, but one of them has no word",
                    "remove it, or use leaves_out",
                )

    def build(self) -> WordLists:
        """See `PromptRewriterConfig.build`."""
        return WordLists(self)


class WordLists(PromptRewriter):
    """See `WordListsConfig`."""

    def __init__(self, config: WordListsConfig) -> None:
        self.config = config

    @property
    def spare(self) -> int:
        """Extra documents, if some may be ranked last."""
        return _SPARE if self.config.unless_asked_for else 0

    # ---- words of a prompt

    def _rewrite(self, prompt: str, known: Collection[str] | None) -> str:
        return self._last_resort(prompt, known)

    def _last_resort(
        self, prompt: str, known: Collection[str] | None, *, known_plurals: bool = False
    ) -> str:
        """Rewrite everything in a prompt; `known_plurals`: use the singular even if training texts have the
        plural."""
        if self.config.singular and known is not None:
            prompt = in_singular(prompt, known, known_plurals=known_plurals)
        return self.without_fillers(self.in_other_words(prompt))

    def subject(self, text: str) -> str:
        """Return the text before the first comma or the first word of `subject_ends_at`."""
        phrases = self.config.subject_ends_at
        ends = rf"|(?<=\w)\s+(?:{_one_of(phrases)})(?!\w)" if phrases else ""
        return re.split(f",{ends}", text, maxsplit=1, flags=re.IGNORECASE)[0]

    def in_other_words(self, text: str) -> str:
        """Apply `replaces` to a text."""
        if not self.config.replaces:
            return text
        other = {
            " ".join(words.casefold().split()): instead
            for words, instead in self.config.replaces.items()
        }
        # case-insensitive patterns equate a few letters that casefold() keeps apart
        return re.sub(
            rf"(?:{_one_of(other)})(?!\w)",
            lambda found: other.get(" ".join(found[0].casefold().split()), found[0]),
            text,
            flags=re.IGNORECASE,
        )

    def without_fillers(self, text: str, *, first: bool = False) -> str:
        """Remove `leaves_out` from a text; `first`: only at its beginning."""
        if not self.config.leaves_out:
            return text
        fillers = rf"(?:{_one_of(self.config.leaves_out)})\s+(?=\w)"
        if first:
            fillers = rf"\A\s*(?:{fillers})+"
        return re.sub(fillers, "", text, flags=re.IGNORECASE)

    def wordings(self, prompt: str, known: Collection[str] | None) -> list[Wording]:
        """Return a prompt's wordings in the order they are tried: the subject unchanged, without fillers before it,
        without fillers anywhere, in the singular, by the memory's name. Style words are replaced in all of them; the last
        wording is `rewrite`.
        """

        def as_it_is(text: str) -> str:
            return text

        def singular(text: str) -> str:
            return in_singular(text, known) if self.config.singular and known is not None else text

        def renamed(text: str) -> str:
            return self.in_other_words(singular(text))

        subject = prompt.split(",")[0]
        rest = self.without_fillers(renamed(prompt[len(subject) :]))
        begun = self.without_fillers(subject, first=True)  # "a nut and bolt" is a nut and bolt
        tried = [Wording(subject + rest, subject), Wording(begun + rest, begun)]
        subject = self.subject(prompt)
        rest = renamed(prompt[len(subject) :])
        for change in (as_it_is, singular):
            query = self.without_fillers(change(subject) + rest)
            tried.append(Wording(query, self.without_fillers(change(subject))))
        tried.append(Wording(self._last_resort(prompt, known), self._last_resort(subject, known)))
        return list(dict.fromkeys(reversed(tried)))[::-1]

    # ---- searches

    def search(self, asked: Asked) -> Searching:
        """Try the wordings of a prompt that has one text, with or without a picture."""
        texts = [part.text for part in asked.query if isinstance(part, Text)]
        if len(texts) != 1:
            found = yield from super().search(asked)
        elif len(asked.query) == 1:
            found = yield from self._of_text(asked, texts[0])
        else:
            found = yield from self._with_picture(asked, texts[0])
        return self._unasked_last(found, asked) if len(texts) == len(asked.query) else found

    def _of_text(self, asked: Asked, prompt: str) -> Searching:
        tries = self.wordings(prompt, asked.known)
        number, depth, last = asked.number, self.config.search_depth, tries[-1]
        subjects = [one.subject for one in tries if one.query == last.query]
        deep: tuple[str, list[Retrieved]] = "", []  # the last text searched to this depth
        for one in tries:
            if one.query == last.query:
                break
            # this rarely finds the subject: search to the full depth at once
            if one.query != deep[0]:
                deep = one.query, (yield (Text(one.query),), max(number, depth))
            if chosen := _of_subject(asked, one.subject, deep[1], has_these_words):
                return Found(chosen, one.query, one.subject)
        results = yield (Text(last.query),), number
        if not (depth and results):
            return Found(results, last.query, last.subject)
        best = asked.text_of(results[0])
        for subject in subjects:
            if has_these_words(subject, best):
                return Found(results, last.query, subject)
            if deep[0] != last.query:
                deep = last.query, (yield (Text(last.query),), max(number, depth))
            chosen = _in_plural(asked, subject, best, results, deep[1])
            if chosen := chosen or _of_subject(asked, subject, deep[1], has_these_words):
                return Found(chosen[:number], last.query, subject)
        query = self._last_resort(prompt, asked.known, known_plurals=True)
        if query != deep[0]:
            deep = query, (yield (Text(query),), max(number, depth))
        if chosen := _of_subject(asked, last.subject, deep[1], has_every_word):
            return Found(chosen, query, last.subject)
        if not shares_a_word(last.subject, best):
            alike = (one for one in deep[1] if shares_a_word(last.subject, asked.text_of(one)))
            if chosen := list(islice(alike, number)):
                return Found(chosen, query, last.subject)
        return Found(results, last.query, last.subject)

    def _with_picture(self, asked: Asked, prompt: str) -> Searching:
        """Choose the wording by text; the retriever, which also compares the picture, decides the order."""
        tries = self.wordings(prompt, asked.known)
        last = tries[-1]
        for one in tries:
            if one.query == last.query:
                break
            query = with_texts(asked.query, lambda _, one=one: one.query)  # type: ignore[misc]  # mypy infers no lambda with a default
            results = yield query, max(asked.number, self.config.search_depth)
            if any(has_these_words(one.subject, asked.text_of(found)) for found in results):
                return Found(results[: asked.number], one.query, one.subject)
        results = yield with_texts(asked.query, lambda _: last.query), asked.number
        return Found(results, last.query, last.subject)

    # ---- which results are used

    def _unasked_last(self, found: Found, asked: Asked) -> Found:
        """Among documents nearly as near as the best, rank last those with a word of `unless_asked_for` that the query
        lacks."""
        results = found.results
        if not results or not self.config.unless_asked_for:
            return found
        unasked = self._not_asked_for(found.query)
        near = [one for one in results if is_near(one, results[0], asked.margin)]
        last = [one for one in near if has_a_phrase(asked.text_of(one), unasked)]
        in_order = [
            *(one for one in near if one not in last),
            *last,
            *(one for one in results if one not in near),
        ]
        return Found(in_order, found.query, found.subject)

    def turns(self, found: Found, asked: Asked) -> list[int]:
        """Return the documents about as near as the best one, and documents of the same subject within the margin."""
        best, margin = best_of(found.results), self.config.same_subject_margin
        places = [
            place
            for place, one in enumerate(found.results)
            if is_near(one, best, asked.margin)
            or (
                margin
                and is_near(one, best, margin)
                and has_every_word(found.subject, asked.text_of(one))
            )
        ]
        if unasked := self._not_asked_for(found.query):
            # only then: a memory may be remote, so texts are not read needlessly
            texts = [asked.text_of(found.results[place]) for place in places]
            wanted = [
                place
                for place, text in zip(places, texts, strict=True)
                if not has_a_phrase(text, unasked)
            ]
            places = wanted or places
        return places

    def avoids(self, text: str) -> bool:
        """Whether a text has a phrase of `unless_asked_for`."""
        return has_a_phrase(text, self.config.unless_asked_for)

    def _not_asked_for(self, query: str) -> list[str]:
        """Return the phrases of `unless_asked_for` that a query lacks."""
        words = set(words_of(query))
        return [one for one in self.config.unless_asked_for if not words.issuperset(words_of(one))]


def _of_subject(
    asked: Asked, subject: str, results: Sequence[Retrieved], has: _Has
) -> list[Retrieved]:
    """Return the results that have every word of the subject; all results if the first has; none if none has.

    Documents whose own subject has them come before those that need their style words: "dots three outline" may name an
    object, or an object and its style.
    """
    number = asked.number
    in_subject: list[Retrieved] = []
    in_text: list[Retrieved] = []
    for one in results:
        text = asked.text_of(one)
        if has(subject, text):
            (in_subject if has(subject, text.split(",")[0]) else in_text).append(one)
        # reads as few documents as possible: the memory may be a remote database
        if len(in_subject) == number or in_subject[:1] == [results[0]]:
            break
    chosen = (in_subject or in_text)[:number]
    return list(results[:number]) if chosen and chosen[0] is results[0] else chosen


def _in_plural(
    asked: Asked,
    subject: str,
    best: str,
    results: list[Retrieved],
    deep: Sequence[Retrieved],
) -> list[Retrieved]:
    """If the best document has the subject in singular or plural, return those with exactly these words as spelled, or
    all results ("bicycles" is closer to a bicycle than to "no bicycles"); otherwise nothing."""
    if not has_every_word(subject, best):
        return []
    return [one for one in deep if is_named(subject, asked.text_of(one))] or results


def _one_of(phrases: Iterable[str]) -> str:
    """Return a pattern that matches whole phrases, the longest first, with any spaces between words."""
    longest_first = sorted((one.split() for one in phrases), key=len, reverse=True)
    return "|".join(
        (r"(?<!\w)" if re.match(r"\w", words[0]) else "") + r"\s+".join(map(re.escape, words))
        for words in longest_first
        if words
    )


def in_singular(text: str, known: Collection[str], *, known_plurals: bool = False) -> str:
    """Replace each plural by its singular if that is known and the plural is not.

    Args:
        text: in English.
        known: words, as returned by `words_of`.
        known_plurals: also replace known plurals.

    >>> in_singular("two Cats, wolves and glasses", {"two", "cat", "wolf", "glass", "glasses"})
    'two cat, wolf and glasses'
    """

    def form(found: re.Match[str]) -> str:
        word = found[0].casefold()
        if word in known and not known_plurals:
            return found[0]
        return next((one for one in singulars_of(word) if one in known), found[0])

    return re.sub(r"[^\W\d_]+", form, text)


def has_every_word(subject: str, text: str) -> bool:
    """Whether a text has every word of the subject, in singular or plural. False if the subject has no words.

    >>> has_every_word("bird cages", "cage bird, filled"), has_every_word("bird cage", "bird, filled")
    (True, False)
    """
    asked, said = words_of(subject), forms_of(text)
    return bool(asked) and not any(forms_of(word).isdisjoint(said) for word in asked)


def has_these_words(subject: str, text: str) -> bool:
    """Whether a text has every word of the subject as spelled. False if the subject has no words.

    >>> has_these_words("bird cage", "cage bird, filled"), has_these_words("bird cages", "bird cage, filled")
    (True, False)
    """
    asked = words_of(subject)
    return bool(asked) and set(words_of(text)).issuperset(asked)


def is_named(subject: str, text: str) -> bool:
    """Whether the text before the first comma has exactly the words of the subject.

    >>> is_named("bird cage", "cage bird, filled"), is_named("cage", "cage bird, filled")
    (True, False)
    """
    return sorted(words_of(subject)) == sorted(words_of(text.split(",")[0]))


def has_a_phrase(text: str, phrases: Collection[str]) -> bool:
    """Whether a text has all words of one of the phrases.

    >>> has_a_phrase("apple, full colour", ["duotone", "full colour"]), has_a_phrase("a full glass", ["full colour"])
    (True, False)
    """
    words = set(words_of(text))
    return any(words.issuperset(asked) for asked in map(words_of, phrases) if asked)
