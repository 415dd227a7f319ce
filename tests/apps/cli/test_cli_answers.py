"""`cm3 generate` says of each picture whether it was found, restyled or composed, and writes the original of what it
found."""

from __future__ import annotations

import json
import zipfile

import pytest

from cm3apps.cli import main as cli
from cm3apps.cli.opening import progress_bar
from cm3run.attribution import facts_in
from toy_finder import finder
from toy_model import toy_model


@pytest.fixture
def run(monkeypatch):
    """`cm3 ...` with a model that tells what its memory has."""
    own = finder()
    monkeypatch.setattr("cm3run.model.model.load", lambda *_, **__: own)
    return lambda *arguments: cli.main([str(argument) for argument in arguments])


def test_an_original_is_written_for_what_is_found(run, tmp_path, capsys):
    assert run("generate", "bell, lucide", "plug, tabler", "-o", tmp_path) == 0
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["000.png", "000.svg", "001.png", "002.png", "grid.png"]
    content = (tmp_path / "000.svg").read_bytes()
    assert b'<path d="M0 2h4"/>' in content
    assert facts_in(content, "000.svg").texts["original"] == "lucide/bell"
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [
        str(tmp_path / "000.svg"),
        "  found: lucide/bell (ISC) is 'bell, outline rounded, lucide', similarity 1.00; this is its original",
        str(tmp_path / "001.png"),
    ]
    assert lines[4].startswith(
        "  restyled: the index has 'plug' in other styles or sets only; drawn after"
    )


def test_its_metadata_say_it(run, tmp_path, capsys):
    assert run("generate", "bell, lucide", "-o", tmp_path) == 0
    capsys.readouterr()
    assert run("provenance", tmp_path / "000.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "original: lucide/bell" in lines
    assert any(line.startswith("answer: found: lucide/bell (ISC) is 'bell, ") for line in lines)
    assert run("provenance", tmp_path / "000.png", "--json") == 0
    assert json.loads(capsys.readouterr().out)["answer"]["kind"] == "found"


def test_a_number_is_filled_by_drawing(run, tmp_path, capsys):
    assert run("generate", "bell, lucide", "bell, mdi", "--n", 2, "-o", tmp_path) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert {"000.svg", "002.svg"} <= written
    assert not {"001.svg", "003.svg"} & written
    assert capsys.readouterr().out.count("  found: ") == 2


def test_earlier_originals_are_replaced(run, tmp_path):
    assert run("generate", "bell, lucide", "-o", tmp_path) == 0
    assert run("generate", "zebra", "--force", "--n", 1, "-o", tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000.png", "grid.png"]


def test_a_zip_tells_originals_from_drawings(run, tmp_path, capsys):
    asked = ("generate", "bell", "zebra", "--style", "lucide", "--n", 1, "--zip", "--force")
    assert run(*asked, "-o", tmp_path) == 0
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        assert {"bell.png", "bell.svg", "zebra.png"} <= set(archive.namelist())
        licences = archive.read("LICENSES").decode()
    assert "\nbell (an original, not generated)\n  lucide/bell: " in licences
    assert "\nzebra\n  " in licences


def test_other_files_are_written_beside(monkeypatch, tmp_path):
    own = finder(".jpg")
    monkeypatch.setattr("cm3run.model.model.load", lambda *_, **__: own)
    assert cli.main(["generate", "bell, lucide", "--original", "-o", str(tmp_path)]) == 0
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["000-original.jpg", "000-original.jpg.license", "000.png", "grid.png"]


def test_drawing_can_be_insisted_on(run, tmp_path, capsys, monkeypatch):
    assert run("generate", "bell, lucide", "--draw", "--n", 1, "-o", tmp_path) == 0
    assert not (tmp_path / "000.svg").exists()
    out = capsys.readouterr().out
    assert "  restyled: the index has 'bell' in this style, too: lucide/bell" in out
    own = toy_model()
    monkeypatch.setattr("cm3run.model.model.load", lambda *_, **__: own)
    assert run("generate", "red", "--draw", "--n", 1, "-o", tmp_path / "other") == 0
    assert "draw" not in capsys.readouterr().err, "a script works with any model"


def test_a_model_that_does_not_tell_says_nothing(monkeypatch, tmp_path, capsys):
    own = toy_model()
    monkeypatch.setattr("cm3run.model.model.load", lambda *_, **__: own)
    assert cli.main(["generate", "red", "--n", "1", "-o", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / '000.png'}\n{tmp_path / 'grid.png'}\n"
    assert "answer" not in facts_in((tmp_path / "000.png").read_bytes(), "000.png").texts


def test_an_answer_shows_no_time_left_because_it_may_end_at_any_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for early in (True, False):
        with progress_bar("answering", may_end_early=early) as progress:
            for done in range(0, 121, 4):
                now[0] += 4
                progress(done, 1_276)
    assert capsys.readouterr().err.splitlines() == [
        "answering: 60, at most 1,276",
        "answering: 120, at most 1,276",
        "answering: 60 of 1,276, 5%, 20:16 left",
        "answering: 120 of 1,276, 9%, 19:16 left",
    ]
