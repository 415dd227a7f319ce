"""docs/guide.md: the commands that train, with two steps; test_pages.py runs the others."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cm3apps.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "guide.md"


@pytest.mark.slow
def test_the_reader_draws_after_tuning_on_pictures_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_blocks: Callable[[Path], list[Any]]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    blocks = read_blocks(PAGE)
    (faces,) = [block for block in blocks if block.language == "python"]
    exec(compile(faces.text, faces.place, "exec"), {})
    (recipe,) = [block for block in blocks if block.file]
    Path(recipe.file).write_text(recipe.text, encoding="utf-8")
    (tuning,) = [block for block in blocks if "cm3 tune" in block.text]
    tune, draw = (shlex.split(command)[1:] for command in tuning.commands)
    assert main([*tune, "train.steps=2"]) == 0
    assert main(draw) == 0
    assert Path("mine/000-large.png").is_file()
