"""The records that are asked for: the same ones of every model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from cm3apps.evaluation.icons.asked import order
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource
from cm3plugins.datasets.icon_tasks import IconTasksConfig
from cm3plugins.datasets.icons import IconSourceConfig


def records_of(
    icons: IconSourceConfig,
    form: Literal["edit", "scene", "grounding", "question", "chat", "super_resolution"],
    split: str,
) -> Any:
    """The records of a form, of the corpus that a model was trained on."""
    return IconTasksConfig(
        form=form,
        split=split,
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
    """At most `num` records in a fixed random order; of a group the first only.

    Args:
        source: the records.
        num: how many.
        group: of a record; None: each is one of its own.
        among: the records to choose from; None: all.

    Raises:
        DataError: there are none.
    """
    found: dict[str, int] = {}
    for index in sorted(
        range(len(source)) if among is None else among, key=lambda index: order(source.id(index))
    ):
        found.setdefault(source.id(index) if group is None else group(index), index)
        if len(found) == num:
            break
    if not found:
        raise DataError("data set", "has no record that could be asked for", "name another split")
    return list(found.values())
