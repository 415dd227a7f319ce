"""The `light_encoder`: features by hand, its file, and the shipped weights' use."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cm3core.document import Text
from cm3core.errors import CheckpointError, DataError, RecipeError
from cm3core.interfaces.embedder import VectorArray
from cm3icons.data.captions import caption
from cm3icons.data.corpus import IconCorpus
from cm3kits.embedder import EmbedderContract
from cm3kits.retriever import HashEmbedder
from cm3plugins.embedders import LightEncoderConfig
from cm3plugins.embedders.inputs import square
from cm3plugins.embedders.light_encoder import BUNDLED_WEIGHTS
from cm3plugins.embedders.light_encoder.embedder import (
    LightEncoder,
    Towers,
    TowerSizes,
    features_of,
    ngrams_of,
    words_of,
)
from messages import tells

SMALL = TowerSizes(
    num_buckets=512,
    word_width=16,
    text_width=32,
    resolution=16,
    channels=(8, 16),
    strides=(2, 2),
    dimension=12,
)


class TestLightEncoder(EmbedderContract):
    def make(self) -> LightEncoder:
        return LightEncoderConfig().build()


class Diverged(HashEmbedder):
    """Text "bad" gets NaN."""

    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        return np.array([[np.nan if text == "bad" else 1.0] * 8 for text in texts], np.float32)


def test_vectors_that_are_no_numbers():
    with pytest.raises(DataError) as refused:
        Diverged().embed_texts(["good", "bad"])
    assert tells(refused.value, "text 1: its vector by ... NaN")
    with pytest.raises(DataError) as gray:
        Diverged().embed_images([np.zeros((2, 3), np.uint8)])
    assert tells(gray.value, "picture 0: uint8 [2, 3] ... 3 ... cm3core.images.open_image")


def test_words_and_ngrams_by_hand():
    assert words_of("Two Piñatas, o'clock_x") == ["two", "pinatas", "o", "clock", "x"]
    assert ngrams_of("ox") == ["<ox", "ox>"]
    word, again, *grams = features_of("ox", 1000)
    assert word == again == zlib.crc32(b"word:ox") % 1000  # the whole word counts twice
    assert len(grams) == 2
    # a plural shares most n-grams
    assert len(set(features_of("apple", 8192)) & set(features_of("apples", 8192))) >= 5


def test_square_cuts_the_middle_and_averages():
    picture = np.zeros((2, 4, 3), np.uint8)
    picture[:, 1:3] = 255
    assert square(picture, 2).tolist() == torch.ones(1, 3, 2, 2).tolist()


def test_shipped_weights_find_the_same_thing_in_other_words_and_styles():
    embedder = LightEncoderConfig().build()
    names = [
        "red apple, colour, noto",
        "bell off, outline, lucide",
        "bell, outline, lucide",
        "dog, colour, noto",
        "arrow down, filled, material",
    ]
    queries = [
        "red apple, noto style",
        "a filled bell off icon",
        "some bells in tabler style",
        "dogs",
        "down arrow, outline rounded, phosphor",
    ]
    scores = embedder.embed_texts(queries) @ embedder.embed_texts(names).T
    assert scores.argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_shipped_figures_and_size():
    """The figures beside the weights are those of these weights; what retrieval needs of them."""
    measured = json.loads(BUNDLED_WEIGHTS.with_suffix(".figures.json").read_text())
    for split in ("train", "comp"):
        assert measured[f"{split}: caption -> versions"]["R@1"] >= 0.9
    assert BUNDLED_WEIGHTS.stat().st_size <= 3_000_000


def test_shipped_weights_find_held_out_drawings_versions():
    """Of captions alone: other drawings of the thing among all of the memory's, rather the set's own."""
    entries, embedder = IconCorpus().entries, LightEncoderConfig().build()
    memory = [entry for entry in entries if entry.split == "train"][::4]
    things = {entry.words for entry in memory}
    queries = [entry for entry in entries if entry.split == "comp" and entry.words in things][::4]
    scores_QM = (
        embedder.embed_texts([caption(entry) for entry in queries])
        @ embedder.embed_texts([caption(entry) for entry in memory]).T
    )
    first = [memory[place] for place in scores_QM.argmax(1).tolist()]
    pairs = list(zip(queries, first, strict=True))
    assert len(pairs) > 300
    assert np.mean([one.words == other.words for one, other in pairs]) > 0.9
    own_set = {(entry.words, entry.set_name) for entry in memory}
    assert (
        np.mean(
            [
                one.set_name == other.set_name
                for one, other in pairs
                if (one.words, one.set_name) in own_set
            ]
        )
        > 0.8
    )


def test_what_recipes_of_earlier_versions_call_styled():
    one, other = (LightEncoderConfig(path=path).build() for path in (None, "bundled:styled"))
    assert one.fingerprint == other.fingerprint


def test_weights_of_earlier_versions_are_the_same_file():
    """Banks that were built with them can still be used."""
    embedder = LightEncoderConfig(path="bundled:emoji").build()
    assert embedder.fingerprint == "light_encoder-41e49e3835d32889"


def test_shipped_weights_tell_pictures_of_held_out_drawings_apart():
    corpus, embedder = IconCorpus(), LightEncoderConfig().build()
    rows = [
        row
        for row, entry in enumerate(corpus.entries)
        if entry.split == "comp" and entry.style == "outline"
    ][::6][:60]
    captions = [caption(corpus.entries[row]) for row in rows]
    scores = (
        embedder.embed_texts(captions)
        @ embedder.embed_images([corpus.render(row, 64) for row in rows]).T
    )
    assert (scores.argmax(1) == np.arange(len(rows))).mean() > 0.2  # chance: 0.02


def test_weights_round_trip_and_bad_files(tmp_path):
    torch.manual_seed(0)
    tensors = {
        name: value.half().contiguous() for name, value in Towers(SMALL).state_dict().items()
    }
    header = {"cm3leon": json.dumps({"format": "cm3leon light_encoder 1", "sizes": asdict(SMALL)})}
    save_file(tensors, tmp_path / "w.safetensors", header)
    embedder = LightEncoderConfig(path=str(tmp_path / "w.safetensors")).build()
    assert embedder.embed_document((Text("a dog"),)).shape == (12,)
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:500])
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        LightEncoderConfig(path=str(tmp_path / "bad.safetensors")).build()
    with pytest.raises(CheckpointError) as error:
        LightEncoderConfig(path=str(tmp_path / "none")).build()
    assert tells(error.value, f"{tmp_path / 'none'}: there is no such file")
    save_file(tensors, tmp_path / "other.safetensors", {"format": "cm3leon looks 1"})
    with pytest.raises(
        CheckpointError,
        match="has the format 'cm3leon looks 1', not 'cm3leon light_encoder 1'",
    ):
        LightEncoderConfig(path=str(tmp_path / "other.safetensors")).build()
    empty = {"format": "cm3leon light_encoder 1", "sizes": {}}
    save_file(tensors, tmp_path / "other.safetensors", {"cm3leon": json.dumps(empty)})
    with pytest.raises(CheckpointError, match="its tensors don't match its sizes"):
        LightEncoderConfig(path=str(tmp_path / "other.safetensors")).build()
    tensors["text.direct.weight"][0, 0] = float("inf")
    save_file(tensors, tmp_path / "other.safetensors", header)
    with pytest.raises(CheckpointError) as infinite:
        LightEncoderConfig(path=str(tmp_path / "other.safetensors")).build()
    assert tells(
        infinite.value, f"{tmp_path / 'other.safetensors'}: text.direct.weight contains NaN"
    )
    with pytest.raises(RecipeError) as refused:
        LightEncoderConfig(batch_size=0).check()
    assert tells(refused.value, "embedder.batch_size: is 0, must ... least 1")


def test_configs_import_nothing_heavy():
    code = "import cm3plugins.embedders, cm3plugins.retrievers, sys; print([m for m in ('torch', 'faiss') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
