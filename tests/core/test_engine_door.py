"""`cm3core.load` and `cm3core.Model`: found by their entry points when they are used."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

import cm3core
import cm3run.model
from cm3core.errors import PluginError


def point(value: str, distribution: str) -> EntryPoint:
    made: Any = EntryPoint("load", value, "cm3core.engine")
    vars(made)["dist"] = SimpleNamespace(name=distribution)
    return made


def test_it_leads_to_the_engine() -> None:
    assert cm3core.load is cm3run.model.load
    assert cm3core.Model is cm3run.model.Model


def test_nobody_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [point("json:loads", "cm3-others"), point("cm3run.model:load", "cm3leon")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: points)
    assert cm3core.load is cm3run.model.load


def test_there_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [])
    with pytest.raises(PluginError) as caught:
        cm3core.load  # noqa: B018  # using the name looks it up
    assert str(caught.value) == (
        "cm3core.load: no installed distribution provides it\n  next: install cm3leon again"
    )
