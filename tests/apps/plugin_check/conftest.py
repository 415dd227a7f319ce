"""A plugin's file, written where the command looks for it; and a single inspection of the other plugins for all
tests in the same environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from checked_plugins import WriteFile
from cm3apps.plugin_check import checking
from cm3apps.plugin_check.worker import Request

#: The answers of the processes that import the other installed plugins, by all their dependencies.
ANSWERS: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def others_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of names with other plugins runs in its own process, which takes as long as the rest of a quick
    check. Here its answer is reused from the first test with the same names in the same environment; a test that
    installs another plugin has another `sys.path`."""
    ask = checking._ask

    def remembered(
        part: str, request: Request, timeout: float, options: Sequence[str] = ()
    ) -> checking._Answer:
        if part != "others":
            return ask(part, request, timeout, options)
        ours = {name: value for name, value in os.environ.items() if name.startswith("CM3_")}
        own = (request.name, request.module, request.provided, request.paths)
        key = repr((own, request.search, ours, timeout))
        if key not in ANSWERS:
            ANSWERS[key] = ask(part, request, timeout, options)
        answer: checking._Answer = ANSWERS[key]
        return answer

    monkeypatch.setattr(checking, "_ask", remembered)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteFile:
    """Write `mine.py` into the working directory, a temporary one; returns the argument of the
    command."""
    monkeypatch.chdir(tmp_path)

    def written(source: str, name: str = "mine.py") -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8")
        return f"./{name}"

    return written
