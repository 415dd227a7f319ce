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
from cm3core.testing.strategies import images


class ImageTokenizerContract(Contract[ImageTokenizer]):
    """Laws of `ImageTokenizer`. Weights must be set; random ones will do."""

    kind: ClassVar[str] = "image_tokenizer"
    max_examples: ClassVar[int | None] = 5

    def build(self, config: Any) -> ImageTokenizer:
        """See `ImageTokenizerConfig.build`."""
        tokenizer: ImageTokenizer = config.build()
        return tokenizer

    def _pictures(self, data: st.DataObject, num: int | None = None) -> PixelArray:
        return data.draw(images(num=num, size=self.subject.image_size, writable=False))

    def _codes(self, data: st.DataObject) -> IntArray:
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
        rows, columns = self.subject.grid
        return rng.integers(0, self.subject.codebook_size, (2, rows * columns), dtype=np.int32)

    def law_codes_have_the_stated_shape_and_range(self, data: st.DataObject) -> None:
        """Codes are int32 [N, rows * columns] in 0..codebook_size-1."""
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
        """Equal inputs give equal outputs, also in an equal tokenizer."""
        pictures, other = self._pictures(data), self.make_again()
        codes = self.subject.encode(pictures)
        decoded = self.subject.decode(codes)
        for tokenizer in (self.subject, other):
            assert np.array_equal(codes, tokenizer.encode(pictures))
            assert np.array_equal(decoded, tokenizer.decode(codes))

    def law_inputs_are_not_written_to(self, data: st.DataObject) -> None:
        """Pictures and codes are unchanged, even if writable."""
        pictures, codes = self._pictures(data).copy(), self._codes(data)
        before = pictures.copy(), codes.copy()
        self.subject.encode(pictures)
        self.subject.decode(codes)
        assert np.array_equal(pictures, before[0])
        assert np.array_equal(codes, before[1])

    def law_a_batch_is_its_items(self, data: st.DataObject) -> None:
        """Codes, and up to rounding pixels, do not depend on the rest of the batch."""
        pictures, codes = self._pictures(data, 3), self._codes(data)
        alone = np.concatenate([self.subject.encode(picture[None]) for picture in pictures])
        assert np.array_equal(self.subject.encode(pictures), alone)
        decoded = np.concatenate([self.subject.decode(one[None]) for one in codes]).astype(int)
        assert np.abs(self.subject.decode(codes) - decoded).max() <= 1

    def law_the_config_knows_the_sizes(self) -> None:
        """The config's `codebook_size`, `grid` and `image_size` are the tokenizer's."""
        if self.config is not None:
            sizes = "codebook_size", "grid", "image_size"
            assert [getattr(self.config, name) for name in sizes] == [
                getattr(self.subject, name) for name in sizes
            ]

    def law_codes_tell_pictures_apart(self) -> None:
        """Not all pictures have the same codes; not all codes decode to one picture."""
        height, width = self.subject.image_size
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        codes = self.subject.encode(
            np.stack([np.zeros_like(noise), np.full_like(noise, 255), noise])
        )
        assert self.subject.codebook_size == 1 or (codes != codes[0]).any()
        rows, columns = self.subject.grid
        decoded = self.subject.decode(
            np.arange(self.subject.codebook_size, dtype=np.int32)[:64, None].repeat(
                rows * columns, 1
            )
        )
        assert self.subject.codebook_size == 1 or (decoded != decoded[0]).any()

    def law_an_equal_tokenizer_has_the_same_fingerprint(self) -> None:
        """The fingerprint identifies config and weights, not the object, and is stable."""
        other = self.make_again()
        assert other.fingerprint == self.subject.fingerprint == self.subject.fingerprint != ""

    def law_saved_is_loaded(self) -> None:
        """`save`, then the config's `load`, gives the same tokenizer, if `save` writes files."""
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
        """Code vectors, if any, are fp32, one per code."""
        codebook = self.subject.codebook()
        if codebook is not None:
            assert codebook.shape[0] == self.subject.codebook_size
            assert str(codebook.dtype) == "torch.float32"

    def law_nothing_is_a_batch(self) -> None:
        """No pictures give no codes, no codes no pictures."""
        height, width = self.subject.image_size
        rows, columns = self.subject.grid
        assert self.subject.encode(np.zeros((0, height, width, 3), np.uint8)).shape == (
            0,
            rows * columns,
        )
        assert self.subject.decode(np.zeros((0, rows * columns), np.int32)).shape == (
            0,
            height,
            width,
            3,
        )

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
