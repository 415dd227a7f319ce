"""Kind `image_tokenizer`: pixels <-> codes, on a grid or in a sequence (`cm3core.picture_form`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from cm3core.document import Image, IntArray, PixelArray
from cm3core.errors import RecipeError, TokenizerError
from cm3core.interfaces.component import ComponentConfig, broken, is_array, shown
from cm3core.picture_form import PictureForm

if TYPE_CHECKING:
    import torch

#: Name of the image tokenizer's folder in a checkpoint or a memory bank.
IMAGE_TOKENIZER = "image_tokenizer"


@dataclass(kw_only=True)
class ImageTokenizerConfig(ComponentConfig):
    """Base of image tokenizers' configs."""

    kind: ClassVar[str] = "image_tokenizer"
    #: False: `ImageTokenizer.codebook` is always None, which recipes can be checked for.
    has_codebook: ClassVar[bool] = True
    #: Whether the tokenizer's `ImageTokenizer.reads_drawings` is True.
    reads_drawings: ClassVar[bool] = False

    def offers(self) -> Mapping[str, bool]:
        """One code with a vector at each place, and a grid of codes for pictures that are no sequences."""
        single = self.form.depth == 1
        return {
            "code_vectors": self.has_codebook and single,
            "grid": not self.form.is_sequence,
        }

    def build(self) -> ImageTokenizer:
        """Return the tokenizer with its weights loaded."""
        raise NotImplementedError

    def saved_in(self, folder: Path) -> Self | None:
        """Return this config with its keys naming the files that `ImageTokenizer.save` wrote into `folder`, so that `build`
        returns that tokenizer: a recipe can then take it out of a model (`image_tokenizer=runs/mine`).

        Default: None, no keys can say so."""
        return None

    def load(self, folder: Path) -> ImageTokenizer:
        """Return the tokenizer that `ImageTokenizer.save` wrote into `folder` (a checkpoint's).

        The files are untrusted input. Called only if the folder exists. Default: build `saved_in`. Override one of the
        two together with `ImageTokenizer.save`.
        """
        config = self.saved_in(folder)
        if config is None:
            raise NotImplementedError(
                f"{type(self).__name__}: its tokenizer writes files in save(), but load() does not "
                "read them"
            )
        return config.build()

    def train(
        self,
        images_NHWC: PixelArray,
        out_dir: str | Path,
        *,
        minutes: float | None = None,
        steps: int | None = None,
        resume: bool = False,
        validation_NHWC: PixelArray | None = None,
        show_progress: bool = True,
    ) -> Path:
        """Train from scratch on pictures uint8 [N, H, W, 3]; return the weights' path in `out_dir`.

        Give exactly one of `minutes` (wall clock) and `steps` (optimiser steps). `resume` continues an
        interrupted run. Quality on `validation_NHWC` is logged. Tokenizers that can't be
        trained here keep this default, which raises `RecipeError`.

        `cm3 tokenizer train-image` passes all of these arguments. It also writes a recipe next to the weights;
        if the config has a key `weights`, the recipe sets it to their path. `build` must read them from there, because
        `cm3 tokenizer eval` and users rely on this recipe.
        """
        raise RecipeError(
            "image_tokenizer",
            f"{type(self).__name__} can't be trained here",
            "choose vqgan, or give weights",
        )

    @property
    def codebook_size(self) -> int:
        """Number of codes, available before the tokenizer is built (the vocabulary needs it)."""
        raise NotImplementedError

    @property
    def form(self) -> PictureForm:
        """The form of a picture's codes, available before the tokenizer is built. Default: a grid of `grid`.

        Define `grid` for a grid of one code a place, `form` for every other form."""
        return _form_of_grid(self, ImageTokenizerConfig)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, codes per row) of a picture's array of codes, available before the tokenizer is built. Default: that
        of `form`."""
        return self.form.grid

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of pictures in pixels, available before the tokenizer is built.

        Training needs pictures before there are weights."""
        raise NotImplementedError

    def in_short(self) -> list[str]:
        """Size and form of pictures, and positions of codes."""
        (height, width), form = self.image_size, self.form
        size = f"{height} x {width} pixels, {form.name}"
        found = [f"{size}, {self.codebook_size:,} codes in the codebook"]
        if form.positions is not None:
            axes = ", ".join(f"{name}: {number}" for name, number in form.positions.axes.items())
            found.append(f"positions of codes, for code_axes of a decoder: {{{axes}}}")
        return found


class ImageTokenizer(ABC):
    """Pixels <-> codes.

    Legend: N pictures, H height, W width (pixels), c codes of a picture's array (`form.num_codes`). Pictures are
    RGB, uint8, 0..255, exactly `image_size`; `cm3core.images.fit` resizes others. Codes are int32,
    0..codebook_size-1, in the order of `form`: raster order on a grid; a sequence repeats its `end` up to c. Encoding
    is deterministic.
    """

    #: Whether pictures that have an SVG document (`Image.drawing`) are encoded by `encode_drawing`.
    reads_drawings: bool = False

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""

    @property
    def form(self) -> PictureForm:
        """The form of a picture's codes. Default: a grid of `grid`.

        Define `grid` for a grid of one code a place, `form` for every other form."""
        return _form_of_grid(self, ImageTokenizer)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, codes of a row) of a picture's array of codes. Default: that of `form`."""
        return self.form.grid

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """Number of codes."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of config and weights, stored with codes, banks and checkpoints.

        Data with another fingerprint is refused."""

    @abstractmethod
    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        """Return codes int32 [N, c] of pictures uint8 [N, H, W, 3]."""

    @abstractmethod
    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        """Return pictures uint8 [N, H, W, 3] of valid codes int32 [N, c]."""

    def save(self, folder: Path) -> None:  # noqa: B027 (tokenizers without files save none)
        """Write the files that `ImageTokenizerConfig.load` needs into the existing `folder`.

        They make a model work wherever its folder is moved. Write nothing if the config alone builds
        this tokenizer on every machine: it has no weights, or its package provides them.
        """

    def move_to(self, device: torch.device) -> None:  # noqa: B027 (staying on the CPU is valid)
        """Encode and decode on this device from now on; pictures and codes stay arrays.

        Called with the decoder's device. The default does nothing. Codes should
        differ between devices only through rounding.
        """

    def codebook(self) -> torch.Tensor | None:
        """Return the code vectors, float32 [codebook_size, dim], or None if the tokenizer has none.

        A decoder's embeddings can be initialised from them."""
        return None

    def encode_drawing(self, svg: str) -> IntArray:
        """Return codes int32 [c] of an SVG document. Raises `DataError` if they can't say all that it shows."""
        raise NotImplementedError  # only needed if `reads_drawings`

    def encode_image(self, image: Image) -> IntArray:
        """Return codes int32 [c] of one picture by reference: of its SVG document where it has one and `reads_drawings`,
        otherwise of its pixels, by themselves: in a batch, the last bits depend on its size."""
        if self.reads_drawings and image.drawing is not None:
            return self.encode_drawing(image.drawing())
        from cm3core import images  # imported here: describing plugins needs no pictures

        return np.asarray(self.encode(images.fit(image.load(), self.image_size)[None])[0])

    def svg(self, codes_c: IntArray) -> str | None:
        """Return the SVG document of a picture's codes; None (the default): they are areas of pixels."""
        return None

    def around_parts(self, codes_c: IntArray) -> Sequence[tuple[IntArray, IntArray]]:
        """Return the codes before and behind each part of a picture that can be drawn again: whatever the rules allow
        between them leaves the other parts as they are. Default: none."""
        return ()

    def encode(self, pixels_NHWC: PixelArray) -> IntArray:
        """Return codes int32 [N, c] of pictures uint8 [N, H, W, 3].

        Raises `TokenizerError` on another shape or dtype."""
        height, width = self.image_size
        if pixels_NHWC.shape[1:] != (height, width, 3) or pixels_NHWC.dtype != np.uint8:
            raise TokenizerError(
                "pictures",
                f"{pixels_NHWC.dtype} {list(pixels_NHWC.shape)}, but the image tokenizer takes uint8 "
                f"[N, {height}, {width}, 3]",
                "resize with cm3core.images.fit",
            )
        codes_Nc, form = self._encode(pixels_NHWC), self.form
        shape = (len(pixels_NHWC), self.grid[0] * self.grid[1])
        law = "codes_have_the_stated_shape_and_range"
        if not is_array(codes_Nc, np.int32, shape):
            raise broken(self, law, f"it returned {shown(codes_Nc)}, not int32 {list(shape)}")
        if codes_Nc.size and (codes_Nc.min() < 0 or codes_Nc.max() >= self.codebook_size):
            raise broken(
                self,
                law,
                f"it returned codes {codes_Nc.min()}..{codes_Nc.max()} of {self.codebook_size}",
            )
        if form.rules is not None and (strange := form.strange_place(codes_Nc)) is not None:
            raise broken(
                self,
                "codes_keep_the_rules_of_their_form",
                f"code {strange[1]} of picture {strange[0]}, {codes_Nc[strange]}, breaks the rules of {form.name}",
            )
        return codes_Nc

    def decode(self, codes_Nc: IntArray) -> PixelArray:
        """Return pictures uint8 [N, H, W, 3] of codes [N, c].

        Raises `TokenizerError` on another length, a code out of range, or codes that break the form's rules."""
        form = self.form
        if codes_Nc.ndim != 2 or codes_Nc.shape[1] != self.grid[0] * self.grid[1]:
            whole = f"{form.rows} x {form.columns} = {form.num_codes} codes"
            if not form.is_plain:
                whole = f"an array of {form.num_codes} codes, {form.name}"
            raise TokenizerError(
                "codes",
                f"shape {list(codes_Nc.shape)}, but a picture is {whole}",
                "decode whole pictures",
            )
        if codes_Nc.size and (codes_Nc.min() < 0 or codes_Nc.max() >= self.codebook_size):
            raise TokenizerError(
                "codes",
                f"range {codes_Nc.min()}..{codes_Nc.max()}, but the codebook has "
                f"{self.codebook_size} entries",
                "subtract Vocabulary.image.start from token ids first",
            )
        if form.rules is not None and (strange := form.strange_place(codes_Nc)) is not None:
            raise TokenizerError(
                f"codes of picture {strange[0]}",
                f"code {strange[1]} is {codes_Nc[strange]}, which breaks the rules of {form.name}",
                "decode what `encode` or a model of this tokenizer gave; a sequence repeats its end behind it",
            )
        pixels_NHWC = self._decode(np.ascontiguousarray(codes_Nc, dtype=np.int32))
        shape = (len(codes_Nc), *self.image_size, 3)
        if not is_array(pixels_NHWC, np.uint8, shape):
            raise broken(
                self,
                "pictures_have_the_stated_shape",
                f"it returned {shown(pixels_NHWC)}, not uint8 {list(shape)}",
            )
        return pixels_NHWC


def _form_of_grid(
    tokenizer: ImageTokenizer | ImageTokenizerConfig,
    base: type[ImageTokenizer | ImageTokenizerConfig],
) -> PictureForm:
    """The form of a tokenizer that says its grid alone."""
    if type(tokenizer).grid is base.grid:
        raise NotImplementedError(f"{type(tokenizer).__name__}: define grid or form")
    return _grid_form(*tokenizer.grid)


_grid_form = lru_cache(maxsize=64)(PictureForm.of_grid)
