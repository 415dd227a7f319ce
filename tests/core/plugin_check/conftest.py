"""A plugin's file, written where the command looks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from checked_plugins import WriteFile


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
