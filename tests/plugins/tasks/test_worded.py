"""`template`: a task whose wording the recipe gives, and what it refuses."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cm3core.document import Image
from cm3core.errors import RecipeError
from cm3kits.task import TaskContract
from cm3plugins.tasks.worded import TemplateTaskConfig
from messages import tells

COLOUR = {
    "title": "colour",
    "segments": ["Colour it {colour}, {colour} all over", "{image: drawing}", "{image: coloured}"],
    "paraphrases": [["{image: drawing}", "Now in {colour}:", "{image: coloured}"]],
    "response": ["coloured"],
}


class TestTemplate(TaskContract):
    config = TemplateTaskConfig(**COLOUR)


class TestTwoResponses(TaskContract):
    config = TemplateTaskConfig(
        title="two", segments=["{a} then {b}; last {c}.", "{image: d}"], response=["b", "c"]
    )


def test_wordings_are_drawn_evenly() -> None:
    task = TemplateTaskConfig(**COLOUR).build()
    record = {name: Image(name, lambda: None) for name in ("drawing", "coloured")}
    record["colour"] = "red"
    rng = np.random.default_rng(0)
    first = Counter(type(task.document(record, rng)[0]).__name__ for _ in range(400))
    assert 150 < first["Text"] < 250
    assert task.document(record)[0].text == "Colour it red, red all over"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"paraphrases": [["{image: drawing}", "{image: coloured}"]]},
            "task.paraphrases[0]: has the fields coloured, drawing, but",
        ),
        (
            {"response": ["shape"]},
            "task.response: is ['shape'], but",
        ),
        ({"response": []}, "task.response: is [], but the fields are"),
        ({"response": ["colour"]}, "task.segments: asks for 'colour' twice"),
        (
            {"segments": ["{colour", "{image: drawing}", "{image: coloured}"], "paraphrases": []},
            "task.segments: has the segment '{colour'",
        ),
        (
            {"segments": ["a {image: drawing}", "{image: coloured}"], "paraphrases": []},
            "task.segments: has the segment 'a {image: drawing}'",
        ),
    ],
)
def test_what_is_refused(change, message) -> None:
    with pytest.raises(RecipeError) as error:
        TemplateTaskConfig(**{**COLOUR, **change}).check()
    assert tells(error.value, message)
