"""How the memory is searched for prompts: as they stand first, in other words only if that finds no document of the thing.

A prompt's wordings (`queries.wordings`) are tried in order, and the first that finds a document with every word of
the thing wins. The searches of many prompts run together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from cm3core.document import Document, Text, text_of
from cm3core.errors import DataError
from cm3run.model.queries import has_every_word, has_these_words, is_named, shares_a_word, wordings

if TYPE_CHECKING:
    from cm3core.interfaces.retriever import Retrieved, Retriever
    from cm3run.model.loaded import Loaded
    from cm3run.model.queries import Wording


@dataclass(frozen=True)
class Found:
    """What was found for a query, best first.

    Args:
        results: of the retriever.
        query: the text that was searched for.
        thing: what of it names the thing.
    """

    results: list[Retrieved]
    query: str = ""
    thing: str = ""


#: Asks for the results of (query, how many), and ends with what was found.
_Searching: TypeAlias = Generator[tuple[Document, int], "list[Retrieved]", Found]


def search(
    loaded: Loaded,
    queries: Sequence[Document],
    number: int,
    exclude: Sequence[Collection[str]],
) -> list[Found]:
    """The nearest documents of the memory for each query, at most `number`, best first.

    Args:
        loaded: the model, with a retriever.
        queries: not empty.
        number: 1 or more.
        exclude: for each query, ids and content keys that must not be found.
    """
    retriever = loaded.components.retriever
    assert retriever is not None
    searching = [_searching(loaded, retriever, query, number) for query in queries]
    found = [Found([]) for _ in queries]
    asked = {place: next(one) for place, one in enumerate(searching)}
    while asked:
        results: dict[int, list[Retrieved]] = {}
        for depth in sorted({depth for _, depth in asked.values()}):
            places = [place for place, (_, one) in asked.items() if one == depth]
            batch = retriever.retrieve(
                [asked[place][0] for place in places], depth, [exclude[place] for place in places]
            )
            results.update(zip(places, batch, strict=True))
        asked = {}
        for place in sorted(results):
            try:
                asked[place] = searching[place].send(results[place])
            except StopIteration as end:
                found[place] = end.value
    return found


def _searching(loaded: Loaded, retriever: Retriever, query: Document, number: int) -> _Searching:
    """The searches for one query."""
    config = loaded.recipe.retriever
    assert config is not None
    texts = [part.text for part in query if isinstance(part, Text)]
    if len(texts) != 1:
        asked = _with_texts(query, loaded.query_text)
        return Found((yield asked, number), text_of(asked), config.thing(text_of(asked)))
    words = loaded.words
    tries = wordings(config, texts[0], None if words is None else words.words)
    if len(query) > 1:
        return (yield from _with_picture(retriever, query, tries, number, config.search_for_words))
    return (
        yield from _of_text(loaded, retriever, texts[0], tries, number, config.search_for_words)
    )


def _of_text(
    loaded: Loaded,
    retriever: Retriever,
    prompt: str,
    tries: Sequence[Wording],
    number: int,
    depth: int,
) -> _Searching:
    """The searches for a text: see `RetrieverConfig`, `search_for_words`."""
    last = tries[-1]
    things = [one.thing for one in tries if one.query == last.query]
    deep: tuple[str, list[Retrieved]] = "", []  # the last text that was searched for so
    for one in tries:
        if one.query == last.query:
            break
        # most often this finds nothing of the thing: it is searched for at once as far as it takes
        if one.query != deep[0]:
            deep = one.query, (yield (Text(one.query),), max(number, depth))
        if chosen := _with_the_thing(retriever, one.thing, deep[1], number, has_these_words):
            return Found(chosen, one.query, one.thing)
    results = yield (Text(last.query),), number
    if not (depth and results):
        return Found(results, last.query, last.thing)
    best = text_found(retriever, results[0])
    for thing in things:
        if has_these_words(thing, best):
            return Found(results, last.query, thing)
        if deep[0] != last.query:
            deep = last.query, (yield (Text(last.query),), max(number, depth))
        chosen = _in_plural(retriever, thing, best, results, deep[1])
        if chosen := chosen or _with_the_thing(retriever, thing, deep[1], number, has_these_words):
            return Found(chosen[:number], last.query, thing)
    query = loaded.query_text(prompt, known_plurals=True)
    if query != deep[0]:
        deep = query, (yield (Text(query),), max(number, depth))
    if chosen := _with_the_thing(retriever, last.thing, deep[1], number, has_every_word):
        return Found(chosen, query, last.thing)
    if not shares_a_word(last.thing, best):
        alike = (one for one in deep[1] if shares_a_word(last.thing, text_found(retriever, one)))
        if chosen := list(islice(alike, number)):
            return Found(chosen, query, last.thing)
    return Found(results, last.query, last.thing)


def _in_plural(
    retriever: Retriever,
    thing: str,
    best: str,
    results: list[Retrieved],
    deep: Sequence[Retrieved],
) -> list[Retrieved]:
    """Where the best document has the thing in singular or plural: those of just these words, as they are spelled,
    or `results`: "bicycles" are rather a bicycle than "no bicycles"; else nothing."""
    if not has_every_word(thing, best):
        return []
    return [one for one in deep if is_named(thing, text_found(retriever, one))] or results


def _with_picture(
    retriever: Retriever, query: Document, tries: Sequence[Wording], number: int, depth: int
) -> _Searching:
    """The searches for a text with a picture: the words choose the wording, the order is the retriever's, to which
    the picture counts."""
    last = tries[-1]
    for one in tries:
        if one.query == last.query:
            break
        results = yield _with_texts(query, lambda _, one=one: one.query), max(number, depth)  # type: ignore[misc]  # mypy infers no lambda with a default
        if any(has_these_words(one.thing, text_found(retriever, found)) for found in results):
            return Found(results[:number], one.query, one.thing)
    results = yield _with_texts(query, lambda _: last.query), number
    return Found(results, last.query, last.thing)


def _with_the_thing(
    retriever: Retriever,
    thing: str,
    results: Sequence[Retrieved],
    number: int,
    has: Callable[[str, str], bool],
) -> list[Retrieved]:
    """Results that have every word of the thing; all of them where the first has; empty: none has.

    Documents whose own thing has them come before those that need their style for it: "dots three outline" may be
    the name of a thing, or a thing and its style.
    """
    in_thing: list[Retrieved] = []
    in_text: list[Retrieved] = []
    for one in results:
        text = text_found(retriever, one)
        if has(thing, text):
            (in_thing if has(thing, text.split(",")[0]) else in_text).append(one)
        # no more documents are read than it takes: a memory may be a database far away
        if len(in_thing) == number or in_thing[:1] == [results[0]]:
            break
    chosen = (in_thing or in_text)[:number]
    return list(results[:number]) if chosen and chosen[0] is results[0] else chosen


def text_found(retriever: Retriever, found: Retrieved) -> str:
    """The text of a document of the memory; empty where it can't be read, which is said once it is to be in front."""
    try:
        return text_of(retriever.memory.document(found.index))
    except DataError:
        return ""


def _with_texts(query: Document, change: Callable[[str], str]) -> Document:
    """The query with its texts changed."""
    return tuple(
        replace(part, text=change(part.text)) if isinstance(part, Text) else part for part in query
    )
