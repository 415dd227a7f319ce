"""Documents that have a word of the prompt, where the nearest has none; and plurals that nobody knows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Text
from cm3core.errors import RecipeError
from cm3plugins.icons.words import WordListsConfig, in_singular
from cm3run.checkpoint.words import TrainingWords
from cm3run.model import Model
from cm3run.words import shares_a_word
from messages import tells
from toy_model import FirstRetriever, toy_model, worded


@pytest.fixture
def searching(monkeypatch: pytest.MonkeyPatch) -> Model:
    """Its retriever's order is red, green, blue, whatever is asked for."""
    model = toy_model(max_text_tokens=40)
    monkeypatch.setattr(model.recipe.retriever, "num_retrieved", 1)
    return worded(model, search_depth=3)


def rewrite(model: Model, monkeypatch: pytest.MonkeyPatch, **keys: object) -> None:
    """Word lists for the rest of a test."""
    monkeypatch.setattr(model.components, "prompt_rewriter", WordListsConfig(**keys).build())  # type: ignore[arg-type]  # of any key


def in_front(model: Model, prompt: str, **options) -> list[str]:
    """The documents that the prompt's picture has in front."""
    jobs, _ = model.image_jobs(prompt, 1, **options)
    [job] = jobs
    return [text for document in job.requests[0].retrieved for text in texts(document)]


def texts(document) -> list[str]:
    return [part.text for part in document if isinstance(part, Text)]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a blue bird", "blue"),
        ("blues", "blue"),  # a plural is the same word
        ("red and blue", "red"),  # the best one has a word
        ("purple", "red"),  # none has
        ("purple, blue", "red"),  # behind the comma is style
        (", blue", "red"),  # nothing is before it
        ("greenish", "red"),  # inside a word it is none
    ],
)
def test_what_is_in_front(searching: Model, prompt: str, found: str) -> None:
    assert in_front(searching, prompt) == [found]


def test_it_is_off_unless_asked_for(searching: Model) -> None:
    worded(searching, search_depth=0)
    assert in_front(searching, "a blue bird") == ["red"]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a blue bird with a red hat", "blue"),
        ("a bird With red", "red"),  # no document has the bird
        ("withered blue", "blue"),  # no word "with"
        ("with a blue hat", "blue"),  # no thing stands before it
        ("green next  to red, blue", "green"),
    ],
)
def test_the_thing_ends_at_words(searching: Model, prompt: str, found: str) -> None:
    """What is said of the thing is no reason to take a document that has nothing of the thing."""
    worded(searching, search_depth=3, subject_ends_at=["with", "next to"])
    assert in_front(searching, prompt) == [found]


@given(st.text(), st.lists(st.sampled_from(["with", "at", "next to"])))
def test_the_thing_is_how_a_text_begins(text: str, ends: list[str]) -> None:
    thing = WordListsConfig(subject_ends_at=ends).build().subject(text)
    assert text.startswith(thing)
    assert "," not in thing
    assert WordListsConfig().build().subject(text) == text.split(",")[0]


def test_what_is_excluded_is_not_found(searching: Model) -> None:
    class Fewer(FirstRetriever):
        def _retrieve(self, queries, num_retrieved, exclude):
            return [
                [one for one in results if one.id not in own][:num_retrieved]
                for results, own in zip(
                    super()._retrieve(queries, 3, exclude), exclude, strict=True
                )
            ]

    searching.components.retriever = Fewer()
    assert in_front(searching, "a blue bird", exclude=["blue"]) == ["red"]


def test_how_many_are_searched(searching: Model) -> None:
    """No more than asked for; and at least as many as are prepended."""
    worded(searching, search_depth=2)
    assert in_front(searching, "a blue bird") == ["red"]
    assert in_front(searching, "a green bird") == ["green"]


@pytest.mark.parametrize(
    ("prompt", "margin", "found"),
    [
        ("a bird", 0.05, "red"),  # green is too far behind
        ("a bird", 0.3, "green"),
        ("a red bird", 0.3, "red"),  # asked for
        ("a bird, Red", 0.3, "red"),
    ],
)
def test_what_was_not_asked_for_comes_last(
    model: Model, monkeypatch: pytest.MonkeyPatch, prompt: str, margin: float, found: str
) -> None:
    """The scores are 1, 0.75 and 0.5."""
    retriever = model.recipe.retriever
    assert retriever is not None
    monkeypatch.setattr(retriever, "num_retrieved", 1)
    monkeypatch.setattr(retriever, "alternative_margin", margin)
    assert in_front(model, prompt) == ["red"]
    rewrite(model, monkeypatch, unless_asked_for=["red", "light blue"])
    assert in_front(model, prompt) == [found]


@pytest.mark.parametrize(
    ("prompt", "unless", "found"),
    [
        ("a bird", [], ["red", "green", "red", "green"]),  # blue is too far behind
        ("a bird", ["red"], ["green"] * 4),
        ("a Red bird", ["red"], ["red", "green", "red", "green"]),
        ("a bird", ["red", "green"], ["red", "green", "red", "green"]),  # there is nothing else
    ],
)
def test_what_was_not_asked_for_takes_no_turn(
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    unless: list[str],
    found: list[str],
) -> None:
    retriever = model.recipe.retriever
    assert retriever is not None
    for key, value in (
        ("num_retrieved", 1),
        ("num_alternatives", 3),
        ("alternative_margin", 0.3),
    ):
        monkeypatch.setattr(retriever, key, value)
    rewrite(model, monkeypatch, unless_asked_for=unless)
    jobs, _ = model.image_jobs(prompt, 4)
    assert [texts(one.retrieved[0])[0] for job in jobs for one in job.requests] == found


def test_what_shows_the_same_subject_may_be_farther() -> None:
    """Nothing else may: the scores are 1, 0.75 and 0.5."""
    model = toy_model()
    vars(model.components)["memory"] = FirstRetriever.memory

    def turns(prompt: str, margin: float) -> list[str]:
        taking = worded(
            model.with_memory(num_retrieved=1, num_alternatives=3, alternative_margin=0.1),
            same_subject_margin=margin,
        )
        return [made.retrieved[0].id for made in taking.generate(prompt, 3)]

    assert turns("Blue, thin", 0.5) == ["red", "blue", "red"]
    assert turns("blues", 0.5) == ["red", "blue", "red"]  # a plural is the same word
    assert turns("blue", 0.4) == ["red"] * 3
    assert turns("blue bird", 0.5) == ["red"] * 3  # every word
    assert turns(", blue", 0.5) == ["red"] * 3  # names nothing, so that nothing is the same


def test_a_margin_above_one_is_refused() -> None:
    with pytest.raises(RecipeError) as error:
        WordListsConfig(same_subject_margin=1.5).check()
    assert tells(error.value, "prompt_rewriter.same_subject_margin: is 1.5, must ... most 1.0")


def test_unknown_plurals_are_asked_for_in_the_singular(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "words", TrainingWords.of(["a cat", "glasses", "glass"]))
    assert model.query_text("cats, glasses") == "cats, glasses"
    rewrite(model, monkeypatch, singular=True)
    assert model.query_text("Cats, glasses") == "cat, glasses"
    rewrite(model, monkeypatch, singular=True, replaces={"cat": "lion"})
    assert model.query_text("Cats, glasses") == "lion, glasses"
    monkeypatch.setattr(model, "words", None)
    assert model.query_text("cats") == "cats"


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("cats", "cat"),
        ("berries", "berry"),
        ("ties", "tie"),
        ("buses", "bus"),
        ("boxes", "box"),
        ("wolves", "wolf"),
        ("knives", "knife"),
        ("doves", "dove"),
        ("horses", "horse"),
    ],
)
def test_plurals(plural: str, singular: str) -> None:
    assert in_singular(f"two {plural}", {singular}) == f"two {singular}"
    assert shares_a_word(f"{plural}, filled", f"{singular}, outline")
    assert shares_a_word(f"{singular}, filled", f"{plural}, outline")


@pytest.mark.parametrize("word", ["glass", "gas", "bus", "s", "ss"])
def test_words_that_are_no_plurals(word: str) -> None:
    assert in_singular(word, {word[:-1]}) == word


@given(st.text(), st.sets(st.text("aesv", max_size=4)))
def test_any_text(text: str, known: set[str]) -> None:
    singular = in_singular(text, known)
    assert len(singular) <= len(text) or not text.isascii()
    assert in_singular(text, set()) == text
    assert shares_a_word(text, text)
