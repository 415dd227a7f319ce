"""How much a call does, counted and not timed: lines of Python that run, and elements that torch's operations read and
write. Both are the same in every run, so laws can compare them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from cm3kits._findings import holds

#: How much faster than the input linear work may seem to grow, with logarithms, blocks and another method for large
#: inputs, where an input is four times another one; what is quadratic grows four times faster.
_ABOVE_LINEAR = 2.0
#: What small inputs cost anyway: lines, elements.
_ANYWAY = {"lines of Python": 400, "elements of tensors": 4_000}


@dataclass
class Work:
    """What a call did."""

    lines: int = 0
    elements: int = 0

    def counts(self) -> Mapping[str, int]:
        """Return both counts, by their names in messages."""
        return {"lines of Python": self.lines, "elements of tensors": self.elements}


def work_of(call: Callable[[], object]) -> Work:
    """Return what a call does. It is called three times: once to be warm, and then for each count, since counting
    elements runs lines of its own. What can't be counted, such as a compiled function, counts as 0."""
    call()
    work = Work()
    with suppress(Exception):
        work.lines = _lines(call)
    with suppress(Exception):
        work.elements = _elements(call)
    return work


def _lines(call: Callable[[], object]) -> int:
    count = 0

    def inside(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return inside

    before = sys.gettrace()
    sys.settrace(inside)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def _elements(call: Callable[[], object]) -> int:
    if "torch" not in sys.modules:
        return 0
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten

    class Counting(TorchDispatchMode):
        supports_higher_order_operators = True
        count: int = 0

        def __torch_dispatch__(
            self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = operation(*args, **(kwargs or {}))
            if not getattr(operation, "is_view", False):
                held = tree_flatten((args, kwargs, out))[0]
                self.count += sum(one.numel() for one in held if isinstance(one, Tensor))
            return out

    mode: Any = Counting()  # type: ignore[no-untyped-call]  # torch's
    with mode:
        call()
    return int(mode.count)


def check_growth(works: Mapping[int, Work], of: str, did: str) -> None:
    """Raise `LawBroken` if the work grows faster than n log n.

    Args:
        works: size -> work, the largest size at least four times the smallest.
        of: what a size counts, "ids".
        did: what was done.
    """
    small, large = min(works), max(works)
    times = large / small
    for name, more in works[large].counts().items():
        few = works[small].counts()[name]
        holds(
            more <= _ABOVE_LINEAR * times * few + _ANYWAY[name],
            f"{did}, with {small} {of} and with {large}, and counted {name}",
            f"about {times:g} times {few:,}: work proportional to the number of {of}",
            f"{more:,}, {more / max(few, 1):.1f} times as many",
            next_step=f"look for a loop over all {of} inside another one, or for a matrix of all pairs of {of}",
        )


def check_constant(works: Mapping[int, Work], of: str, did: str, count: int) -> None:
    """Raise `LawBroken` if the work grows with a place: if each further place costs a line or more, in all quarters.

    Args:
        works: place -> work.
        of: what a place counts, "index".
        did: what was done.
        count: number of places that there are.
    """
    places = sorted(works)
    quarter = len(places) // 4
    if quarter < 2:
        return
    parts = [places[number * quarter : (number + 1) * quarter] for number in range(4)]
    means = [sum(works[one].lines for one in part) / quarter for part in parts]
    steps = [after - before for before, after in itertools.pairwise(means)]
    holds(
        min(steps) < count / 4,
        f"{did}, and counted lines of Python by {of}",
        f"the same for every {of}",
        f"on average {', '.join(f'{one:.0f}' for one in means)} in the four quarters",
        next_step=f"find what belongs to an {of} without going through all before it",
    )
