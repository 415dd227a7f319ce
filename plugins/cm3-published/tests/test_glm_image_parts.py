"""Layout and image tokenizer `glm_image`: the kits' laws, a sequence by hand, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from cm3core.document import Codes, ImageHole, Text
from cm3core.errors import CheckpointError, DocumentError, RecipeError
from cm3core.interfaces.layout import VocabularyParts
from cm3core.interfaces.text_tokenizer import TextTokenizer
from cm3core.sequence.serialize import Serializer
from cm3core.vocab import VocabularySizes
from cm3kits.image_tokenizer import ImageTokenizerContract
from cm3kits.layout import NUM_CODES, LayoutContract, NamedBytes
from cm3published.image_tokenizers.glm_config import GlmImageVQConfig
from cm3published.image_tokenizers.glm_image import GlmImageNetwork, Vision
from cm3published.layouts.glm_image import GlmImageLayoutConfig
from messages import tells
from profiles import examples

#: 32 x 64 pixels: a preview of 11 x 22 codes, and two codes.
SIZE: dict[str, int] = {"resolution": 32, "width": 64}
GRID = (1, 11 * 22 + 2)
#: Ids below those of texts, as names, so that bytes come behind them.
PICTURES = tuple(f"<|dit_token_{number}|>" for number in range(10))
IDS: dict[str, Any] = {
    **SIZE,
    "first_text": 10,
    "picture_begin": 6,
    "picture_end": 7,
    "padding": 266,
    "size_begin": 267,
    "size_end": 268,
    "vocab_size": 270,
}


class TestGlmImageLayout(LayoutContract):
    """Texts are read, never generated."""

    config = GlmImageLayoutConfig(**IDS)
    grid = GRID
    max_examples = examples(8)

    def text_tokenizer(self) -> TextTokenizer:
        return NamedBytes(PICTURES)

    def law_every_document_has_ids(self, data: st.DataObject) -> None:
        """Of documents without retrieved ones."""
        document = self.document(data)
        tokens = self.serializer.sequence(document).tokens
        assert ((tokens >= 0) & (tokens < self.subject.vocabulary.size)).all()
        assert tokens[-1] == self.subject.end[0]


def serializer() -> Serializer:
    tokenizer = NamedBytes(PICTURES)
    parts = VocabularyParts(tokenizer, NUM_CODES, VocabularySizes(266, NUM_CODES, 0))
    layout = GlmImageLayoutConfig(**IDS).build(parts, GRID)
    return Serializer(layout.vocabulary, tokenizer, GRID, layout=layout)


def letters(text: str) -> list[int]:
    return [10 + byte for byte in text.encode()]


def test_a_sequence_by_hand() -> None:
    codes = np.arange(GRID[1], dtype=np.int32) % NUM_CODES
    sequence = serializer().sequence((Text("hi"), Codes(codes, GRID))).tokens.tolist()
    sizes = [267, *letters("1 2"), 268, 267, *letters("11 22"), 268]
    assert sequence == [*letters("hi"), *sizes, 6, *codes, 7]


def test_what_follows_a_picture_is_refused() -> None:
    picture = Codes(np.zeros(GRID[1], np.int32), GRID)
    with pytest.raises(DocumentError) as raised:
        serializer().prompt((picture, ImageHole()))
    assert tells(str(raised.value), "layout glm_image: has content after a picture")


def test_another_size_than_the_image_tokenizers_is_refused() -> None:
    parts = VocabularyParts(NamedBytes(PICTURES), 6, VocabularySizes(266, 6, 0))
    with pytest.raises(RecipeError) as raised:
        GlmImageLayoutConfig(**IDS).build(parts, (1, 9))
    assert tells(str(raised.value), "layout.resolution: and width are ... 244 codes, but ... 9")


def written(folder: Path, **changes: Any) -> GlmImageVQConfig:
    """A file of random weights, and its config: two blocks of three heads, 24 codes."""
    sizes: dict[str, Any] = {"num_codes": 24, "num_heads": 3, **SIZE}
    config = GlmImageVQConfig(weights=str(folder / "weights.safetensors"), **sizes | changes)
    made = GlmImageVQConfig(**sizes)
    torch.manual_seed(0)
    network = GlmImageNetwork(Vision(24, 40, 2, 8, 16, made), 24, 10, made)
    save_file(network.state_dict(), folder / "weights.safetensors")
    return config


class TestGlmImageTokenizer(ImageTokenizerContract):
    config = GlmImageVQConfig(num_codes=24, num_heads=3, **SIZE)
    max_examples = examples(4)

    @pytest.fixture(autouse=True)
    def _written(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        type(self).config = written(tmp_path_factory.mktemp("glm_image"))

    def waive_decoded_pictures_are_the_encoded_ones(self) -> str:
        return "codes are shown as colours"

    def waive_codes_are_in_raster_order(self) -> str:
        return "codes are those of two grids"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codes": 25}, "(24 codes, 64 places and a width of 24, but the recipe has 25 codes and 3 heads)"),
        ({"num_heads": 5}, "(24 codes, 64 places and a width of 24, but the recipe has 24 codes and 5 heads)"),
        ({"weights_sha256": "0" * 64}, "its SHA-256 is ... but the recipe expects"),
    ],
)  # fmt: skip  # a case per line
def test_other_weights_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        written(tmp_path, **changes).build()
    assert tells(str(raised.value), f"... {message} ...")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 40}, "image_tokenizer.resolution: is 40, must be a multiple of 32"),
        ({"width": 1024}, "image_tokenizer.width: is 1024, must be at most 16 times the height"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        GlmImageVQConfig(**SIZE | changes).check()
    assert tells(str(raised.value), message)
