"""The bundled tasks: the kit's laws, and their wordings, which models were tuned on."""

from __future__ import annotations

import pytest

from cm3kits.task import TaskContract, responses_of
from cm3plugins.tasks import bundled
from cm3plugins.tasks.bundled import TASKS
from cm3plugins.tasks.worded import fields_of
from profiles import examples

for _name, _class in TASKS.items():
    # without a wording of its own, `answer_last` is `paper`
    for _layout in ("paper", "answer_last") if _class.answer_last else ("paper",):
        _title = f"Test{_class.__name__.removesuffix('Config')}{_layout.title().replace('_', '')}"
        globals()[_title] = type(
            _title,
            (TaskContract,),
            {"config": _class(layout=_layout), "max_examples": examples(3), "__module__": __name__},
        )


def test_the_first_wordings() -> None:
    """The paper's Table 5; a model is asked for what it was tuned on, so these never change."""
    assert {name: task.paper[0] for name, task in TASKS.items()} == {
        "t2i": ("{caption}", "{image: image}"),
        "caption": ("{caption}", "{image: image}"),
        "dense_caption": (
            "Describe the given picture in very detail. {caption}",
            "{image: image}",
        ),
        "vqa": ("Question: {question} Answer: {answer}.", "{image: image}"),
        "plain_question": ("{image: image}", "{question}", "{answer}"),
        "reason": (
            "Question: {question} Context: {context} Options: {options} Answer: Let's think "
            "step-by-step: {solution}",
            "{image: image}",
        ),
        "edit": (
            "Edit first image following the instruction",
            "{image: source}",
            "{instruction}",
            "{image: target}",
        ),
        "structure": (
            "Make high quality image from {feature}",
            "{image: condition}",
            "{caption}",
            "{image: image}",
        ),
        "object_to_image": (
            "Generate high quality image of {caption} with segmentations {objects}",
            "{image: image}",
        ),
        "grounding": ("Where is the {phrase}? {objects}", "{image: image}"),
        "ocr": ('draw "{text}"', "{image: image}"),
        "super_resolution": (
            "Make a sharp picture of this one",
            "{image: source}",
            "{image: target}",
        ),
        "chat": ("{conversation} Assistant: {answer}", "{image: image}"),
    }
    assert {name: task.answer_last[0][1] for name, task in TASKS.items() if task.answer_last} == {
        "caption": "Describe the given picture.",
        "dense_caption": "Describe the given picture in very detail.",
        "vqa": "Question: {question} Answer:",
        "reason": "Question: {question} Context: {context} Options: {options} Answer: Let's think "
        "step-by-step:",
        "grounding": "Where is the {phrase}?",
        "ocr": "What is written in the picture?",
        "chat": "{conversation} Assistant:",
    }


@pytest.mark.parametrize("name", list(TASKS))
def test_all_wordings_have_the_same_fields(name: str) -> None:
    task = TASKS[name]
    names = {frozenset(fields_of(wording)) for wording in (*task.paper, *(task.answer_last or ()))}
    assert len(names) == 1
    if task.answer_last is not None:
        assert {wording[-1] for wording in task.answer_last} == {f"{{{task.response[0]}}}"}


def test_the_answer_is_alone_at_the_end() -> None:
    from cm3core.document import Image

    record = {"question": "red?", "answer": "yes", "image": Image("a", lambda: None)}
    document = bundled.QuestionConfig().build().document(record)
    assert [getattr(segment, "text", "picture") for segment in document] == [
        "picture",
        "Question: red? Answer:",
        "yes",
    ]
    assert responses_of(document) == ["yes"]


def test_untuned_models_are_asked_before_the_picture() -> None:
    config = bundled.QuestionConfig().for_untuned()
    assert config == bundled.QuestionConfig(layout="paper", paraphrase=False)
