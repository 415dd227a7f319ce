"""`--preview`: pictures that are shown while they grow."""

from __future__ import annotations

import numpy as np

from cm3core import images


def test_a_preview_shows_pictures_growing(cm3, model, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("cm3apps.cli._preview.INTERVAL", 0)
    shown = []
    monkeypatch.setattr(
        "cm3apps.cli._preview.half_blocks", lambda pictures: shown.append(len(pictures)) or "rows\n"
    )
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert cm3("generate", "red", "--n", 2, "--preview", "-o", tmp_path) == 0
    want = model.generate("red", 2)
    for place in range(2):
        assert np.array_equal(images.open_image(tmp_path / f"{place:03d}.png"), want[place].pixels)
    assert (tmp_path / "preview.png").exists()
    assert len(shown) >= 4
    assert "\x1b[1A\x1b[J" in capsys.readouterr().err


def test_half_blocks_are_two_pixels_a_character():
    from cm3apps.cli._preview import half_blocks

    checks = np.zeros((2, 2, 3), np.uint8)
    checks[0, 0] = 255, 0, 0
    text = half_blocks([checks, checks], width=2)
    cell = "\x1b[38;2;255;0;0;48;2;0;0;0m\u2580\x1b[38;2;0;0;0;48;2;0;0;0m\u2580\x1b[0m"
    assert text == f"{cell} {cell}\n"


def test_a_preview_without_colour(cm3, tmp_path, capsys, monkeypatch):
    from cm3apps.cli._preview import shades

    halves = np.repeat(np.uint8([[0, 255], [0, 255]])[..., None], 3, 2)
    assert shades([halves, 255 - halves], width=2) == " \u2588 \u2588 \n"
    assert shades([np.full((4, 4, 3), 128, np.uint8)], width=2) == "\u2592\u2592\n"
    monkeypatch.setattr("cm3apps.cli._preview.INTERVAL", 0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for no_colour, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_colour)
        assert cm3("generate", "red", "--n", 1, "--preview", "-o", tmp_path) == 0
        told = capsys.readouterr().err
        assert ("\x1b[38;2;" in told) == coloured
        assert ("\x1b[0m" in told) == coloured


def test_a_preview_of_finished_pictures_names_their_documents(cm3, tmp_path, monkeypatch):
    from cm3core.images import read_png_metadata

    monkeypatch.setattr("cm3apps.cli._preview.INTERVAL", 0)
    assert cm3("generate", "red", "--n", 1, "--preview", "-o", tmp_path) == 0
    texts = read_png_metadata(tmp_path / "preview.png")
    assert "Ann Colour" in texts["documents"]
    assert texts["software"].startswith("cm3leon ")
