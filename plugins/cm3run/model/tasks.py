"""The tasks a model was tuned for, and the task that a call uses.

A tuned model is prompted in the wording of its tuning, and only for its tasks. An untuned one is prompted with plain
documents, a text before its picture. With a layout without sentinels, which can only continue documents, the part to
generate comes last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cm3core.document import Codes, Image, MaskedText, Text
from cm3core.errors import GenerationError, PluginError, close_match
from cm3core.interfaces.task import (
    Blank,
    FieldType,
    Line,
    Method,
    Record,
    Task,
    TaskConfig,
    check_serves,
    fields_of_type,
)
from cm3core.plugins.registry import built, marked
from cm3run.model.loaded import codes_of, given_pixels, known_by_codes

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3core.plugins.registry import Registry
    from cm3run.model.loaded import Loaded

#: The field of a conversation task that holds the turns so far, as one text.
CONVERSATION = "conversation"
#: The inputs (number of texts and pictures) and the output type of each method.
SIGNATURES: Mapping[Method, tuple[int, int, FieldType]] = {
    "generate": (1, 0, "image"),
    "caption": (0, 1, "text"),
    "ask": (1, 1, "text"),
    "edit": (1, 1, "image"),
    "structure": (2, 1, "image"),
    "upscale": (0, 1, "image"),
}


def task_for(
    loaded: Loaded, method: Method, name: str | None = None, *, force: bool = False
) -> Task:
    """The task used by a method of a model.

    Args:
        loaded: the model.
        method: which one.
        name: of the task; None: the model's first task that serves the method.
        force: allow a task that the model was not tuned for.

    Raises:
        GenerationError: the model was tuned, but not for this.
        PluginError: there is no such task, or its fields don't match the method.
    """
    config = _config_for(loaded, method, name, force)
    if config is None:
        return (PLAIN if _infills(loaded) else CONTINUED)[method]
    task: Task = built(config.build(), config, loaded.components.registry)
    check_serves(task, method, *SIGNATURES[method])
    return task


def tuned_with_documents(loaded: Loaded, method: Method, name: str | None = None) -> bool:
    """Whether retrieved documents were prepended for this method's task in tuning."""
    config = _config_for(loaded, method, name, force=True)
    tuned = loaded.tasks
    return any(one is config for title, one in tuned.configs.items() if title in tuned.retrieving)


def named_task(loaded: Loaded, name: str, *, force: bool = False) -> Task:
    """The named task; see `task_for`."""
    config = loaded.tasks.configs.get(name)
    if config is None:
        if not force:
            raise _not_tuned(loaded, name)
        config = _make(loaded.components.registry, name)
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


def conversing_task(loaded: Loaded, *, untuned: bool = False) -> str | None:
    """The name of the model's first conversation task: from a picture and a text called
    `CONVERSATION` to a text. None: it was not tuned for one.

    `untuned`: the first one that any plugin provides.
    """
    registry = loaded.components.registry
    if not untuned:
        configs = loaded.tasks.configs
        return next((name for name, one in configs.items() if _converses(one)), None)
    serving = [
        name for name, method in marked(registry, "task", "serves").items() if method == "ask"
    ]
    return next((name for name in serving if _converses(_make(registry, name))), None)


def _converses(config: TaskConfig) -> bool:
    task = config.build()
    given = {task.fields[name]: name for name in task.given}
    asked = [task.fields[name] for name in task.responses]
    return len(task.given) == 2 and given.get("text") == CONVERSATION and asked == ["text"]


def _config_for(loaded: Loaded, method: Method, name: str | None, force: bool) -> TaskConfig | None:
    """The task's config; None: plain documents."""
    tuned, registry = loaded.tasks, loaded.components.registry
    if name is not None:
        if name in tuned.configs:
            return tuned.configs[name]
        if tuned.names and not force:
            raise _not_tuned(loaded, name)
        config = _make(registry, name)
        return config if tuned.names or not _infills(loaded) else config.for_untuned()
    serving = [one for one in tuned.configs.values() if vars(type(one)).get("serves") == method]
    if serving:
        return min(serving, key=lambda one: not vars(type(one)).get("is_default", False))
    if tuned.names and not force and not (tuned.plain and method in PLAIN):
        raise _not_tuned(loaded, method)
    if method in PLAIN:
        return None
    config = _make(registry, _default_name(registry, method))
    return config.for_untuned() if _infills(loaded) else config


def _infills(loaded: Loaded) -> bool:
    """Whether the model's layout supports holes other than the end of a document."""
    return loaded.components.serializer.layout.has_sentinels


def _not_tuned(loaded: Loaded, what: str) -> GenerationError:
    names = loaded.tasks.names
    if what in loaded.tasks.lost:
        return GenerationError(
            f"task {what}",
            "the plugin that provides it is not in use",
            loaded.tasks.lost[what],
        )
    has = f"it was tuned for {', '.join(names)}" if names else "it was tuned for no task"
    if names and loaded.tasks.plain:
        has += ", and trained on plain captions"
    return GenerationError(
        f"task {what}",
        f"the model was not tuned for it; {has}",
        "use a model that was, tune one (docs/tuning.md), or give force=True (--force) to run "
        "it anyway; the result is then meaningless",
    )


def _default_name(registry: Registry, method: Method) -> str:
    """The default task of a method."""
    serving = marked(registry, "task", "serves")
    for name in marked(registry, "task", "is_default"):
        if serving.get(name) == method:
            return name
    raise PluginError(
        f"task {method}",
        "no plugin in use provides a task for it",
        registry.with_reasons(close_match("", registry.names("task")), "task"),
    )


def _make(registry: Registry, name: str) -> TaskConfig:
    """A task's config with its defaults."""
    config_class = registry.config_class("task", name, place=f"task {name!r}")
    try:
        config = config_class()
    except TypeError as error:  # it has keys without a default
        raise GenerationError(
            f"task {name!r}",
            f"has keys without a default ({error})",
            "use a model that was tuned for it: its keys are stored there",
        ) from error
    assert isinstance(config, TaskConfig)
    return config


class InlineTask(Task):
    """A task with wording given by the call.

    Args:
        fields: names and types, in order.
        response: the field to generate.
        make: given fields -> lines.
    """

    def __init__(
        self,
        fields: Mapping[str, FieldType],
        response: str,
        make: Callable[[Record], Sequence[Line]],
    ) -> None:
        self._fields, self._response, self._make = fields, response, make

    @property
    def fields(self) -> Mapping[str, FieldType]:
        return self._fields

    @property
    def responses(self) -> tuple[str, ...]:
        return (self._response,)

    def _lines(self, given: Record, rng: np.random.Generator | None) -> Sequence[Line]:
        return self._make(given)


#: Tasks for a model trained on plain documents, a caption before its picture.
PLAIN: Mapping[Method, Task] = {
    "generate": InlineTask(
        {"caption": "text", "image": "image"},
        "image",
        lambda given: [(given["caption"],), Blank("image")],
    ),
    "caption": InlineTask(
        {"caption": "text", "image": "image"},
        "caption",
        lambda given: [(Blank("caption"),), given["image"]],
    ),
}

#: The same for models that only continue documents.
CONTINUED: Mapping[Method, Task] = {
    "generate": PLAIN["generate"],
    "caption": InlineTask(
        {"caption": "text", "image": "image"},
        "caption",
        lambda given: [given["image"], (Blank("caption"),)],
    ),
}


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
