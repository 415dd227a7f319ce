"""Asking a model for many results in one batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from cm3core.document import PixelArray
from cm3core.progress import make_bar
from cm3run.model import Model
from cm3run.model.jobs import results
from cm3run.model.results import GeneratedText

#: What a call that makes jobs returns: the jobs, and the number of tokens that they generate.
Made = tuple[Iterable[Any], int]


def pictures(model: Model, what: str, calls: Sequence[Callable[[], Made]]) -> PixelArray:
    """The first picture of each call, uint8 [N, H, W, 3]."""
    return np.stack([np.asarray(one.pixels) for one in _run(model, what, calls)])


def texts(model: Model, what: str, calls: Sequence[Callable[[], Made]]) -> list[str]:
    """The text of each call."""
    return [one.text for one in written(model, what, calls)]


def written(model: Model, what: str, calls: Sequence[Callable[[], Made]]) -> list[GeneratedText]:
    """What each call writes, with what was in front."""
    return _run(model, what, calls)


def _run(model: Model, what: str, calls: Sequence[Callable[[], Made]]) -> list[Any]:
    made = [call() for call in calls]
    total = sum(number for _, number in made)
    with make_bar(desc=f"  {what}", total=total, unit="token", leave=False, file=sys.stderr) as bar:

        def progress(done: int, _: int) -> None:
            bar.update(done - bar.n)

        jobs = chain.from_iterable(one for one, _ in made)
        return list(results(model.engine, jobs, progress=progress, total=total))
