"""Captions of pictures, and answers to questions."""

from __future__ import annotations

from functools import partial

import pytest

from cm3core.errors import GenerationError
from cm3run.tasks import TunedTasks
from messages import tells
from toy_model import TASKS, picture, toy_model


def test_captions(model):
    one = model.caption(picture(30, 20), seed=2)
    assert 1 <= len(one.text) <= 5
    assert len(one.retrieved) == 2
    assert model.captions([picture(), picture(30, 20)], seed=2)[1].text == one.text
    assert len(model.caption(picture(), max_tokens=1).text) == 1


def test_questions(model):
    answer = model.ask(picture(8, 8), "hue?", max_tokens=4, template="Q {question} A {answer}!")
    assert 1 <= len(answer.text) <= 4
    assert answer.retrieved == ()
    with pytest.raises(GenerationError) as error:
        model.ask(picture(8, 8), "hue?", template="{question}")
    assert tells(error.value, "template: is '{question}'")


def test_questions_after_documents_where_tuning_had_them():
    """By default as many as the recipe says; none for a task that had none, unless asked for."""
    model = toy_model(max_text_tokens=150)
    model.tasks = TunedTasks(
        {name: TASKS[name]() for name in ("vqa", "chat")}, retrieving=frozenset({"vqa"})
    )
    asked = partial(model.ask, picture(), "hue?", max_tokens=1)
    assert len(asked().retrieved) == 2
    assert len(asked(num_retrieved=1).retrieved) == 1
    assert asked(num_retrieved=0).retrieved == ()
    assert asked(template="Q {question} A {answer}!").retrieved == ()
    assert asked(task="chat").retrieved == ()
    assert len(asked(task="chat", num_retrieved=1).retrieved) == 1
