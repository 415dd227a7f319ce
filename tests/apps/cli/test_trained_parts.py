"""A trained part is a component: train it, swap it into a recipe, draw, in one command each."""

from __future__ import annotations

import random
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.numpy import load_file

from cm3apps.cli.main import main
from cm3core.images import open_image
from messages import tells

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 80, 220)}
SHORT = ["train.steps=2", "train.num_threads=1"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with 120 captioned pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    rng = random.Random(0)
    Path("pictures").mkdir()
    for number in range(120):
        name = rng.choice(list(COLOURS))
        picture = Image.new("RGB", (96, 96), "white")
        side, x, y = rng.randint(20, 60), rng.randint(2, 30), rng.randint(2, 30)
        ImageDraw.Draw(picture).ellipse((x, y, x + side, y + side), fill=COLOURS[name])
        picture.save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text(f"a {name} disc")
    return tmp_path


def ran(capsys: pytest.CaptureFixture[str], command: str, *more: str) -> list[str]:
    """The lines that a good command prints."""
    words = [*shlex.split(command), *more]
    assert words[0] == "cm3"
    assert main(words[1:]) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """What a wrong command says."""
    assert main(shlex.split(command)[1:]) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_three_commands_of_a_new_user(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = "dataset=folder dataset.path=pictures"
    first = f"cm3 tokenizer train-image tokenizer-colour64 {data} --steps 2 --quiet -o tok64"
    use = ran(capsys, first)[-1].removeprefix("use it: ")
    assert use == f"cm3 train tiny image_tokenizer=tok64 {data}"
    ran(capsys, use, *SHORT, "-o", "run", "--quiet")
    weights = load_file("tok64/model.safetensors")
    # runs and exported models hold the part: it is not needed any more
    shutil.move("tok64", "elsewhere")
    ran(capsys, "cm3 export run -o exported")
    [checkpoint] = Path("run/checkpoints").iterdir()
    kept = load_file(checkpoint / "image_tokenizer" / "model.safetensors")
    assert all(np.array_equal(kept[name], array) for name, array in weights.items())
    for model in ("run", "exported"):
        ran(capsys, f"cm3 generate 'a red disc' --model {model} --n 1 -o out-{model}")
        assert open_image(f"out-{model}/000.png").shape == (64, 64, 3)

    # the part of a model, of a folder that was moved, and of a bank made with it
    for part in ("run", "exported", "elsewhere"):
        ran(capsys, f"cm3 recipe check tiny image_tokenizer={part} text_tokenizer=run")
    ran(capsys, f"cm3 train tiny decoder=run {data}", *SHORT, "-o", "more", "--quiet")
    recipe = Path("more/recipe.yaml").read_text()
    assert f"start_from: {place / 'run'}\n" in recipe
    ran(capsys, f"cm3 memory build tiny {data} image_tokenizer=run embedder=light_encoder -o bank")
    ran(
        capsys,
        f"cm3 train tiny image_tokenizer=bank retriever=bank {data}",
        *SHORT,
        *("-o", "retrieving", "--quiet"),
    )
    shown = Path("retrieving/recipe.yaml").read_text()
    assert f"  bank: {place / 'bank'}\n" in shown
    assert "embedder:\n  name: light_encoder\n" in shown

    # the old way says the new one
    old = "cm3 train tiny image_tokenizer.weights=elsewhere/model.safetensors " + data
    message = refused(capsys, f"{old} -o old")
    assert tells(
        message,
        "error: elsewhere/model.safetensors: has another ... write image_tokenizer=elsewhere",
    )
    message = refused(capsys, f"cm3 train tiny image_tokenizer.weights=elsewhere {data} -o old")
    assert tells(message, "error: image_tokenizer.weights=elsewhere: is a folder")
    assert not Path("old").exists()
    # all that another size of codes asks for
    message = refused(capsys, "cm3 recipe check quickstart image_tokenizer=elsewhere")
    assert tells(
        message, "error: decoder.context_length: is 336 ... set decoder.context_length=480"
    )
    longer = "decoder.context_length=480"
    ran(capsys, f"cm3 recipe check quickstart image_tokenizer=elsewhere {longer}")


def test_a_text_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["dataset=folder", "dataset.path=pictures"]
    train = "cm3 tokenizer train-text --vocab-size 270 -o bpe --recipe tiny"
    use = ran(capsys, train, *data)[-1].removeprefix("use it: ")
    # a component has this name, too
    assert use == "cm3 train tiny text_tokenizer=./bpe dataset=folder dataset.path=pictures"
    shown = ran(capsys, "cm3 recipe show tiny --origin text_tokenizer=./bpe")
    own = [line.partition("#")[0].rstrip() for line in shown if line.startswith("text_tokenizer.")]
    assert own[0] == "text_tokenizer.name = bpe"
    assert f"text_tokenizer.path = {Path('bpe/tokenizer.json').absolute()}" in own[2]
