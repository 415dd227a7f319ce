"""`cm3 sweep`, with the toy model."""

from __future__ import annotations

import numpy as np
import pytest

from cm3core import images


def test_a_sweep_draws_each_cell_as_generate_would(cm3, ranked, tmp_path, capsys):
    path = tmp_path / "sweep.png"
    assert (
        cm3(
            "sweep",
            "red",
            "blue",
            "--vary",
            "sampler.guidance_scale=1,2",
            "--vary",
            "seed=0,4",
            "--score",
            "brightness",
            "--num-retrieved",
            0,
            "-o",
            path,
        )
        == 2
    )
    assert "no reranker is called 'brightness'" in capsys.readouterr().err
    assert (
        cm3(
            "sweep",
            "red",
            "blue",
            "--vary",
            "sampler.guidance_scale=1,2",
            "--vary",
            "seed=0,4",
            "--num-retrieved",
            0,
            "-o",
            path,
        )
        == 0
    )
    sheet = images.open_image(path)
    for down, scale in enumerate((1, 2)):
        for across, seed in enumerate((0, 4)):
            own = ranked.generate(
                ["red", "blue"], 1, seed=seed, guidance_scale=scale, num_retrieved=0
            )
            cell = np.repeat(np.repeat(np.concatenate([one.pixels for one in own]), 16, 0), 16, 1)
            top, left = (
                sheet.shape[0] - (2 - down) * (256 + 6),
                sheet.shape[1] - (2 - across) * (128 + 6),
            )
            assert np.array_equal(sheet[top : top + 256, left : left + 128], cell)


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (
            ["foo=1"],
            "--vary foo=1: is not sampler.KEY=A,B,... nor sampler, seed, num_retrieved, "
            "num_candidates, reranker\n"
            "  next: write e.g. --vary sampler.guidance_scale=1,1.5,3",
        ),
        (
            ["seed=1,"],
            "--vary seed=1,: is not sampler.KEY=A,B,... nor sampler, seed, num_retrieved, "
            "num_candidates, reranker\n"
            "  next: write e.g. --vary sampler.guidance_scale=1,1.5,3",
        ),
        (
            ["seed=1", "seed=2", "seed=3"],
            "--vary: is given 3 times\n  next: vary one key down and at most one across",
        ),
        (
            ["sampler.top_p=0.5", "sampler.top_p=1"],
            "--vary: names top_p twice\n  next: give all values of a key in one --vary",
        ),
    ],
)
def test_what_can_not_be_varied(cm3, tmp_path, capsys, vary, message):
    options = [part for one in vary for part in ("--vary", one)]
    assert cm3("sweep", "red", *options, "-o", tmp_path / "sweep.png") == 2
    assert capsys.readouterr().err == f"error: {message}\n"
