"""`cm3 tokenizer`, through `main`: what is printed, what is written, exit codes, and messages."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cm3apps.cli.main import main
from cm3core.images import open_image
from messages import tells
from noisy_pictures import noisy_pictures


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return noisy_pictures(tmp_path, monkeypatch)


@pytest.mark.parametrize(("option", "value"), [("--minutes", "0.0"), ("--steps", "0")])
def test_training_takes_some_time(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "tokenizer",
        "train-image",
        "tiny",
        "dataset=folder",
        "dataset.path=pictures",
        option,
        value,
        "-o",
        "out",
    ]
    assert main(arguments) == 2
    assert tells(
        capsys.readouterr().err,
        f"error: cm3 tokenizer train-image: argument {option}: is '{value}'",
    )
    assert not Path("out").exists()


def test_train_text_on_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cm3plugins.text_tokenizers.bpe import BPETokenizerConfig

    (place / "lines.txt").write_text("abab\n\n  abab \nabab cd\n")
    assert main(["tokenizer", "train-text", "--vocab-size", "258", "-o", "bpe", "lines.txt"]) == 0
    assert capsys.readouterr().out == (
        "bpe: 258 ids from 3 texts, 2.50 bytes per token\n"
        "use it: cm3 train tiny text_tokenizer=./bpe\n"
    )
    tokenizer = BPETokenizerConfig(path="bpe").build()
    assert tokenizer.encode("abab") == [257]
    assert (
        main(
            [
                "tokenizer",
                "train-text",
                "--vocab-size",
                "400",
                "-o",
                "bpe",
                "lines.txt",
                "text_tokenizer.min_frequency=3",
            ]
        )
        == 0
    )
    assert tells(capsys.readouterr().out, "... note: 400 ids were")


def test_train_text_on_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--recipe", "tiny", "dataset=folder", "dataset.path=pictures", "dataset.split=all"]
    assert main(["tokenizer", "train-text", "--vocab-size", "260", "-o", "bpe", *arguments]) == 0
    assert capsys.readouterr().out.startswith("bpe: 260 ids from 4 texts, ")


def test_text_that_is_no_utf8(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "lines.txt").write_bytes(b"fine\n\xff\n")
    assert main(["tokenizer", "train-text", "--vocab-size", "300", "-o", "bpe", "lines.txt"]) == 2
    assert "is not UTF-8 (invalid start byte)\n  next: save it as UTF-8" in capsys.readouterr().err


def test_train_image_then_eval(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A toy network, two steps: the paths, the figures, and going on where it stopped."""
    network = [
        "resolution=16",
        "ch=8",
        "z_channels=8",
        "embed_dim=4",
        "codebook_size=32",
        "norm_groups=4",
        "training.perceptual_weight=0",
        "training.codebook_init_steps=1",
        "training.batch_size=2",
    ]
    command = [
        "tokenizer",
        "train-image",
        "tokenizer-emoji64",
        "dataset=folder",
        "dataset.path=pictures",
        "dataset.valid=0.0",
        "train.num_threads=1",
        *(f"image_tokenizer.{item}" for item in network),
        "-o",
        "tok",
        "--steps",
        "2",
        "--quiet",
    ]
    assert main(command) == 0
    assert capsys.readouterr().out == (
        "tok/model.safetensors: trained on 4 pictures\n"
        "measure it: cm3 tokenizer eval tok\n"
        "use it: cm3 train tiny image_tokenizer=tok dataset=folder dataset.path=pictures dataset.valid=0.0\n"
    )
    weights = load_file(place / "tok" / "model.safetensors")
    assert main(command) == 0, "the same command again finds the run finished"
    again = load_file(place / "tok" / "model.safetensors")
    assert all(np.array_equal(again[name], array) for name, array in weights.items())
    capsys.readouterr()
    for target in ("tok", "tok/model.safetensors"):
        assert main(["tokenizer", "eval", target, "--split", "all", "-o", "out.png"]) == 0
        told = capsys.readouterr()
        lines = told.out.splitlines()
        assert lines[0] == "4 pictures of split 'all', 16 x 16 pixels as 4 x 4 codes"
        assert re.fullmatch(r"PSNR        -?\d+\.\d\d dB", lines[1])
        drawn = re.fullmatch(r"PSNR, drawn (-?\d+\.\d\d) dB \(without the background\)", lines[2])
        assert drawn is not None
        assert re.fullmatch(r"SSIM        -?\d\.\d\d\d", lines[3])
        assert re.fullmatch(r"codes used  \d+ of 32 \(\d+%\)", lines[4])
        assert tells(
            told.err,
            f"... note: the codes reproduce the drawings poorly (PSNR {float(drawn[1]):.1f} dB, less than 18): see out.png",
        )
        assert open_image(place / "out.png").shape == (2 * 16, 4 * 16, 3)


def test_codes_beside_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """WebP and JPEG, at the bytes of the codes as they are and by their frequencies."""
    command = ["tokenizer", "eval", "quickstart", "dataset=folder", "dataset.path=pictures"]
    scores = ["--score", "metric=psnr"]
    assert main([*command, "--split", "all", "--beside-files", *scores, "-o", "out.png"]) == 0
    lines = capsys.readouterr().out.splitlines()[-11:]
    sizes = re.fullmatch(
        r"bytes       77 a picture; (\d+) coded by the codes' frequencies in other pictures",
        lines[0],
    )
    assert sizes is not None, "64 codes of 768: 64 * 9.58 bits"
    assert lines[1] == f"files of at most {sizes[1]} bytes, without headers and tables:"
    assert lines[6] == "files of at most 77 bytes, without headers and tables:"
    found = [
        re.fullmatch(
            r"(WebP|JPEG)        (\d+\.\d\d) dB, SSIM -?\d\.\d{3} \((\d+) bytes; quality \d+, sides times [\d.]+\)",
            line,
        )
        for line in (lines[2], lines[4], lines[7], lines[9])
    ]
    assert all(one is not None and int(one[3]) <= 77 for one in found)
    for one, line in zip(found, (lines[3], lines[5], lines[8], lines[10]), strict=True):
        assert one is not None
        assert line.startswith("psnr        ")
        assert float(line.split()[1]) == pytest.approx(float(one[2]), abs=0.1)


def test_a_tokenizer_without_a_key_for_weights_is_trained(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = place / "means.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from pathlib import Path\n"
        "from cm3core.hookspecs import hookimpl\n"
        "from cm3core.interfaces import ImageTokenizerConfig\n"
        "CM3_API = 1\n"
        "@dataclass(kw_only=True)\n"
        "class Means(ImageTokenizerConfig):\n"
        "    image_size, grid, codebook_size = (8, 8), (1, 1), 2\n"
        "    def build(self):\n"
        "        raise NotImplementedError  # none of these commands builds it\n"
        "    def train(self, images_NHWC, out_dir, *, minutes, steps, resume, validation_NHWC, "
        "show_progress):\n"
        "        assert (images_NHWC.shape, minutes, steps, resume, show_progress) == ((4, 8, 8, "
        "3), None, 3, True, False)\n"
        "        return Path(out_dir) / 'means'\n"
        "@hookimpl\n"
        "def cm3_image_tokenizers():\n"
        "    return {'means': Means}\n"
    )
    assert (
        main(
            [
                "--plugin",
                str(plugin),
                "tokenizer",
                "train-image",
                "tokenizer-emoji64",
                "image_tokenizer=means",
                "-o",
                "the tok",
                "dataset=folder",
                "dataset.path=pictures",
                "dataset.valid=0.0",
                "--steps",
                "3",
                "--quiet",
            ]
        )
        == 0
    )
    assert (
        capsys.readouterr().out
        == "the tok/means: trained on 4 pictures\nmeasure it: cm3 tokenizer eval 'the tok'\n"
    )


def test_tokenizers_that_cannot_be_trained(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = place / "fixed.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from cm3core.hookspecs import hookimpl\n"
        "from cm3core.interfaces import ImageTokenizerConfig\n"
        "CM3_API = 1\n"
        "@dataclass(kw_only=True)\n"
        "class Fixed(ImageTokenizerConfig):\n"
        "    image_size = (8, 8)\n"
        "    grid = (1, 1)\n"
        "    codebook_size = 2\n"
        "    def build(self):\n"
        "        raise NotImplementedError  # none of these commands builds it\n"
        "@hookimpl\n"
        "def cm3_image_tokenizers():\n"
        "    return {'fixed': Fixed}\n"
    )
    assert (
        main(
            [
                "--plugin",
                str(plugin),
                "tokenizer",
                "train-image",
                "tokenizer-emoji64",
                "image_tokenizer=fixed",
                "-o",
                "tok",
                "dataset=folder",
                "dataset.path=pictures",
                "--steps",
                "1",
            ]
        )
        == 2
    )
    assert tells(capsys.readouterr().err, "... error: image_tokenizer: Fixed can't be trained here")


@pytest.mark.slow
def test_drawings_are_measured_from_their_documents(tmp_path, monkeypatch, capsys):
    """And what codes can't say is told, not measured."""
    monkeypatch.chdir(tmp_path)
    command = ["tokenizer", "eval", "icons-svg", "--split", "all", "--num", "40", "-o", "out.png"]
    assert main([*command, "dataset.sets=[icon-park-solid]"]) == 0
    out, err = capsys.readouterr()
    assert "64 x 64 pixels as a sequence of at most 256 codes (" in out
    assert re.search(r"note: \d+ pictures are left out: has <defs>, which codes of paths", err)
    measured = int(out.split()[0])
    assert measured + sum(map(int, re.findall(r"note: (\d+) pictures", err))) == 40
    psnr = float(re.search(r"PSNR, drawn ([\d.]+)", out).group(1))
    assert psnr > 25
