"""Where a drawing's codes stand: which number comes next, and where the pen is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from cm3core.picture_form import FORBIDDEN, MISSING, CodePositions
from cm3icons.svg_codes.alphabet import COMMANDS, SHAPES, alphabet


class Pen(NamedTuple):
    """What the codes so far lead to.

    Args:
        slot: state of the rules; None: not known.
        at: the pen's x and y, as numbers are counted; None: nothing is being drawn, or it is not known where.
        start: where the subpath began.
        numbers: of the command that is being written; None: some are not known.
    """

    slot: int | None
    at: tuple[int, int] | None = None
    start: tuple[int, int] | None = None
    numbers: tuple[int, ...] | None = ()


class PenPositions(CodePositions):
    """For each code the slot that comes next, and the pen's x and y behind it, as far as they are known."""

    def __init__(self) -> None:
        table = alphabet()
        self._rules, self._named = table.rules, table.named()
        _, self._span, self._lowest = table.kinds["position"]
        self._states = [name.split() for name in table.states]
        #: The state after a class of codes, where it is always the same.
        after = [set(column.tolist()) - {FORBIDDEN} for column in self._rules.follows.T]
        self._only = [next(iter(states)) if len(states) == 1 else None for states in after]

    @property
    def axes(self) -> Mapping[str, int]:
        """The slot, and x and y; the last position of each means that it is not known, or that there is none."""
        return {"slot": len(self._states) + 1, "x": self._span + 1, "y": self._span + 1}

    @property
    def fingerprint(self) -> str:
        return f"svg pen {self._rules.fingerprint} {self._span}"

    def start(self) -> Pen:
        """Before the first code."""
        return Pen(0)

    def after(self, state: Pen, code: int) -> Pen:
        if code == MISSING:
            return Pen(None, numbers=None)
        own = int(self._rules.class_of[code])
        kind, value = self._named[code]
        if state.slot is None:
            slot = self._only[own]
            return Pen(slot, numbers=() if kind in COMMANDS else None)
        slot = int(self._rules.follows[state.slot, own])
        slot = slot if slot != FORBIDDEN else None
        if kind in COMMANDS:
            return state._replace(slot=slot, numbers=())
        if kind == "z":
            return Pen(slot, state.start, state.start)
        before = self._states[state.slot]
        if before[0] not in COMMANDS:  # a paint, or the end
            return Pen(slot)
        numbers = None if state.numbers is None else (*state.numbers, value)
        if int(before[1]) + 1 < len(COMMANDS[before[0]]):
            return state._replace(slot=slot, numbers=numbers)
        return _moved(before[0], numbers, state)._replace(slot=slot)

    def place(self, state: Pen) -> tuple[int, ...]:
        none = self._span
        slot = len(self._states) if state.slot is None else state.slot
        if state.at is None:
            return slot, none, none
        x, y = (min(max(value - self._lowest, 0), none - 1) for value in state.at)
        return slot, x, y


def _moved(command: str, numbers: tuple[int, ...] | None, pen: Pen) -> Pen:
    """The pen behind a command."""
    if command in SHAPES or numbers is None:
        return Pen(None)
    if command == "M":
        return Pen(None, (numbers[0], numbers[1]), (numbers[0], numbers[1]))
    if pen.at is None:
        return Pen(None)
    u, v = {"h": (numbers[-1], 0), "v": (0, numbers[-1])}.get(command, numbers[-2:])
    return Pen(None, (pen.at[0] + u, pen.at[1] + v), pen.start)


@lru_cache(maxsize=1)
def pen_positions() -> PenPositions:
    """The positions of all drawings."""
    return PenPositions()
