"""Scores of reconstructions: by hand, through the command, and what is refused before anything is encoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cm3apps.cli.main import main
from cm3core.errors import DataError
from cm3core.images import save_png
from cm3plugins.extractors import PixelsConfig
from cm3plugins.metrics import FIDConfig, PSNRConfig, VQAConfig
from cm3run.evaluation.features import check_score, reconstruction_scores
from cm3run.evaluation.quality import evaluate_image_tokenizer, ssim_per_picture
from toy_model import GreyTokenizer

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (9, 8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))


def test_pairs_and_sets_are_scored() -> None:
    darker = PICTURES // 2 + 10
    [(name, psnr)] = reconstruction_scores(PICTURES, darker, PSNRConfig(), None)
    error = ((PICTURES.astype(float) - darker) ** 2).mean(axis=(1, 2, 3))
    assert (name, psnr.num) == ("psnr", 9)
    assert psnr.value == pytest.approx((10 * np.log10(255**2 / error)).mean())
    # one feature of each channel: means and variances are known
    extractor = PixelsConfig(side=1)
    [(name, fid)] = reconstruction_scores(PICTURES, PICTURES + np.uint8(0), FIDConfig(), extractor)
    assert (name, fid.value) == ("fid-pixels1", pytest.approx(0, abs=1e-9))
    white = np.full((5, 8, 8, 3), 255, np.uint8)
    [(_, fid)] = reconstruction_scores(0 * white, white, FIDConfig(), extractor)
    assert fid.value == pytest.approx(3.0)


def test_the_report_has_ssim() -> None:
    tokenizer = GreyTokenizer()
    report = evaluate_image_tokenizer(tokenizer, PICTURES, batch_size=4)
    again = tokenizer.decode(tokenizer.encode(PICTURES))
    assert np.array_equal(report.reconstructed_NHWC, again)
    assert report.ssim == pytest.approx(ssim_per_picture(PICTURES, again).mean())


def test_what_is_refused() -> None:
    for config, extractor, message in (
        (VQAConfig(), None, "needs references, texts, which reconstructions don't have"),
        (FIDConfig(), None, "compares features, but no extractor is given"),
    ):
        with pytest.raises(DataError, match=message):
            check_score(config, extractor)
    with pytest.raises(DataError, match="has 1 samples of features, but needs 2 or more"):
        reconstruction_scores(PICTURES[:1], PICTURES[:1], FIDConfig(), PixelsConfig())


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in range(4):
        save_png(tmp_path / "data" / f"{place}.png", RNG.integers(0, 256, (64, 64, 3), np.uint8))
        (tmp_path / "data" / f"{place}.txt").write_text("noise")
    command = [
        "tokenizer",
        "eval",
        "quickstart",
        "dataset=folder",
        "dataset.path=data",
        "dataset.split=all",
    ]
    pixels = ["metric=fid", "extractor=pixels", "extractor.side=2"]
    assert main([*command, "--score", *pixels, "--score", "metric=ssim"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["4", "PSNR", "PSNR,", "SSIM", "fid-pixels2", "ssim"]
    assert [line.split()[0] for line in lines[:6]] == names
    assert lines[4].endswith(
        "(lower is better; mostly bias: 4 pictures with 12 features; kid is unbiased)"
    )
    for wrong, message in (
        (["metric=vqa"], "which reconstructions don't have"),
        (["extractor=pixels"], "--score extractor=pixels: names no metric"),
        (["metric=fidd"], "no metric is called 'fidd'"),
        (["metric=lpips", "metric.backbone=a", "metric.heads=b"], "there is no such file"),
    ):
        (tmp_path / "reconstructions.png").unlink(missing_ok=True)
        assert main([*command, "--score", *wrong]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "reconstructions.png").exists()
