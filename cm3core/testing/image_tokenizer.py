"""Conformance kit of image tokenizers: shapes, types, determinism, refusals.

    class TestMine(ImageTokenizerContract):
        config = MyTokenizerConfig()
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st

from cm3core.document import IntArray, PixelArray
from cm3core.errors import TokenizerError
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3core.testing._laws import Contract


class ImageTokenizerContract(Contract[ImageTokenizer]):
    """Laws of `ImageTokenizer`. It has weights (random ones will do)."""

    kind: ClassVar[str] = "image_tokenizer"
    max_examples: ClassVar[int | None] = 5

    def build(self, config: Any) -> ImageTokenizer:
        """See `ImageTokenizerConfig.build`."""
        tokenizer: ImageTokenizer = config.build()
        return tokenizer

    def _pictures(self, data: st.DataObject) -> PixelArray:
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
        height, width = self.subject.image_size
        coarse = rng.integers(0, 256, (data.draw(st.integers(1, 3), label="pictures"), 4, 4, 3), dtype=np.uint8)
        return coarse[:, np.arange(height) * 4 // height][:, :, np.arange(width) * 4 // width]

    def _codes(self, data: st.DataObject) -> IntArray:
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
        rows, columns = self.subject.grid
        return rng.integers(0, self.subject.codebook_size, (2, rows * columns), dtype=np.int32)

    def law_codes_have_the_stated_shape_and_range(self, data: st.DataObject) -> None:
        """int32 [N, rows * columns] in 0..codebook_size-1."""
        pictures = self._pictures(data)
        codes = self.subject.encode(pictures)
        rows, columns = self.subject.grid
        assert codes.shape == (len(pictures), rows * columns)
        assert codes.dtype == np.int32
        assert codes.min() >= 0
        assert codes.max() < self.subject.codebook_size

    def law_pictures_have_the_stated_shape(self, data: st.DataObject) -> None:
        """Any valid codes decode to uint8 [N, height, width, 3]."""
        pictures = self.subject.decode(self._codes(data))
        assert pictures.shape == (2, *self.subject.image_size, 3)
        assert pictures.dtype == np.uint8

    def law_encoding_and_decoding_are_deterministic(self, data: st.DataObject) -> None:
        """Equal inputs give equal outputs, and the input is not changed."""
        pictures = self._pictures(data)
        before = pictures.copy()
        codes = self.subject.encode(pictures)
        assert np.array_equal(codes, self.subject.encode(pictures))
        assert np.array_equal(self.subject.decode(codes), self.subject.decode(codes))
        assert np.array_equal(pictures, before)

    def law_an_equal_tokenizer_has_the_same_fingerprint(self) -> None:
        """The fingerprint says config and weights, not the object, and is stable."""
        assert self.make().fingerprint == self.subject.fingerprint == self.subject.fingerprint
        assert self.subject.fingerprint

    def law_saved_is_loaded(self) -> None:
        """`save`, then the config's `load`, gives the same tokenizer; what the config alone builds writes no files."""
        with tempfile.TemporaryDirectory() as name:
            self.subject.save(Path(name))
            if not any(Path(name).iterdir()):
                return
            assert self.config is not None, "set `config`, so that what was saved can be loaded"
            loaded = self.config.load(Path(name))
        rng, (rows, columns) = np.random.default_rng(0), self.subject.grid
        pictures = rng.integers(0, 256, (2, *self.subject.image_size, 3), dtype=np.uint8)
        codes = rng.integers(0, self.subject.codebook_size, (2, rows * columns), dtype=np.int32)
        assert loaded.fingerprint == self.subject.fingerprint
        assert np.array_equal(loaded.encode(pictures), self.subject.encode(pictures))
        assert np.array_equal(loaded.decode(codes), self.subject.decode(codes))

    def law_codebook_matches_its_size(self) -> None:
        """If there are code vectors, there is one for each code, fp32."""
        codebook = self.subject.codebook()
        if codebook is not None:
            assert codebook.shape[0] == self.subject.codebook_size
            assert str(codebook.dtype) == "torch.float32"

    def law_nothing_is_a_batch(self) -> None:
        """No pictures give no codes, no codes no pictures."""
        height, width = self.subject.image_size
        rows, columns = self.subject.grid
        assert self.subject.encode(np.zeros((0, height, width, 3), np.uint8)).shape == (0, rows * columns)
        assert self.subject.decode(np.zeros((0, rows * columns), np.int32)).shape == (0, height, width, 3)

    def law_wrong_input_is_refused(self) -> None:
        """Other sizes, types and codes out of range are errors, never resized or clamped."""
        height, width = self.subject.image_size
        rows, columns = self.subject.grid
        with pytest.raises(TokenizerError, match="the image tokenizer takes uint8"):
            self.subject.encode(np.zeros((1, height + 1, width, 3), np.uint8))
        with pytest.raises(TokenizerError, match="the image tokenizer takes uint8"):
            self.subject.encode(np.zeros((1, height, width, 3), np.float32))
        with pytest.raises(TokenizerError, match="the codebook has"):
            self.subject.decode(np.full((1, rows * columns), self.subject.codebook_size, np.int32))
        with pytest.raises(TokenizerError, match="a picture is"):
            self.subject.decode(np.zeros((1, rows * columns + 1), np.int32))
