"""The file of a checkpoint that names the tasks its model was tuned for: `tasks.json`.

The checkpoint's recipe also has them, in its data set, but an exported model can be opened
without that data set's plugin.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from cm3core.config.schema import to_plain
from cm3core.errors import DataError, PluginError, RecipeError
from cm3core.files import read_text
from cm3core.interfaces.task import TaskConfig
from cm3core.recipe.merge import recipe_from_yaml
from cm3run.checkpoint.carried import hint
from cm3run.checkpoint.layout import damaged
from cm3run.instructions import Forms
from cm3run.json_text import check_form, parse_json
from cm3run.tasks import TunedTasks, title_of, trained_tasks
from cm3run.trust import guard, trust_of

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe


TASKS = "tasks.json"


def tasks_of(recipe: Recipe, source: DocumentSource | None = None) -> dict[str, Any] | None:
    """The contents of `tasks.json` for a recipe; None if it tunes for no task.

    `source`: its training documents, whose instructions are stored; None: they are unknown.
    """
    tuned = TunedTasks.of(recipe)
    tasks: dict[str, Any] = {}
    for one in trained_tasks(recipe):
        if one is not None:
            name, config = one
            tasks.setdefault(title_of(name, config), {**to_plain(config), "name": name})
    if not tasks and not tuned.turns:
        return None
    # older versions don't know these keys, so they are written only if they are not empty
    retrieving = sorted(tuned.retrieving)
    counted = {} if source is None else source.instructions()
    forms = {title: Forms.of(counts) for title, counts in counted.items() if counts is not None}
    instructions = {title: list(one.forms) for title, one in forms.items() if one is not None}
    return (
        {"plain": tuned.plain, "tasks": tasks}
        | ({"turns": True} if tuned.turns else {})
        | ({"retrieving": retrieving} if retrieving else {})
        | ({"instructions": instructions} if instructions else {})
    )


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
    configs: dict[str, TaskConfig] = {}
    lost: dict[str, str] = {}
    for title, keys in stored["tasks"].items():
        text = json.dumps({"task": keys, "vocabulary": {"num_text": 256}})
        try:
            config = recipe_from_yaml(text, registry, label=str(path)).task
        except PluginError as error:
            lost[title] = hint(registry, folder) or error.next_step
            continue
        except RecipeError as error:
            raise damaged(path, f"has an invalid task {title!r}: {error.cause}") from error
        assert config is not None
        guard(config, trust, str(path))
        configs[title] = config
    return TunedTasks(
        configs,
        stored.get("plain", False),
        lost,
        stored.get("turns", False),
        frozenset(stored.get("retrieving", ())),
        {title: Forms(tuple(own)) for title, own in stored.get("instructions", {}).items() if own},
    )


class _Form(TypedDict):
    """The file's form."""

    tasks: dict[str, dict[str, Any]]
    plain: NotRequired[bool]
    turns: NotRequired[bool]
    retrieving: NotRequired[list[str]]
    #: title -> forms of its instructions
    instructions: NotRequired[dict[str, list[str]]]


def _stored(path: Path) -> _Form:
    """The file's contents."""
    try:
        stored: _Form = parse_json(read_text(path), str(path))  # keys of recipes may be infinite
        check_form(stored, _Form, str(path))
    except DataError as error:
        raise damaged(path, f"contains no tasks ({error.cause})") from error
    except (OSError, ValueError) as error:
        raise damaged(path, f"can't be read ({error})") from error
    return stored
