"""`glm_image`: the layout of GLM-Image's first stage, and its config. Light.

Order of a prompt: transformers' `GlmImageProcessor` and diffusers' `GlmImagePipeline` (both Apache-2.0). Ids: those of
`GlmImageConfig`, and GLM-4's specials after 16,512 ids for pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import DocumentError, RecipeError
from cm3core.interfaces.layout import Boundary, Frame, Layout, LayoutConfig, VocabularyParts
from cm3published.glm_grids import grids_of

if TYPE_CHECKING:
    from cm3core.vocab import Vocabulary, VocabularySizes


@dataclass(kw_only=True)
class GlmImageLayoutConfig(LayoutConfig):
    """GLM-Image's layout: `text <sop>H W<eop><sop>h w<eop><start> codes <end>`, with the numbers of rows and columns of the
    picture and of its preview as text.

    Texts can't be generated, and nothing may follow a picture: GLM-Image edits pictures that it reads by other positions,
    which are not supported. A picture without a text follows `<end>`.

    Args:
        resolution, width: size of pictures in pixels, as in the image tokenizer; width None: the height.
        first_text: the first id of texts; those below are image codes, `<start>`, `<end>` and unused ones.
        padding, picture_begin, picture_end, size_begin, size_end: ids of `<|endoftext|>`, `<start>`, `<end>`, `<sop>` and
            `<eop>`.
        vocab_size: rows of the embedding table.
    """

    has_sentinels: ClassVar[bool] = False
    writes_text: ClassVar[bool] = False
    reads_pictures: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "resolution": (32, 2**14),
        "width": (32, 2**14),
        "first_text": (1, 2**24),
        "padding": (0, 2**24),
        "picture_begin": (0, 2**24),
        "picture_end": (0, 2**24),
        "size_begin": (0, 2**24),
        "size_end": (0, 2**24),
        "vocab_size": (1, 2**24),
    }

    resolution: int = 1024
    width: int | None = None
    first_text: int = 16_512
    padding: int = 167_841
    picture_begin: int = 16_384
    picture_end: int = 16_385
    size_begin: int = 167_845
    size_end: int = 167_846
    vocab_size: int = 168_064

    def num_ids(self, sizes: VocabularySizes) -> int | None:
        """`vocab_size`."""
        return self.vocab_size

    def picture_length(self, grid: tuple[int, int]) -> int:
        """Return the number of codes, the sizes as text (at most one token per character), and five more."""
        return grid[0] * grid[1] + sum(map(len, self.size_texts())) + 5

    def size_texts(self) -> tuple[str, str]:
        """Return the sizes of the picture and of its preview, in codes.

        >>> GlmImageLayoutConfig(resolution=1152, width=768).size_texts()
        ('36 24', '19 13')
        """
        preview, picture = self.grids()
        return f"{picture[0]} {picture[1]}", f"{preview[0]} {preview[1]}"

    def grids(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (rows, columns) of the preview and of the picture."""
        return grids_of(self.resolution, self.width or self.resolution)

    def check_pictures(self, grid: tuple[int, int], codebook_size: int) -> None:
        """Raise `RecipeError` unless pictures have as many codes as `resolution` and `width` say."""
        number = sum(rows * columns for rows, columns in self.grids())
        if number != grid[0] * grid[1]:
            raise RecipeError(
                "layout.resolution",
                f"and width are those of pictures with {number:,} codes, but the image tokenizer's have "
                f"{grid[0] * grid[1]:,}",
                "use the image tokenizer's size",
            )

    def build(self, parts: VocabularyParts, grid: tuple[int, int]) -> Layout:
        from cm3core.vocab import Vocabulary
        from cm3published.layouts.turns import text_between

        self.check_pictures(grid, parts.codebook_size)
        own = {
            "pad": self.padding,
            "boi": self.picture_begin,
            "eoi": self.picture_end,
            "sop": self.size_begin,
            "eop": self.size_end,
        }
        tokenizer = parts.text_tokenizer
        hidden = {*range(self.first_text), *own.values(), *tokenizer.special_ids().values()}
        text = text_between(min(tokenizer.vocab_size, self.vocab_size), hidden)
        vocabulary = Vocabulary(self.vocab_size, text, range(parts.codebook_size), own)
        opening: list[int] = []
        for size in self.size_texts():
            opening += [self.size_begin, *tokenizer.encode(size), self.size_end]
        return GlmImageLayout(vocabulary, (*opening, self.picture_begin))


class GlmImageLayout(Layout):
    """See `GlmImageLayoutConfig`.

    Args:
        vocabulary: vocabulary with the token "eoi".
        opening: ids before the codes of a picture.
    """

    def __init__(self, vocabulary: Vocabulary, opening: tuple[int, ...]) -> None:
        self._vocabulary, self._opening = vocabulary, opening
        self._end = vocabulary.special["eoi"]

    @property
    def name(self) -> str:
        return "glm_image"

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def fingerprint(self) -> str:
        """Hash of the ids before a picture."""
        return hashlib.sha256(json.dumps(self._opening).encode()).hexdigest()[:16]

    @property
    def begin(self) -> tuple[int, ...]:
        """Nothing: a sequence starts with the text."""
        return ()

    def begin_before(self, modality: str) -> tuple[int, ...]:
        """The end of a picture, before a picture without a text."""
        return (self._end,) if modality == "image" else ()

    @property
    def end(self) -> tuple[int, ...]:
        return (self._end,)

    @property
    def reads_pictures(self) -> bool:
        """Always False; see `between`."""
        return False

    def between(self, boundary: Boundary) -> tuple[int, ...]:
        """Nothing between a text and its picture; the end of a picture between two texts.

        Raises:
            DocumentError: something follows a picture, or another document.
        """
        if boundary.before == "image" or boundary.starts_document:
            raise DocumentError(
                f"layout {self.name}",
                "has content after a picture or another document, but this model can only draw after a text",
                "leave out pictures to read, and retrieved documents (generate.retrieve=false)",
            )
        return (self._end,) if boundary.after == "text" else ()

    def frame(self, grid: tuple[int, int]) -> Frame:
        return Frame(self._opening)
