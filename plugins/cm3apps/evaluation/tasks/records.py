"""Task `records`: records of a data set, for the methods that edit, caption and answer.

A task component tells which field is asked for and which are given: `edit` has a picture and an instruction, and the
result is a picture; `caption` has a picture; `vqa` and `grounding` have a picture and a question. The samples are the first
records by a hash of their ids, so they are the same for every model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cm3apps.evaluation.tasks.base import Makes, Sample, Task, enough
from cm3apps.evaluation.tasks.documents import dataset_keys, in_order, open_source
from cm3core.boxes import Boxes
from cm3core.document import Image, PixelArray
from cm3core.errors import DataError, GenerationError
from cm3core.images import fit
from cm3core.interfaces import task as interface
from cm3core.interfaces.task import Method, check_serves, fields_of_type
from cm3core.plugins.registry import ANYONE, Writer, built, marked
from cm3run.tasks import SIGNATURES, make_task

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.plugins.registry import Registry

#: Method that a task component serves -> what the model makes.
MAKES: Mapping[str, Makes] = {"edit": "edits", "caption": "captions", "ask": "answers"}
_NAME_ONE = "name one of `cm3 task list` that serves them, such as edit, caption or vqa"


def open_records(
    values: Mapping[str, Any],
    *,
    size: int | None,
    data: Path | None,
    model: Any,
    registry: Any,
    writer: Writer = ANYONE,
) -> Task:
    """See `open_task`. `dataset`, `split` and `num` are as in the task `documents`; `task` is the name of a task component,
    or null for the one that the records have the fields of."""
    keys = dataset_keys("records", values)
    source, config, rule = open_source(keys, data, model, registry, writer)
    chosen = in_order(source)[: keys["num"]]
    enough(f"split {keys['split']!r}", len(chosen), 1 if keys["num"] is None else keys["num"])
    name = keys["task"]
    if name is None:
        name = _fitting(config.record_fields() or source.record(chosen[0]), registry)
    method, asked = _component(name, registry)
    samples = [_sample(source, index, asked, size) for index in chosen]
    rule |= {"split": keys["split"], "task": name}
    if method == "edit":
        rule["size"] = size
    # a model may have been tuned for the method's default task in a wording of its own
    is_default = name in marked(registry, "task", "is_default")
    return Task("records", MAKES[method], samples, rule, component=None if is_default else name)


def _component(name: str, registry: Registry) -> tuple[Method, interface.Task]:
    """The method that a task component serves, and the task.

    Raises:
        DataError: it serves none of `MAKES`.
        GenerationError: it has keys without a default.
        PluginError: there is no such component, or its fields don't match its method.
    """
    config = make_task(registry, name)
    method = vars(type(config)).get("serves", "")
    if method not in MAKES:
        raise DataError(
            "protocol: task.task",
            f"is {name!r}, which serves neither edits nor captions nor questions",
            _NAME_ONE,
        )
    task: interface.Task = built(config.build(), config, registry)
    check_serves(task, method, *SIGNATURES[cast("Method", method)])
    return method, task


def _fitting(fields: Iterable[str], registry: Registry) -> str:
    """The task component with the most fields, all of which records have; of equals, a method's default one."""
    known, defaults = set(fields), marked(registry, "task", "is_default")
    found: list[tuple[int, bool, str]] = []
    for name, method in marked(registry, "task", "serves").items():
        if method not in MAKES:
            continue
        try:
            _, task = _component(name, registry)
        except GenerationError:  # it has keys without a default
            continue
        if set(task.fields) <= known:
            found.append((len(task.fields), name in defaults, name))
    if not found:
        raise DataError(
            "protocol: task.task",
            f"is null, and no task of edits, captions or questions has the records' fields {', '.join(sorted(known))}",
            _NAME_ONE,
        )
    return max(found)[2]


def _sample(source: DocumentSource, index: int, task: interface.Task, size: int | None) -> Sample:
    """The sample of a record.

    Raises:
        DataError: a field is missing, empty or of another type, or a picture is only codes.
    """
    key, record = source.id(index), source.record(index)
    place = f"record {key}"
    task.document(record, place=place)  # all fields are there
    [response] = task.responses
    [shown] = fields_of_type(task, task.given, "image")
    texts = [_text(record[name]) for name in fields_of_type(task, task.given, "text")]
    source_key, picture = _picture(record[shown], place, shown)
    prompt, truth = "".join(texts), source.truth(index)
    if task.fields[response] == "text":
        references = (_text(record[response]),)
        return Sample(key, prompt, picture, f"image:{source_key}", references, truth)
    edited_key, load = _picture(record[response], place, response)
    edited = load if size is None else partial(_fitted, load, size)
    return Sample(key, prompt, picture, f"image:{edited_key}", target=truth, edited=edited)


def _text(value: object) -> str:
    return (value.text if isinstance(value, Boxes) else str(value)).strip()


def _picture(value: object, place: str, name: str) -> tuple[str, Callable[[], PixelArray]]:
    """A picture's key, and what loads it."""
    if not isinstance(value, Image):
        raise DataError(
            place,
            f"has a field {name!r} that is codes, but results are judged by pictures",
            "name a data set with pictures",
        )
    return value.key, value.load


def _fitted(load: Callable[[], PixelArray], size: int) -> PixelArray:
    return fit(load(), (size, size))
