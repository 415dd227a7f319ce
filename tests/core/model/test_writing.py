"""Captions of pictures, and answers to questions."""

from __future__ import annotations

import pytest

from cm3core.errors import GenerationError
from toy_model import picture


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
    assert (
        str(error.value)
        == "template: is '{question}'\n  next: write one with {question} and one {answer}"
    )
