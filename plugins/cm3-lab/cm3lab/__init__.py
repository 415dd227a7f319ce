"""Benchmarks of cm3leon, and the icon model before its tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cm3core.hookspecs import hookimpl

CM3_API = 1


@hookimpl
def cm3_commands() -> Mapping[str, str]:
    return {"bench": "cm3lab.benchmarks.command:configure"}


@hookimpl
def cm3_benchmarks() -> Mapping[str, str]:
    return {"kernels": "cm3lab.benchmarks.kernels.ops:add"}


@hookimpl
def cm3_models() -> Mapping[str, Path]:
    return {"icons64": Path(__file__).parent / "models" / "icons64"}
