"""The annotations of a config class are resolved once, and don't keep the class."""

from __future__ import annotations

import gc
import typing
import weakref
from dataclasses import dataclass, make_dataclass
from typing import Any, ClassVar

import pytest

from cm3core.config import schema


def test_a_class_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Config:
        size: int = 3
        kind: ClassVar[str] = "no field"

    resolved, plain = [], typing.get_type_hints

    def counted(config_class: type[Any]) -> dict[str, Any]:
        resolved.append(config_class)
        return plain(config_class)

    monkeypatch.setattr(typing, "get_type_hints", counted)
    found = schema.hints(Config)
    assert found == {"size": int}
    found.clear()  # the caller's own
    assert schema.hints(Config) == {"size": int}
    assert resolved == [Config]


def test_a_class_that_nobody_else_has_goes() -> None:
    """As that of a plugin's file, which is read again."""

    @dataclass
    class Config:
        size: int = 3

    schema.hints(Config)
    kept = weakref.ref(Config)
    del Config
    gc.collect()
    assert kept() is None


def test_what_could_not_be_resolved_is_tried_again() -> None:
    Config = make_dataclass("Config", [("size", "Later", 3)])
    Config.__module__ = __name__

    with pytest.raises(NameError):
        schema.hints(Config)
    globals()["Later"] = int
    try:
        assert schema.hints(Config) == {"size": int}
    finally:
        del globals()["Later"]
