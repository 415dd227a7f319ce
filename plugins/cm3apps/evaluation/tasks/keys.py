"""The keys of a protocol's tasks: default and meaning. Light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cm3core.errors import DataError, close_match


class TaskKey(NamedTuple):
    """A key of a task: its default and what it means."""

    default: Any
    text: str


#: Task -> what it asks for, and its keys.
TASKS: Mapping[str, tuple[str, Mapping[str, TaskKey]]] = {
    "documents": (
        "any data set: captions to pictures",
        {
            "dataset": TaskKey(
                None, "a recipe's section, an object with `name`; null: the model's own"
            ),
            "split": TaskKey("valid", "the data set's split"),
            "num": TaskKey(None, "documents, the first ones by a hash of their ids; null: all"),
            "one_of_a_group": TaskKey(
                True, "of documents of one group (versions of one icon) the first only"
            ),
        },
    ),
    "coco": (
        "COCO captions to pictures",
        {
            "annotations": TaskKey("captions_val2014.json", "file in `annotations/` of `--data`"),
            "images": TaskKey("val2014", "folder of the pictures in `--data`"),
            "num": TaskKey(30000, "pictures, the first ones by a hash of their ids"),
        },
    ),
    "captions": (
        "COCO pictures to captions (Karpathy's split)",
        {
            "annotations": TaskKey("dataset_coco.json", "file in `annotations/` of `--data`"),
            "split": TaskKey("test", "of that file"),
            "num": TaskKey(5000, "pictures"),
            "ranked": TaskKey(
                None, "captions among which the right one is ranked; null: the model writes one"
            ),
        },
    ),
    "vqa": (
        "questions about COCO pictures",
        {
            "questions": TaskKey("", "file of questions in `annotations/` of `--data`"),
            "annotations": TaskKey("", "file of their answers there"),
            "images": TaskKey("val2014", "folder of the pictures in `--data`"),
            "num": TaskKey(None, "questions; null: all"),
            "ranked": TaskKey(
                None, "most frequent answers among which one is chosen; null: the model writes one"
            ),
        },
    ),
    "prompts": (
        "prompts of another benchmark, for its own scorer",
        {"repeat": TaskKey(4, "pictures of each prompt")},
    ),
    "scenes": (
        "prompts whose pictures an exact checker can judge",
        {"num": TaskKey(15, "prompts of each of the four categories")},
    ),
}


def known_keys(task: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a task with their defaults.

    Raises:
        DataError: an unknown task or key, or a value of another type than the default (of an `int`:
            less than 1).
    """
    if task not in TASKS:
        raise DataError("protocol: task.name", f"is {task!r}", close_match(task, TASKS))
    known = {name: key.default for name, key in TASKS[task][1].items()}
    for key, value in values.items():
        place = f"protocol: task.{key}"
        if key not in known:
            raise DataError(place, f"the task {task!r} has no such key", close_match(key, known))
        default = known[key]
        if type(value) is not type(default) and default is not None and value is not None:
            kind = type(default).__name__
            raise DataError(place, f"is {value!r}", f"give a value of the type {kind}")
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise DataError(place, f"is {value}", "use 1 or more")
    return {**known, **values}
