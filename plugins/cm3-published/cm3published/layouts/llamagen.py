"""`llamagen`: the layout of LlamaGen's class-conditional models. Light.

A class replaces the text (arXiv:2406.06525, section 2.3; FoundationVision/LlamaGen,
`autoregressive/models/gpt.py`, MIT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.interfaces.layout import Boundary, Frame, Layout, LayoutConfig, VocabularyParts

if TYPE_CHECKING:
    from cm3core.vocab import Vocabulary, VocabularySizes


@dataclass(kw_only=True)
class LlamaGenLayoutConfig(LayoutConfig):
    """LlamaGen's layout: `class codes`; a picture without a class follows the class "none".

    Ids: one per class (the text tokenizer's), then "none", image codes, padding and an end token, which
    is used only in training. There are no sentinels: only pictures can be generated.
    """

    has_sentinels: ClassVar[bool] = False
    writes_text: ClassVar[bool] = False

    def num_ids(self, sizes: VocabularySizes) -> int | None:
        """Classes, "none", codes, padding and the end."""
        return sizes.num_text_ids + sizes.num_image + 3 if sizes.num_text_ids else None

    def picture_length(self, grid: tuple[int, int]) -> int:
        """Codes, and the class before them."""
        return grid[0] * grid[1] + 1

    def build(self, parts: VocabularyParts, grid: tuple[int, int]) -> Layout:
        from cm3core.vocab import Vocabulary

        num = parts.text_tokenizer.vocab_size
        codes = range(num + 1, num + 1 + parts.codebook_size)
        special = {"none": num, "pad": codes.stop, "end": codes.stop + 1}
        return ClassLayout(Vocabulary(codes.stop + 2, (range(num),), codes, special))


class ClassLayout(Layout):
    """`class codes`; see the module docstring.

    Args:
        vocabulary: vocabulary with the tokens "none" and "end".
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._none, self._end = (vocabulary.special[name] for name in ("none", "end"))

    @property
    def name(self) -> str:
        return "llamagen"

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def fingerprint(self) -> str:
        """Constant: the layout depends only on the vocabulary, which is stored."""
        return "class codes"

    @property
    def begin(self) -> tuple[int, ...]:
        """Nothing: a sequence starts with the class."""
        return ()

    def begin_before(self, modality: str) -> tuple[int, ...]:
        """The class "none", before a picture without a class."""
        return (self._none,) if modality == "image" else ()

    @property
    def end(self) -> tuple[int, ...]:
        return (self._end,)

    def between(self, boundary: Boundary) -> tuple[int, ...]:
        """Nothing between a class and its picture, the end token elsewhere."""
        shown = boundary.before == boundary.after == "text" and not boundary.text_hidden
        return (self._end,) if shown or boundary.starts_document else ()

    def frame(self, grid: tuple[int, int]) -> Frame:
        """Nothing: the number of codes is fixed."""
        return Frame()
