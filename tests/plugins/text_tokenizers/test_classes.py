"""`classes`: numbers and names of classes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import RecipeError, TokenizerError
from cm3kits.strategies import texts
from cm3plugins.text_tokenizers.classes import ClassesConfig, ClassTokenizer

NUMBERS = ClassesConfig(num_classes=12).build()


@given(st.integers(0, 11))
def test_numbers_come_back(number: int) -> None:
    assert NUMBERS.encode(str(number)) == [number]
    assert NUMBERS.decode([number]) == str(number)


@given(texts())
def test_any_other_text_is_refused(text: str) -> None:
    if text.strip() in map(str, range(12)):
        return
    if not text:
        assert NUMBERS.encode(text) == []
        return
    with pytest.raises(TokenizerError) as caught:
        NUMBERS.encode(text)
    assert caught.value.cause.endswith("is not a class of the model")
    assert caught.value.next_step == "give its number, 0 to 11"


def test_names_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("tench\nGreat white shark\n")
    config = ClassesConfig(num_classes=2, path=str(path))
    tokenizer = config.build()
    assert tokenizer.encode_batch(["great WHITE shark ", "0"]) == [[1], [0]]
    assert tokenizer.decode([0, 1]) == "tench Great white shark"
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    again = config.load(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint != ClassTokenizer(2, ()).fingerprint
    (tmp_path / "empty").mkdir()
    ClassTokenizer(2, ()).save(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []
    assert config.load(tmp_path / "empty").fingerprint == ClassTokenizer(2, ()).fingerprint


def test_their_number_must_be_given() -> None:
    with pytest.raises(RecipeError, match=r"text_tokenizer\.num_classes: is null"):
        ClassesConfig().build()


def test_their_number_is_that_of_their_names(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("tench\ngoldfish\n", encoding="utf-8")
    tokenizer = ClassesConfig(path=str(names)).build()
    assert tokenizer.vocab_size == 2
    assert tokenizer.encode("Goldfish") == [1]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("tench\n", "has 1 lines, 1 of them different, but there are 2 classes"),
        ("tench\nTench\n", "has 2 lines, 1 of them different, but there are 2 classes"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, content: str, cause: str) -> None:
    path = tmp_path / "names.txt"
    path.write_text(content)
    with pytest.raises(TokenizerError) as caught:
        ClassesConfig(num_classes=2, path=str(path)).build()
    assert (caught.value.place, caught.value.cause) == (str(path), cause)
