"""The tasks that a model is tuned for, and the task that a method of a model uses. No torch.

A tuned model is prompted in the wording of its tuning, and only for its tasks. An untuned one is prompted with plain
documents, a text before its picture. With a layout without sentinels, which can only continue documents, the part to
generate comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cm3core.errors import GenerationError, PluginError, close_match
from cm3core.interfaces.component import chosen_name
from cm3core.interfaces.task import (
    Blank,
    FieldType,
    Line,
    Method,
    Record,
    Task,
    TaskConfig,
    check_serves,
)
from cm3core.plugins.registry import built, marked
from cm3run.instructions import Forms

if TYPE_CHECKING:
    import numpy as np

    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

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


@dataclass(frozen=True)
class TunedTasks:
    """The tasks that a model was tuned for.

    Args:
        configs: name -> config. Empty: it was not tuned.
        plain: whether it was also trained on plain documents, for generating and captioning.
        lost: name -> next step, for tasks that no installed plugin provides.
        turns: whether it was tuned on conversations in its layout's turns.
        retrieving: the tasks whose documents had retrieved documents prepended.
        instructions: task -> the forms of its instructions in tuning; without those that are free text or unknown.
    """

    configs: Mapping[str, TaskConfig] = field(default_factory=dict)
    plain: bool = False
    lost: Mapping[str, str] = field(default_factory=dict)
    turns: bool = False
    retrieving: frozenset[str] = frozenset()
    instructions: Mapping[str, Forms] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe) -> TunedTasks:
        """The tasks that a recipe tunes for."""
        own = trained_tasks(recipe)
        configs: dict[str, TaskConfig] = {}
        for one in own:
            if one is not None:
                configs.setdefault(title_of(*one), one[1])
        return cls(
            configs,
            None in own,
            turns=recipe.dataset is not None and recipe.task is None and recipe.dataset.has_turns,
            retrieving=frozenset(_retrieving(recipe)),
        )

    @property
    def names(self) -> list[str]:
        """Their names."""
        return sorted([*self.configs, *self.lost])


def trained_tasks(recipe: Recipe) -> list[tuple[str, TaskConfig] | None]:
    """(name, config) of each task that makes a recipe's training documents; None: plain documents."""
    if recipe.task is not None:
        return [(recipe.component_names["task"], recipe.task)]
    tasks = [] if recipe.dataset is None else recipe.dataset.trained_tasks()
    return [None if task is None else (chosen_name(task), task) for task in tasks]


def title_of(name: str, config: TaskConfig) -> str:
    """The name of a task as users see it."""
    return getattr(config, "title", "") or name.rpartition("/")[2]


def _retrieving(recipe: Recipe) -> list[str]:
    """Names of the tasks whose documents had retrieved documents prepended."""
    if recipe.retriever is None or not recipe.retriever.retrieves:
        return []
    if recipe.task is not None:
        return [title_of(recipe.component_names["task"], recipe.task)]
    tasks = [] if recipe.dataset is None else recipe.dataset.retrieving_tasks()
    return sorted({title_of(chosen_name(task), task) for task in tasks if task is not None})


@dataclass(frozen=True)
class TaskChoice:
    """Chooses the task for a method of a model.

    Args:
        tuned: the tasks that the model was tuned for.
        registry: the installed plugins.
        fills: whether the model's layout has holes other than the end of a document.
    """

    tuned: TunedTasks
    registry: Registry
    fills: bool

    def task_for(self, method: Method, name: str | None = None, *, force: bool = False) -> Task:
        """The task used by a method.

        Args:
            method: which one.
            name: of the task; None: the model's first task that serves the method.
            force: allow a task that the model was not tuned for.

        Raises:
            GenerationError: the model was tuned, but not for this.
            PluginError: there is no such task, or its fields don't match the method.
        """
        config = self.config_for(method, name, force)
        if config is None:
            return (PLAIN if self.fills else CONTINUED)[method]
        task: Task = built(config.build(), config, self.registry)
        check_serves(task, method, *SIGNATURES[method])
        return task

    def config_for(self, method: Method, name: str | None, force: bool) -> TaskConfig | None:
        """The task's config; None: plain documents."""
        tuned = self.tuned
        if name is not None:
            if name in tuned.configs:
                return tuned.configs[name]
            if tuned.names and not force:
                raise self.not_tuned(name)
            config = make_task(self.registry, name)
            return config if tuned.names or not self.fills else config.for_untuned()
        serving = [one for one in tuned.configs.values() if vars(type(one)).get("serves") == method]
        if serving:
            return min(serving, key=lambda one: not vars(type(one)).get("is_default", False))
        if tuned.names and not force and not (tuned.plain and method in PLAIN):
            raise self.not_tuned(method)
        if method in PLAIN:
            return None
        config = make_task(self.registry, _default_name(self.registry, method))
        return config.for_untuned() if self.fills else config

    def serves(self, method: Method) -> bool:
        """Whether the model was tuned for a task that serves a method."""
        return any(vars(type(one)).get("serves") == method for one in self.tuned.configs.values())

    def conversing(self, *, untuned: bool = False) -> str | None:
        """The name of the model's first conversation task: from a picture and a text called
        `CONVERSATION` to a text. None: it was not tuned for one.

        `untuned`: the first one that any plugin provides.
        """
        if not untuned:
            configs = self.tuned.configs
            return next((name for name, one in configs.items() if _converses(one)), None)
        serving = [
            name
            for name, method in marked(self.registry, "task", "serves").items()
            if method == "ask"
        ]
        return next((name for name in serving if _converses(make_task(self.registry, name))), None)

    def not_tuned(self, what: str) -> GenerationError:
        """The error for a task or method that the model was not tuned for."""
        names = self.tuned.names
        if what in self.tuned.lost:
            return GenerationError(
                f"task {what}",
                "the plugin that provides it is not in use",
                self.tuned.lost[what],
            )
        has = f"it was tuned for {', '.join(names)}" if names else "it was tuned for no task"
        if names and self.tuned.plain:
            has += ", and trained on plain captions"
        return GenerationError(
            f"task {what}",
            f"the model was not tuned for it; {has}",
            "use a model that was, tune one (docs/tuning.md), or give force=True (--force) to run "
            "it anyway; the result is then meaningless",
        )


def _converses(config: TaskConfig) -> bool:
    task = config.build()
    given = {task.fields[name]: name for name in task.given}
    asked = [task.fields[name] for name in task.responses]
    return len(task.given) == 2 and given.get("text") == CONVERSATION and asked == ["text"]


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


def make_task(registry: Registry, name: str) -> TaskConfig:
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
