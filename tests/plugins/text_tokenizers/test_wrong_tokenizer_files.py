"""Tokenizers' files that never end, and patterns that lose letters."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from cm3core.errors import TokenizerError
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
        (tmp_path / "sparse", "has 1,099,511,627,776 bytes, a tokenizer's at most 536,870,912"),
    ):
        with pytest.raises(TokenizerError, match=cause):
            config(path=str(path)).build()


@pytest.mark.parametrize(
    "pattern", ["", "x*", r"\w+", "(?=A)|[\\s\\S]"], ids=["empty", "maybe", "words", "ahead"]
)
def test_patterns_that_lose_letters_are_refused(pattern: str, file: str) -> None:
    """tiktoken's own code drops what is between matches, and panics at an empty one."""
    with pytest.raises(
        TokenizerError, match=r"text_tokenizer\.pattern: does not cut a text like 'A b"
    ):
        TiktokenConfig(path=file, pattern=pattern).build()


def test_letters_that_a_pattern_loses_later_are_noticed(file: str) -> None:
    tokenizer = TiktokenConfig(path=file, pattern="[^7]").build()
    assert tokenizer.decode(tokenizer.encode("A 6")) == "A 6"
    with pytest.raises(TokenizerError, match="does not cut a text like 'A 7' into pieces"):
        tokenizer.encode("A 7")
