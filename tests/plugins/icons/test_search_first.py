"""A prompt whose words a document has finds that document; it is put in other words only if there is none."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.document import Image, Text, text_of
from cm3core.errors import DataError
from cm3core.interfaces import DocumentSource, Retrieved, Retriever
from cm3run.checkpoint.words import TrainingWords
from cm3run.model import Model
from cm3run.model.prepending import search
from cm3run.prompting import Found
from cm3run.words import words_of
from toy_model import picture, toy_model, worded

THINGS = (
    *("bird, filled", "bird, outline", "crow, outline", "pistol, filled", "gun, filled"),
    *(
        "clover, outline",
        "four leaf clover, filled",
        "factor, outline",
        "dog, filled",
        "dog, outline",
    ),
    *("two factor authentication, outline", "member of, filled", "cat, outline", "hat, filled"),
    *("dots two, outline", "dots two outline, filled", "no bicycles, filled", "bicycle, outline"),
    *("bird cage, filled", "man and woman, outline", "glass, filled", "glasses, filled"),
)


class Texts(DocumentSource):
    """Documents of texts, each with a picture."""

    fingerprint = "texts"

    def __init__(self, texts):
        self.texts = tuple(texts)

    def __len__(self):
        return len(self.texts)

    def id(self, index):
        return str(index)

    def _document(self, index, rng):
        grey = np.full((8, 8, 3), index % 256, np.uint8)
        return (Text(self.texts[index]), Image(f"{self.texts[index]} {index}", lambda: grey))


class ByWords(Retriever):
    """Ranks by the share of words that a query and a document have in common, whether they are plurals or not.
    Counts its searches."""

    def __init__(self, texts=THINGS):
        self._memory, self.searches = Texts(texts), []

    @property
    def memory(self):
        return self._memory

    def score(self, query, text):
        asked, said = ({word.rstrip("s") for word in words_of(one)} for one in (query, text))
        return len(asked & said) / max(1, len(asked | said))

    def _retrieve(self, queries, num_retrieved, exclude):
        self.searches.append([text_of(query) for query in queries])
        found = []
        for query, own in zip(queries, exclude, strict=True):
            every = [
                Retrieved(index, str(index), self.score(text_of(query), text))
                for index, text in enumerate(self._memory.texts)
                if not self.is_excluded(index, own)
            ]
            found.append(sorted(every, key=lambda one: -one.score)[:num_retrieved])
        return found


class AtRandom(ByWords):
    """Ranks by a hash of query and document: as bad as an embedder can be."""

    def score(self, query, text):
        return zlib.crc32(f"{query}\n{text}".encode()) / 2**32


REWRITING = {
    "leaves_out": ["a", "two", "four", "of", "and", "photo of"],
    "replaces": {"crow": "bird", "gun": "pistol", "puppy": "dog", "color": "outline"},
    "singular": True,
    "subject_ends_at": ["with", "and", "in"],
    "search_depth": 1024,
}


def model_of(retriever: Retriever, **keys) -> Model:
    model = worded(toy_model(max_text_tokens=60), **(REWRITING | keys))
    model.recipe.retriever.num_retrieved = 1
    model.components.retriever = retriever
    model.words = TrainingWords.of(retriever.memory.texts)
    return model


@pytest.fixture
def searching() -> Model:
    return model_of(ByWords())


def found_for(model: Model, prompt: str, number: int = 1) -> Found:
    [found] = search(model, [(Text(prompt),)], number, [()])
    return found


def first(model: Model, prompt: str) -> str:
    return THINGS[found_for(model, prompt).results[0].index]


@pytest.mark.parametrize(
    ("prompt", "found", "looked_for"),
    [
        ("crow", "crow, outline", "crow"),  # another bird without
        ("gun, filled", "gun, filled", "gun, filled"),
        ("four leaf clover", "four leaf clover, filled", "four leaf clover"),
        ("two factor authentication, outline", "two factor authentication, outline", None),
        ("member of", "member of, filled", "member of"),
        ("man and woman", "man and woman, outline", "man and woman"),  # it doesn't end at "and"
        ("crow, color", "crow, outline", "crow, outline"),  # of a style there is nothing to find
        ("dots two outline", "dots two outline, filled", "dots two outline"),  # the longer name
        ("glasses", "glasses, filled", "glasses"),
        # no document has all words: rewritten, as little as it takes
        ("a crow", "crow, outline", "crow"),
        ("a photo of a gun, filled", "gun, filled", "gun, filled"),
        ("a photo of a man and woman", "man and woman, outline", "man and woman"),
        ("a four leaf clover", "four leaf clover, filled", "leaf clover"),
        ("crows", "crow, outline", "crow"),
        ("a puppy, outline", "dog, outline", "dog, outline"),
        ("cat with a hat", "cat, outline", "cat with hat"),
        ("bicycles", "bicycle, outline", "bicycles"),  # rather than none
        ("a cage with a dog", "bird cage, filled", "cage with dog"),
    ],
)
def test_words_that_a_document_has_find_it(searching, prompt, found, looked_for):
    assert first(searching, prompt) == found
    query = found_for(searching, prompt).query
    assert query == (prompt if looked_for is None else looked_for)


def test_a_document_that_cannot_be_read_is_no_reason_to_fail(searching, monkeypatch):
    """It may be one that was removed from a database a moment ago, far down in the list."""
    read = Texts._document

    def removed(self, index, rng):
        if index == 2:
            raise DataError("document 2", "does not exist: it was removed", "search again")
        return read(self, index, rng)

    monkeypatch.setattr(Texts, "_document", removed)
    assert first(searching, "crow") == "bird, filled"
    assert first(searching, "gun") == "gun, filled"


def test_the_style_still_counts(searching):
    assert first(searching, "dog, outline") == "dog, outline"
    assert first(searching, "a dog, filled") == "dog, filled"


def test_what_is_excluded_is_not_found(searching):
    [found] = search(searching, [(Text("crow"),)], 1, [["2"]])
    assert THINGS[found.results[0].index] == "bird, filled"


@pytest.mark.parametrize(
    ("prompt", "searches"),
    [
        ("dog, outline", ["dog, outline"]),  # nothing is rewritten
        ("crow", ["crow"]),  # nothing has to be
        ("a dog", ["a dog", "dog"]),
        ("a puppy", ["a puppy", "puppy", "dog"]),
        ("crows", ["crows", "crow"]),
        ("a dog and a hat", ["a dog and a hat", "dog and a hat", "dog hat"]),
    ],
)
def test_how_often_the_memory_is_searched(searching, prompt, searches):
    found_for(searching, prompt)
    assert searching.components.retriever.searches == [[one] for one in searches]


def test_a_batch_is_searched_for_together(searching):
    prompts = ["dog, outline", "crow", "a dog", "a puppy"]
    found = search(searching, [(Text(one),) for one in prompts], 1, [()] * 4)
    together = searching.components.retriever.searches
    assert together == [["dog, outline"], ["crow", "a dog", "a puppy"], ["dog"], ["puppy"], ["dog"]]
    assert found == [found_for(searching, one) for one in prompts]


def test_results_say_what_was_looked_for(searching):
    def said(prompt, **options):
        return [one.looked_for for one in searching.generate(prompt, 1, **options)[0].retrieved]

    assert said("crow") == [""]
    assert said("a crow, outline") == ["crow, outline"]
    by_hand = [(picture(), "a bird")]
    assert said("a crow", context=by_hand) == [""]
    assert said("a crow", context=by_hand, num_retrieved=1) == ["", "crow"]


def test_without_a_depth_only_the_words_are_weighed():
    """`search_depth: 0`: nothing is filtered, but what has all words of the prompt is not rewritten away."""
    model = model_of(ByWords(), search_depth=0)
    assert first(model, "crow") == "crow, outline"
    assert first(model, "a bird cage with a dog") == "bird cage, filled"
    plain = model_of(AtRandom(), leaves_out=[], replaces={}, search_depth=0)
    plain.words = None
    found_for(plain, "a bird")
    assert plain.components.retriever.searches == [["a bird"]]


def test_a_text_with_a_picture_is_worded_as_alone(searching):
    """The picture may count to the order, so that nothing is reordered."""
    image = searching.components.retriever.memory.document(0)[1]

    def looked_for(text):
        [found] = search(searching, [(Text(text), image)], 2, [()])
        assert len(found.results) == 2
        return found.query

    assert looked_for("crow") == "crow"
    assert looked_for("a crow") == "crow"
    assert looked_for("puppy") == "dog"


def test_several_texts_are_each_rewritten(searching):
    [found] = search(searching, [(Text("a puppy"), Text("a hat"))], 1, [()])
    assert found.query == "dog\nhat"


_WORD = st.sampled_from(
    ["a", "two", "of", "and", "with", "crow", "bird", "birds", "gun", "dog", "puppy", "in", "color"]
)
_NAME = st.lists(_WORD, min_size=1, max_size=4).map(" ".join)


@settings(deadline=None)
@given(st.data(), st.lists(_NAME, min_size=1, max_size=8), st.sampled_from([ByWords, AtRandom]))
def test_the_words_of_a_document_find_a_document_of_these_words(data, names, kind):
    """In any memory, by any retriever, in any order of its words, with any style."""
    thing = data.draw(st.sampled_from(names).flatmap(lambda name: st.permutations(name.split())))
    prompt = " ".join(thing) + data.draw(st.sampled_from(["", ", outline", ", in color"]))
    retriever = kind([f"{name}, filled" for name in names])
    found = found_for(model_of(retriever), prompt, data.draw(st.integers(1, 5)))
    best = retriever.memory.texts[found.results[0].index]
    assert set(words_of(best)).issuperset(thing)


@settings(deadline=None)
@given(_NAME, st.lists(_NAME, min_size=1, max_size=8), st.integers(1, 4))
def test_whatever_is_asked_for_something_is_found(prompt, names, number):
    """No document twice, at most as many as asked for, best first."""
    retriever = AtRandom([f"{name}, filled" for name in names])
    found = found_for(model_of(retriever), prompt, number)
    indices = [one.index for one in found.results]
    assert 1 <= len(indices) == len(set(indices)) <= number
    assert [one.score for one in found.results] == sorted(
        (one.score for one in found.results), reverse=True
    )
