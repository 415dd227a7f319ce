"""Tasks, which provide the samples of a protocol:

documents      any data set: captions to pictures
records        any data set: edits of its pictures, their captions, answers to its questions, hidden parts filled
coco           COCO captions to pictures
captions       COCO pictures to captions (Karpathy's split)
vqa            questions about COCO pictures
prompts        prompts of another benchmark, for its own scorer
edits, gedit   pictures and instructions of other benchmarks, for their own scorers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.evaluation.tasks.base import Task
from cm3core.errors import DataError, close_match
from cm3core.plugins.registry import ANYONE, Writer

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry
    from cm3run.model import Model


def open_task(
    values: Mapping[str, Any],
    *,
    size: int | None,
    data: Path | None,
    model: Model | None,
    registry: Registry,
    writer: Writer = ANYONE,
) -> Task:
    """The task of a protocol.

    Args:
        values: the protocol's "task".
        size: side of its pictures, in pixels.
        data: the user's folder with its files.
        model: provides the data set if the task names none.
        registry: for a data set named by the task.
        writer: the plugin that its bare name refers to, see `Protocol`.

    Raises:
        DataError: an unknown task or key, missing files, too few samples.
    """
    from cm3apps.evaluation.tasks import coco, documents, edits, gedit, prompts, records

    tasks: dict[str, Callable[..., Task]] = {
        "documents": partial(documents.open_documents, writer=writer),
        "records": partial(records.open_records, writer=writer),
        "coco": coco.open_pictures,
        "captions": coco.open_captions,
        "vqa": coco.open_vqa,
        "prompts": prompts.open_prompts,
        "edits": edits.open_edits,
        "gedit": gedit.open_gedit,
    }
    name = values["name"]
    if name not in tasks:
        raise DataError("protocol: task.name", f"is {name!r}", close_match(name, tasks))
    given = {key: value for key, value in values.items() if key != "name"}
    return tasks[name](given, size=size, data=data, model=model, registry=registry)
