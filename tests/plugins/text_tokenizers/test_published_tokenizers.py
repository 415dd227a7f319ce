"""Text tokenizers that others publish: ids equal to those of their own libraries on hard strings,
special tokens out of reach of texts, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import Qwen2TokenizerFast

from cm3core.errors import MissingPackageError, RecipeError, TokenizerError
from cm3kits.strategies import texts
from cm3kits.text_tokenizer import SAMPLE_TEXTS, TextTokenizerContract
from cm3plugins.text_tokenizers.published import (
    CONTROL,
    QWEN_PATTERN,
    HFTokenizerConfig,
    PublishedTokenizerConfig,
    SentencePieceConfig,
    TiktokenConfig,
)

#: Texts that tokenizers are known to differ on.
HARD = (
    "",
    " ",
    "   leading and trailing   ",
    "tabs\tand\nnew lines\r\n\r\n",
    "a  b   c    d",
    "don't we'll I'M they'RE",
    "1234567890 3.14 1,000,000 ½ ²",
    "naïve café Å Å ﬁ",
    "日本語のテキスト 中文 한국어",
    "مرحبا بالعالم שלום",
    "👍🏽👨‍👩‍👧‍👦🇺🇸 emoji",
    "zero\u200bwidth\u200d\ufeff",
    "snake_case CamelCase kebab-case",
    "<div class='x'>&amp;</div>",
    "https://example.org/a?b=c#d",
    "!!!???...;;;---",
    "\x00\x01\x7f\x80",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff \ue000",
    "ВЕРХНИЙ нижний",
    "a" * 200,
)
#: Spellings of what means something to a model.
SPECIAL = (
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<racm3:break>",
    "<eoss>",
    "<reserved08706>",
    "<reserved08707>",
    "<image>",
    "IMGIMGBACAZ",
    "IMGIMGAZ",
    "<|image|>",
    "<|endoftext|>",
    "<|visual token 000001|>",
    "<sentinel:0>",
    "[MASK]",
)
CORPUS = (*HARD, *SAMPLE_TEXTS, "the quick brown fox jumps over the lazy dog", *SPECIAL) * 3


# ---- files as others write them


def chameleon() -> Tokenizer:
    """Byte-level BPE whose vocabulary holds picture codes, reserved and special tokens, as
    Chameleon's text_tokenizer.json, with codes in another order than their numbers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    codes = ["IMGIMGBACAZ", "IMGIMGAZ"]
    special = ["<s>", "<pad>", "</s>", "<unk>", *codes, "<eoss>", "<racm3:break>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*special, "<reserved08706>", "<sentinel:0>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def whole_words() -> Tokenizer:
    """As Llama 3's: whole words that are tokens are taken without merges; special tokens are not
    added ones but words of the vocabulary."""
    values = json.loads(chameleon().to_str())
    values["model"]["ignore_merges"] = True
    values["added_tokens"] = []
    values["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": r"\s+|\S+"},
                "behavior": "Isolated",
                "invert": False,
            },
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            },
        ],
    }
    return Tokenizer.from_str(json.dumps(values))


def spaces_added() -> Tokenizer:
    """Runs of spaces as added tokens that are not special, as GPT-NeoX has them."""
    tokenizer = chameleon()
    tokenizer.add_tokens([AddedToken("   ", normalized=False), AddedToken("[gMASK]")])
    return tokenizer


def unigram() -> Tokenizer:
    """As tokenizers of SentencePiece become: Unigram, a mark for spaces, NFKC."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[UNK]", "[CLS]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


HF_FILES = {
    "chameleon": chameleon,
    "whole_words": whole_words,
    "spaces_added": spaces_added,
    "unigram": unigram,
    "word_piece": word_piece,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each sort."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, make in HF_FILES.items():
        make().save(str(folder / f"{name}.json"))
    for name, options in (
        ("bpe", {"model_type": "bpe", "byte_fallback": True}),
        ("unigram", {"model_type": "unigram", "normalization_rule_name": "identity"}),
    ):
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text for text in CORPUS if "\x00" not in text]),
            model_writer=written,
            vocab_size=600 if name == "bpe" else 330,
            hard_vocab_limit=False,
            user_defined_symbols=["<|image|>", "<reserved08706>", "▁▁▁", "[MASK]"],
            control_symbols=["<eoss>"],
            minloglevel=2,
            **options,
        )
        (folder / f"{name}.model").write_bytes(written.getvalue())
    ranks = byte_ranks(chameleon())
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
    return folder


def byte_ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    """The vocabulary of a byte-level BPE as tiktoken has it: bytes, ranks in the order of merges."""
    alphabet = {letter: byte for byte, letter in gpt2_letters().items()}
    tokens = [
        bytes(alphabet[letter] for letter in token)
        for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if all(letter in alphabet for letter in token) and not re.match(r"[<\[]|IMGIMG", token[:6])
    ]
    tokens = [bytes([byte]) for byte in range(256)] + [token for token in tokens if len(token) > 1]
    return {token: rank for rank, token in enumerate([*tokens, b"<|im_end|>", b"<|im"])}


def gpt2_letters() -> dict[int, str]:
    """GPT-2's letter of each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }


# ---- ids


@pytest.mark.parametrize("name", sorted(HF_FILES))
def test_ids_are_those_of_the_tokenizers_library(folder: Path, name: str) -> None:
    path = folder / f"{name}.json"
    theirs = Tokenizer.from_file(str(path))
    ours = HFTokenizerConfig(path=str(path)).build()
    for text in (*HARD, *SAMPLE_TEXTS):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, repr(text)
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1


@pytest.mark.parametrize("name", ["bpe", "unigram"])
def test_ids_are_those_of_sentencepiece(folder: Path, name: str) -> None:
    path = folder / f"{name}.model"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = SentencePieceConfig(path=str(path)).build()
    for text in (*HARD, *SAMPLE_TEXTS):
        ids = theirs.encode(text, out_type=int)
        assert ours.encode(text) == ids, repr(text)
        if theirs.unk_id() not in ids:
            assert ours.decode(ids) == theirs.decode(ids)
    assert ours.vocab_size == theirs.get_piece_size()


def test_ids_are_those_of_tiktoken(folder: Path) -> None:
    path = folder / "qwen.tiktoken"
    ranks = {
        base64.b64decode(line.split()[0]): int(line.split()[1])
        for line in path.read_bytes().splitlines()
    }
    theirs = tiktoken.Encoding(
        "qwen", pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 9999}
    )
    ours = TiktokenConfig(path=str(path)).build()
    for text in (*HARD, *SAMPLE_TEXTS):
        assert ours.encode(text) == theirs.encode_ordinary(text), repr(text)
        assert ours.decode(ours.encode(text)) == text


def test_the_pattern_is_qwens() -> None:
    """As transformers has it; it splits the hard strings into the same pieces."""
    module = sys.modules[Qwen2TokenizerFast.__module__]
    theirs = pre_tokenizers.Split(Regex(module.PRETOKENIZE_REGEX), behavior="isolated")
    ours = pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated")
    for text in (*HARD, *SAMPLE_TEXTS):
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


# ---- special tokens


def every_tokenizer(folder: Path) -> dict[str, tuple[Any, set[int]]]:
    """Tokenizers of all files, and the ids that no text may have."""
    found: dict[str, tuple[Any, set[int]]] = {}
    for name in HF_FILES:
        theirs = Tokenizer.from_file(str(folder / f"{name}.json"))
        special = {theirs.token_to_id(one) for one in (*SPECIAL, "[gMASK]", "[CLS]")} - {None}
        unknown = theirs.token_to_id({"unigram": "<unk>", "word_piece": "[UNK]"}.get(name, ""))
        config: PublishedTokenizerConfig = HFTokenizerConfig(path=str(folder / f"{name}.json"))
        found[name] = config.build(), special - {unknown}
    for name in ("bpe", "unigram"):
        path = str(folder / f"{name}.model")
        processor = sentencepiece.SentencePieceProcessor(model_file=path)
        special = {processor.piece_to_id(one) for one in SPECIAL} - {processor.unk_id()}
        found[f"sentencepiece {name}"] = SentencePieceConfig(path=path).build(), special
    ours = TiktokenConfig(path=str(folder / "qwen.tiktoken")).build()
    found["tiktoken"] = ours, {ours.vocab_size - 2}
    return found


def test_no_text_has_special_ids(folder: Path) -> None:
    for name, (tokenizer, special) in every_tokenizer(folder).items():
        assert special, f"{name} has special tokens"
        for spelling in (*SPECIAL, "[gMASK]", "[CLS]", "<|im_end|>"):
            for text in (
                spelling,
                f"a {spelling} b",
                f"x{spelling}{spelling}y",
                f"\ue0004\ue001{spelling}",
            ):
                assert not special & set(tokenizer.encode(text)), (name, text)


def test_upstream_does_make_special_ids_of_texts(folder: Path) -> None:
    """So that the test above says something, for each way that files have."""
    for name, spelling in (
        ("chameleon", "<racm3:break>"),
        ("whole_words", "IMGIMGAZ"),
        ("spaces_added", "[gMASK]"),
        ("unigram", "</s>"),
        ("word_piece", "[MASK]"),
    ):
        theirs = Tokenizer.from_file(str(folder / f"{name}.json"))
        ids = theirs.encode(spelling, add_special_tokens=False).ids
        assert theirs.token_to_id(spelling) in ids, name
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "bpe.model"))
    assert processor.piece_to_id("<|image|>") in processor.encode("<|image|>", out_type=int)


def test_thousands_of_spelled_tokens_are_text(folder: Path) -> None:
    for name, (tokenizer, special) in every_cached(folder).items():
        text = "<|im_end|>a</s>IMGIMGAZ " * 3000
        assert not special & set(tokenizer.encode(text)), name


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(texts() | st.sampled_from(SPECIAL), max_size=6))
def test_spelled_tokens_come_back_as_text(parts: Sequence[str], folder: Path) -> None:
    for name, (tokenizer, special) in every_cached(folder).items():
        text = "".join(parts)
        ids = tokenizer.encode(text)
        assert not special & set(ids), name
        if name in ("chameleon", "whole_words", "spaces_added", "tiktoken"):
            assert tokenizer.decode(ids) == text, name


_CACHE: dict[Path, dict[str, tuple[Any, set[int]]]] = {}


def every_cached(folder: Path) -> dict[str, tuple[Any, set[int]]]:
    if folder not in _CACHE:
        _CACHE[folder] = every_tokenizer(folder)
    return _CACHE[folder]


def test_generated_special_ids_are_left_out_of_the_text(folder: Path) -> None:
    for name, (tokenizer, special) in every_cached(folder).items():
        ids = tokenizer.encode("ab ab")
        plain = tokenizer.decode(ids)
        assert tokenizer.decode([*ids, *sorted(special)]) == plain, name


# ---- as components


class TestChameleonsTokenizer(TextTokenizerContract):
    config: Any = HFTokenizerConfig()

    @pytest.fixture(autouse=True)
    def _file(self, folder: Path) -> None:
        type(self).config = HFTokenizerConfig(path=str(folder / "chameleon.json"))


class TestTiktoken(TextTokenizerContract):
    config: Any = TiktokenConfig()

    @pytest.fixture(autouse=True)
    def _file(self, folder: Path) -> None:
        type(self).config = TiktokenConfig(path=str(folder / "qwen.tiktoken"))


@pytest.mark.parametrize("name", ["bpe.model", "unigram.model", "unigram.json", "qwen.tiktoken"])
def test_saved_is_loaded(folder: Path, name: str, tmp_path: Path) -> None:
    kinds = {".model": SentencePieceConfig, ".json": HFTokenizerConfig, ".tiktoken": TiktokenConfig}
    config = kinds[Path(name).suffix](path=str(folder / name))
    tokenizer = config.build()
    tokenizer.save(tmp_path)
    again = replace(config, path=None).load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    for text in HARD:
        assert again.encode(text) == tokenizer.encode(text)
    other = replace(config, control=[*CONTROL, "ab"]).build()
    assert other.fingerprint != tokenizer.fingerprint, "what is no text is part of the identity"


@pytest.mark.parametrize(
    ("config", "content", "message"),
    [
        (HFTokenizerConfig, b"{}", "is not a tokenizer.json (KeyError: 'model')"),
        (HFTokenizerConfig, b"[", "is not a tokenizer.json (JSONDecodeError"),
        (HFTokenizerConfig, b"\xff", "is not UTF-8"),
        (SentencePieceConfig, b"", "is not a SentencePiece model (it has no pieces)"),
        (SentencePieceConfig, b"\x0a\xff\xff\xff\xff\x7f", "is not a SentencePiece model"),
        (SentencePieceConfig, b"<html>", "is not a SentencePiece model"),
        (TiktokenConfig, b"", "lacks 256 of the 256 bytes"),
        (TiktokenConfig, b"YQ== 0\nYg== 0\n", "has a duplicate or negative rank"),
        (TiktokenConfig, b"<html>\n", "is not a token and a rank"),
        (TiktokenConfig, b"YQ== 0\nYQ== 1\n", ", line 2: repeats a token"),
        (TiktokenConfig, b"YQ== 99999999999999999999\n", "above the limit of 16,777,215"),
        (
            TiktokenConfig,
            b"YQ== 16777216\n",
            "has the rank 16777216, above the limit of 16,777,215",
        ),
        (
            HFTokenizerConfig,
            b'{"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 4000000000}, '
            b'"unk_token": "a"}}',
            "has the id 4000000000, above the limit of 16,777,215",
        ),
    ],
)
def test_other_files_are_refused(config: Any, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(TokenizerError) as raised:
        config(path=str(path)).build()
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)


def test_missing_files_and_packages_and_patterns_are_refused(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TokenizerError, match="there is no such file"):
        HFTokenizerConfig(path=str(tmp_path / "tokenizer.json")).build()
    with pytest.raises(RecipeError, match=r"text_tokenizer\.path: is null"):
        TiktokenConfig().build()
    with pytest.raises(RecipeError, match="'\\(' is not a regular expression"):
        HFTokenizerConfig(control=["("]).check()
    with pytest.raises(
        TokenizerError, match=r"text_tokenizer\.pattern: is not a valid regular expression"
    ):
        TiktokenConfig(path=str(folder / "qwen.tiktoken"), pattern="(").build()
    with pytest.raises(TokenizerError, match="encodes 'a' as the control token"):
        TiktokenConfig(path=str(folder / "qwen.tiktoken"), control=["a"]).build().encode("a")
    monkeypatch.setattr("cm3core.interfaces.component.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install 'cm3leon\\[sentencepiece\\]'"):
        SentencePieceConfig(path=str(folder / "bpe.model")).build()
