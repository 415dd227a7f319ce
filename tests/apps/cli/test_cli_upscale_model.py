"""`cm3 upscale --model`: a model that was tuned for it draws the picture again; messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cm3run.model
from cm3apps.cli.main import main
from cm3core.images import fit, open_image, read_png_metadata, save_png
from cm3plugins.tasks.bundled import EditConfig, SuperResolutionConfig
from cm3run.tasks import TunedTasks
from messages import tells
from toy_model import picture, toy_model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    model = toy_model(max_text_tokens=120)
    model.tasks = TunedTasks({"edit": EditConfig(), "sharpen": SuperResolutionConfig()})
    monkeypatch.setattr(cm3run.model, "load", lambda *_, **__: model)
    save_png("small.png", picture(4, 4), {"prompt": "bell"})
    return model


def test_the_picture_is_drawn_again(model, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", "small.png", "--model", "toy", "--seed", "5", "-o", "sharp.png"]) == 0
    assert capsys.readouterr().out == "sharp.png: 8 x 8 pixels of 4 x 4, by model toy\n"
    seen = fit(picture(4, 4), (8, 8))
    assert np.array_equal(
        open_image("sharp.png"), model.do("sharpen", {"source": seen}, seed=5)["target"]
    )
    facts = read_png_metadata("sharp.png")
    assert facts == {"prompt": "bell", "upscaler": "model toy", "upscaler_seed": "5"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["upscale", "large.png", "--model", "toy"],
            "error: large.png: has 9 x 8 ... draws 8 x 8 ... --upscaler",
        ),
        (
            ["upscale", "small.png", "--model", "toy", "upscaler.scale=3"],
            "error: cm3 upscale upscaler.scale=3: changes an upscaler's",
        ),
    ],
)
def test_what_can_not_be(
    model, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_png("large.png", picture(8, 9))
    assert main([*arguments, "-o", "out.png"]) == 2
    assert tells(capsys.readouterr().err, message)
    assert not Path("out.png").exists()


def test_a_model_that_was_not_tuned_for_it(model, capsys: pytest.CaptureFixture[str]) -> None:
    model.tasks = TunedTasks({"edit": EditConfig()})
    assert main(["upscale", "small.png", "--model", "toy", "-o", "out.png"]) == 2
    assert tells(capsys.readouterr().err, "error: model 'toy': was not tuned to enlarge pictures")
