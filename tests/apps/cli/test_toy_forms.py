"""The toy recipes of forms that are no plain grid, from pictures to pictures: a tokenizer, a decoder, drawings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import cm3core
from cm3apps.cli.main import main
from cm3core.images import open_image


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ordered", "residual", "bitwise"])
def test_a_toy_learns_and_draws(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = f"{name}-tiny"
    steps = ["--steps", "3", "-o", "tokenizer", "--quiet"]
    assert main(["tokenizer", "train-image", recipe, *steps]) == 0
    given = ["image_tokenizer.weights=tokenizer/model.safetensors"]
    length = ["train.steps=30", "train.log_every_steps=1"]
    assert main(["train", recipe, *given, *length, "-o", "run", "--quiet"]) == 0
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = [one["train/loss"] for one in logged if "train/loss" in one]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])
    drawing = ["generate", "red apple", "--model", "run", "--n", "2"]
    assert main([*drawing, "-o", "out"]) == 0
    assert open_image("out/001.png").shape == (32, 32, 3)
    model = cm3core.load("run")
    form = model.components.serializer.form
    for drawn in model.generate("bell", 4, seed=1):
        assert form.strange_place(drawn.codes.codes[None]) is None
    assert main([*drawing, "--codes", "16", "-o", "short"]) == (0 if name == "ordered" else 2)
