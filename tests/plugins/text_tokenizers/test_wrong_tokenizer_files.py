"""Tokenizers' files that never end, and patterns that lose letters."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cm3core.errors import TokenizerError
from cm3plugins.text_tokenizers.bpe import BPETokenizerConfig
from cm3plugins.text_tokenizers.published import (
    HFTokenizerConfig,
    SentencePieceConfig,
    TiktokenConfig,
)


@pytest.fixture
def file(tmp_path: Path) -> str:
    """The 256 bytes, as tiktoken keeps them."""
    lines = (f"{base64.b64encode(bytes([one])).decode()} {one}\n" for one in range(256))
    path = tmp_path / "bytes.tiktoken"
    path.write_text("".join(lines))
    return str(path)


@pytest.mark.parametrize("config", [HFTokenizerConfig, SentencePieceConfig, TiktokenConfig])
def test_endless_files_are_refused(config: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    for path, cause in (
        (tmp_path / "pipe", "Is not a regular file"),
        (Path("/dev/zero"), "Is not a regular file"),
        (
            tmp_path / "sparse",
            "has 1,099,511,627,776 bytes, above the limit of 536,870,912 for a tokenizer",
        ),
    ):
        with pytest.raises(TokenizerError, match=cause):
            config(path=str(path)).build()


@pytest.mark.parametrize(
    "pattern", ["", "x*", r"\w+", "(?=A)|[\\s\\S]"], ids=["empty", "maybe", "words", "ahead"]
)
def test_patterns_that_lose_letters_are_refused(pattern: str, file: str) -> None:
    """tiktoken's own code drops what is between matches, and panics at an empty one."""
    with pytest.raises(
        TokenizerError, match=r"text_tokenizer\.pattern: does not split a text like 'A b"
    ):
        TiktokenConfig(path=file, pattern=pattern).build()


def test_letters_that_a_pattern_loses_later_are_noticed(file: str) -> None:
    tokenizer = TiktokenConfig(path=file, pattern="[^7]").build()
    assert tokenizer.decode(tokenizer.encode("A 6")) == "A 6"
    with pytest.raises(
        TokenizerError, match="does not split a text like 'A 7' without losing characters"
    ):
        tokenizer.encode("A 7")


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("config", [HFTokenizerConfig, BPETokenizerConfig])
def test_values_that_no_tokenizer_has(config: Any, tmp_path: Path) -> None:
    """Nested deeper than a reader follows, and of wrong types at every place."""
    good = json.loads(BPETokenizerConfig(vocab_size=260).build(["a cat, a cat"]).content)
    path = tmp_path / "tokenizer.json"
    places = [(key,) for key in ("model", "pre_tokenizer", "normalizer", "decoder")]
    places += [("model", key) for key in ("vocab", "merges")]
    contents = [DEEP, '{"a":' * 100_000 + "1" + "}" * 100_000]
    for place in places:
        for value in ("@", 5, "x", [[]], {"type": "None"}, {"a": {}}, {"a": [1]}, {"a": 0.5}):
            values = json.loads(json.dumps(good))
            (values if len(place) == 1 else values["model"])[place[-1]] = value
            contents.append(json.dumps(values).replace('"@"', DEEP))
    for content in contents:
        path.write_text(content)
        with pytest.raises(TokenizerError) as refused:
            config(path=str(path)).build()
        assert refused.value.place == str(path)
        assert refused.value.next_step


def test_a_panic_of_the_library_is_told(tmp_path: Path) -> None:
    """A prefix that is longer than a merge's second token: tokenizers panics, which no `except
    Exception` sees."""
    values = json.loads(BPETokenizerConfig(vocab_size=260).build(["a cat, a cat"]).content)
    values["model"]["continuing_subword_prefix"] = "a long prefix"
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match="the library gave up: range"):
        HFTokenizerConfig(path=str(path)).build()


def test_merges_are_never_dropped_at_random(tmp_path: Path) -> None:
    """`model.dropout` is of the training of a file's own model: a text has the same ids each time."""
    values = json.loads(BPETokenizerConfig(vocab_size=300).build(["the cat sat " * 9]).content)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(values))
    plain = HFTokenizerConfig(path=str(path)).build().encode("the cat sat")
    values["model"]["dropout"] = 0.9
    path.write_text(json.dumps(values))
    tokenizer = HFTokenizerConfig(path=str(path)).build()
    assert [tokenizer.encode("the cat sat") for _ in range(5)] == [plain] * 5
