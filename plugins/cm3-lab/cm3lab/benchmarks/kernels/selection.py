"""Which ops, shapes, dtypes and directions `cm3 bench kernels` measures, from what was typed; all errors come before
anything is measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from cm3core.errors import CM3Error, DeviceError, close_match
from cm3run.benchmarks import (
    DIRECTIONS,
    BenchmarkRegistry,
    Case,
    Direction,
    Op,
    Provider,
    Shape,
    Where,
)
from cm3run.machine_memory import MachineMemory

PLACE = "cm3 bench kernels"


@dataclass(frozen=True)
class Asked:
    """What was typed, each option as often as it was given.

    Args:
        ops, providers: names; empty: all.
        shapes: "KEY=VALUE,...", of every op that is named; empty: each op's own.
        dtypes, directions: empty: each op's own.
    """

    ops: Sequence[str] = ()
    providers: Sequence[str] = ()
    shapes: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    directions: Sequence[str] = ()


def listed(option: str, values: Iterable[str]) -> list[str]:
    """Split values at commas, without repetitions.

    >>> listed("--op", ["attention,add_norm", "attention"])
    ['attention', 'add_norm']
    """
    names = [name.strip() for value in values for name in value.split(",")]
    if "" in names:
        raise CM3Error(f"{PLACE} {option}", "a name is empty", "separate names by single commas")
    return list(dict.fromkeys(names))


def parsed_shape(text: str) -> dict[str, str]:
    """Return the keys of a shape and their values as they were typed.

    >>> parsed_shape("B=8, kind=cfg+top_p")
    {'B': '8', 'kind': 'cfg+top_p'}

    Raises:
        CM3Error: it is not KEY=VALUE,..., or has a key twice.
    """
    place, found = _place(text), dict[str, str]()
    for part in text.split(","):
        key, equals, value = (one.strip() for one in part.partition("="))
        if not (key and equals and value):
            raise CM3Error(place, f"{part.strip()!r} is not KEY=VALUE", "write it like M=16,E=4096")
        if key in found:
            raise CM3Error(place, f"has the key {key!r} twice", "leave one of them out")
        found[key] = value
    return found


def _place(text: str) -> str:
    return f"{PLACE} --shape {text if len(text) <= 80 else text[:80] + '...'}"


def shape_of(op: Op, text: str, where: Where) -> Shape:
    """Return a shape of an op with all its keys: those typed, and the defaults of the others.

    Raises:
        CM3Error: an unknown key, a wrong value, or values that don't fit each other.
    """
    place, given = _place(text), parsed_shape(text)
    typed: dict[str, int | str] = {}
    for key, value in given.items():
        if key not in op.keys:
            raise CM3Error(place, f"{op.name} has no key {key!r}", _nearest_key(op, key))
        try:
            typed[key] = op.keys[key].value(value)
        except ValueError as error:
            meaning, choices = op.keys[key].meaning, op.keys[key].choices
            step = close_match(value, choices) if choices else f"write it like {key}=16"
            raise CM3Error(place, f"{key} ({meaning}) is {value[:40]!r}, {error}", step) from None
    shape = {**_defaults(op, where), **typed}
    if missing := [key for key in op.keys if key not in shape]:
        raise CM3Error(
            place, f"{op.name} has no default of {', '.join(missing)} here", "give all keys"
        )
    ordered = {key: shape[key] for key in op.keys}
    if (reason := op.refusal(ordered)) is not None:
        raise CM3Error(place, f"{op.name}: {reason}", "change the shape")
    return ordered


def _nearest_key(op: Op, key: str) -> str:
    hint = close_match(key, op.keys)
    known = "its keys are " + ", ".join(f"{name} ({one.meaning})" for name, one in op.keys.items())
    return f"{hint} {known}" if hint.startswith("did you mean") else known


def _defaults(op: Op, where: Where) -> Shape:
    own = op.shapes(where)
    return own[0] if own else {}


def selected(
    registry: BenchmarkRegistry, asked: Asked, where: Where
) -> list[tuple[Op, list[Case]]]:
    """Return the ops and their cases.

    Raises:
        CM3Error: an unknown op, provider, key, dtype or direction, or a named op that has none of what was asked for.
        DeviceError: a case needs more memory than there is.
    """
    names = listed("--op", asked.ops)
    _check_known("--op", "op", names, registry.ops)
    if asked.shapes and not names:
        raise CM3Error(
            f"{PLACE} --shape",
            "an op's shapes have its own keys, and no op is named",
            "add --op NAME; `cm3 bench kernels --list` has the ops and their keys",
        )
    ops = [op for name, op in registry.ops.items() if not names or name in names]
    known = {provider.name for op in ops for provider in op.providers}
    _check_known("--provider", "provider", asked.providers, known)
    dtypes = listed("--dtype", asked.dtypes)
    every = {one for op in registry.ops.values() for one in op.limits}
    _check_known("--dtype", "dtype", dtypes, every)
    directions = listed("--direction", asked.directions)
    _check_known("--direction", "direction", directions, DIRECTIONS)
    chosen, wanted = [], {"dtype": dtypes, "direction": directions}
    for op in ops:
        able = {what: _able(registry, op, what, wanted[what], named=bool(names)) for what in wanted}
        if any(wanted[what] and not able[what] for what in wanted):
            continue  # not one of those named
        shapes = [shape_of(op, text, where) for text in asked.shapes]
        cases = op.cases(where, shapes, able["dtype"], cast("list[Direction]", able["direction"]))
        if names and not cases:
            raise CM3Error(
                f"{PLACE} --op {op.name}",
                f"has no shapes on {where.target}",
                "use another --device, or give a --shape",
            )
        for case in cases:
            _check_memory(op, case, where)
        if cases:
            chosen.append((op, cases))
    if not chosen:
        raise CM3Error(PLACE, "no op has all that was asked for", "see `cm3 bench kernels --list`")
    return chosen


def _check_known(option: str, what: str, names: Sequence[str], known: Iterable[str]) -> None:
    every = set(known)
    for name in names:
        if name not in every:
            raise CM3Error(
                f"{PLACE} {option}", f"no {what} is called {name!r}", close_match(name, every)
            )


def _able(
    registry: BenchmarkRegistry, op: Op, what: str, wanted: Sequence[str], *, named: bool
) -> list[str]:
    """Return what the op has of `wanted`. A named op must have all of it; without names, the others are left out."""
    every = _has(op, what)
    able = [one for one in wanted if one in every]
    if named and len(able) < len(wanted):
        lacking = next(one for one in wanted if one not in every)
        why = ": it is for generation" if what == "direction" else ""
        others = [name for name, other in registry.ops.items() if lacking in _has(other, what)]
        raise CM3Error(
            f"{PLACE} --{what} {lacking}",
            f"{op.name} has no {what} {lacking!r}{why}",
            f"its {what}s are {', '.join(every)}; {lacking} is measured for {', '.join(others)}",
        )
    return able


def _has(op: Op, what: str) -> list[str]:
    return list(op.limits if what == "dtype" else op.directions)


def _check_memory(op: Op, case: Case, where: Where) -> None:
    """Refuse a case whose inputs and reference don't fit."""
    if where.device.type == "cuda":
        free: int | None = torch.cuda.mem_get_info(where.device)[0]
    else:
        found = MachineMemory.find()
        free = found.limit if found.free is None else found.free
    needed = case.num_bytes + op.reference_bytes(case)
    if free is not None and needed > free:
        raise DeviceError(
            f"{PLACE} --op {op.name}, {case.name}",
            f"inputs and reference take about {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free",
            "use a smaller --shape",
        )


def listing(registry: BenchmarkRegistry, asked: Asked, where: Where) -> str:
    """Describe ops: keys with their defaults here, dtypes, directions, costs, and each provider, or why it does not run
    the default case here."""
    names = listed("--op", asked.ops)
    _check_known("--op", "op", names, registry.ops)
    lines: list[str] = []
    for name, op in registry.ops.items():
        if not names or name in names:
            lines += ["", *_described(op, where)]
    return "\n".join(lines[1:])


def _described(op: Op, where: Where) -> list[str]:
    defaults, usual = _defaults(op, where), op.dtypes(where)
    keys = [
        f"    {key:<10} {defaults.get(key, '-')!s:<16} {one.meaning}"
        + (f": {', '.join(one.choices)}" if one.choices else "")
        for key, one in op.keys.items()
    ]
    dtypes = [f"{one} (default)" if one in usual else one for one in op.limits]
    cases = op.cases(where, [defaults], usual, op.directions) if defaults else []
    lines = [
        op.name,
        f"  {op.costs} (w: bytes of an element)",
        f"  dtypes {', '.join(dtypes)}; directions {', '.join(op.directions)}",
        f"  {'key':<11} {'default':<16} meaning",
        *keys,
        f"  provider, and whether it runs with these defaults on {where.target}",
    ]
    for provider in op.providers:
        base = " (baseline)" if provider.name == op.baseline else ""
        said = _ability(provider, cases, where) or f"the op has no shapes on {where.target}"
        lines.append(f"    {provider.name + base:<26} {said}")
    return lines


def _ability(provider: Provider, cases: Sequence[Case], where: Where) -> str:
    """Return "runs", or the reasons why a provider does not, with the cases where they differ."""
    found: dict[str, list[str]] = {}
    for case in cases:
        try:
            reason = provider.enabled(case, where) or "runs"
        except Exception as error:  # third-party code
            reason = f"fails: {type(error).__name__}: {error}"
        first = reason.strip().splitlines()[0]
        found.setdefault(first, []).append(f"{_dtype(case)} {case.direction}")
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{reason} ({', '.join(of)})" for reason, of in found.items())


def dtypes_of(chosen: Sequence[tuple[Op, Sequence[Case]]]) -> list[str]:
    """Return the dtypes of all cases, for their roofs."""
    return list(dict.fromkeys(_dtype(case) for _, cases in chosen for case in cases))


def _dtype(case: Case) -> str:
    return str(case.dtype).removeprefix("torch.")
