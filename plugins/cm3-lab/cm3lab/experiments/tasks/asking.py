"""Requests to a model: the same records for every model, generated in one batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np

from cm3apps.evaluation.icons.drawing import order
from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource
from cm3plugins.datasets.icon_tasks import IconTasksConfig
from cm3plugins.datasets.icons import IconSourceConfig
from cm3run.model import Model
from cm3run.model.jobs import results
from cm3run.model.results import GeneratedText
from cm3run.progress import make_bar


def records_of(
    icons: IconSourceConfig,
    form: Literal["edit", "scene", "grounding", "question", "chat", "super_resolution"],
    split: str,
) -> Any:
    """Return the records of a form, from the corpus that a model was trained on."""
    return IconTasksConfig(
        form=form,
        split=split,
        held_out=icons.held_out,
        path=icons.path,
        image_size=icons.image_size,
        cache_dir=icons.cache_dir,
    ).build()


def chosen(
    source: DocumentSource,
    num: int,
    *,
    group: Callable[[int], str] | None = None,
    among: Sequence[int] | None = None,
) -> list[int]:
    """Choose at most `num` records in a fixed random order, only the first of each group.

    Args:
        source: the records.
        num: maximum number.
        group: returns the group of a record; None: each record is its own group.
        among: records to choose from; None: all.

    Raises:
        DataError: there are no records.
    """
    found: dict[str, int] = {}
    for index in sorted(
        range(len(source)) if among is None else among, key=lambda index: order(source.id(index))
    ):
        found.setdefault(source.id(index) if group is None else group(index), index)
        if len(found) == num:
            break
    if not found:
        raise DataError("data set", "has no suitable record", "choose another split")
    return list(found.values())


#: Result of a call that creates jobs: the jobs, and the number of tokens that they generate.
Made = tuple[Iterable[Any], int]


def pictures(model: Model, what: str, calls: Sequence[Callable[[], Made]]) -> PixelArray:
    """Generate the first picture of each call, uint8 [N, H, W, 3]."""
    return np.stack([np.asarray(one.pixels) for one in _run(model, what, calls)])


def texts(model: Model, what: str, calls: Sequence[Callable[[], Made]]) -> list[str]:
    """Generate the text of each call."""
    return [one.text for one in written(model, what, calls)]


def written(model: Model, what: str, calls: Sequence[Callable[[], Made]]) -> list[GeneratedText]:
    """Generate the text of each call, with its prepended documents."""
    return _run(model, what, calls)


def _run(model: Model, what: str, calls: Sequence[Callable[[], Made]]) -> list[Any]:
    made = [call() for call in calls]
    total = sum(number for _, number in made)
    with make_bar(desc=f"  {what}", total=total, unit="token", leave=False, file=sys.stderr) as bar:

        def progress(done: int, _: int) -> None:
            bar.update(done - bar.n)

        jobs = chain.from_iterable(one for one, _ in made)
        return list(results(model.engine, jobs, progress=progress, total=total))
