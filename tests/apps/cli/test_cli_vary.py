"""`cm3 generate --vary`, with the toy model."""

from __future__ import annotations

import numpy as np
import pytest

from cm3apps.cli._vary import Varied
from cm3core import images
from tests.fixtures.messages import tells

CELLS = ("--vary", "sampler.guidance_scale=1,2", "--vary", "seed=0,4")


def test_cells_are_drawn_as_generate_would(cm3, ranked, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ("generate", "red", "blue", *CELLS, "--n", 1, "--num-retrieved", 0, "-o", out)
    assert cm3(*arguments, "--score", "brightness") == 2
    assert "no reranker is called 'brightness'" in capsys.readouterr().err
    assert cm3(*arguments) == 0
    sheet = images.open_image(out / "grid.png")
    written = iter(sorted(out.glob("00*.png")))
    for down, scale in enumerate((1, 2)):
        for across, seed in enumerate((0, 4)):
            own = ranked.generate(
                ["red", "blue"], 1, seed=seed, guidance_scale=scale, num_retrieved=0
            )
            for one in own:
                assert np.array_equal(images.open_image(next(written)), one.pixels)
            cell = np.repeat(np.repeat(np.concatenate([one.pixels for one in own]), 16, 0), 16, 1)
            top, left = (
                sheet.shape[0] - (2 - down) * (256 + 6),
                sheet.shape[1] - (2 - across) * (128 + 6),
            )
            assert np.array_equal(sheet[top : top + 256, left : left + 128], cell)
    assert next(written, None) is None


def test_scores_of_cells_are_means():
    """Of two prompts with two pictures each, in two cells."""

    class Scorer:
        measure = "brightness"

        def reranker(self, name):
            assert name == "bright"
            return self

        def score(self, picture, name):
            return picture

    drawn = [[1, 2], [3, 4], [10, 10], [10, 14]]
    lines = Varied.of(["seed=0,4"]).scores(drawn, Scorer(), "bright")
    assert lines == ["mean brightness", "\t", "0\t2.5000", "4\t11.0000"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "foo=1"], "--vary foo=1: is not sampler.KEY=A,B,... nor sampler, seed"),
        (["--vary", "seed"], "--vary seed: is not sampler.KEY=A,B,..."),
        (["--vary", "seed=1,"], "--vary seed=1,: lists an empty value"),
        (["--vary", "seed=1", "--vary", "seed=2", "--vary", "seed=3"], "--vary: is given 3 times"),
        (
            ["--vary", "sampler.top_p=0.5", "--vary", "sampler.top_p=1"],
            "--vary: names top_p twice",
        ),
        (["--score", "pmi"], "--score: scores the cells of --vary"),
        (["--vary", "seed=1,2", "--zip"], "--zip: shows the pictures in another way"),
        (["--vary", "seed=1,2", "--preview"], "--preview: shows the pictures in another way"),
    ],
)
def test_what_can_not_be_varied(cm3, tmp_path, capsys, arguments, message):
    assert cm3("generate", "red", *arguments, "-o", tmp_path / "out") == 2
    assert tells(capsys.readouterr().err.removeprefix("error: "), message)
    assert not (tmp_path / "out").exists()


def test_the_old_command_answers_with_the_new_one(cm3, capsys):
    """It must be one that can be pasted."""
    old = ("red apple", "--vary", "seed=1,2", "--model", "runs/x y", "-o", "out.png")
    assert cm3("sweep", *old) == 2
    shown = capsys.readouterr().err
    assert "cm3 generate 'red apple' --vary seed=1,2 --model" in shown
    assert "-o out" in shown
    assert ".png" not in shown
