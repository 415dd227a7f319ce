"""Pictures as curves: an SVG that shows what was drawn, and nothing around it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from cm3core.cli._tracing import check_tracer, svg_of
from cm3core.errors import MissingPackageError
from cm3core.images import open_image


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


def test_nothing_drawn_is_an_empty_svg():
    pytest.importorskip("vtracer", reason="the package vtracer is not installed")
    assert "<path" not in svg_of(np.full((8, 8, 3), 255, np.uint8))


def test_without_vtracer(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError) as caught:
        check_tracer("cm3 generate --svg")
    assert str(caught.value) == (
        "cm3 generate --svg: the package 'vtracer' is not installed\n  next: pip install 'cm3leon[svg]'"
    )
