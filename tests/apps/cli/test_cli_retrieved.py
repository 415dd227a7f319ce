"""What the commands that draw say of what was looked for, and of what was retrieved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cm3apps.cli._model import (
    report_unknown_words,
    report_unlike,
    report_unlike_picture,
    show_query,
)
from cm3run.checkpoint.words import TrainingWords
from cm3run.model.results import RetrievedDocument
from messages import tells
from toy_model import picture, worded


def test_what_was_looked_for_is_shown_where_it_is_another(model, capsys):
    def said(prompt):
        show_query(model.generate(prompt, 1)[0].retrieved)
        return capsys.readouterr().out

    assert said("a puppy, red") == ""
    worded(model, puppy="dog", green="red")
    assert said("a puppy, red") == "  query: 'a dog, red'\n"
    assert said("pony, green") == "  query: 'pony, red'\n"
    assert said("bird") == ""


def test_a_picture_that_is_unlike_all_that_is_known_is_said(model, monkeypatch, capsys):
    def said(*scores):
        documents = tuple(RetrievedDocument("d0", score, f"bell {score}", None) for score in scores)
        answer = replace(model.caption(picture()), retrieved=documents)
        report_unlike_picture(model, Path("cat.png"), answer)
        return capsys.readouterr().err

    assert said(0.1) == ""
    monkeypatch.setattr(model.recipe.retriever, "unlike_below", 0.62)
    assert tells(
        said(0.1, 0.514, 0.3),
        "note: nothing in the memory looks like cat.png: the most similar",
    )
    for scores in ((0.62,), (0.1, 0.7), (), (None,)):
        assert said(*scores) == ""


def test_what_was_retrieved_without_a_word_of_the_prompt_is_said(model, monkeypatch, capsys):
    """Words behind a comma are style; a word that is unknown was named already."""

    def said(prompt, *texts):
        documents = tuple(RetrievedDocument("d0", None, text, None) for text in texts)
        made = replace(model.generate("red", 1)[0], prompt=prompt, retrieved=documents)
        report_unlike(model, made)
        return capsys.readouterr().err

    monkeypatch.setattr(
        model, "words", TrainingWords.of(["a photo of a dog, kitten, outline, gif"])
    )
    assert tells(
        said("kitten, outline", "gif, outline", "folder 5"),
        "note: the documents retrieved for 'kitten, outline' have none of its words: 'gif, outline', 'folder 5'",
    )
    for prompt, *texts in (
        ("a photo of a dog", "folder", "Dog, filled"),
        ("kiten, outline", "gif"),  # unknown
        ("kitten",),  # nothing was retrieved
        ("kitten", ""),  # a picture without a text
        (", outline", "gif"),
    ):
        assert said(prompt, *texts) == ""


def test_what_a_retriever_of_meanings_found_is_said(model, monkeypatch, capsys):
    """Nothing that was typed is dropped without a word; what has the prompt's words needs none."""

    def said(prompt, score, text):
        documents = (RetrievedDocument("d0", score, text, None),)
        report_unlike(
            model, replace(model.generate("red", 1)[0], prompt=prompt, retrieved=documents)
        )
        report_unknown_words(model, [prompt])
        return capsys.readouterr().err

    monkeypatch.setattr(model.recipe.retriever, "unknown_below", 0.5, raising=False)
    assert tells(
        said("puppy", 0.62, "dog, filled"), "note: for 'puppy', found 'dog, filled' (0.62)"
    )
    assert tells(
        said("xyzzy", 0.3, "dog, filled"),
        "note: the memory has no 'xyzzy': the nearest is 'dog, filled' (0.30; below 0.5 ... guess",
    )
    assert said("dog", 1.0, "dog, filled") == ""
    monkeypatch.setattr(model.recipe.retriever, "unknown_below", None, raising=False)
    assert tells(said("xyzzy", 0.3, "dog"), "note: for 'xyzzy', found 'dog' (0.30)")
