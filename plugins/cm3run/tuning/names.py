"""Names of parameters and modules: what patterns mean, and what is near a name that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from cm3core.errors import RecipeError


def parameters_named(module: nn.Module, patterns: Iterable[str]) -> set[str]:
    """The parameters that the patterns name, themselves or by a module that holds them.

    Raises:
        RecipeError: a pattern names none.
    """
    parameters = [name for name, _ in module.named_parameters()]
    named: set[str] = set()
    for pattern in patterns:
        found = {name for name in parameters if any(fnmatchcase(p, pattern) for p in _paths(name))}
        if not found:
            known = dict.fromkeys(path for name in parameters for path in _paths(name))
            raise RecipeError(
                "tune.parameters",
                f"{pattern!r} names no parameter and no module of this decoder",
                nearest(pattern, known),
            )
        named |= found
    return named


def _paths(name: str) -> list[str]:
    """A parameter's name, and those of all modules that it is in.

    >>> _paths("layers.0.fc1.weight")
    ['layers', 'layers.0', 'layers.0.fc1', 'layers.0.fc1.weight']
    """
    parts = name.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts) + 1)]


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint for an unknown name of a module: the nearest, or what there is, blocks told once.

    >>> nearest("q_porj", ["layers.0.q_proj", "layers.1.q_proj", "norm"])
    "did you mean 'q_proj'?"
    >>> nearest("zzz", ["layers.0.q_proj", "layers.1.q_proj", "norm"])
    'known: layers.*.q_proj, norm'
    """
    whole = list(known)
    ends = dict.fromkeys(one.rpartition(".")[2] for one in whole)
    close = get_close_matches(name, [*whole, *ends], n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(
        dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", one) for one in whole)
    )
