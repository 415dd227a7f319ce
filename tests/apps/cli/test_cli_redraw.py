"""`cm3 infill --path`: one path of an SVG file is drawn again, the others stay as they are."""

from __future__ import annotations

import re

import numpy as np
import pytest

from cm3core import images
from cm3core.document import Codes
from cm3core.errors import DataError, GenerationError
from cm3icons.svg_codes import SvgConfig
from cm3run.model.loaded import codes_of, seen
from messages import tells
from toy_model import toy_model

DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="#000" stroke-width="2">'
    '<path d="M4 4h8M4 9v3l2 2"/><circle cx="18" cy="18" r="2"/></svg>'
)


@pytest.fixture
def model():
    return toy_model(image=SvgConfig(resolution=8, most_codes=50).build(), max_text_tokens=64)


@pytest.fixture
def drawing(tmp_path):
    path = tmp_path / "drawing.svg"
    path.write_text(DRAWING)
    return path


def drawn(svg: str) -> list[str]:
    """The data of subpaths, and the shapes."""
    data = re.findall(r' d="([^"]*)"', svg)
    return [one for path in data for one in re.findall(r"M[^M]*", path)] + re.findall(
        r'<circle [^>]*(cx="[^>]*)/>', svg
    )


@pytest.mark.parametrize(("number", "kept"), [(1, ["M4 9v3l2 2"]), (2, ["M4 4h8"]), (3, None)])
def test_one_path_is_drawn_again(cm3, model, drawing, tmp_path, capsys, number, kept):
    out, shown = tmp_path / "new.svg", tmp_path / "new.png"
    asked = "infill", drawing, "--path", number, "--text", "red", "--num-retrieved", 0
    lengths = set()
    for seed in range(4):
        assert cm3(*asked, "--seed", seed, "-o", out, "--decoded", shown) == 0
        result = model.redraw(drawing, number, "red", num_retrieved=0, seed=seed)
        svg = out.read_text()
        assert str(out) in capsys.readouterr().out
        rest = ["M4 4h8", "M4 9v3l2 2"] if kept is None else [*kept, 'cx="18" cy="18" r="2"']
        for one in rest:
            assert one in drawn(svg)
        assert drawn(svg) != drawn(DRAWING)
        assert np.array_equal(images.open_image(shown), result.pixels)
        assert '"path": "' in svg.replace("\\", "").replace("&quot;", '"')
        lengths.add(model.components.image_tokenizer.form.length(result.codes.codes))
    assert len(lengths) > 1


def test_what_was_retrieved_is_shown(cm3, model, drawing, tmp_path, capsys):
    out = tmp_path / "new.svg"
    asked = "infill", drawing, "--path", 1, "--text", "red", "--num-retrieved", 1
    assert cm3(*asked, "--show-retrieved", "-o", out) == 0
    assert "retrieved 1: red" in capsys.readouterr().out
    assert (tmp_path / "retrieved.png").exists()


def test_what_cannot_be_drawn_again_is_refused(model, drawing, tmp_path):
    (tmp_path / "wrong.svg").write_text('<svg viewBox="0 0 24 24"><text/></svg>')
    (tmp_path / "bytes.svg").write_bytes(b"\xff\xfe<svg/>")
    for name, number, error, words in (
        ("drawing.svg", 4, GenerationError, "path 4: is not in ...drawing.svg, which has 3 paths"),
        ("wrong.svg", 1, DataError, "...wrong.svg: has <text>, which codes of paths can't say"),
        ("bytes.svg", 1, DataError, "...bytes.svg: can't be read (it is not UTF-8 text)"),
        ("none.svg", 1, DataError, "...none.svg: can't be read (No such file or directory)"),
    ):
        with pytest.raises(error) as caught:
            model.redraw(tmp_path / name, number, "red")
        assert tells(caught.value, words)
    with pytest.raises(GenerationError) as caught:
        toy_model().redraw(drawing, 1)
    assert tells(
        caught.value,
        "...drawing.svg: is a drawing, but the model's image tokenizer reads pixels only",
    )


def test_the_command_refuses_other_files(cm3, drawing, tmp_path, capsys):
    for out, words in (
        (tmp_path / "new.png", "is no SVG file, which --path writes"),
        (drawing, "is the input file"),
    ):
        assert cm3("infill", drawing, "--path", 1, "-o", out) == 2
        assert words in capsys.readouterr().err
    assert drawing.read_text() == DRAWING


def test_boxes_of_drawings_are_refused(cm3, drawing, tmp_path, capsys):
    picture = tmp_path / "picture.png"
    images.save_png(picture, np.full((8, 8, 3), 255, np.uint8), {})
    assert cm3("infill", picture, "--box", "0,0,4,4") == 2
    assert "cm3 infill --path" in capsys.readouterr().err


def test_an_svg_file_is_read_as_its_commands(cm3, model, drawing, tmp_path, capsys):
    """Captioned and edited from its commands; a picture of it is traced instead."""
    tokenizer = model.components.image_tokenizer
    codes = codes_of(model, drawing)
    assert np.array_equal(codes.codes, tokenizer.encode_drawing(DRAWING))
    picture = tmp_path / "drawing.png"
    images.save_png(picture, seen(model, drawing), {})
    assert not np.array_equal(codes_of(model, picture).codes, codes.codes)
    assert seen(model, drawing).shape == (8, 8, 3)

    prompts: list[Codes] = []
    fills = model.engine.preparer.serializer.prompt

    def recorded(query, *rest, **keys):
        prompts.extend(segment for segment in query if isinstance(segment, Codes))
        return fills(query, *rest, **keys)

    model.engine.preparer.serializer.prompt = recorded
    assert cm3("caption", drawing, "--max-tokens", 2) == 0
    assert cm3("edit", drawing, "bigger", "--force", "--n", 1, "--svg", "-o", tmp_path / "new") == 0
    assert (tmp_path / "new" / "000.svg").read_text().count("<svg") == 1
    assert len(prompts) >= 2
    assert all(np.array_equal(one.codes, codes.codes) for one in prompts)
