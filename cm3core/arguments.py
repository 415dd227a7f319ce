"""Check arguments of public functions against the functions' annotations.

    @checked(GenerationError)
    def generate(self, prompt: str | Sequence[str], num_images: Count | None = None) -> ...

    model.generate("a bell", "2")
    GenerationError: num_images: is '2', must be a whole number or None
      next: correct the value

Annotations are read at the first call, which also imports names that are imported for type checkers only. Numpy's
numbers are accepted as numbers, lists as tuples; nothing is converted. Fields of frozen dataclasses are checked too, and
the keys of a `TypedDict`, which declares the form of a stored document (`misfit`).
A text in a union with `Path` is a path. The function itself checks what an annotation can't express (that a name is
known, that a picture fits).
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin

from cm3core.errors import CM3Error

F = TypeVar("F", bound=Callable[..., Any])
#: Next step of a message if nothing more exact is known.
_CORRECT = "correct the value"
#: Maximum length of a wrong value in a message.
_SHOWN = 60
#: Limits of usual file systems for the bytes of a file name and of a path.
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
_UNIONS = (Union, types.UnionType)
#: Classes whose instances need no further check if they are exactly of the annotated class.
_PLAIN = frozenset({str, bytes, int, float, bool, types.NoneType})


@dataclass(frozen=True)
class Range:
    """A number's range, both ends included; None: unbounded."""

    least: float | None = None
    most: float | None = None

    def __contains__(self, value: float) -> bool:
        low = self.least is None or value >= self.least
        return low and (self.most is None or value <= self.most)

    @property
    def advice(self) -> str:
        """The next step of a message."""
        if self.most is None:
            return f"use {self.least:,} or more"
        return f"use {'at most' if self.least is None else f'{self.least:,} to'} {self.most:,}"


@dataclass(frozen=True)
class Called:
    """A value's description in messages, instead of its type's, and the next step."""

    words: str
    next_step: str = _CORRECT


@dataclass(frozen=True)
class Shape:
    """Sizes of an array's dimensions, all nonzero; None: any."""

    sizes: tuple[int | None, ...]

    def __contains__(self, value: Any) -> bool:
        fixed = len(value.shape) == len(self.sizes) and all(
            wanted in (None, size) for size, wanted in zip(value.shape, self.sizes, strict=True)
        )
        return fixed and 0 not in value.shape


@dataclass(frozen=True)
class Matching:
    """A text that matches a pattern as a whole."""

    pattern: str
    words: str

    def __contains__(self, value: str) -> bool:
        return _compiled(self.pattern).fullmatch(value) is not None


@dataclass(frozen=True)
class Without:
    """A text that doesn't have a character."""

    character: str
    words: str

    def __contains__(self, value: str) -> bool:
        return self.character not in value


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.DOTALL)


#: Counts.
Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
#: Name of a component, a task or a split.
Name = Annotated[str, Called("a name")]


class _WrongError(Exception):
    """A value does not fit its annotation.

    Args:
        path: position within the argument: "[2].codes".
        cause, next_step: as in `CM3Error`.
    """

    def __init__(self, path: str, cause: str, next_step: str = _CORRECT) -> None:
        super().__init__(path, cause, next_step)
        self.path, self.cause, self.next_step = path, cause, next_step
        #: Overrides the message's place: for a file path with this problem.
        self.place = ""
        #: Whether the value itself has the wrong class.
        self.is_whole = False

    def within(self, step: str) -> _WrongError:
        """The same error, one step further out in the path."""
        self.path = step + self.path
        return self


def checked(error: type[CM3Error]) -> Callable[[F], F]:
    """Decorator that checks a function's arguments at each call.

    Args:
        error: raised for an argument that does not match its annotation; the place is the argument's name.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            signature, takes_options = _signature(function)
            try:
                bound = signature.bind(*arguments, **options).arguments
            except TypeError:  # let Python report missing or unknown arguments
                return function(*arguments, **options)
            annotations = _annotations(call)
            for name, value in bound.items():
                if name not in takes_options.values() and name in annotations:
                    check_value(name, value, annotations[name], error)
                elif name == takes_options.get(inspect.Parameter.VAR_POSITIONAL):
                    for one in value:
                        check_value(name, one, annotations.get(name, Any), error)
            return function(*arguments, **options)

        return typing.cast(F, call)

    return decorate


@functools.cache
def _signature(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[Any, str]]:
    """A function's signature, and the kinds of its `*arguments` and `**options`. Read at the first call, so that
    importing does not pay for functions that are never called."""
    signature = inspect.signature(function)
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    takes = signature.parameters.items()
    return signature, {item.kind: name for name, item in takes if item.kind in variable}


def check_value(place: str, value: object, annotation: Any, error: type[CM3Error]) -> None:
    """Raise `error` for a value that does not fit its annotation.

    Args:
        place: of the value, for the message.
        value: anything.
        annotation: resolved; may be `Annotated` with `Range` and `Called`.
        error: the class to raise.
    """
    try:
        _check(value, annotation)
    except _WrongError as wrong:
        raise error(wrong.place or place + wrong.path, wrong.cause, wrong.next_step) from None


def misfit(value: object, annotation: Any) -> tuple[str, str] | None:
    """What is wrong with a value that does not fit its annotation: where in it, and the cause; None: it fits.

    Keys of a `TypedDict` that it doesn't declare are ignored: a later version may have written them.

    >>> misfit([1, True], list[int])
    ('[1]', 'is True, must be a whole number')
    """
    if _likely(annotation)(value):
        return None
    try:
        _check(value, annotation)
    except _WrongError as wrong:
        advice = "" if wrong.next_step == _CORRECT else f" ({wrong.next_step})"
        return wrong.path, wrong.cause + advice
    return None


def check_fields(instance: Any, error: type[CM3Error], within: str = "") -> None:
    """Raise `error` for the first field of a dataclass that does not fit its annotation.

    Args:
        instance: of a dataclass.
        error: the class to raise.
        within: prefix of a field's name in the message, such as "sampler.".
    """
    owner: Any = type(instance)
    annotations = _annotations(owner)
    for item in fields(instance):
        check_value(within + item.name, getattr(instance, item.name), annotations[item.name], error)


def shown(value: object) -> str:
    """A wrong value as shown in a message: shortened, with arrays as type and shape.

    >>> shown("x"), shown([0] * 100)
    ("'x'", '[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ...')
    """
    if hasattr(value, "dtype") and getattr(value, "shape", ()) != ():
        kind = f"{value.dtype} {list(value.shape)}"  # type: ignore[attr-defined]  # has both
        return kind.removeprefix("torch.")
    if isinstance(value, int) and not -(10**_SHOWN) < value < 10**_SHOWN:
        return "a number of very many digits"
    if isinstance(value, (str, bytes)):
        value = value[: _SHOWN + 1]
    try:
        text = repr(value)
    except Exception:  # a third-party class
        text = ""
    if not text or " at 0x" in text:
        return "a " + type(value).__name__
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


# ---- annotations


class _Names(dict[str, Any]):
    """The names that an annotation may use: those of its module, including imports for type checkers; other names
    are kept unresolved."""

    def __init__(self, module: str) -> None:
        super().__init__(vars(sys.modules[module]))
        self._module = sys.modules[module]

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        for node in ast.walk(_source(self._module)):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    if name == (alias.asname or alias.name):
                        return getattr(importlib.import_module(node.module), alias.name)
        return ForwardRef(name)


@functools.cache
def _source(module: types.ModuleType) -> ast.Module:
    """A module's source, for its imports under TYPE_CHECKING."""
    return ast.parse(inspect.getsource(module))


@functools.cache
def _annotations(owner: Any) -> dict[str, Any]:
    """The resolved annotations of a function, or of a dataclass's fields."""
    owners = reversed(owner.__mro__) if isinstance(owner, type) else [inspect.unwrap(owner)]
    found: dict[str, Any] = {}
    for one in owners:
        names = None
        own = vars(one).get("__annotations__", {}) if isinstance(one, type) else one.__annotations__
        for name, annotation in own.items():
            if name != "return" and isinstance(annotation, str):
                names = _Names(one.__module__) if names is None else names
                annotation = eval(annotation, {}, names)  # our own source, as `typing` does
            found[name] = annotation
    return found


def _check(value: object, annotation: Any) -> None:
    """Raise `_WrongError` for a value that does not fit its annotation."""
    if type(value) is annotation and annotation in _PLAIN:
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        _check_annotated(value, annotation)
    elif origin in _UNIONS:
        _check_union(value, annotation, arguments)
    elif origin is Literal:
        if not any(type(value) is type(one) and value == one for one in arguments):
            names = ", ".join(str(one) for one in arguments)
            raise _WrongError("", f"is {shown(value)}", f"use one of {names}")
    elif isinstance(origin, type) and not _is_of(value, origin):
        raise _wrong(value, annotation)
    elif isinstance(origin, type):
        _check_parts(value, origin, arguments, annotation)
    elif not _is_of(value, annotation):
        raise _wrong(value, annotation)
    elif (keys := _keys(annotation)) is not None:
        _check_keys(value, keys)
    elif isinstance(value, Path):
        _check_path(value)
    else:
        owner: Any = type(value)
        for name, inner in _frozen_fields(owner):
            try:
                _check(getattr(value, name), inner)
            except _WrongError as wrong:
                raise wrong.within(f".{name}") from None


@functools.cache
def _frozen_fields(owner: Any) -> list[tuple[str, Any]]:
    """The fields of a frozen dataclass with their annotations; empty for other classes."""
    parameters = getattr(owner, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        return []
    annotations = _annotations(owner)
    return [(item.name, annotations[item.name]) for item in fields(owner)]


@functools.cache
def _keys(annotation: Any) -> list[tuple[str, bool, Any]] | None:
    """The keys of a `TypedDict`, whether each must be there, and its annotation; None for other classes."""
    if not typing.is_typeddict(annotation):
        return None
    found = []
    for name, one in typing.get_type_hints(annotation, include_extras=True).items():
        # Python doesn't see `NotRequired` in annotations that are kept as text
        optional = get_origin(one) is typing.NotRequired
        required = name in annotation.__required_keys__ and not optional
        found.append((name, required, get_args(one)[0] if optional else one))
    return found


def _check_keys(value: Any, keys: list[tuple[str, bool, Any]]) -> None:
    """Check what the keys of a mapping hold."""
    for name, required, annotation in keys:
        if name in value:
            try:
                _check(value[name], annotation)
            except _WrongError as wrong:
                raise wrong.within(f".{name}") from None
        elif required:
            raise _WrongError("", f"has no {name!r}")


def _check_annotated(value: Any, annotation: Any) -> None:
    marks = annotation.__metadata__
    try:
        _check(value, annotation.__origin__)
    except _WrongError:
        if any(isinstance(one, Called) for one in marks):
            raise _wrong(value, annotation) from None
        raise
    for limit in marks:
        if isinstance(limit, Range) and value not in limit:
            raise _WrongError("", f"is {shown(value)}", limit.advice)
        if isinstance(limit, Shape) and value not in limit:
            raise _wrong(value, annotation)
        if isinstance(limit, (Matching, Without)) and value not in limit:
            raise _WrongError("", f"is {shown(value)}, must be {limit.words}")


def _check_union(value: object, annotation: Any, members: tuple[Any, ...]) -> None:
    """Raise for a value that matches no member; if it has one member's class, report the problem within it."""
    if isinstance(value, Path) or (isinstance(value, str) and str in members and Path in members):
        _check_path(value)
    if type(value) in _PLAIN and type(value) in members:
        return
    inner: _WrongError | None = None
    for member in members:
        try:
            return _check(value, member)
        except _WrongError as wrong:
            bare = member.__origin__ if get_origin(member) is Annotated else member
            if _is_of(value, get_origin(bare) or bare):
                inner = wrong if inner is None or len(wrong.path) > len(inner.path) else inner
    # name all members, unless the problem lies within one of them
    if inner is not None and (inner.path or not inner.is_whole):
        raise inner
    raise _wrong(value, annotation)


def _check_path(value: str | Path) -> None:
    """Raise for an impossible path."""
    try:
        name = os.fsencode(value)
    except UnicodeEncodeError:
        raise _WrongError("", f"is {shown(str(value))}, not a path", "correct the path") from None
    if not name or b"\0" in name:
        raise _WrongError("", f"is {shown(str(value))}, not a path", "correct the path")
    longest = max(len(part) for part in name.split(b"/"))
    if longest > _LONGEST_NAME or len(name) > _LONGEST_PATH:
        wrong = _WrongError("", "can't be used (File name too long)", "correct the path")
        wrong.place = str(value)
        raise wrong


def _check_parts(value: Any, origin: Any, arguments: tuple[Any, ...], annotation: Any) -> None:
    """Check the items of a container, or the dtype of an array."""
    if origin.__module__ == "numpy":
        wanted = get_args(arguments[1])[0]
        if not isinstance(wanted, TypeVar) and wanted is not Any and not _has_dtype(value, wanted):
            raise _wrong(value, annotation)
    elif issubclass(origin, tuple) and arguments[1:] != (Ellipsis,):
        if len(value) != len(arguments):
            raise _wrong(value, annotation)
        _check_items(zip(value, arguments, strict=True))
    elif issubclass(origin, Mapping):
        for key, one in value.items():
            try:
                _check(key, arguments[0])
                _check(one, arguments[1])
            except _WrongError as wrong:
                raise wrong.within(f"[{shown(key)}]") from None
    elif not (arguments and issubclass(origin, Iterable) and isinstance(value, Collection)):
        return  # an iterator that is not a collection can only be consumed once, by the function
    elif not _likely(annotation)(value):
        _check_items((one, arguments[0]) for one in value)


def _likely(annotation: Any) -> Callable[[Any], bool]:
    """A quick look at values, most of which fit: whether one surely fits. False: `_check` decides.

    Stored documents have lists of thousands of ids, and training reads tens of thousands of them in a second."""
    try:
        return _looker(annotation)
    except TypeError:  # what it is made of can't be hashed
        return _unlikely


def _unlikely(value: Any) -> bool:
    return False


@functools.cache
def _looker(annotation: Any) -> Callable[[Any], bool]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _PLAIN:
        return lambda value: type(value) is annotation
    if origin is Annotated and arguments[0] in _PLAIN:
        kind, *marks = arguments
        limits = [one for one in marks if isinstance(one, (Range, Matching, Without))]
        if len(limits) == 1:
            [limit] = limits
            if isinstance(limit, Without):  # of every name; a call less
                character = limit.character
                return lambda value: type(value) is kind and character not in value
            return lambda value: type(value) is kind and value in limit
    if origin in _UNIONS:
        members = [_looker(one) for one in arguments]
        return lambda value: any(fits(value) for fits in members)
    if annotation is Any:
        return lambda value: True
    if origin is dict:
        key, inner = map(_looker, arguments)
        return lambda value: (
            type(value) is dict and all(map(key, value)) and all(map(inner, value.values()))
        )
    if origin is list:
        return _looker_of_list(arguments[0])
    if origin is tuple and arguments[1:] != (Ellipsis,):
        items, number = [_looker(one) for one in arguments], len(arguments)
        return lambda value: (
            type(value) in (list, tuple)
            and len(value) == number
            and all(fits(one) for fits, one in zip(items, value, strict=True))
        )
    if (keys := _keys(annotation)) is not None:
        return _looker_of_keys([(name, needed, _looker(one)) for name, needed, one in keys])
    return _unlikely


def _looker_of_list(annotation: Any) -> Callable[[Any], bool]:
    kind, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if kind in (int, str) and all(isinstance(one, Range) for one in marks):
        kinds = {kind}
        if not marks:
            return lambda value: type(value) is list and set(map(type, value)) <= kinds
        return lambda value: (
            type(value) is list
            and set(map(type, value)) <= kinds
            and (not value or all(min(value) in one and max(value) in one for one in marks))
        )
    fits = _looker(annotation)
    return lambda value: type(value) is list and all(map(fits, value))


def _looker_of_keys(keys: list[tuple[str, bool, Callable[[Any], bool]]]) -> Callable[[Any], bool]:
    looks = {name: fits for name, _, fits in keys}
    needed = {name for name, required, _ in keys if required}

    def fits_keys(value: Any) -> bool:
        if type(value) is not dict or not needed <= value.keys():
            return False
        for name, one in value.items():
            fits = looks.get(name)
            if fits is not None and not fits(one):
                return False
        return True

    return fits_keys


def _check_items(items: Iterable[tuple[object, Any]]) -> None:
    """Check items against their annotations, in order."""
    for place, (one, inner) in enumerate(items):
        try:
            _check(one, inner)
        except _WrongError as wrong:
            raise wrong.within(f"[{place}]") from None


def _has_dtype(array: Any, wanted: Any) -> bool:
    """Integers of any size are accepted as int32: values that are too large are refused where they are used."""
    import numpy as np

    if array.dtype.kind == "O":
        return False
    if isinstance(wanted, type) and issubclass(wanted, np.signedinteger):
        return bool(array.dtype.kind in "iu")
    if isinstance(wanted, type) and issubclass(wanted, np.floating):
        return bool(array.dtype.kind == "f")
    return bool(np.issubdtype(array.dtype, wanted))


def _is_of(value: object, kind: Any) -> bool:
    """Whether a value is an instance of a class; parts are not checked."""
    if kind is Any or isinstance(kind, TypeVar):
        return True
    owner: Any = type(value)
    if owner is kind and _frozen_fields(owner):
        return True
    if kind is None or kind is types.NoneType:
        return value is None
    if isinstance(kind, ForwardRef):
        return any(base.__name__ == kind.__forward_arg__ for base in type(value).__mro__)
    if kind is bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
    if kind in (int, float):
        if isinstance(value, bool) or type(value).__name__ == "bool_":
            return False
        return isinstance(value, Integral if kind is int else Real)
    if not isinstance(kind, type):
        return True  # a ParamSpec: can't be checked
    if typing.is_typeddict(kind):
        return isinstance(value, Mapping)
    if kind is Callable or kind.__name__ == "Callable":
        return callable(value)
    if getattr(kind, "_is_protocol", False):
        return True
    if issubclass(kind, (str, bytes, Path)):
        return isinstance(value, kind)
    if issubclass(kind, Iterable) and (isinstance(value, (str, bytes)) or _is_number(value)):
        return False
    if issubclass(kind, (Sequence, tuple)) and not hasattr(kind, "_fields"):
        return isinstance(value, (Sequence, tuple)) or _is_row(value)
    if kind is Iterator:
        return isinstance(value, Iterable)
    return isinstance(value, kind)


def _is_number(value: object) -> bool:
    """An array without dimensions has `__iter__`, which raises."""
    return type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0


def _is_row(value: object) -> bool:
    """Whether it is an array of numbers whose rows are iterated."""
    shape = getattr(value, "shape", ())
    if type(value).__module__ != "numpy" or not shape:
        return False
    return bool(shape[0] > 0 and value.dtype.kind in "iufb")  # type: ignore[attr-defined]  # an array


# ---- words


def _wrong(value: object, annotation: Any) -> _WrongError:
    members = get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)
    marks = [mark for one in members for mark in getattr(one, "__metadata__", ())]
    steps = [one.next_step for one in marks if isinstance(one, Called)]
    cause = f"is {shown(value)}, must be {_listed(_words(annotation))}"
    wrong = _WrongError("", cause, *steps[:1])
    wrong.is_whole = True
    return wrong


def _listed(words: list[str]) -> str:
    """Alternatives in a sentence.

    >>> _listed(["a path", "a text", "None"])
    'a path, a text or None'
    """
    return " or ".join(one for one in (", ".join(words[:-1]), words[-1]) if one)


_WORDS: Mapping[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    types.NoneType: "None",
    Callable: "a function",
    Mapping: "a mapping",
    dict: "a mapping",
}
_DTYPES = {"uint8": "uint8", "int32": "whole numbers", "bool": "bools", "bool_": "bools"}


def _words(annotation: Any) -> list[str]:
    """Describe what an annotation accepts; the members of a union separately."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        named = [one.words for one in arguments[1:] if isinstance(one, Called)]
        return named or _words(arguments[0])
    if origin in _UNIONS:
        several = [word for one in arguments for word in _words(one)]
        if "a path" in several and "a text" in several:
            several.remove("a text")
        return list(dict.fromkeys([one for one in several if one != "None"] + several))
    if isinstance(annotation, ForwardRef):
        return [_a(annotation.__forward_arg__)]
    kind = dict if typing.is_typeddict(annotation) else annotation if origin is None else origin
    if kind in _WORDS:
        return [_WORDS[kind]]
    if origin is not None and origin.__module__ == "numpy":
        inner = getattr(get_args(arguments[1])[0], "__name__", "")
        return [f"an array of {_DTYPES.get(inner, inner or 'numbers')}"]
    if isinstance(kind, type) and issubclass(kind, tuple) and arguments[1:] != (Ellipsis,):
        if arguments and len(set(arguments)) == 1:
            return [f"{len(arguments)} {_plural(arguments[0])}"]
        return ["(" + ", ".join(_listed(_words(one)) for one in arguments) + ")"]
    if isinstance(kind, type) and issubclass(kind, Iterable) and arguments:
        plural = _plural(arguments[0])
        return [f"a list of {plural}" if plural else "a list"]
    return [_a(getattr(kind, "__name__", str(kind)))]


def _plural(annotation: Any) -> str:
    """The description in the plural; "" if it would be too long."""
    words = _words(annotation)
    article, _, rest = words[0].partition(" ")
    if annotation is Any or len(words) > 1 or article not in ("a", "an"):
        return ""
    head, of, tail = rest.partition(" of ")
    return f"{head if head.endswith('s') else head + 's'}{of}{tail}"


def _a(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIO' else 'a'} {name}"
