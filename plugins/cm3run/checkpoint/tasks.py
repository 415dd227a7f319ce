"""The tasks that a model was tuned for, and the file of its checkpoint that names them: `tasks.json`.

The checkpoint's recipe also has them, in its data set, but an exported model can be opened
without that data set's plugin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.config.schema import to_plain
from cm3core.errors import PluginError, RecipeError
from cm3core.files import read_text
from cm3core.interfaces.component import chosen_name
from cm3core.interfaces.task import TaskConfig
from cm3core.recipe.merge import recipe_from_yaml
from cm3run.checkpoint.carried import hint
from cm3run.checkpoint.layout import damaged
from cm3run.trust import guard, trust_of

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe


@dataclass(frozen=True)
class TunedTasks:
    """The tasks that a model was tuned for.

    Args:
        configs: name -> config. Empty: it was not tuned.
        plain: whether it was also trained on plain documents, for generating and captioning.
        lost: name -> next step, for tasks that no installed plugin provides.
        turns: whether it was tuned on conversations in its layout's turns.
        retrieving: the tasks whose documents had retrieved documents prepended.
    """

    configs: Mapping[str, TaskConfig] = field(default_factory=dict)
    plain: bool = False
    lost: Mapping[str, str] = field(default_factory=dict)
    turns: bool = False
    retrieving: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """Their names."""
        return sorted([*self.configs, *self.lost])


TASKS = "tasks.json"


def tasks_of(recipe: Recipe) -> dict[str, Any] | None:
    """The contents of `tasks.json` for a recipe; None if it tunes for no task."""
    if recipe.task is not None:
        name = recipe.component_names["task"]
        own: list[tuple[str, TaskConfig] | None] = [(name, recipe.task)]
    else:
        own = (
            []
            if recipe.dataset is None
            else [
                None if task is None else (chosen_name(task), task)
                for task in recipe.dataset.trained_tasks()
            ]
        )
    tasks: dict[str, Any] = {}
    for one in own:
        if one is not None:
            name, config = one
            tasks.setdefault(_title(name, config), {**to_plain(config), "name": name})
    turns = recipe.dataset is not None and recipe.task is None and recipe.dataset.has_turns
    if not tasks and not turns:
        return None
    # older versions don't know these two keys, so they are written only if they are not empty
    retrieving = _retrieving(recipe)
    return (
        {"plain": None in own, "tasks": tasks}
        | ({"turns": True} if turns else {})
        | ({"retrieving": retrieving} if retrieving else {})
    )


def _title(name: str, config: TaskConfig) -> str:
    """The name of a task as users see it."""
    return getattr(config, "title", "") or name.rpartition("/")[2]


def _retrieving(recipe: Recipe) -> list[str]:
    """Names of the tasks whose documents had retrieved documents prepended."""
    if recipe.retriever is None or not recipe.retriever.retrieves:
        return []
    if recipe.task is not None:
        return [_title(recipe.component_names["task"], recipe.task)]
    tasks = [] if recipe.dataset is None else recipe.dataset.retrieving_tasks()
    return sorted({_title(chosen_name(task), task) for task in tasks if task is not None})


def read_tasks(
    folder: Path, registry: Registry, *, trust_endpoints: Sequence[str] = ()
) -> TunedTasks:
    """The tasks of a checkpoint; empty without the file.

    A task that names external resources without permission (`open_checkpoint`) is refused when it is
    used.

    `registry`: includes the checkpoint's trusted plugin files.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / TASKS
    if not path.is_file():
        return TunedTasks()
    stored, trust = _stored(path), trust_of(folder, registry.models().values(), trust_endpoints)
    tasks = stored.get("tasks")
    if not isinstance(tasks, dict) or not all(isinstance(keys, dict) for keys in tasks.values()):
        raise damaged(path, "contains no tasks")
    retrieving = stored.get("retrieving", [])
    if not isinstance(retrieving, list) or not all(isinstance(one, str) for one in retrieving):
        raise damaged(path, "names no tasks under 'retrieving'")
    configs: dict[str, TaskConfig] = {}
    lost: dict[str, str] = {}
    for title, keys in tasks.items():
        text = json.dumps({"task": keys, "vocabulary": {"num_text": 256}})
        try:
            config = recipe_from_yaml(text, registry, label=str(path)).task
        except PluginError as error:
            lost[str(title)] = hint(registry, folder) or error.next_step
            continue
        except RecipeError as error:
            raise damaged(path, f"has an invalid task {title!r}: {error.cause}") from error
        assert config is not None
        guard(config, trust, str(path))
        configs[str(title)] = config
    return TunedTasks(
        configs,
        stored.get("plain") is True,
        lost,
        stored.get("turns") is True,
        frozenset(retrieving),
    )


def _stored(path: Path) -> dict[str, Any]:
    """The file's contents."""
    try:
        stored = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"can't be read ({error})") from error
    return stored if isinstance(stored, dict) else {}
