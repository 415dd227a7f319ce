"""Findings of a law, worded for the author: what was done, the expected and actual result, where, next step.

Laws compare with `same`, `holds` and `refuses`, which raise `LawBroken`; the base of the kits adds the
law, the component and its config. Values are described, never printed as objects with addresses.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import yaml
from hypothesis.errors import HypothesisException

from cm3core.config.schema import to_plain
from cm3core.errors import CM3Error, DeviceError, MissingPackageError
from cm3core.interfaces.component import ComponentConfig
from cm3kits._sources import own_line

#: Maximum length of a value in a message.
_MOST = 200
_OBJECT = re.compile(r"<(?:[\w.]*<locals>\.|[\w]+\.)*([\w]+) object at 0x[0-9a-fA-F]+>")
_FUNCTION = re.compile(
    r"<(?:bound method|function|built-in method) ([^<>]*(?:<\w+>[^<>]*)*?)(?: at| of) [^>]*>"
)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class LawBroken(AssertionError):  # what pytest shows an author: a law is broken
    """A law does not hold.

    Args:
        did: what the law did, in the past tense: "encoded 3 pictures together, and one by one".
        expected, got: expected and actual result.
        where: the first place that differs; "" for a single value.
        next_step: the next step; "": correct the component, or waive the law.
        law: the law that is broken, if it is not the one being tested.
    """

    def __init__(
        self,
        did: str,
        expected: str,
        got: str,
        where: str = "",
        next_step: str = "",
        *,
        law: str = "",
    ) -> None:
        self.did, self.expected, self.got = did, expected, got
        self.where, self.next_step = where, next_step
        self.law, self.component = law, ""
        super().__init__(self.text())

    def text(self) -> str:
        """Return everything, one line per part."""
        parts = {
            "expected": self.expected,
            "got": self.got,
            "where": self.where,
            "law": self.law,
            "next": self.next_step,
            "tested": self.component,
        }
        lines = [self.did]
        for name, text in parts.items():
            if text:
                lines.append(f"  {name}: " + readable(text).replace("\n", "\n    "))
        return "\n".join(lines)

    def in_a_line(self) -> str:
        """Return what was done, expected and got, for a report of many laws."""
        where = f" at {self.where}" if self.where else ""
        told = f"{self.did}: expected {self.expected}, got {self.got}{where}"
        return " ".join(readable(told).split())

    def tested_lines(self) -> list[str]:
        """Return the tested component."""
        return f"tested: {readable(self.component)}".splitlines() if self.component else []

    def framed(self, law: str, meaning: str, component: str) -> LawBroken:
        """Return the finding with the law and the tested component."""
        self.law = f"{law}: {meaning}" if meaning else law
        self.component = component
        self.next_step = self.next_step or (
            f"correct the component; if the law can't apply to it, define waive_{law}(self), which "
            "returns the reason"
        )
        self.args = (self.text(),)
        return self


# ---- values in words


def readable(text: str) -> str:
    """Return a text without addresses of objects.

    >>> readable("where 3 = <tests.Short object at 0x7f1e>.size, <function f at 0x12>")
    'where 3 = (a Short).size, f'
    """
    text = _OBJECT.sub(lambda found: f"(a {found[1]})", text)
    return _ADDRESS.sub("", _FUNCTION.sub(lambda found: found[1], text))


def shown(value: Any) -> str:
    """Describe a value briefly: arrays by dtype, shape and first values, configs as in recipes."""
    if (array := _as_array(value)) is not None:
        flat = ", ".join(_number(one) for one in array.reshape(-1)[:6].tolist())
        more = ", ..." if array.size > 6 else ""
        return f"{array.dtype} {list(array.shape)}: {flat}{more}" if array.ndim else _number(value)
    if isinstance(value, ComponentConfig):
        return recipe_form(value)
    if isinstance(value, BaseException):
        first = (str(value).splitlines() or [""])[0]
        return f"{type(value).__name__}: {readable(first)}"
    if isinstance(value, float):
        return _number(value)
    text = readable(repr(value))
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."


def _number(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.9g}"
    return str(value)


def recipe_form(config: Any) -> str:
    """Return a config as a recipe section in YAML, with its class."""
    plain = to_plain(config)
    keys = {name: _plain_value(value) for name, value in plain.items()} if plain else {}
    text = yaml.safe_dump({config.kind: keys}, sort_keys=False, allow_unicode=True).rstrip()
    return f"{type(config).__name__}\n{text}"


def _plain_value(value: Any) -> Any:
    """Return values that YAML can hold; describe others in words."""
    if isinstance(value, dict):
        return {str(name): _plain_value(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain_value(inner) for inner in value]
    return (
        value if isinstance(value, (bool, int, float, str, type(None))) else readable(repr(value))
    )


# ---- differences


@dataclass(frozen=True)
class Difference:
    """The first place at which two values differ."""

    where: str
    expected: str
    got: str


def difference(got: Any, expected: Any, tolerance: float = 0.0) -> Difference | None:
    """Return the first difference between two values of any type, None if they are equal.

    Args:
        got, expected: arrays, tensors, numbers, texts, and lists, dicts and dataclasses of them.
        tolerance: tolerance of numbers, absolute or relative to the larger one.
    """
    return next(_differences(got, expected, tolerance, ""), None)


def _differences(got: Any, expected: Any, tolerance: float, at: str) -> Iterator[Difference]:
    one, other = _as_array(got), _as_array(expected)
    if one is not None and other is not None:
        yield from _of_arrays(one, other, tolerance, at)
    elif isinstance(expected, str) and isinstance(got, str):
        if got != expected:
            yield _of_texts(got, expected, at)
    elif isinstance(expected, Mapping) and isinstance(got, Mapping):
        if list(got) != list(expected) and set(got) != set(expected):
            yield Difference(f"{at} names", shown(list(expected)), shown(list(got)))
            return
        for name in expected:
            yield from _differences(got[name], expected[name], tolerance, f"{at}[{name!r}]")
    elif _is_list(expected) and _is_list(got):
        for place, (mine, wanted) in enumerate(zip(got, expected, strict=False)):
            yield from _differences(mine, wanted, tolerance, f"{at}[{place}]")
        if len(got) != len(expected):
            yield Difference(f"{at} length".strip(), str(len(expected)), str(len(got)))
    elif _is_number(expected) and _is_number(got):
        if not _near(got, expected, tolerance):
            yield Difference(at, _number(expected), _number(got))
    elif is_dataclass(expected) and type(expected) is type(got) and not _is_equal(got, expected):
        for item in fields(expected):
            mine, wanted = getattr(got, item.name), getattr(expected, item.name)
            yield from _differences(mine, wanted, tolerance, f"{at}.{item.name}")
        yield Difference(at, shown(expected), shown(got))
    elif not _is_equal(got, expected):
        yield Difference(at, shown(expected), shown(got))


def _of_arrays(got: Any, expected: Any, tolerance: float, at: str) -> Iterator[Difference]:
    if got.shape != expected.shape:
        yield Difference(f"{at} shape".strip(), str(list(expected.shape)), str(list(got.shape)))
        return
    if got.dtype.kind in "OUS" or expected.dtype.kind in "OUS":
        wrong = np.asarray(got != expected)
    elif tolerance == 0:
        wrong = ~((got == expected) | (_nan(got) & _nan(expected)))
    else:
        wrong = ~np.isclose(
            got.astype(float),
            expected.astype(float),
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
        )
    if not wrong.any():
        return
    place = tuple(int(one) for one in np.argwhere(wrong)[0])
    index = f"[{', '.join(map(str, place))}]" if place else ""
    count = f" ({int(wrong.sum())} of {wrong.size} values differ)" if wrong.size > 1 else ""
    yield Difference(
        f"{at}{index}{count}", _number(expected[place].item()), _number(got[place].item())
    )


def _nan(array: Any) -> Any:
    return np.isnan(array) if array.dtype.kind in "fc" else np.zeros(array.shape, bool)


def _of_texts(got: str, expected: str, at: str) -> Difference:
    place = next(
        (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b),
        min(len(got), len(expected)),
    )
    start = max(0, place - 12) if max(len(got), len(expected)) > 60 else 0
    mine, wanted = got[start : place + 30], expected[start : place + 30]
    return Difference(f"{at} letter {place}".strip(), repr(wanted), repr(mine))


def _as_array(value: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return value if isinstance(value, np.ndarray) else None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _near(one: Any, other: Any, tolerance: float) -> bool:
    if one == other or (one != one and other != other):
        return True
    return math.isclose(float(one), float(other), rel_tol=tolerance, abs_tol=tolerance)


def _is_equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (ValueError, TypeError, RuntimeError):  # arrays inside
        return False


# ---- assertions of laws


def same(got: Any, expected: Any, did: str, *, tolerance: float = 0.0, next_step: str = "") -> None:
    """Raise `LawBroken` at the first difference; see `difference`."""
    found = difference(got, expected, tolerance)
    if found is not None:
        raise LawBroken(did, found.expected, found.got, found.where.strip(), next_step)


def differ(got: Any, other: Any, did: str, expected: str, *, next_step: str = "") -> None:
    """Raise `LawBroken` if two values are the same."""
    if difference(got, other) is None:
        raise LawBroken(did, expected, f"the same: {shown(got)}", next_step=next_step)


def holds(
    condition: Any, did: str, expected: str, got: Any, *, where: str = "", next_step: str = ""
) -> None:
    """Raise `LawBroken` unless the condition holds.

    Args:
        did, expected, where, next_step: see `LawBroken`.
        got: a text, or a value that `shown` describes.
    """
    if not bool(condition):
        described = got if isinstance(got, str) and got else shown(got)
        raise LawBroken(did, expected, described, where, next_step)


def every(values: Any, condition: Any, did: str, expected: str, *, next_step: str = "") -> None:
    """Raise `LawBroken` unless a condition holds for each value of an array; both have the same shape."""
    values, right = np.asarray(_as_array(values)), np.asarray(_as_array(condition))
    if right.all():
        return
    place = tuple(int(one) for one in np.argwhere(~right)[0])
    where = f"[{', '.join(map(str, place))}] ({int((~right).sum())} of {right.size} values)"
    raise LawBroken(did, expected, _number(values[place].item()), where, next_step)


@contextmanager
def doing(did: str, expected: str = "no error") -> Iterator[None]:
    """Context that reports an error of a component by what was done; its own refusals (`CM3Error`) are left as they are."""
    try:
        yield
    except (AssertionError, CM3Error, HypothesisException):
        raise
    except Exception as error:  # from a component
        raise LawBroken(did, expected, shown(error), own_line(error)) from error


def refuses(
    call: Callable[[], Any],
    did: str,
    error: type[CM3Error],
    *,
    match: str = "",
    next_step: str = "",
) -> Any:
    """Return the error raised by the call; raise `LawBroken` unless it is an `error` whose message matches `match`
    (a regular expression)."""
    expected = f"a {error.__name__}" + (f" that says {match!r}" if match else "")
    try:
        returned = call()
    except (MissingPackageError, DeviceError):
        raise  # it can't be tested here
    except error as raised:
        if match and not re.search(match, str(raised)):
            raise LawBroken(did, expected, shown(raised), next_step=next_step) from raised
        return raised
    except Exception as raised:  # from a component, instead of the expected error
        raise LawBroken(did, expected, shown(raised), next_step=next_step) from raised
    raise LawBroken(did, expected, f"no error, but {shown(returned)}", next_step=next_step)
