"""Controls in data are shown, not sent: over the commands that print what a data set, a bank, a model, a picture or
an error says."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3apps.cli.main import main
from cm3core.errors import DataError
from cm3core.images import save_png
from cm3run.printing import SafeStream, escaped, make_safe, printable, raw_stream, safe_output
from cm3run.progress import make_bar

#: Clears the screen, sets a title, goes back, hides, turns.
HOSTILE = "a\x1b[2J\x1b]0;title\x07\r\x08\x9b1m\x7f\u202eb\u2066"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
PARTS = Path(__file__).parents[2] / "fixtures" / "train"
PLUGIN = ("--plugin", str(PARTS / "train_parts.py"))


def test_controls_are_shown() -> None:
    assert escaped(HOSTILE) == (
        "a\\u001b[2J\\u001b]0;title\\u0007\\u000d\\u0008\\u009b1m\\u007f\\u202eb\\u2066"
    )
    assert escaped("é, 猫, 🍎, 👩\u200d🚀, فارسی\n\t") == "é, 猫, 🍎, 👩\u200d🚀, فارسی\n\t"
    assert escaped("\U000e0041") == "\\udb40\\udc41"
    assert printable("a\n\tb\x1b") == "a  b\\u001b"
    assert printable("a\n\tb", lines=True) == "a\n b"


@given(st.text())
def test_json_stays_the_same_json(text: str) -> None:
    assert json.loads(escaped(json.dumps({text: text}, ensure_ascii=False))) == {text: text}
    assert CONTROLS.search(escaped(text).replace("\t", "").replace("\n", "")) is None


def test_a_stream_keeps_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", raw)
    with safe_output():
        make_safe()  # once
        assert isinstance(sys.stdout, SafeStream)
        assert raw_stream(sys.stdout) is raw
        assert sys.stdout == raw
        assert not sys.stdout.isatty()
        print("a\x1b")
        sys.stdout.writelines(["b\r", "c\n"])
        sys.stdout.flush()
    assert sys.stdout is raw
    assert raw.getvalue() == "a\\u001b\nb\\u000dc\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_are_drawn_and_their_words_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with safe_output():
        make_bar(range(2), desc=f"of {HOSTILE}", total=2).close()
    assert "\rof a\\u001b[2J" in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hostile data set: captions, names, licences, what is wrong with records."""
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    save_png(tmp_path / "a.png", np.full((16, 16, 3), 9, np.uint8))
    rows = [
        {
            "text": f"{HOSTILE} {number}",
            "image": "a.png",
            "id": f"{number}{HOSTILE}",
            "licence": HOSTILE,
            "source": HOSTILE,
            "attribution": HOSTILE,
        }
        for number in range(4)
    ]
    rows.append({"text": "b", "image": f"{HOSTILE}.png", "id": "gone"})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints, in which nothing controls a terminal."""
    capsys.readouterr()
    main([*arguments])
    text = "".join(capsys.readouterr())
    assert CONTROLS.search(text) is None, arguments
    return text


@pytest.mark.slow
def test_commands_that_print_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("dataset=jsonl", "dataset.path=data.jsonl", "dataset.valid=0", "dataset.split=all")
    assert "u001b" in shown(capsys, "data", "validate", "data.jsonl", "--quiet")
    shown(capsys, "data", "show", "data.jsonl", "-o", "shown.png")
    squares = (str(PARTS / "squares.yaml"), *data)
    build = ("memory", "build", *squares, "-o", "bank", "embedder=light_encoder", "--quiet")
    assert "u001b" in shown(capsys, *PLUGIN, *build)
    assert "u001b" in shown(capsys, "memory", "stat", "bank", "--verify")
    (folder / "bank" / "manifest.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    shown(capsys, "memory", "stat", "bank", "--verify")
    train = (
        "train",
        *squares,
        "-o",
        "run",
        "--quiet",
        "train.steps=1",
        "train.validation_splits=[]",
    )
    more = ("decoder.context_length=256", "retriever=random", "data.max_text_tokens=32")
    shown(capsys, *PLUGIN, *train, *more)
    assert "u001b" in shown(capsys, *PLUGIN, "provenance", "run")
    found = shown(capsys, *PLUGIN, "provenance", "run", "--json")
    assert json.loads(found)["trained on"][0]["licence"] == HOSTILE
    # its texts train a tokenizer of characters that is another one when it is read: the shipped one draws
    bank = ("--bank", "bank", "--model", "bundled:emoji64", "--n", "1")
    shown(capsys, *PLUGIN, "generate", "red", *bank, "-o", "out", "--show-retrieved")
    shown(capsys, *PLUGIN, "generate", HOSTILE, *bank, "--num-retrieved", "0", "-o", "out")
    shown(capsys, *PLUGIN, "provenance", "out/000.png")
    shown(capsys, *PLUGIN, "generate", "red", *bank, "--sampler", HOSTILE)


def test_errors_and_tracebacks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(capsys, HOSTILE)
    assert "\\u001b" in text
    text = shown(capsys, "recipe", "show", f"{HOSTILE}.yaml")
    assert "\\u001b" in text
    text = shown(capsys, "recipe", "show", "tiny", f"{HOSTILE}=1")
    monkeypatch.setenv("CM3_TRACEBACK", "1")
    text = shown(capsys, "provenance", HOSTILE)
    assert "Traceback" in text

    def fail(*_: object) -> int:
        raise DataError(HOSTILE, HOSTILE, HOSTILE)

    monkeypatch.setattr("cm3apps.cli.describe.run", fail)
    text = shown(capsys, "describe", "cfg")
    assert text.count("\\u001b[2J") >= 3
