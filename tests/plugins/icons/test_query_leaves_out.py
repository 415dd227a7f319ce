"""Phrases of a prompt that name nothing are left out of what the memory is asked for, and of nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Text
from cm3core.errors import RecipeError
from cm3plugins.icons.words import WordListsConfig
from cm3run.model import Model
from messages import tells
from toy_model import FirstRetriever

PHRASES = ["a", "the", "photo of", "draw", "draw me"]
WORDS = st.sampled_from(
    ["a", "the", "photo", "of", "draw", "me", "dog", "A", "Photo", "bell, filled"]
)


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a photo of a dog", "dog"),
        ("Draw me the  photo \t of a bell", "bell"),
        ("dog, filled", "dog, filled"),
        ("jar of pills", "jar of pills"),  # "of" alone is no phrase
        ("vitamin a", "vitamin a"),  # no word follows
        ("the a", "a"),
        ("camera, photo of dog", "camera, dog"),
        ("bandana data", "bandana data"),  # inside words it is none
        ("(a) dog", "(a) dog"),
        ("", ""),
    ],
)
def test_what_is_asked_for(prompt: str, asked: str) -> None:
    assert WordListsConfig(leaves_out=PHRASES).build().rewrite(prompt) == asked


@given(st.lists(WORDS, max_size=8))
def test_the_last_word_stays_and_no_word_is_made(words: list[str]) -> None:
    prompt = " ".join(words)
    asked = WordListsConfig(leaves_out=PHRASES).build().rewrite(prompt)
    assert prompt.endswith(asked.split()[-1] if asked else "")
    assert bool(asked) == bool(prompt)
    left = iter(prompt.split())
    assert all(word in left for word in asked.split()), "in order"
    assert WordListsConfig().build().rewrite(prompt) == prompt


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a Puppy, filled", "dog, filled"),
        ("CELL  phone", "mobile phone"),
        ("cell, phone", "room, phone"),  # the words are apart
        ("cell", "room"),  # the longest phrase is taken, and then its part
        ("puppys", "puppys"),  # inside words it is none
        ("puppy-puppy", "dog-dog"),
        ("color wheel,  color", "color wheel, colour"),  # a style stands behind a comma
        ("dog of the a puppy", "dog of dog"),
        ("jug of the brook", "amphora of river"),  # what is put in is read like the prompt
    ],
)
def test_other_names(prompt: str, asked: str) -> None:
    names = {
        "puppy": "dog",
        "cell": "room",
        "Cell phone": "mobile phone",
        "jug of the": "amphora of the",
        ", color": ", colour",
    }
    config = WordListsConfig(leaves_out=["a", "the"], replaces={**names, "brook": "river"})
    assert config.build().rewrite(prompt) == asked


@given(st.text(), st.dictionaries(st.text(min_size=1).filter(str.split), st.just("x"), max_size=3))
def test_any_text_and_any_names(prompt: str, names: dict[str, str]) -> None:
    asked = WordListsConfig(replaces=names).build().rewrite(prompt)
    assert bool(asked) == bool(prompt)
    if not names:
        assert asked == prompt


def test_the_prompt_itself_is_whole(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    queries: list[object] = []

    def retrieve(self, asked, num_retrieved, exclude):
        queries.extend(asked)
        return [[] for _ in asked]

    monkeypatch.setattr(FirstRetriever, "_retrieve", retrieve)
    words = WordListsConfig(leaves_out=PHRASES).build()
    monkeypatch.setattr(model.components, "prompt_rewriter", words)
    jobs, _ = model.image_jobs("a red", 1)
    [job] = jobs
    assert queries == [(Text("a red"),), (Text("red"),)]  # as it stands first
    assert Text("a red") in job.requests[0].document


@pytest.mark.parametrize("names", [{" ": "dog"}, {"puppy": ""}])
def test_a_name_without_a_word_is_refused(names: dict[str, str]) -> None:
    [(asked, instead)] = names.items()
    with pytest.raises(RecipeError) as error:
        WordListsConfig(replaces=names).check()
    assert tells(error.value, f"prompt_rewriter.replaces: replaces {asked!r} by {instead!r}")


@pytest.mark.parametrize("key", ["leaves_out", "subject_ends_at", "unless_asked_for"])
def test_a_phrase_without_a_word_is_refused(key: str) -> None:
    with pytest.raises(RecipeError) as error:
        WordListsConfig(**{key: ["a", " "]}).check()
    assert (
        str(error.value) == f"prompt_rewriter.{key}: has a phrase without a word\n  next: remove it"
    )
