"""`clip`: equal to transformers' and open_clip's on random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from safetensors.torch import save_file
from transformers import CLIPTokenizer as HuggingFaceTokenizer

import open_clip_oracle as oracle
from clip_models import example_pictures, features, tiny
from cm3kits.embedder import EmbedderContract
from cm3plugins.embedders import CLIPConfig
from cm3plugins.embedders.clip.checkpoint import read_checkpoint
from cm3plugins.embedders.clip.configs import Preprocessing
from cm3plugins.embedders.clip.embedder import CLIP, towers_of
from cm3plugins.embedders.clip.tokenizer import CLIPTokenizer, bundled_vocabulary, load_tokenizer
from cm3plugins.embedders.clip.towers import CLIPTowers, quick_gelu
from cm3plugins.embedders.weights import fill


class TestCLIP(EmbedderContract):
    def make(self) -> CLIP:
        checkpoint = read_checkpoint(self.path)
        tokenizer = load_tokenizer(self.path, checkpoint.sizes.context_length)
        return CLIP(checkpoint, towers_of(checkpoint), tokenizer, "clip-test")

    @pytest.fixture(autouse=True)
    def _path(self, folder: Path) -> None:
        type(self).path = folder


# ---- equal to others


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_vectors_equal_transformers(tmp_path, hidden_act):
    model = tiny(hidden_act)
    model.save_pretrained(tmp_path)
    ours, texts = (
        CLIPConfig(path=str(tmp_path), batch_size=2).build(),
        ["a photo of a cat", "", "zwölf grüne Äpfel!", "dog"],
    )
    ids, last = load_tokenizer(tmp_path, 20).encode(texts)
    # OpenAI's ids, written down by hand
    assert ids[0].tolist()[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    # transformers fills up with the end token
    padded = torch.where(torch.arange(ids.shape[1]) > last[:, None], 49407, ids)
    np.testing.assert_allclose(
        ours.embed_texts(texts), features(model.get_text_features(input_ids=padded)), atol=1e-5
    )
    pixels = torch.stack([Preprocessing(32)(picture) for picture in example_pictures()])
    expected = features(model.get_image_features(pixel_values=pixels))
    np.testing.assert_allclose(ours.embed_images(example_pictures()), expected, atol=1e-5)


@pytest.mark.parametrize("quick", [True, False])
def test_vectors_equal_open_clips(tmp_path, quick):
    """Of the same seeded weights; see the fixture's head. The tokenizer is left out: the tiny
    vocabulary has none."""
    recorded = json.loads(oracle.FILE.read_text())
    save_file(oracle.seeded(recorded["shapes"]), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": oracle.MODEL | {"quick_gelu": quick}})
    )
    checkpoint = read_checkpoint(tmp_path)
    # as the config says, not width / 64
    assert (checkpoint.sizes.vision.num_heads, checkpoint.sizes.text.num_heads) == (2, 3)
    towers = CLIPTowers(checkpoint.sizes)
    fill(towers, checkpoint.tensors, checkpoint.path, "")
    expected, ids = recorded["quick_gelu" if quick else "gelu"], torch.tensor(oracle.IDS)
    with torch.inference_mode():
        np.testing.assert_allclose(
            towers.visual(oracle.pixels()), expected["images"], atol=2e-4, rtol=1e-4
        )
        np.testing.assert_allclose(
            towers.encode_texts(ids, ids.argmax(1)), expected["texts"], atol=2e-4, rtol=1e-4
        )
    other = recorded["gelu" if quick else "quick_gelu"]
    # so a wrong activation would be seen
    assert np.abs(np.array(other["images"]) - expected["images"]).max() > 0.01


@pytest.fixture(scope="module")
def both() -> tuple[CLIPTokenizer, Any]:
    """Our tokenizer, and transformers' from the same vocabulary."""
    vocabulary, merges = bundled_vocabulary()
    return load_tokenizer(Path("nowhere"), 77), HuggingFaceTokenizer(
        vocab=vocabulary, merges=merges
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40).filter(lambda text: "<|" not in text), min_size=1, max_size=4))
def test_ids_equal_transformers(both, texts):
    ours, theirs = both
    ids, last = ours.encode(texts)
    for row, end, text in zip(ids.tolist(), last.tolist(), texts, strict=True):
        assert row[: end + 1] == theirs(text, truncation=True, max_length=77)["input_ids"]


def test_the_bundled_vocabulary_is_openais():
    vocabulary, merges = bundled_vocabulary()
    assert (len(vocabulary), len(merges)) == (49408, 48894)
    ids = {
        token: vocabulary[token]
        for token in ("!", "a</w>", "cat</w>", "<|startoftext|>", "<|endoftext|>")
    }
    assert ids == {
        "!": 0,
        "a</w>": 320,
        "cat</w>": 2368,
        "<|startoftext|>": 49406,
        "<|endoftext|>": 49407,
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.booleans(), st.integers(0, 99))
def test_pictures_are_scaled_and_cut_as_torchvision_does(height, width, squash, seed):
    """Resize of the short side and a central crop; what is longer than eight times its short side
    is cut before."""
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = Preprocessing(16, squash=squash).square(picture)
    scaled = (
        (16, 16)
        if squash
        else (int(16 * width / min(height, width)), int(16 * height / min(height, width)))
    )
    whole = Pillow.fromarray(picture).resize(scaled, Pillow.Resampling.BICUBIC)
    left, top = round((scaled[0] - 16) / 2), round((scaled[1] - 16) / 2)
    if squash or max(height, width) <= 8 * min(height, width):
        assert np.array_equal(ours, np.array(whole.crop((left, top, left + 16, top + 16))))
    assert ours.shape == (16, 16, 3)


def test_a_very_long_picture_shows_its_middle():
    """Scaled whole, it would be 16 x 1,600,000 pixels."""
    picture = np.zeros((2, 200_000, 3), np.uint8)
    picture[:, 100_000 - 8 : 100_000 + 8] = 255
    assert (Preprocessing(16).square(picture) == 255).all()


def test_preprocessing_by_hand():
    white = Preprocessing(4)(np.full((4, 4, 3), 255, np.uint8))
    assert white[:, 0, 0].tolist() == pytest.approx(
        [(1 - 0.48145466) / 0.26862954, (1 - 0.4578275) / 0.26130258, (1 - 0.40821073) / 0.27577711]
    )


def test_quick_gelu_by_hand():
    assert quick_gelu(torch.tensor([0.0, 1.0])).tolist() == pytest.approx(
        [0.0, 1 / (1 + np.exp(-1.702))]
    )
