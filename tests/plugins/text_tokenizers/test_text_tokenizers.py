"""Text tokenizers `bpe` and `byte`: the kit, a merge order worked out by hand, files that must be
refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import RecipeError, TokenizerError
from cm3kits.text_tokenizer import SAMPLE_TEXTS, TextTokenizerContract
from cm3plugins.text_tokenizers.bpe import BPETokenizerConfig
from cm3plugins.text_tokenizers.byte import ByteTokenizerConfig
from messages import tells


class TestBPE(TextTokenizerContract):
    config = BPETokenizerConfig(vocab_size=320)


class TestBPEOfBytesOnly(TextTokenizerContract):
    config = BPETokenizerConfig(vocab_size=256)

    def make(self):
        return self.config.build([])


class TestByte(TextTokenizerContract):
    config = ByteTokenizerConfig()


def test_merges_by_hand() -> None:
    """aab x 3, aac: (a, a) occurs 4 times and is merged first, then (aa, b), 3 times; (aa, c)
    occurs once and is not merged."""
    tokenizer = BPETokenizerConfig(vocab_size=300).build(["aab", "aab", "aab", "aac"])
    content = json.loads(tokenizer.content)
    assert content["model"]["merges"] == [["a", "a"], ["aa", "b"]]
    assert tokenizer.vocab_size == 258
    a, c = tokenizer.encode("a")[0], tokenizer.encode("c")[0]
    assert tokenizer.encode("aabaacab") == [257, 256, c, a, tokenizer.encode("b")[0]]


def test_size_is_exact_when_the_corpus_is_large_enough() -> None:
    words = [f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"] * 2
    assert BPETokenizerConfig(vocab_size=400).build(words).vocab_size == 400


def test_paper_size_is_accepted() -> None:
    BPETokenizerConfig(vocab_size=56320).check()


@given(st.permutations(SAMPLE_TEXTS))
def test_order_of_texts_does_not_matter(texts: list[str]) -> None:
    config = BPETokenizerConfig(vocab_size=290)
    assert config.build(texts).fingerprint == config.build(SAMPLE_TEXTS).fingerprint


def test_the_same_in_another_process() -> None:
    code = (
        "import sys, json; from cm3plugins.text_tokenizers.bpe import BPETokenizerConfig;"
        "print(BPETokenizerConfig(vocab_size=320).build(json.loads(sys.argv[1])).fingerprint)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, json.dumps(SAMPLE_TEXTS)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        output.stdout.strip() == BPETokenizerConfig(vocab_size=320).build(SAMPLE_TEXTS).fingerprint
    )


def test_another_size_is_another_fingerprint() -> None:
    assert (
        BPETokenizerConfig(vocab_size=270).build(SAMPLE_TEXTS).fingerprint
        != BPETokenizerConfig(vocab_size=271).build(SAMPLE_TEXTS).fingerprint
    )


def test_a_text_that_is_a_special_token_often_stays_text() -> None:
    """Even a corpus full of `<break>` brings no token that the text does not spell letter by
    letter."""
    tokenizer = BPETokenizerConfig(vocab_size=300).build(["<break>"] * 50)
    ids = tokenizer.encode("<break>")
    assert "".join(tokenizer.decode([token]) for token in ids) == "<break>"
    assert all(token < tokenizer.vocab_size for token in ids)


def test_byte_ids_are_the_bytes() -> None:
    tokenizer = ByteTokenizerConfig().build()
    assert tokenizer.encode("é!") == [0xC3, 0xA9, 0x21]
    assert tokenizer.decode([0x61, 0xC3, 0x62]) == "a\ufffdb"


@pytest.mark.parametrize("name", ["bpe", "byte"])
def test_config_modules_are_light(name: str) -> None:
    code = f"import sys, cm3plugins.text_tokenizers.{name}; sys.exit(bool({{'torch', 'tokenizers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_path_may_be_a_file_or_its_folder(tmp_path: Path) -> None:
    tokenizer = BPETokenizerConfig(vocab_size=300).build(SAMPLE_TEXTS)
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert BPETokenizerConfig(path=str(path)).build().fingerprint == tokenizer.fingerprint


def message(error: Any) -> str:
    return str(error.value)


def test_too_small() -> None:
    with pytest.raises(RecipeError) as caught:
        BPETokenizerConfig(vocab_size=255).build(SAMPLE_TEXTS)
    assert tells(message(caught), "text_tokenizer.vocab_size: is 255; the 256 ... take 256")


def test_neither_file_nor_texts() -> None:
    with pytest.raises(TokenizerError) as caught:
        BPETokenizerConfig().build()
    assert tells(message(caught), "text_tokenizer: has neither a file nor texts")


def test_invalid_text_in_the_corpus() -> None:
    with pytest.raises(TokenizerError) as caught:
        BPETokenizerConfig().build(["fine", "\ud800"])
    assert tells(message(caught), "text 1 of the corpus: is not valid ... at 0")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError) as caught:
        BPETokenizerConfig(path=str(tmp_path / "no.json")).build()
    assert tells(
        message(caught), f"{tmp_path / 'no.json'}: there is no such file ... text_tokenizer.path"
    )


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (
            {"added_tokens": [{"id": 256, "content": "<eos>", "special": True}]},
            'its added_tokens is [{"id": 256, "content": "<eos>", "special": true}]; a lossless byte-level BPE needs []',
        ),
        (
            {"normalizer": {"type": "NFKC"}},
            'its normalizer is {"type": "NFKC"}; a lossless byte-level BPE needs null',
        ),
        (
            {"pre_tokenizer": {"type": "Whitespace"}},
            'its pre_tokenizer.type is "Whitespace"; a lossless byte-level BPE needs "ByteLevel"',
        ),
        (
            {"model": {"type": "WordPiece"}},
            'its model.type is "WordPiece"; a lossless byte-level BPE needs "BPE"',
        ),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}},
            "its model.vocab lacks 255 of the 256 bytes, so some texts would lose characters",
        ),
        (
            {"model": {"type": "BPE", "vocab": {"a": 1}, "merges": []}},
            "its model.vocab does not number its tokens 0, 1, 2, ...",
        ),
    ],
)
def test_a_tokenizer_that_loses_text_is_refused(
    tmp_path: Path, change: dict[str, Any], cause: str
) -> None:
    content = json.loads(BPETokenizerConfig(vocab_size=256).build([]).content) | change
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TokenizerError) as caught:
        BPETokenizerConfig(path=str(path)).build()
    assert message(caught) == f"{path}: {cause}\n  next: train one with 'cm3 tokenizer train-text'"


def test_another_tokenizers_folder(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError) as caught:
        ByteTokenizerConfig().load(tmp_path)
    assert tells(message(caught), f"{tmp_path}: does not hold a byte tokenizer")
