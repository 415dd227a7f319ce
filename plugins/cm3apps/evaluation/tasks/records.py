"""Task `records`: records of a data set, for the methods that edit, caption, answer and fill.

A task component tells which field is asked for and which are given: `edit` has a picture and an instruction, and the
result is a picture; `caption` has a picture; `vqa` and `grounding` have a picture and a question. The samples are the first
records by a hash of their ids, so they are the same for every model.

With `hides`, the component is one that draws from a caption (`t2i`), and the model fills boxes of the picture that it should
have drawn. They are covered before the model sees the picture: codes beside a box may know what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from cm3apps.evaluation.tasks.base import Makes, Sample, Task, enough
from cm3apps.evaluation.tasks.documents import dataset_keys, in_order, open_source
from cm3core.boxes import MAX_COORDINATE, Boxes
from cm3core.document import Image, PixelArray
from cm3core.errors import DataError, GenerationError
from cm3core.images import fit
from cm3core.interfaces import task as interface
from cm3core.interfaces.task import Method, check_serves, fields_of_type
from cm3core.plugins.registry import ANYONE, Writer, built, marked
from cm3run.model.crop import Box
from cm3run.tasks import SIGNATURES, make_task

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.plugins.registry import Registry


class Serving(NamedTuple):
    """Task components that records may be asked by.

    Args:
        makes: method that one serves -> what the model makes.
        lacks: what others do, in a message.
        what, such: what they are for, and names of some.
    """

    makes: Mapping[str, Makes]
    lacks: str
    what: str
    such: str

    @property
    def next_step(self) -> str:
        """Of a message."""
        return f"name one of `cm3 task list` that serves them, such as {self.such}"


WHOLE = Serving(
    {"edit": "edits", "caption": "captions", "ask": "answers"},
    "serves neither edits nor captions nor questions",
    "edits, captions or questions",
    "edit, caption or vqa",
)
#: Where parts of the picture are hidden.
FILLS = Serving(
    {"generate": "fillings"}, "doesn't draw from captions", "drawing from captions", "t2i"
)
#: Level of the grey that covers what is hidden.
_COVER = 127


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
    or null for the one that the records have the fields of; `hides`: the field of the boxes to fill, or null."""
    keys = dataset_keys("records", values)
    hides = keys["hides"]
    serving = WHOLE if hides is None else FILLS
    if hides is not None and size is None:
        raise DataError("protocol: size", "is null, but pictures are filled", "give a number")
    source, config, rule = open_source(keys, data, model, registry, writer)
    chosen = in_order(source)[: keys["num"]]
    enough(f"split {keys['split']!r}", len(chosen), 1 if keys["num"] is None else keys["num"])
    name = keys["task"]
    if name is None:
        name = _fitting(config.record_fields() or source.record(chosen[0]), registry, serving)
    method, asked = _component(name, registry, serving)
    rule |= {"split": keys["split"], "task": name}
    if method == "edit":
        rule["size"] = size
    if hides is None:
        samples = [_sample(source, index, asked, size) for index in chosen]
    else:
        assert size is not None
        samples = [_hiding(source, index, asked, hides, size) for index in chosen]
        rule |= {"size": size, "hides": hides}
    # a model may have been tuned for the method's default task in a wording of its own
    is_default = name in marked(registry, "task", "is_default")
    return Task(
        "records", serving.makes[method], samples, rule, component=None if is_default else name
    )


def _component(name: str, registry: Registry, serving: Serving) -> tuple[Method, interface.Task]:
    """The method that a task component serves, and the task.

    Raises:
        DataError: it serves no such method.
        GenerationError: it has keys without a default.
        PluginError: there is no such component, or its fields don't match its method.
    """
    config = make_task(registry, name)
    method = vars(type(config)).get("serves", "")
    if method not in serving.makes:
        cause = f"is {name!r}, which {serving.lacks}"
        raise DataError("protocol: task.task", cause, serving.next_step)
    task: interface.Task = built(config.build(), config, registry)
    check_serves(task, method, *SIGNATURES[cast("Method", method)])
    return method, task


def _fitting(fields: Iterable[str], registry: Registry, serving: Serving) -> str:
    """The task component with the most fields, all of which records have; of equals, a method's default one."""
    known, defaults = set(fields), marked(registry, "task", "is_default")
    found: list[tuple[int, bool, str]] = []
    for name, method in marked(registry, "task", "serves").items():
        if method not in serving.makes:
            continue
        try:
            _, task = _component(name, registry, serving)
        except GenerationError:  # it has keys without a default
            continue
        if set(task.fields) <= known:
            found.append((len(task.fields), name in defaults, name))
    if not found:
        raise DataError(
            "protocol: task.task",
            f"is null, and no task of {serving.what} has the records' fields {', '.join(sorted(known))}",
            serving.next_step,
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


def _hiding(
    source: DocumentSource, index: int, task: interface.Task, hides: str, size: int
) -> Sample:
    """The sample of a record whose picture is filled.

    Raises:
        DataError: a field is missing, empty or of another type, a picture is only codes, or it has no box in view.
    """
    key, record = source.id(index), source.record(index)
    place = f"record {key}"
    task.document(record, place=place)  # all fields are there
    [shown] = task.responses
    prompt = "".join(_text(record[name]) for name in fields_of_type(task, task.given, "text"))
    boxes = record.get(hides)
    hidden = _in_pixels(boxes, size) if isinstance(boxes, Boxes) else ()
    if not hidden:
        raise DataError(
            place,
            f"has no box in the field {hides!r}",
            "name a field of boxes that lie in the model's view (task.hides)",
        )
    picture_key, load = _picture(record[shown], place, shown)
    whole = partial(_fitted, load, size)
    return Sample(
        key,
        prompt,
        partial(_covered, whole, hidden),
        f"image:{picture_key}",
        target=source.truth(index),
        edited=whole,
        hidden=hidden,
    )


def _in_pixels(boxes: Boxes, size: int) -> tuple[Box, ...]:
    """The boxes in a picture fitted to a size, at least a pixel each.

    >>> _in_pixels(Boxes((("bell", (16, 0, 32, 16)),), (32, 32)), 64)
    ((32, 0, 64, 32),)
    """
    found = []
    for _, box in boxes.seen():
        x0, y0, x1, y1 = (round(value * size / MAX_COORDINATE) for value in box)
        x0, y0 = min(x0, size - 1), min(y0, size - 1)
        found.append((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
    return tuple(found)


def _covered(whole: Callable[[], PixelArray], hidden: Iterable[Box]) -> PixelArray:
    pixels = whole().copy()
    for x0, y0, x1, y1 in hidden:
        pixels[y0:y1, x0:x1] = _COVER
    return pixels


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
