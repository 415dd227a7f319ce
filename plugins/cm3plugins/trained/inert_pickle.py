"""Read a pickle without running anything in it: calls become records.

`torch.load(weights_only=True)` rejects checkpoints that name a class of a training library, as most of
PyTorch Lightning's do. Here no name is looked up and nothing is called, so names don't matter: dicts,
lists, numbers and texts are built, everything else is a `Record`.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "LONG4",
    "BINFLOAT",
}
_EMPTY: dict[str, type[Any]] = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}


@dataclass(frozen=True)
class Named:
    """A class or function named in the pickle, as "module name"."""

    name: str


@dataclass(eq=False)
class Record:
    """A call or an object: the function, its arguments, and its state."""

    function: object
    arguments: object
    state: object = None


@dataclass(frozen=True, eq=False)
class Storage:
    """Bytes stored outside the pickle."""

    identity: object


class _Machine:
    """The pickle machine's stack, marks and memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def step(self, name: str, argument: Any) -> None:
        """Execute one instruction; raises `ValueError` for one that no checkpoint needs."""
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "GLOBAL":
            stack.append(Named(str(argument)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(Named(f"{module} {attribute}"))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.since_mark()
            if isinstance(stack[-1], list):  # items added to an object are ignored
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self._set(self.since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()])
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            ordered = function == Named("collections OrderedDict") and not arguments
            stack.append({} if ordered else Record(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Record):
                stack[-1].state = state
        elif name == "BINPERSID":
            stack.append(Storage(stack.pop()))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[int(argument)])
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"opcode {name}")

    def _set(self, items: list[Any]) -> None:
        """Set keys and values of the dict on top; unhashable keys are dropped."""
        if isinstance(self.stack[-1], dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if isinstance(key, (str, int, float, bool)):
                    self.stack[-1][key] = value


def follow(pickled: Any) -> object:
    """Return the content of a pickle, with records in place of calls.

    Args:
        pickled: bytes, or a file, which is read from its current position to the pickle's end.

    Raises:
        ValueError: it has an opcode that checkpoints don't need, or does not end.
        IndexError, KeyError, AttributeError, TypeError: its instructions are invalid.

    >>> import pickle
    >>> follow(pickle.dumps({"weights": [1.5, None]}))
    {'weights': [1.5, None]}
    >>> follow(pickle.dumps(print)).name
    'builtins print'
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "STOP":
            result: object = machine.stack.pop()
            return result
        machine.step(opcode.name, argument)
    raise ValueError("the pickle does not end")
