"""Why a component can't be built, in words, and which of its members don't fit its interface.

Python says "Can't instantiate abstract class", or names an argument: this module says what to write, and where. Imports
no torch."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from cm3core.errors import CM3Error, PluginError

#: Top-level packages whose classes have no members of a component.
_OTHERS = {"builtins", "abc", "typing", "torch", "enum", "collections"}
#: Length from which a name may have two typing errors.
_LONG = 12


def explained(error: Exception, interface: type[Any]) -> CM3Error:
    """Return the error of a component that couldn't be built, with its place, cause and next step.

    Args:
        error: what `build` raised; a `CM3Error` is returned as it is.
        interface: the class that the component should derive from.
    """
    if isinstance(error, CM3Error):
        return error
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "torch" not in Path(frame.filename).parts
    ]
    place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    text = str(error)
    if isinstance(error, TypeError) and "abstract class" in text:
        named = re.search(r"abstract class (\w+)", text)
        classes = [one for one in _below(interface) if named and one.__name__ == named[1]]
        if classes:
            return _abstract(classes[-1])
    if isinstance(error, AttributeError) and "before Module.__init__() call" in text:
        name = f"{_caller(error)}.__init__"
        return PluginError(
            f"{name} ({place})" if place else name,
            "gives the module a parameter, buffer or module before torch's own __init__ has run",
            "write super().__init__() as the first line of __init__",
        )
    if isinstance(error, TypeError) and (found := _other_values(text)):
        name, takes, gets = found
        return PluginError(
            f"{name} ({place})" if place else name,
            f"takes {takes} besides self, but gets {gets}",
            f"give {name} the parameters of that call, or change the call: the config's build makes the component",
        )
    return PluginError(
        f"{interface.__name__} ({place})" if place else interface.__name__,
        f"can't be built: {type(error).__name__}: {text}",
        "correct the plugin",
    )


def _below(interface: type[Any]) -> Iterator[type[Any]]:
    for one in interface.__subclasses__():
        yield one
        yield from _below(one)


def _caller(error: BaseException) -> str:
    """The class whose `__init__` raised."""
    step = error.__traceback__
    found = "the module"
    while step is not None:
        own = step.tb_frame.f_locals.get("self")
        if step.tb_frame.f_code.co_name == "__init__" and own is not None:
            return type(own).__name__
        step = step.tb_next
    return found


def _other_values(text: str) -> tuple[str, str, str] | None:
    """(function, what it takes, what it gets) of a call with another number of values, or an unknown name."""
    counts = re.match(
        r"([\w.<>]+)\(\) takes (?:from \d+ to )?(\d+) positional arguments? but (\d+) (?:was|were) given",
        text,
    )
    if counts:
        takes, gets = int(counts[2]) - 1, int(counts[3]) - 1
        return counts[1], _values(takes), _values(gets)
    unknown = re.match(r"([\w.<>]+)\(\) got an unexpected keyword argument '(\w+)'", text)
    if unknown:
        return unknown[1], f"no {unknown[2]!r}", f"{unknown[2]!r}"
    missing = re.match(
        r"([\w.<>]+)\(\) missing \d+ required (?:positional|keyword-only) arguments?: (.+)", text
    )
    return (missing[1], missing[2], "none of this name") if missing else None


def _values(number: int) -> str:
    return f"{number} value{'' if number == 1 else 's'}" if number else "no value"


def _abstract(cls: type[Any]) -> PluginError:
    """The error of a class that lacks members of its interface."""
    cause, steps = [], []
    for name in sorted(cls.__abstractmethods__):
        wanted = inspect.getattr_static(cls, name)
        what = "property" if isinstance(wanted, property) else "method"
        cause.append(f"lacks the {what} {name}, which {_origin(cls, name)} requires")
        near = [one for one, _ in own_members(cls) if _is_near(one, name)]
        if near:
            steps.append(f"rename {near[0]} to {name}")
        elif name in _set_in_init(cls):
            cause[-1] += ": an attribute that __init__ sets on the instance is not one"
            steps.append(
                f"write {name} = ... in the class itself, or a property {name}, which returns the value"
            )
        elif what == "property":
            steps.append(f"write a property {name}, or {name} = ... in the class itself")
        else:
            steps.append(f"write {name}{inspect.signature(wanted)}")
    return PluginError(
        f"{cls.__name__} ({_place(cls)})",
        "; ".join(cause),
        "; ".join(steps),
    )


def _origin(cls: type[Any], name: str) -> str:
    return next(one.__name__ for one in reversed(cls.__mro__) if name in vars(one))


def _place(cls: type[Any]) -> str:
    with suppress(TypeError, OSError):
        return f"{Path(inspect.getfile(cls)).name}, line {inspect.getsourcelines(cls)[1]}"
    return cls.__module__


def _set_in_init(cls: type[Any]) -> set[str]:
    """Names of attributes that `__init__` sets on the instance."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (TypeError, OSError, SyntaxError):
        return set()
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


# ---- members of built components


def misfits(cls: type[Any], used: set[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (member, cause, next step) of each member of a class that doesn't fit its interface: another signature, a
    method instead of a property or the reverse, or a name with a typing error.

    Args:
        cls: of a component, a config or a part of one.
        used: names that the plugin's own code reads: functions of its own, not misspelt overrides.
    """
    given = {
        name: value
        for one in reversed(cls.__mro__)
        if _is_interface(one)
        for name, value in [
            *dict.fromkeys(inspect.get_annotations(one)).items(),
            *vars(one).items(),
        ]
        if not name.startswith("__")
    }
    own = dict(own_members(cls))
    keys = {one.name for one in fields(cls)} if is_dataclass(cls) else set()
    for name, member in own.items():
        if name in given and name not in keys:
            yield from _misfit(name, member, given[name])
        elif name not in given and name not in used | keys and callable_or_property(member):
            near = [one for one in given if one not in own and _is_near(name, one)]
            if near:
                yield (
                    name,
                    f"is in no interface, and nothing calls it, but {near[0]} is",
                    f"rename it to {near[0]}, or remove it",
                )


def own_members(cls: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, member) of a class and its bases, except those of interfaces and other packages."""
    for one in reversed(cls.__mro__):
        if not _is_interface(one) and one.__module__.partition(".")[0] not in _OTHERS:
            yield from ((name, value) for name, value in vars(one).items() if name[:2] != "__")


def callable_or_property(member: Any) -> bool:
    """Whether a member is a function or a property, not a value."""
    return inspect.isfunction(member) or isinstance(member, (property, classmethod, staticmethod))


def _is_interface(cls: type[Any]) -> bool:
    return cls.__module__.startswith("cm3core.interfaces") or any(
        getattr(value, "__isabstractmethod__", False) for value in vars(cls).values()
    )


def _misfit(name: str, member: Any, wanted: Any) -> Iterator[tuple[str, str, str]]:
    is_method = inspect.isfunction(wanted)
    if inspect.isfunction(member) and not is_method:
        yield (
            name,
            "is a method, but a property or a value in the interface",
            f"write @property above def {name}: a method's name alone is always true",
        )
    elif is_method and (
        isinstance(member, property) or not (callable(member) or hasattr(member, "__get__"))
    ):
        yield name, "is no method, but a method in the interface", f"write def {name}(self, ...)"
    elif (
        is_method and inspect.isfunction(member) and (problem := _signature_problem(member, wanted))
    ):
        yield name, problem, f"write def {name}{inspect.signature(wanted)}"


def _signature_problem(member: Any, wanted: Any) -> str:
    """What calls with an interface's parameters a member doesn't take; "" if it takes all."""
    try:
        own = list(inspect.signature(member).parameters.values())
        given = list(inspect.signature(wanted).parameters.values())
    except (TypeError, ValueError):
        return ""
    kinds = {one.kind for one in own}
    positional = [
        one for one in own if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    asked = [one for one in given if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    named = [one.name for one in given if one.kind is one.KEYWORD_ONLY]
    if inspect.Parameter.VAR_POSITIONAL not in kinds and len(positional) < len(asked):
        return f"takes no {', '.join(one.name for one in asked[len(positional) :])}"
    names = {one.name for one in own if one.kind is not one.POSITIONAL_ONLY}
    if inspect.Parameter.VAR_KEYWORD not in kinds and (
        lacks := [one for one in named if one not in names]
    ):
        return f"takes no {', '.join(lacks)}"
    more = [
        one.name
        for one in own
        if one.default is one.empty
        and one.name not in {*named, *(other.name for other in asked)}
        and (one.kind is one.KEYWORD_ONLY or one in positional[len(asked) :])
    ]
    return f"needs {', '.join(more)}, which no caller gives" if more else ""


def _is_near(name: str, other: str) -> bool:
    """Whether one name may be the other with a typing error: a letter too many, too few, another one, or two swapped."""
    if name == other or min(len(name), len(other)) < 4:
        return False
    return _distance(name, other) <= (2 if len(other) >= _LONG else 1)


def _distance(name: str, other: str) -> int:
    """Number of typing errors between two names (optimal string alignment)."""
    rows = [list(range(len(other) + 1))]
    for i, one in enumerate(name, 1):
        row = [i]
        for j, two in enumerate(other, 1):
            cost = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (one != two))
            if i > 1 and j > 1 and one == other[j - 2] and name[i - 2] == two:
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]
