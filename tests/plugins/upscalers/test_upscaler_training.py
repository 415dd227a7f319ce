"""The upscaler's trainer: it learns, its crops are true, it resumes bit for bit after Ctrl-C and
SIGKILL, and refuses."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError, DataError
from cm3core.images import open_image
from cm3plugins.trained.training_run import edge_error
from cm3plugins.upscalers.edsr.settings import EDSRTraining
from cm3plugins.upscalers.edsr.training import CropSampler, UpscalerTrainer, turned
from cm3run.evaluation.quality import evaluate_upscaler
from messages import tells
from upscaler_parts import QUICK, Posteriser, config, tiles


def train(
    out: Path, steps: int, training: EDSRTraining = QUICK, **options: Any
) -> dict[str, Tensor]:
    """Every tensor that the run ends with."""
    config(training).train(
        tiles(),
        out,
        image_tokenizer=Posteriser(),
        steps=steps,
        show_progress=False,
        **options,
    )
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["step"] == steps
    return {
        **state["trainer"]["model"],
        **{f"average.{k}": v for k, v in state["trainer"]["average"].items()},
    }


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_a_hundred_steps_beat_lanczos(tmp_path: Path) -> None:
    """Tiles never seen are drawn better than Lanczos draws them, clean or posterised, and the log
    says the same."""
    held_out = tiles(6, seed=1)
    path = config().train(
        tiles(),
        tmp_path,
        image_tokenizer=Posteriser(),
        steps=100,
        show_progress=False,
        validation_NHWC=held_out,
    )
    report = evaluate_upscaler(replace(config(), weights=str(path)).build(), Posteriser(), held_out)
    for sort, gain in (("shrunk", 6.0), ("reconstructed", 2.0)):
        base, ours = report.quality[sort]
        assert ours.psnr > base.psnr + gain, sort
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    # the file holds fp16
    assert lines[-1]["psnr_shrunk"] == pytest.approx(report.quality["shrunk"][1].psnr, abs=0.1)
    assert lines[-1]["psnr_reconstructed_lanczos"] == pytest.approx(
        report.quality["reconstructed"][0].psnr, abs=1e-3
    )
    assert set(lines[-2]) == {"step", "seconds", "loss", "learning_rate", "l1", "edge"}
    assert lines[-2]["loss"] < 0.8 * lines[0]["loss"]
    assert open_image(tmp_path / "comparison.png").shape[1] > 6 * 64
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}


def test_one_step_by_hand() -> None:
    """Loss of an untrained network on a flat crop whose large twin has one white line: l1, edges,
    and their sum."""
    training = replace(QUICK, l1_weight=2.0, edge_weight=0.5)
    trainer = UpscalerTrainer(config(scale=2).architecture, training, "cpu")
    small, large = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8)
    large[..., 3] = 1.0
    report = trainer.step(small, large, 0, 0.5)
    # 8 of 64 pixels are wrong by 1; of 7 x 8 horizontal differences 16 are wrong by 1, of the
    # vertical ones none
    assert report["l1"] == pytest.approx(2.0 / 8)
    assert report["edge"] == pytest.approx(0.5 * 2 / 7)
    assert report["loss"] == pytest.approx(2.0 / 8 + 1.0 / 7)
    # first of five warm-up steps, half of the cosine
    assert report["learning_rate"] == pytest.approx(5e-3 / 5 * 0.5)


def test_edge_error_forgives_a_shift_of_all_pixels() -> None:
    assert edge_error(torch.full((2, 3, 5, 5), 0.3)).item() == 0.0


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 9), st.booleans())
def test_crops_of_small_and_large_show_the_same(
    seed: int, num: int, batch_size: int, turn: bool
) -> None:
    """Where the large picture is the small one in blocks, so is every crop; each epoch sees each
    picture once; a step repeats."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (num, 16, 16, 3), dtype=np.uint8)
    small[:, :, :, 0] = np.arange(num, dtype=np.uint8)[:, None, None]  # the picture's number
    other = small.copy()
    other[..., 1] = 0
    large = small.repeat(4, axis=1).repeat(4, axis=2)
    training = replace(QUICK, seed=seed % 1000, batch_size=batch_size, turn=turn)
    sampler = CropSampler(large, small, other, training)
    seen: list[int] = []
    for step in range(5):
        cut, cut_large = sampler.batch(step)
        assert cut.shape == (batch_size, 8, 8, 3)
        blocks = cut.repeat(4, axis=1).repeat(4, axis=2)
        assert np.array_equal(blocks[..., 2], cut_large[..., 2])
        assert all(np.array_equal(a, sampler.batch(step)[0][i]) for i, a in enumerate(cut))
        for a, b in zip(blocks, cut_large, strict=True):
            assert (a[..., 1] == b[..., 1]).all() or not a[..., 1].any()
        seen += cut[:, 0, 0, 0].tolist()
    for epoch in range(len(seen) // num):
        assert sorted(seen[epoch * num : (epoch + 1) * num]) == list(range(num))


@pytest.mark.parametrize(("share", "expected"), [(0.0, {0}), (1.0, {1}), (0.5, {0, 1})])
def test_share_of_reconstructions(share: float, expected: set[int]) -> None:
    small = np.zeros((4, 16, 16, 3), np.uint8)
    sampler = CropSampler(
        np.zeros((4, 64, 64, 3), np.uint8),
        small,
        small + 1,
        replace(QUICK, reconstructed_share=share),
    )
    assert set(np.unique([sampler.batch(step)[0] for step in range(4)]).tolist()) == expected


def test_the_crop_with_more_contrast_is_taken() -> None:
    """One corner has a drawing; of very many places tried one that shows it is found, of one place
    it rarely is."""
    small = np.full((1, 16, 16, 3), 255, np.uint8)
    small[0, :4, :4] = 0
    large = small.repeat(4, axis=1).repeat(4, axis=2)

    def shows(num_tried_crops: int) -> float:
        sampler = CropSampler(large, small, small, replace(QUICK, num_tried_crops=num_tried_crops))
        return float(
            np.mean(
                [(sampler.batch(step)[0] == 0).any(axis=(1, 2, 3)).mean() for step in range(20)]
            )
        )

    assert shows(100) == 1.0
    assert shows(1) < 0.5


def test_eight_ways_of_a_square() -> None:
    """All differ; shrinking and turning may change places."""
    picture = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, axis=2)
    ways = {turned(picture, way).tobytes() for way in range(8)}
    assert len(ways) == 8
    for way in range(8):
        assert np.array_equal(turned(picture, way)[::2, ::2].shape, (2, 2, 3))
        assert sorted(turned(picture, way)[:, :, 0].flatten().tolist()) == list(range(16))


def test_ctrl_c_saves_and_resuming_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 steps at once, and the same 12 with a signal in step 7, which ends, is saved, and is gone
    on from: equal bit for bit."""
    before = signal.getsignal(signal.SIGINT)
    whole = train(tmp_path / "whole", 12)
    step = UpscalerTrainer.step

    def interrupted(
        self: UpscalerTrainer, small: Tensor, large: Tensor, number: int, progress: float
    ) -> dict[str, float]:
        if number == 6:
            signal.raise_signal(signal.SIGINT)
        return step(self, small, large, number, progress)

    with monkeypatch.context() as patch:
        patch.setattr(UpscalerTrainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", 12)
    assert torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["step"] == 7
    assert signal.getsignal(signal.SIGINT) is before
    torch.manual_seed(123)  # nothing may depend on the global generator
    assert_same(whole, train(tmp_path / "cut", 12, resume=True))
    before = (tmp_path / "cut" / "model.safetensors").stat().st_mtime_ns
    train(tmp_path / "cut", 12, resume=True)
    assert (tmp_path / "cut" / "model.safetensors").stat().st_mtime_ns == before, (
        "a finished run has nothing left to do"
    )


_CHILD = """
import sys
from pathlib import Path
from dataclasses import replace
from upscaler_parts import QUICK, Posteriser, config, tiles
config(replace(QUICK, checkpoint_every_steps=5)).train(tiles(), {out!r}, image_tokenizer=Posteriser(), steps=60,
               resume=True, show_progress=False)
"""


@pytest.mark.slow
def test_sigkill_then_resume_is_exact(tmp_path: Path) -> None:
    """A real process, killed after its first checkpoint, gives the weights of an uninterrupted run
    when resumed. (Image tokenizers save and resume by the same code, which is tested by default.)"""
    training = replace(QUICK, checkpoint_every_steps=5)
    whole = train(tmp_path / "whole", 60, training)
    out = tmp_path / "killed"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    process = subprocess.Popen([sys.executable, "-c", _CHILD.format(out=str(out))], env=environment)
    deadline = time.monotonic() + 60
    while (
        not (out / "state.pt").exists() and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the process ended before it could be killed"
    assert torch.load(out / "state.pt", weights_only=True)["step"] < 60
    assert_same(whole, train(out, 60, training, resume=True))


def test_another_configuration_is_not_resumed(tmp_path: Path) -> None:
    train(tmp_path, 2)
    with pytest.raises(CheckpointError) as caught:
        train(tmp_path, 3, replace(QUICK, learning_rate=1e-3), resume=True)
    assert tells(caught.value, f"{tmp_path / 'state.pt'}: belongs to ... was 2 ... is 3")


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch hostile-code-ran",)


def test_hostile_and_cut_states_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path, 2)
    whole = (tmp_path / "state.pt").read_bytes()
    for content in (pickle.dumps(Hostile()), whole[: len(whole) // 2]):
        (tmp_path / "state.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"state\.pt: is not a readable training state"):
            train(tmp_path, 2, resume=True)
    assert not (tmp_path / "hostile-code-ran").exists()


@pytest.mark.parametrize(
    ("pictures", "options", "told"),
    [
        (
            tiles(2, side=32),
            {"steps": 1},
            "training pictures: uint8 [2, 32, 32 ... 3 ... 64",
        ),
        (
            tiles(0),
            {"steps": 1},
            "training pictures: uint8 [0, 64, 64 ... 3 ... 64",
        ),
        (
            tiles(2),
            {},
            "train_upscaler: needs either minutes or steps",
        ),
    ],
)
def test_wrong_pictures_and_budgets(
    pictures: PixelArray, options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        config().train(pictures, tmp_path, image_tokenizer=Posteriser(), **options)
    assert tells(caught.value, told)


def test_a_crop_that_is_larger_than_the_picture(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        config(replace(QUICK, crop_size=20)).train(
            tiles(2),
            tmp_path,
            image_tokenizer=Posteriser(),
            steps=1,
        )
    assert tells(caught.value, "upscaler.training.crop_size: is 20, but ... are 16 x 16")


@pytest.mark.slow
def test_minutes_end_the_run(tmp_path: Path) -> None:
    config().train(
        tiles(), tmp_path, image_tokenizer=Posteriser(), minutes=0.02, show_progress=False
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert 0.5 < lines[-1]["seconds"] < 10
    # the cosine follows the clock
    assert lines[-1]["learning_rate"] < 0.2 * max(line["learning_rate"] for line in lines)
