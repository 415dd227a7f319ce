"""`cm3 train`: what it says about a run, where, and about a command that can't start one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from cm3apps.cli.main import main
from cm3core.files import sha256_file
from cm3run import progress
from cm3run.training.state import ProgressBar
from squares import PARTS


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of two steps in `runs/squares`."""
    monkeypatch.chdir(tmp_path)
    plugin = str(PARTS / "train_parts.py")
    own = [f"data.cache_dir={tmp_path / 'cache'}", "train.validation_splits=[]"]
    return ["train", str(PARTS / "squares.yaml"), "train.steps=2", "--plugin", plugin, *own]


def test_a_finished_run_says_so_and_is_left_alone(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert "trained to step 2 (" in capsys.readouterr().out
    files = sorted(path for path in Path("runs").rglob("*") if path.is_file())
    before = {path: sha256_file(path) for path in files if "tensorboard" not in path.parts}
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "was already finished, so nothing was trained; to train more:\n" in out
    more = next(line for line in out.splitlines() if line.startswith("  cm3 "))
    assert more.endswith(" train.steps=4")
    assert "train.steps=2" not in more
    assert "it is at step 2 (" in out
    assert "nats a token: train/" in out or "nats a token: not logged" in out
    assert before == {path: sha256_file(path) for path in before}
    assert main([*arguments[:2], "train.steps=4", *arguments[3:]]) == 0
    assert "trained to step 4 (" in capsys.readouterr().out


@pytest.mark.slow
def test_quiet_is_quiet_and_pipes_get_no_control_characters(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "-o", "quiet", "--quiet"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("trained to step 2")
    assert main([*arguments, "-o", "piped"]) == 0
    captured = capfd.readouterr()
    assert captured.err.startswith("squares starts in piped")
    for text in (captured.err, captured.out):
        assert "\r" not in text
        assert "\x1b" not in text
    assert main(["kinds"]) == 0
    assert progress._silenced == 0


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_bars_are_for_terminals() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        assert list(progress.make_bar(range(3), desc="all", file=stream)) == [0, 1, 2]
    assert "all" in terminal.getvalue()
    assert "\r" in terminal.getvalue()
    assert pipe.getvalue() == ""
    quiet = Terminal()
    with progress.no_bars():
        assert not progress.bars_shown(quiet)
        list(progress.make_bar(range(3), file=quiet))
        with progress.no_bars(False):
            assert not progress.bars_shown(quiet)
    assert quiet.getvalue() == ""
    assert progress.bars_shown(quiet)


def test_a_log_file_gets_a_line_a_minute(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert main(arguments) == 0
    lines = [line.partition(",")[0] for line in capfd.readouterr().err.splitlines()]
    assert "image codes: 20 of 20" in lines
    assert lines[-2:] == ["squares: step 1", "squares: step 2"]
    assert ProgressBar.__doc__ is not None


def test_a_missing_value_says_how_to_give_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny", "dataset=folder"]) == 2
    error = capsys.readouterr().err
    assert "lacks a value for dataset.path\n" in error
    assert "e.g. cm3 train RECIPE dataset.path=...\n" in error


@pytest.mark.slow
def test_a_runs_folder_is_a_recipe(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    capsys.readouterr()
    plugin = ["--plugin", arguments[4]]
    (checkpoint,) = Path("runs/squares/checkpoints").iterdir()
    assert main([*plugin, "recipe", "diff", str(PARTS / "squares.yaml"), "runs/squares"]) == 0
    assert "train.steps: 40 -> 2\n" in capsys.readouterr().out
    assert main([*plugin, "recipe", "diff", "runs/squares", str(checkpoint)]) == 0
    assert "are equal" in capsys.readouterr().out
    assert main([*plugin, "recipe", "check", "runs/squares"]) == 0
    assert main([*plugin, "recipe", "diff", "runs/squares", "runs"]) == 2
    assert "there is no file runs/recipe.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["flex", "xformers"])
def test_attention_that_cannot_train_is_refused_before_data_are_read(
    backend: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, f"attention={backend}", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith(f"error: attention '{backend}': ")
    assert not Path("cache").exists()
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_folders_own_valid_split_is_validated_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text(f"red {number}")
    folders = [f"{section}.cache_dir={tmp_path / 'cache'}" for section in ("data", "dataset")]
    recipe, plugin = (str(PARTS / name) for name in ("squares.yaml", "train_parts.py"))
    given = "dataset=folder dataset.path=pictures dataset.valid=0.5 train.steps=2"
    other = "train.validate_every_steps=1 text_tokenizer=byte --quiet"
    assert (
        main(["train", recipe, "--plugin", plugin, *given.split(), *other.split(), *folders]) == 0
    )
    metrics = Path("runs/squares/metrics.jsonl").read_text()
    assert "validation/valid/image_loss" in metrics


def test_records_that_are_skipped_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each split of a folder names all of the folder's; a picture that can't be read is told of its split."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(f"pictures/{number:02d}.png")
        if number not in (1, 4):
            Path(f"pictures/{number:02d}.txt").write_text(f"red {number}")
    folders = [f"{section}.cache_dir={tmp_path / 'cache'}" for section in ("data", "dataset")]
    recipe, plugin = (str(PARTS / name) for name in ("squares.yaml", "train_parts.py"))
    given = "dataset=folder dataset.path=pictures dataset.valid=0.5 train.steps=1"
    other = "train.validation_splits=[valid] text_tokenizer=byte"
    command = ["train", recipe, "--plugin", plugin, *given.split(), *other.split(), *folders]
    assert main([*command, "-o", "a"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert notes == [
        f"note: 2 records are skipped; the first is {Path('pictures/01.png')}: has no caption: there is no "
        "01.txt next to it; 'cm3 data validate' lists them all"
    ]


@pytest.mark.slow
def test_a_shorter_length_changes_nothing_of_a_longer_run(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What the folder says stays what was trained, and what its checkpoint says."""
    recipe, others = arguments[:2], arguments[3:]
    assert main([*recipe, "train.steps=4", *others]) == 0
    described = {path: path.read_bytes() for path in Path("runs/squares").glob("*.*")}
    assert {"recipe.yaml", "components.json", "provenance.json"} <= {
        path.name for path in described
    }
    assert main([*recipe, "train.steps=2", *others]) == 0
    assert "nothing was trained" in capsys.readouterr().out
    assert described == {path: path.read_bytes() for path in described}
    assert "  steps: 4\n" in Path("runs/squares/recipe.yaml").read_text()
