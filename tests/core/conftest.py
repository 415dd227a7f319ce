"""The toy model, for the tests of cm3core.model and of the commands over it, and plugins that are
installed for one test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cm3core.cli import main as cli
from cm3core.model import Model
from cm3core.plugins.discovery import GROUP
from throwaway_plugins import Install
from toy_model import Brightness, toy_model


@pytest.fixture(scope="module")
def model() -> Model:
    return toy_model()


@pytest.fixture
def ranked(model, monkeypatch):
    """With a reranker."""
    monkeypatch.setattr(model.components, "reranker", Brightness(), raising=False)
    return model


@pytest.fixture
def cm3(model, monkeypatch):
    """`cm3 ...` with the toy model behind every `--model`."""
    monkeypatch.setattr("cm3core.model.model.load", lambda *_, **__: model)
    return lambda *arguments: cli.main([str(argument) for argument in arguments])


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Write a distribution with one module and one entry point, as an installer would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def write(
        name: str,
        source: str,
        *,
        module: str | None = None,
        points: str | None = None,
        version: str = "1.2",
    ) -> None:
        module = module or f"throwaway_{name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
        )
        (info / "entry_points.txt").write_text(
            f"[{GROUP}]\n{points or f'{name} = {module}'}\n", encoding="utf-8"
        )
        modules.append(module)
        importlib.invalidate_caches()

    yield write
    for module in modules:
        sys.modules.pop(module, None)
