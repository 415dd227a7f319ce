"""Pictures as curves: an SVG that shows what was drawn, and nothing around it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image, ImageFilter

from cm3core.document import Codes
from cm3core.errors import MissingPackageError
from cm3core.images import open_image
from cm3icons.config import IconFinisherConfig
from cm3icons.svg_codes import SvgConfig
from cm3run.model import tracing
from cm3run.model.results import GeneratedImage
from cm3run.model.tracing import check_tracer, svg_of_image
from messages import tells

#: Of a model of icons.
INK = IconFinisherConfig().build()


def svg_of(pixels: np.ndarray) -> str:
    return tracing.svg_of(pixels, finisher=INK)


def square() -> np.ndarray:
    pixels = np.full((32, 48, 3), 255, np.uint8)
    pixels[8:24, 16:32] = (200, 20, 20)
    pixels[12:20, 20:28] = (20, 20, 200)
    return pixels


def test_a_square_in_a_square():
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    import resvg_py

    text = svg_of(square())
    root = ET.fromstring(text)
    assert (root.get("width"), root.get("height")) == ("48", "32")
    assert root.get("viewBox") == "0 0 528 352"  # eleven times as large
    assert len(text) < 20_000
    shown = open_image(bytes(resvg_py.svg_to_bytes(svg_string=text, width=48, height=32)))
    difference = np.abs(shown.astype(int) - square()).max(axis=2)
    assert (difference > 40).mean() < 0.06  # corners are rounded
    assert (shown[:6] == 255).all()
    assert np.abs(shown[10, 18].astype(int) - [200, 20, 20]).max() < 12
    assert np.abs(shown[16, 24].astype(int) - [20, 20, 200]).max() < 12


def test_it_is_transparent_around_the_drawing():
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    fills = re.findall(r'fill="(#\w+)"', svg_of(square()))
    assert fills
    assert "#FFFFFF" not in fills


def ring(inside: int = 255) -> np.ndarray:
    """A black frame of 16 pixels around 8 x 8 of a grey level."""
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[8:24, 8:24] = 0
    pixels[12:20, 12:20] = inside
    return pixels


def test_without_a_finisher_a_drawing_in_ink_is_traced_like_any_other():
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    assert "currentColor" in svg_of(ring())
    assert "currentColor" not in tracing.svg_of(ring())


@pytest.mark.parametrize(
    ("inside", "opacities"), [(255, [None]), (178, ["0.30", None]), (51, [None])]
)
def test_a_drawing_in_ink_is_the_areas_of_its_ink(inside, opacities):
    """No white is among them, and a page decides the colour."""
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    import resvg_py

    text = svg_of(ring(inside))
    root = ET.fromstring(text)
    assert (root.get("width"), root.get("height")) == ("32", "32")
    assert root.get("viewBox") == "0 0 256 256"
    assert [(group.get("fill"), group.get("opacity")) for group in root] == [
        ("currentColor", opacity) for opacity in opacities
    ]
    assert len(text) < 6000
    drawn = resvg_py.svg_to_bytes(svg_string=text, width=32, height=32, background="#ffffff")
    shown = open_image(bytes(drawn)).astype(int)
    wrong = np.abs(shown - ring(inside)).max(axis=2) > 60
    assert wrong.mean() < 0.02  # corners are rounded
    # a level that is nearly the ink's own is ink
    assert np.abs(shown[16, 16] - (0 if inside == 51 else inside)).max() < 8
    red = text.replace("<svg ", '<svg color="#ff0000" ')
    drawn = resvg_py.svg_to_bytes(svg_string=red, width=32, height=32, background="#0000ff")
    shown = open_image(bytes(drawn))
    assert shown[10, 16].tolist() == [255, 0, 0]
    if inside == 255:
        assert shown[16, 16].tolist() == [0, 0, 255]  # one looks through it


@pytest.mark.parametrize(("inside", "groups"), [(255, [None]), (178, ["0.30", None])])
def test_edges_of_an_enlarged_drawing_are_no_grey(inside, groups):
    """They are as many pixels wide as it was enlarged."""
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    large = Image.fromarray(ring(inside)).filter(ImageFilter.GaussianBlur(0.6))
    large = np.asarray(large.resize((256, 256), Image.Resampling.BICUBIC))
    codes = Codes(np.zeros(4, np.int32), (2, 2))
    text = svg_of_image(GeneratedImage(ring(inside), "", 0, (), codes, 0.0, upscaled=large), INK)
    root = ET.fromstring(text)
    assert [group.get("opacity") for group in root] == groups
    assert (root.get("width"), root.get("viewBox")) == ("256", "0 0 512 512")
    assert len(text) < 6000
    assert text.count("<path") == svg_of(ring(inside)).count("<path")


def test_noise_is_no_ink():
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    noise = np.random.default_rng(0).integers(0, 20, (32, 32, 1), np.uint8)
    paper = ring() == 255
    noisy = np.where(paper, 255 - noise, noise).astype(np.uint8)
    assert svg_of(noisy).count("<path") == 1


def test_a_grey_photograph_is_no_drawing():
    """Levels of all kinds, and no paper."""
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    slope = np.linspace(0, 255, 32).astype(np.uint8)
    levels = np.broadcast_to(slope[:, None, None], (32, 32, 3)).copy()
    assert "currentColor" not in svg_of(levels)
    dark = np.full((32, 32, 3), 30, np.uint8)
    dark[8:24] = 60
    assert "currentColor" not in svg_of(dark)


def test_nothing_drawn_is_an_empty_svg():
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    assert "<path" not in svg_of(np.full((8, 8, 3), 255, np.uint8))


def test_without_vtracer(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError) as caught:
        check_tracer("cm3 generate --svg")
    assert tells(caught.value, "cm3 generate --svg: the package 'vtracer' ... 'cm3leon[svg]'")


def test_a_drawing_is_what_the_model_wrote() -> None:
    """Nothing is traced where codes are drawings."""
    tokenizer = SvgConfig().build()
    line = '<svg viewBox="0 0 24 24"><path fill="none" stroke="#000" d="M2 12h20"/></svg>'
    codes = Codes(tokenizer.encode_drawing(line), tokenizer.grid)
    picture = GeneratedImage(tokenizer.decode(codes.codes[None])[0], "", 0, (), codes, 0.0)
    assert svg_of_image(picture, INK, tokenizer) == tokenizer.svg(codes.codes)
    assert 'd="M2 12h20"' in svg_of_image(picture, INK, tokenizer)
