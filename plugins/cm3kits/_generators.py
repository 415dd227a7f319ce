"""The global random generators of Python, NumPy and torch, which no component may depend on.

A law compares calls that must be equal. Hypothesis seeds the global generators at the start of each
example, and some components read them without advancing them (`torch.initial_seed`, `fork_rng`), so
that two calls in a row may agree by accident. The kits therefore put the generators into another
state before each call, look whether it is still there afterwards, and restore them after the law.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def perturb(number: int) -> None:
    """Put all global generators into a state that depends on the number only."""
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  # the global generator is what is meant
    # what hasn't imported torch can't depend on it; most kits don't need it
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.manual_seed(number)
        if _uses_cuda():
            torch.cuda.manual_seed_all(number)


def states() -> dict[str, Any]:
    """The state of each global generator, under the name by which an author knows it."""
    found: dict[str, Any] = {"random": random.getstate()}
    own: Any = np.random.get_state()  # noqa: NPY002  # the global one is meant  # the global state is what is looked at
    found["numpy.random"] = (own[0], own[1].tobytes(), *own[2:])
    if (torch := sys.modules.get("torch")) is not None:
        found["torch"] = torch.random.get_rng_state().numpy().tobytes()
    return found


def changed(before: dict[str, Any]) -> list[str]:
    """Names of the global generators that are not in these states any more."""
    now = states()
    return [name for name, state in before.items() if now[name] != state]


@contextmanager
def preserved() -> Iterator[None]:
    """Restore the global generators afterwards."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the global one is meant
    torch = sys.modules.get("torch")
    state = None if torch is None else torch.random.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch is not None and _uses_cuda() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002  # the global one is meant
        if torch is not None:
            torch.random.set_rng_state(state)
            if devices is not None:
                torch.cuda.set_rng_state_all(devices)


def _uses_cuda() -> bool:
    torch = sys.modules["torch"]
    return bool(torch.cuda.is_available() and torch.cuda.is_initialized())
