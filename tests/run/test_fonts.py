"""`fonts`: texts of contact sheets in a font that has their letters."""

from __future__ import annotations

import pytest
from PIL import ImageFont

from cm3run import sheets as fonts


class Letters:
    """A font of some letters; all others look alike."""

    def __init__(self, letters: str) -> None:
        self.letters = letters

    def getmask(self, letter: str) -> bytes:
        return letter.encode() if letter in self.letters else b"box"


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("a cat", None),  # Pillow's own has all of it
        ("", None),
        ("é\n", "accents"),
        ("éя", "many"),  # the first that has all letters
        ("中", None),  # nothing has it: as before
        ("éя中", "many"),  # what has most
    ],
)
def test_the_font_that_has_most_letters(
    monkeypatch: pytest.MonkeyPatch, text: str, chosen: str | None
) -> None:
    made: dict[str | None, object] = {
        None: Letters("act"),
        "accents": Letters("acté"),
        "many": Letters("actéя"),
    }
    monkeypatch.setattr(fonts, "_FONT_FILES", ("missing", "accents", "many"))
    monkeypatch.setattr(fonts, "_font", lambda file, size: made.get(file))
    fonts._has_letter.cache_clear()
    assert fonts.font_for(text, 13) is made[chosen]
    fonts._has_letter.cache_clear()


def test_pillows_own_lacks_accents() -> None:
    """Why other fonts are looked for at all; English texts look the same on each machine."""
    assert fonts._has_letter(None, 13, "e")
    assert not fonts._has_letter(None, 13, "é")
    assert fonts.font_for("a red bell, outline", 13).getname() == ("Aileron", "Regular")  # type: ignore[union-attr]  # Pillow's own is a FreeType font


def test_a_font_that_is_there() -> None:
    try:
        ImageFont.truetype("DejaVuSans.ttf", 13)
    except OSError:
        pytest.skip("needs DejaVuSans.ttf (apt install fonts-dejavu-core)")
    for text in ("Barthélemy", "علم", "דגל", "флаг"):
        assert all(fonts._has_letter("DejaVuSans.ttf", 13, letter) for letter in text)
        font = fonts.font_for(text, 13)
        assert isinstance(font, ImageFont.FreeTypeFont)
        assert font.getname()[0] == "DejaVu Sans"
