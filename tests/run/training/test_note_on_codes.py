"""A note on an image tokenizer that keeps little of the pictures."""

from __future__ import annotations

import numpy as np
import pytest

from cm3core.document import Image, Text
from cm3core.errors import DataError
from cm3core.interfaces import DocumentSource
from cm3run.checkpoint.words import TrainingWords
from cm3run.training.data_notes import note_on_codes, note_on_words
from toy_model import GreyTokenizer


class Pictures(DocumentSource):
    """Pictures of one colour each; a colour of None is a file that can't be read, a text has none."""

    fingerprint = "pictures"

    def __init__(self, colours: list) -> None:
        self.colours = colours

    def __len__(self) -> int:
        return len(self.colours)

    def id(self, index: int) -> str:
        return str(index)

    def _document(self, index, rng):
        colour = self.colours[index]
        if colour == "text":
            return (Text("no picture"),)

        def load() -> np.ndarray:
            if colour is None:
                raise DataError("a file", "is damaged", "replace it")
            return np.broadcast_to(np.array(colour, np.uint8), (8, 8, 3)).copy()

        return (Image(f"picture {index}", load),)


def note(colours: list) -> str | None:
    return note_on_codes(Pictures(colours), GreyTokenizer())


def test_by_hand() -> None:
    """Red, (255, 0, 0), becomes the grey 88: the mean squared error is (167^2 + 2 * 88^2) / 3, 6.5 dB."""
    assert 85 // 16 * 16 + 8 == 88
    psnr = 10 * np.log10(255**2 / ((167**2 + 2 * 88**2) / 3))
    assert note([(255, 0, 0)] * 3) == (
        f"the image tokenizer's codes keep little of the pictures: median PSNR {psnr:.1f} dB over non-blank areas of 3 "
        "pictures, and 0% lose their subject. The model's pictures can't be better than its codes; docs/data.md, 'What "
        "the codes keep of your pictures', shows how to check this, and how to train an image tokenizer on the pictures"
    )


def test_pictures_of_nothing_hide_nothing() -> None:
    """They are kept to the last bit, and don't count."""
    found = note([(255, 0, 0)] * 5 + [(8, 8, 8)] * 30)
    assert found is not None
    assert "6.5 dB over non-blank areas of " in found


def test_a_white_background_hides_nothing() -> None:
    """One red square of 16: 18.5 dB of the whole picture, 6.5 dB of what is drawn."""
    source = Pictures([(255, 255, 255)] * 4)
    red = np.full((8, 8, 3), 248, np.uint8)
    red[4:6, 4:6] = (255, 0, 0)
    source._document = lambda index, rng: (Image(str(index), lambda: red),)  # type: ignore[method-assign]  # for one test
    found = note_on_codes(source, GreyTokenizer())
    assert found is not None
    assert "6.5 dB over non-blank areas of 4" in found


def test_greys_are_kept() -> None:
    assert note([(level, level, level) for level in range(0, 250, 10)]) is None


@pytest.mark.parametrize("colours", [[], ["text"], [None, None]])
def test_nothing_to_look_at(colours: list) -> None:
    assert note(colours) is None


def test_some_of_all_evenly_spaced() -> None:
    """What can't be read is left out, the others count."""
    colours: list = [(133, 100, 80)] * 320
    colours[0] = colours[10] = None
    colours[20] = colours[30] = (255, 0, 0)
    assert note(colours) is None  # two at 6.5 dB, the others at 21
    colours[160:] = [(255, 0, 0)] * 160
    found = note(colours)
    assert found is not None
    assert "over non-blank areas of 30" in found


class Captions(Pictures):
    """Texts alone."""

    def _document(self, index, rng):
        return (Text(self.colours[index]),)


def test_captions_of_new_words_are_told() -> None:
    """Of five words two are new, the one of more captions first; one of six is too few to tell."""
    known = TrainingWords(frozenset({"a", "red", "bell", "and", "cup"}))
    source = Captions(["a red zorb", "a blick zorb", "a bell"])
    assert note_on_words(source, known) == (
        "2 of the 5 words of the captions did not occur in the model's training ('zorb', 'blick'): the model learns them "
        "from these pictures alone. Use words that the model knows if possible, or tune it longer"
    )
    assert note_on_words(Captions(["a red bell and cup", "a zorb"]), known) is None
    assert note_on_words(source, None) is None
