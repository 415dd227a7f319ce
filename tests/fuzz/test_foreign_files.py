"""Every command that writes, where the files that it would write are there already and are somebody else's: it is
refused before any work, names one of them, and changes and writes nothing.

`fuzzing.writers` has every command with an option for what it writes (`test_kills` compares it with the parsers), so a new
one is walked, too. `plant.py` is the same by hand. Commands that can't run here have tests of their own, below.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cm3apps.cli.main import main
from fuzzing.planting import FOREIGN, contents
from fuzzing.prepared import Done, Prepared, alone
from fuzzing.writers import QUICK, REST, SLOW, TESTED_ELSEWHERE

HERE = Path(__file__).parent


def plant(
    run: Callable[..., Done], tmp_path: Path, commands: tuple[str, ...], *options: str
) -> None:
    """Walk these commands."""
    report = tmp_path / "report.json"
    arguments = [one for name in commands for one in ("--command", name)]
    done = run(
        HERE / "plant.py", "--report", str(report), *options, *arguments, tmp=tmp_path, seconds=1200
    )
    assert report.exists(), done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(report.read_text())
    assert [one["command"] for one in found] == list(commands)
    assert {one["command"]: one["wrong"] for one in found if one["wrong"]} == {}
    assert [one["command"] for one in found if not one["written"]] == []


@pytest.mark.slow
def test_foreign_files_stay(prepared: Prepared, tmp_path: Path) -> None:
    plant(prepared.run, tmp_path, QUICK)


@pytest.mark.slow
def test_foreign_files_stay_under_other_commands(tmp_path: Path) -> None:
    plant(alone, tmp_path, REST)


@pytest.mark.extended
def test_foreign_files_stay_under_long_commands(prepared: Prepared, tmp_path: Path) -> None:
    plant(prepared.run, tmp_path, SLOW)


@pytest.mark.extended
def test_each_foreign_file_alone(tmp_path: Path) -> None:
    plant(alone, tmp_path, (*QUICK, *REST), "--each")


#: Commands with a task too large for `WRITERS` -> their arguments, and names that they write. Each is refused before it
#: opens the model, the tarball, the data or the database that it is given.
REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "recipe schema": (("-o", "out.json"), ("out.json",)),
    "sweep": (
        ("quickstart", "train.learning_rate=0.001,0.002", "-o", "out"),
        ("out/results.jsonl", "out/table.md", "out/sweep.json"),
    ),
    "complete": (
        ("icons", "bell off", "--model", "nowhere", "-o", "out"),
        ("out/LICENSES", "out/report.json", "out/sheet.png", "out/candidates/bell-off-1.svg"),
    ),
    "icons build": (("a.tgz", "-o", "out"), ("out/manifest.json", "out/entries.jsonl.xz")),
    "eval run": (
        ("nowhere", "wise-v1", "-o", "out"),
        ("out/scores.json", "out/made.jsonl", "out/pictures/000000.png"),
    ),
    "eval card": (("nowhere", "results", "-o", "CARD.md"), ("CARD.md",)),
    "eval export": (("geneval", "results", "-o", "out"), ("out",)),
    "convert": (("nowhere", "-o", "out"), ("out/recipe.yaml",)),
    "titan": (("tiny", "-o", "out"), ("out/recipe.yaml", "out/metrics.jsonl")),
}
#: Commands that write no file here, or only a folder that must be new.
OTHERS = {f"postgres {name}" for name in ("init", "index", "push", "pull", "remove")}


def test_no_command_is_forgotten() -> None:
    assert {*REFUSED, *OTHERS} == set(TESTED_ELSEWHERE)


@pytest.mark.parametrize("command", REFUSED)
def test_a_large_command_leaves_foreign_files(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command == "titan":
        pytest.importorskip("torchtitan", reason="needs pip install torchtitan")
    arguments, names = REFUSED[command]
    for name in names:
        (place := tmp_path / name.replace("/", "-")).mkdir()
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(FOREIGN)
        monkeypatch.chdir(place)
        assert main([*command.split(), *arguments]) == 2
        said = capsys.readouterr().err
        assert contents(place) == {name: FOREIGN}, said
        assert Path(name).name in said or "exists" in said, said
