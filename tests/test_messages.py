"""The tables of messages hold what the code says, once each; `tells` compares with them."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import messages
from messages import CHECKOUT, tells

SOURCES = ("cm3core", "plugins", "kernels", "examples")
#: What a library said: behind these words, or in parentheses.
REPORTED = re.compile(r"(refuses|is not JSON): .*?(?=\\n|$)|\([^)]*\)")
#: So many words in a row are looked for in the code.
RUN = 3


@cache
def texts_of_the_code() -> str:
    """All texts of the sources, f-strings cut where a value is."""
    found = []
    for source in SOURCES:
        for path in (CHECKOUT / source).rglob("*.py"):
            if "tests" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def is_in_the_code(sentence: str) -> bool:
    """Whether some words of a sentence stand in a row in the code. A short one may be made of values and of a
    library's words."""
    runs = [
        " ".join(words[start : start + RUN])
        for part in re.split(rf"\S*{messages.VALUE}\S*|\S*[:.,<>\\]\S*", REPORTED.sub("", sentence))
        for words in [part.split()]
        for start in range(len(words) - RUN + 1)
    ]
    return len(runs) < 6 or any(run in texts_of_the_code() for run in runs)


@pytest.mark.parametrize(
    "table", messages.tables(), ids=lambda table: str(table.parent.relative_to(CHECKOUT))
)
def test_the_sentences_are_in_the_code(table: Path) -> None:
    rows = messages.rows(table)
    assert rows == sorted(set(rows))
    stale = [row for row in rows if not is_in_the_code(row)]
    if stale and messages.WRITE:
        messages.write(table, set(rows) - set(stale))
    else:
        assert stale == [], (
            f"nothing in {SOURCES} says this any more: see tests/fixtures/messages.py"
        )


def test_a_sentence_that_nothing_says_is_found() -> None:
    assert not is_in_the_code(
        "dataset: … purple elephants were seen dancing here on an old wooden table"
    )
    assert is_in_the_code("…: there is no such file")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table with one sentence."""
    path = tmp_path / messages.NAME
    messages.write(path, {r"data.size: is …, not … or more\n  next: use …"})
    monkeypatch.setattr(messages, "table_of", lambda test: path)
    monkeypatch.setattr(messages, "known", {path: set(messages.rows(path))})
    monkeypatch.setattr(messages, "WRITE", False)
    return path


SAID = "data.size: is 3, not 4 or more\n  next: use 'large'"


@pytest.mark.parametrize(
    "words", ["data.size: is 3", "data.size: ... 4 ... 'large'", "... 3, not 4"]
)
def test_key_words_in_their_order(words: str, table: Path) -> None:
    assert tells(SAID, words)
    assert tells(ValueError(SAID), words)


@pytest.mark.parametrize(
    "words", ["data.sizes: is 3", "data.size: is 4", "size: is 3", "data.size: ... 'large' ... 4"]
)
def test_another_place_value_or_order_fails(words: str, table: Path) -> None:
    with pytest.raises(AssertionError, match="the message is"):
        tells(SAID, words)


def test_another_sentence_fails(table: Path) -> None:
    with pytest.raises(AssertionError, match="lacks the sentence"):
        tells(SAID.replace("not", "and not"), "data.size: is 3")


def test_lines_of_an_output(table: Path) -> None:
    assert tells(f"one\n{SAID}\ntwo\n", "... is 3, ... 'large'")
    assert tells(f"one\n{SAID}\ntwo\n", "... is 3")
    with pytest.raises(AssertionError, match="lacks the sentence"):
        tells(f"one\n{SAID}\ntwo\n", "... is 3 ... two")


def test_writing_adds_what_is_new(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "WRITE", True)
    monkeypatch.setattr(messages, "new", {})
    assert tells("data.shape: is 7", "data.shape: is 7")
    messages.write_new()
    assert messages.rows(table) == sorted({*messages.known[table]})
    assert "data.shape: is …" in messages.rows(table)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("a.jar /tmp/x-1/b.jar: is gone", "a.jar …: is gone"),
        ("it can't be 'x y', isn't `z`", "it can't be …, isn't …"),
        ("4,050,000 of 3.5 px (fp16)", "… of … px (fp16)"),
        ("https://a.b/c, 0123456789ab: changed\n  next: go\n", r"…, …: changed\n  next: go"),
    ],
)
def test_values_are_left_out(message: str, sentence: str) -> None:
    assert messages.sentence(message) == sentence


def test_a_table_a_package() -> None:
    assert (
        messages.table_of("tests/apps/cli/test_a.py::test_b (call)")
        == CHECKOUT / "tests/apps/cli" / messages.NAME
    )
    assert (
        messages.table_of("tests/plugins/retrievers/pgvector/test_a.py::T::b")
        == CHECKOUT / "tests/plugins/retrievers" / messages.NAME
    )
    assert (
        messages.table_of("tests/core/test_a.py::test_b") == CHECKOUT / "tests/core" / messages.NAME
    )
    assert (
        messages.table_of("plugins/cm3-serve/tests/test_a.py::test_b")
        == CHECKOUT / "plugins/cm3-serve/tests" / messages.NAME
    )
