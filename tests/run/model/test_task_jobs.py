"""Pictures of a task of any fields: what a model draws for objects at boxes, or for a structure."""

from __future__ import annotations

import asyncio

import pytest

from cm3core.document import Codes, ImageHole, Text
from cm3core.errors import DataError, GenerationError
from cm3plugins.tasks.bundled import (
    GroundingConfig,
    ObjectsConfig,
    QuestionConfig,
    StructureConfig,
)
from cm3run.model import AsyncModel, ImageReady
from cm3run.tasks import TunedTasks
from messages import tells
from toy_model import picture, toy_model

OBJECTS = {"caption": "a bell", "objects": "bell at (0, 0) -> (9, 9)"}
STRUCTURE = {"feature": "edges", "condition": picture(8, 8), "caption": "red"}


@pytest.fixture(scope="module")
def tuned():
    model = toy_model(max_text_tokens=120)
    configs = {"place": ObjectsConfig(), "structure": StructureConfig(), "vqa": QuestionConfig()}
    model.tasks = TunedTasks(configs)
    return model


def test_the_prompt_is_the_tasks_own(tuned):
    jobs, total = tuned.task_jobs("structure", STRUCTURE, "red", 2, seed=3)
    first, second = list(jobs)
    document = first.requests[0].document
    assert document[0] == Text("Make high quality image from edges")
    assert isinstance(document[1], Codes)
    assert document[2:] == (Text("red"), ImageHole())
    assert total == 2 * 16
    assert first.requests[0].seed == 3
    assert second.requests[0].seed != 3


@pytest.mark.parametrize("layout", ["answer_last", "paper"])
@pytest.mark.parametrize(
    ("asked", "phrase"),
    [
        ("bell", "bell"),
        ("Where is the bell?", "bell"),
        ("where is the old bell", "old bell"),
        ("Find the bell.", "bell"),
        ("Is there a bell?", "Is there a bell?"),
        ("Where is the", "Where is the"),
    ],
)
def test_a_question_in_the_tasks_own_words_is_not_worded_twice(layout, asked, phrase):
    """A task that asks "Where is the {phrase}?" is given the phrase, or the question that it makes of it."""
    model = toy_model(max_text_tokens=120)
    model.tasks = TunedTasks({"grounding": GroundingConfig(layout=layout)})
    made, _ = model.ask_job(picture(8, 8), asked, task="grounding")
    wanted, _ = model.ask_job(picture(8, 8), phrase, task="grounding")
    task = GroundingConfig(layout=layout).build()
    [codes] = [one for one in made.requests[0].document if isinstance(one, Codes)]
    assert made.requests[0].document == wanted.requests[0].document
    record = {"image": codes, "phrase": phrase}
    most = model.recipe.data.max_text_tokens
    assert any(made.requests[0].document == task.prompt(record, max_tokens=n) for n in range(most))


def test_events_are_those_of_do(tuned):
    async def main():
        async with AsyncModel(tuned) as shared:
            return [one async for one in shared.task_events("place", OBJECTS, "a bell", 1, seed=5)]

    *_, ready = asyncio.run(main())
    assert isinstance(ready, ImageReady)
    assert ready.image.prompt == "a bell"
    assert (ready.image.pixels == tuned.do("place", OBJECTS, seed=5)["image"]).all()


def test_what_can_not_be_drawn_is_said(tuned):
    with pytest.raises(GenerationError) as untuned:
        tuned.task_jobs("edit", {}, "x")
    assert tells(untuned.value.cause, "the model was not tuned for")
    with pytest.raises(GenerationError) as text:
        tuned.task_jobs("vqa", {"image": picture(), "question": "hue?"}, "x")
    assert tells(text.value, "task 'vqa': returns answer, not one picture ... Model.do")
    with pytest.raises(DataError) as missing:
        tuned.task_jobs("place", {"caption": "a bell"}, "x")
    assert missing.value.cause == "has no field 'objects'"
