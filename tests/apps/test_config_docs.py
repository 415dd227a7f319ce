"""Keys of config classes and their documentation, read from docstrings."""

from __future__ import annotations

import doctest
from dataclasses import dataclass, field

import pytest

from cm3apps import catalog as keys
from cm3apps.catalog import Key, arguments, docstring, keys_of
from cm3core.interfaces import SamplerConfig
from cm3core.plugins import KINDS, load_registry

REGISTRY = load_registry()


@dataclass(kw_only=True)
class Inner:
    """How it is trained.

    Args:
        steps: of the optimiser.
    """

    steps: int = 3
    seed: int = 0


@dataclass(kw_only=True)
class Base(SamplerConfig):
    """Base.

    Args:
        low, high: limits,
            both included.

            Also after an empty line.
        size: of the base.

    Raises:
        shape: no key.
    """

    low: float = 0.0
    high: float = 1.0
    size: int | None = None


@dataclass(kw_only=True)
class Derived(Base):
    """Derived.

    Args:
        size: of the derived one: a colon is text.
        gone: documented, and no key.
    """

    path: str
    inner: Inner = field(default_factory=lambda: Inner(steps=5))


@dataclass(kw_only=True)
class Bare(SamplerConfig):
    size: tuple[int, ...] = (1, 2)


def test_keys_by_hand() -> None:
    limits = "limits, both included. Also after an empty line."
    assert keys_of(Derived) == [
        Key("low", "float", 0.0, False, limits, "Base"),
        Key("high", "float", 1.0, False, limits, "Base"),
        Key("size", "int | None", None, False, "of the derived one: a colon is text.", "Derived"),
        Key("path", "str", None, True, "", ""),
        Key("inner", "Inner", {"steps": 5, "seed": 0}, False, "", ""),
        Key("inner.steps", "int", 5, False, "of the optimiser.", "Inner"),
        Key("inner.seed", "int", 0, False, "", ""),
    ]
    assert list(arguments(Derived)) == ["size", "gone"]
    assert "shape" not in arguments(Base)


def test_what_dataclass_makes_up_is_no_documentation() -> None:
    assert (Bare.__doc__ or "").startswith("Bare(*, size: ")
    assert docstring(Bare) == ""
    assert keys_of(Bare) == [Key("size", "tuple[int, ...]", [1, 2], False, "", "")]


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in REGISTRY.names(kind)]
)
def test_every_bundled_key_is_documented_and_nothing_else(kind: str, name: str) -> None:
    config_class = REGISTRY.config_class(kind, name)
    known = keys_of(config_class)
    assert [key.name for key in known if not key.text] == []
    assert set(arguments(config_class)) - {key.name for key in known} == set()
    assert docstring(config_class)


def test_examples() -> None:
    assert doctest.testmod(keys) == (0, 2)
