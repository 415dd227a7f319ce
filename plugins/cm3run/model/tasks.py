"""The task that a call of a model uses (`cm3run.tasks`), and its records."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cm3core.document import Codes, Image, MaskedText, Text
from cm3core.errors import GenerationError
from cm3core.interfaces.task import (
    Blank,
    FieldType,
    Line,
    Method,
    Record,
    Task,
    fields_of_type,
    instruction_field,
)
from cm3core.plugins.registry import built
from cm3run.model.loaded import codes_of, given_pixels, known_by_codes
from cm3run.prompting import AnsweringRetriever
from cm3run.tasks import InlineTask, TaskChoice, make_task
from cm3run.words import nearest_word

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3run.model.loaded import Loaded


def choice_of(loaded: Loaded) -> TaskChoice:
    """Chooses tasks for a model."""
    fills = loaded.components.serializer.layout.has_sentinels
    return TaskChoice(loaded.tasks, loaded.components.registry, fills)


def task_for(
    loaded: Loaded, method: Method, name: str | None = None, *, force: bool = False
) -> Task:
    """The task used by a method of a model; see `TaskChoice.task_for`."""
    return choice_of(loaded).task_for(method, name, force=force)


def conversing_task(loaded: Loaded, *, untuned: bool = False) -> str | None:
    """The name of the model's first conversation task; see `TaskChoice.conversing`."""
    return choice_of(loaded).conversing(untuned=untuned)


def tuned_with_documents(loaded: Loaded, method: Method, name: str | None = None) -> bool:
    """Whether retrieved documents were prepended for this method's task in tuning."""
    config = choice_of(loaded).config_for(method, name, force=True)
    tuned = loaded.tasks
    return any(one is config for title, one in tuned.configs.items() if title in tuned.retrieving)


def named_task(loaded: Loaded, name: str, *, force: bool = False) -> Task:
    """The named task; see `task_for`."""
    config = loaded.tasks.configs.get(name)
    if config is None:
        if not force:
            raise choice_of(loaded).not_tuned(name)
        config = make_task(loaded.components.registry, name)
    task: Task = built(config.build(), config, loaded.components.registry)
    return task


def serves(loaded: Loaded, name: str) -> Method | Literal[""]:
    """The method that a task of the model serves; "" for a task available from Python only."""
    config = loaded.tasks.configs.get(name)
    own: Method | Literal[""] = "" if config is None else vars(type(config)).get("serves", "")
    return own


def serving_task(loaded: Loaded, method: Method) -> str | None:
    """The name of the model's first task that serves a method; None: it was not tuned for one."""
    return next(
        (name for name, one in loaded.tasks.configs.items() if serves(loaded, name) == method),
        None,
    )


#: Notes for pictures whose instruction can't be compared with those of the model's tuning.
_FREE = (
    "it is not recorded which instructions the model was tuned on, or they were free text; whether it can follow this one "
    "shows only in the picture"
)
_UNTUNED = "the model was not tuned for this task, so the picture is meaningless"
_FORCED = "the model was not tuned on such an instruction, so the picture is meaningless"


@dataclass(frozen=True)
class Instruction:
    """An instruction as the model is given it.

    Args:
        text: the instruction.
        note: what users are shown of it: how it is read, or why the picture may be wrong; "": nothing.
    """

    text: str
    note: str = ""


def read_instruction(
    loaded: Loaded, method: Method, name: str | None, text: str, *, force: bool = False
) -> Instruction:
    """An instruction as a model tuned on closed forms of instructions is given it.

    Args:
        loaded: the model.
        method: what it is used for.
        name: of the task; None: the model's first task that serves the method.
        text: the instruction.
        force: use it as it is, even if it has none of the forms.

    Raises:
        GenerationError: it has none of the forms, and `force` is not set.
    """
    config = choice_of(loaded).config_for(method, name, force=True)
    title = next((one for one, own in loaded.tasks.configs.items() if own is config), None)
    return read_as_tuned(loaded, title, text, force=force)


def read_as_tuned(
    loaded: Loaded, title: str | None, text: str, *, force: bool = False
) -> Instruction:
    """See `read_instruction`; `title`: of one of the model's tasks; None: it was tuned for none."""
    if title is None:
        return Instruction(text, _UNTUNED)
    forms = loaded.tasks.instructions.get(title)
    if forms is None:
        return Instruction(text, _FREE)
    likeness = partial(_likeness, loaded)
    read = forms.read(text, partial(_respelt, loaded), likeness)
    if read is not None:
        return Instruction(read.text, read.note)
    if force:
        return Instruction(text, _FORCED)
    nearest = forms.nearest(text, likeness)
    raise GenerationError(
        f"instruction {text!r}",
        "is not among the instructions that the model was tuned on, so what it would draw is meaningless",
        (f"did you mean {nearest!r}? " if nearest else "")
        + f"It can: {forms.listed()}; `cm3 task list --model {loaded.name}` prints all",
    )


def record_as_tuned(
    loaded: Loaded, title: str, task: Task, record: Record, *, force: bool = False
) -> tuple[Record, str]:
    """A record with its instruction as the model is given it, and the note about it; see `read_instruction`."""
    name = instruction_field(task)
    if name is None or not isinstance(text := record.get(name), str) or not text.strip():
        return record, ""
    known = title if title in loaded.tasks.configs else None
    read = read_as_tuned(loaded, known, text, force=force)
    return {**record, name: read.text}, read.note


def _respelt(loaded: Loaded, word: str, vocabulary: Collection[str]) -> str | None:
    """The word of a vocabulary that a word is a typing error of; None: there is none, or it is a word of the training
    texts."""
    if loaded.words is not None and word in loaded.words.words:
        return None
    return nearest_word(word, vocabulary)


def _likeness(
    loaded: Loaded, texts: Sequence[str], others: Sequence[str]
) -> Sequence[Sequence[float]] | None:
    """How similar texts are in meaning, by the model's retriever; None: it compares no meanings."""
    retriever = loaded.components.retriever if loaded.answers else None
    if not isinstance(retriever, AnsweringRetriever):
        return None
    found = retriever.likeness(texts, others)
    return None if found is None else found.tolist()


def question_task(template: str) -> Task:
    """The task for a template with "{question}" and "{answer}", before the picture."""
    if template.count("{answer}") != 1 or "{question}" not in template:
        raise GenerationError(
            "template", f"is {template!r}", "write one with {question} and one {answer}"
        )

    def lines(given: Record) -> Sequence[Line]:
        before, after = (
            part.replace("{question}", given["question"]) for part in template.split("{answer}")
        )
        pieces: tuple[str | Blank, ...] = (before, Blank("answer"), after)
        return [tuple(piece for piece in pieces if piece != ""), given["image"]]

    fields: dict[str, FieldType] = {"image": "image", "question": "text", "answer": "text"}
    return InlineTask(fields, "answer", lines)


def edit_task(task_text: str) -> Task:
    """The task of editing with the caller's own text before the picture."""
    fields: dict[str, FieldType] = {"source": "image", "instruction": "text", "target": "image"}
    return InlineTask(
        fields,
        "target",
        lambda given: [
            (task_text,),
            given["source"],
            (given["instruction"],),
            Blank("target"),
        ],
    )


def record_of(task: Task, text: str | None, picture: Codes | None) -> dict[str, Any]:
    """The record for a method: its text as the task's last given text, and its picture."""
    record: dict[str, Any] = {}
    if text is not None:
        record[fields_of_type(task, task.given, "text")[-1]] = text
    if picture is not None:
        record[fields_of_type(task, task.given, "image")[0]] = picture
    return record


#: Number of random wordings of a task that are compared with a text.
_WORDINGS = 8
#: Placeholder for a text in a task's wording: a private-use character that does not occur in texts.
_MARK = "\ue000"


def without_wording(task: Task, text: str) -> str:
    """Remove a task's wording from a text that repeats it: "bell" of "Where is the bell?", which a task with the
    wording "Where is the {phrase}?" would otherwise turn into "Where is the Where is the bell??". Other texts are
    returned unchanged.

    Args:
        task: the task.
        text: the user's text.
    """
    no_picture = Image(
        "", lambda: np.zeros((1, 1, 3), np.uint8)
    )  # any value will do: the wording is the same
    record = dict.fromkeys(fields_of_type(task, task.given, "image"), no_picture)
    record |= record_of(task, _MARK, None)
    if set(task.given) - set(record):
        return text
    for seed in range(_WORDINGS):
        rng = None if seed == 0 else np.random.default_rng(seed)
        for segment in task.prompt(record, rng):
            parts = segment.parts if isinstance(segment, MaskedText) else (segment,)
            for part in parts:
                words = part.text if isinstance(part, Text) else part
                if not isinstance(words, str) or _MARK not in words:
                    continue
                before, after = (re.escape(side.strip()) for side in words.split(_MARK, 1))
                found = before and re.fullmatch(
                    f"{before}\\s+(.+?)\\s*(?:{after})?", text.strip(), re.IGNORECASE | re.DOTALL
                )
                if found:
                    return found[1]
    return text


def encoded_record(loaded: Loaded, task: Task, record: Record) -> Record:
    """The record with the task's pictures encoded, as the model sees them."""
    values = {
        name: value if isinstance(value, Codes) else codes_of(loaded, value)
        for name, value in record.items()
        if task.fields.get(name) == "image"
    }
    return {**record, **values}


def pictures_given(loaded: Loaded, name: str, task: Task, record: Record) -> list[PixelArray]:
    """The pictures of a record, of any size, whose colours the generated picture may use.

    Excludes pictures of structures, which have no meaningful colours.
    """
    if serves(loaded, name) == "structure":
        return []
    pictures = [record[one] for one in task.given if task.fields[one] == "image"]
    return [
        known_by_codes(loaded, one) if isinstance(one, Codes) else given_pixels(loaded, one)
        for one in pictures
    ]
