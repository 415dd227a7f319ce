"""Pictures that are drawings: what is measured of their codes is measured of the drawing, not of traced pixels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cm3apps.evaluation.evaluating import Evaluation
from cm3apps.evaluation.measured import RECONSTRUCTED, bounding_pictures
from cm3apps.evaluation.tasks.base import Sample, Task
from cm3core.document import Codes, ImageHole, PixelArray, Text
from cm3core.plugins import load_registry
from cm3plugins.svg import render_svg
from cm3run.evaluation.protocol import protocol_of
from cm3run.model import Model, load
from drawing_models import train_small

LINE = '<path fill="none" stroke="#000" stroke-width="2" d="M2 12h20"/>'
AREA = '<path d="M4 4h16v16h-16z"/>'
#: Its colour is none that codes can say.
RED = '<path fill="#e02020" d="M4 4h16v16h-16z"/>'


def svg(body: str) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">{body}</svg>'


def pixels(body: str) -> PixelArray:
    return render_svg(svg(body), 64)


def sample(body: str, name: str) -> Sample:
    drawing = partial(svg, body)
    return Sample(name, f"{name}, filled", partial(pixels, body), f"image:{name}", drawing=drawing)


def made_of(bodies: dict[str, str]) -> Task:
    samples = [sample(body, name) for name, body in bodies.items()]
    return Task("documents", "pictures", samples, {"split": "own"})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("drawings")
    return load(
        train_small(folder / "run", folder / "cache"), device="cpu", num_threads=1, precision="fp32"
    )


@pytest.mark.slow
def test_probabilities_are_those_of_the_drawing(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand from the drawing's codes; the one that codes can't say is left out, and named."""
    metrics = [{"metric": {"name": "nats", "modality": one}} for one in ("image", "text")]
    protocol = protocol_of(
        {
            "format": "cm3 protocol 1",
            "name": "own-v1",
            "title": "",
            "size": 64,
            "task": {"name": "documents"},
            "scores": metrics,
        },
        "own",
    )
    task = made_of({"line": LINE, "red": RED, "area": AREA})
    scores = Evaluation(protocol, task, load_registry(), tmp_path, model=model).run()["scores"]
    tokenizer, likelihood = model.components.image_tokenizer, model.components.likelihood
    nats, tokens = 0.0, 0
    for name, body in {"line": LINE, "area": AREA}.items():
        text = Text(f"{name}, filled")
        codes = Codes(tokenizer.encode_drawing(svg(body)), tokenizer.grid)
        asked = (text, ImageHole())
        contents = likelihood.contents_of(asked, (text, codes))
        [found] = likelihood.log_probability([asked], [contents])
        nats, tokens = nats - found.nats, tokens + found.num_tokens
    assert scores[0]["value"] == pytest.approx(nats / tokens, rel=1e-5)
    assert [one["num"] for one in scores] == [2, 2]
    assert all(one["measurement"]["codes_of"] == "drawings" for one in scores)
    assert (
        "note: probabilities are measured on 2 of 3 samples, as codes can't say the drawings of the others; the first "
        "is 'red': has the colour #e02020, which codes of paths can't say"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_reconstructed_pictures_are_those_of_the_drawing(model: Model, tmp_path: Path) -> None:
    """A line of the right width; what codes can't say is traced."""
    from cm3apps.evaluation.made import Made

    task = made_of({"line": LINE, "red": RED})
    bounds = bounding_pictures(Made(tmp_path, task), 64, model)
    [line, red] = next(one for one in bounds if one.name == RECONSTRUCTED).pictures
    tokenizer = model.components.image_tokenizer
    [expected] = tokenizer.decode(tokenizer.encode_drawing(svg(LINE))[None])
    assert np.array_equal(line(), expected)
    traced = model.decode(model.encode([pixels(RED)]))[0]
    assert np.array_equal(red(), traced)
