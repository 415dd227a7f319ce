"""`cm3 upscale` and `cm3 upscaler`, through `main`: what is printed, what is written, exit codes,
and messages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from cm3apps.cli.main import main
from cm3core.images import open_image, read_png_metadata, save_png
from cm3plugins.image_tokenizers.vqgan.model import VQModel
from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture
from cm3plugins.image_tokenizers.vqgan.tokenizer import save_weights
from cm3run.evaluation.quality import lanczos
from messages import tells
from upscaler_parts import tiles

TOKENIZER = {
    "resolution": 16,
    "ch": 8,
    "z_channels": 8,
    "embed_dim": 4,
    "codebook_size": 16,
    "norm_groups": 4,
}
DATA = [
    "dataset=folder",
    "dataset.path=pictures",
    "image_tokenizer.weights=tok.safetensors",
    *(f"image_tokenizer.{key}={value}" for key, value in TOKENIZER.items()),
]
TRAIN = [
    "upscaler",
    "train",
    "upscaler-emoji256",
    "-o",
    "up",
    "--quiet",
    "dataset.split=all",
    *DATA,
]
SMALL = [
    "upscaler.num_channels=8",
    "upscaler.num_blocks=1",
    "upscaler.training.crop_size=8",
    "upscaler.training.batch_size=2",
]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with five pictures of 64 x 64 pixels, one too small, and a tokenizer of
    16 x 16 with random weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    for number, pixels in enumerate(tiles(5)):
        Pictures.fromarray(pixels[: 32 if number == 4 else 64]).save(
            tmp_path / "pictures" / f"{number}.png"
        )
        (tmp_path / "pictures" / f"{number}.txt").write_text(f"tiles, number {number}")
    torch.manual_seed(0)
    arch = VQGANArchitecture(**TOKENIZER)
    save_weights("tok.safetensors", arch, VQModel(arch).state_dict())
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Lines that a good command prints."""
    assert main(list(arguments)) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a wrong command says on stderr."""
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_train_measure_and_use(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TRAIN, *SMALL, "--steps", "3"]
    lines = run(capsys, *command)
    weights = Path("up/model.safetensors")
    assert lines == [
        "skipped: 4.png: 64 x 32 pixels, an enlarged one has 64 x 64",
        "  next: give a larger picture",
        "up/model.safetensors: trained on 4 pictures",
        "measure it: cm3 upscaler eval up",
        "use it: cm3 upscale PICTURE.png --upscaler up",
    ]
    before = weights.read_bytes()
    run(capsys, *command)
    assert weights.read_bytes() == before, "the same command again finds the run finished"

    lines = run(capsys, "upscaler", "eval", "up", "--split", "all", "-o", "out.png")[2:]
    assert lines[0] == "4 pictures of split 'all', 16 x 16 -> 64 x 64 pixels"
    assert lines[1].split() == ["PSNR,", "dB:", "lanczos", "edsr", "SSIM:", "lanczos", "edsr"]
    for line, sort in zip(lines[2:4], ("shrunk", "reconstructed"), strict=True):
        assert re.fullmatch(rf"{sort} +\d+\.\d\d +\d+\.\d\d +0\.\d{{4}} +0\.\d{{4}}", line)
    assert lines[4] == "out.png: enlarged both ways, next to the real ones"
    assert open_image("out.png").shape[1] > 6 * 64

    lines = run(
        capsys, "upscale", "pictures/4.png", "--recipe", "up/recipe.yaml", "-o", "large.png"
    )
    assert lines == ["large.png: 256 x 128 pixels of 64 x 32, by edsr"]
    again = run(
        capsys,
        "upscale",
        "pictures/4.png",
        "upscaler.weights=up/model.safetensors",
        *SMALL[:2],
        "-o",
        "again.png",
    )
    assert again == ["again.png: 256 x 128 pixels of 64 x 32, by edsr"]
    assert np.array_equal(open_image("large.png"), open_image("again.png"))


def test_upscaling_keeps_a_pngs_story(capsys: pytest.CaptureFixture[str]) -> None:
    pixels = tiles(1)[0, :20, :30]
    save_png("small.png", pixels, {"prompt": "tiles", "seed": "3"})
    lines = run(
        capsys,
        "upscale",
        "small.png",
        "--upscaler",
        "lanczos",
        "upscaler.scale=3",
        "-o",
        "large.png",
    )
    assert lines == ["large.png: 90 x 60 pixels of 30 x 20, by lanczos"]
    assert read_png_metadata("large.png") == {"prompt": "tiles", "seed": "3", "upscaler": "lanczos"}
    assert np.array_equal(open_image("large.png"), lanczos(pixels[None], 3)[0])
    Pictures.fromarray(pixels).save("small.jpg", quality=95)
    run(capsys, "upscale", "small.jpg", "--upscaler", "lanczos")
    assert open_image("upscaled.png").shape == (80, 120, 3)
    assert read_png_metadata("upscaled.png") == {"upscaler": "lanczos"}


def test_wrong_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert tells(
        refused(capsys, "upscale", "nowhere.png", "--upscaler", "lanczos"),
        "error: nowhere.png: there is no such file",
    )
    assert tells(
        refused(capsys, "upscale", "pictures/0.png", "--recipe", "tiny"),
        "error: recipe tiny: has no section 'upscaler'",
    )
    assert tells(
        refused(capsys, "upscale", "pictures/0.png", "--upscaler", "lanczoz"),
        "error: arguments: upscaler.name: no upscaler ... 'lanczoz'",
    )
    assert tells(
        refused(capsys, "upscale", "pictures/0.png", "--upscaler", "lanczos", "--recipe", "tiny"),
        "error: cm3 upscale: argument --recipe: not ... --upscaler",
    )
    assert tells(
        refused(capsys, "upscaler", "train", "upscaler-emoji256", "upscaler=lanczos", "-o", "up"),
        "error: upscaler: LanczosUpscalerConfig can't be",
    )
    assert tells(
        refused(capsys, "upscaler", "train", "upscaler-emoji256", "-o", "up", "--steps", "0"),
        "error: cm3 upscaler train: argument --steps: is '0'",
    )
    assert tells(
        refused(capsys, "upscaler", "train", "tiny", "-o", "up"),
        "error: recipe tiny: has no section 'upscaler' ... NAME",
    )
    assert tells(
        refused(capsys, "upscaler", "eval", "tiny", "upscaler=lanczos", "--num", "0"),
        "error: cm3 upscaler eval: argument --num: is '0' ... from 1",
    )
    assert not Path("up").exists()


def test_a_data_set_of_small_pictures_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cm3apps.cli.upscaler.NUM_SMALL", 3)
    for number, pixels in enumerate(tiles(5, side=48)):
        Pictures.fromarray(pixels).save(Path("pictures") / f"{number}.png")
    assert tells(
        refused(capsys, *TRAIN, *SMALL, "--steps", "1"),
        "error: dataset: its first 3 ... has 64 x 64",
    )


def test_an_interrupted_run_is_gone_on_with(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from cm3plugins.upscalers.edsr.training import UpscalerTrainer

    step = UpscalerTrainer.step

    def interrupted(self: UpscalerTrainer, *arguments: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    command = [*TRAIN, *SMALL, "--steps", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(UpscalerTrainer, "step", interrupted)
        assert main(command) == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command resumes where it can\n")
    assert torch.load("up/state.pt", weights_only=True)["step"] == 1
    run(capsys, *command)
    assert torch.load("up/state.pt", weights_only=True)["step"] == 2
