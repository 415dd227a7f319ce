"""A folder to compose recipes in."""

from __future__ import annotations

from pathlib import Path

import pytest

from plain_recipes import (
    BASE,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE, encoding="utf-8")
    return tmp_path
