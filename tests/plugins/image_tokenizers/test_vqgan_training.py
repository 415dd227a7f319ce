"""The tokenizer's trainer: it learns, revives dead codes, resumes bit for bit, survives SIGKILL,
refuses hostile files."""

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
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError, DataError
from cm3plugins.image_tokenizers.vqgan import VQGANConfig
from cm3plugins.image_tokenizers.vqgan.model import VectorQuantizer, VQModel
from cm3plugins.image_tokenizers.vqgan.settings import VQGANTraining
from cm3plugins.image_tokenizers.vqgan.trainer import (
    CodebookUpdater,
    TokenizerTrainer,
    align_with_pixels,
)
from cm3plugins.image_tokenizers.vqgan.training import batch_indices
from cm3run.evaluation.quality import evaluate_image_tokenizer
from messages import tells

SHAPE: dict[str, Any] = {
    "resolution": 16,
    "ch": 16,
    "ch_mult": (1,),
    "z_channels": 8,
    "embed_dim": 4,
    "codebook_size": 16,
    "norm_groups": 4,
}
QUICK = VQGANTraining(
    batch_size=4,
    learning_rate=3e-3,
    warmup_steps=5,
    perceptual_weight=0.0,
    codebook_init_steps=4,
    revive_after_steps=5,
    reservoir_size=256,
    log_every_steps=2,
    num_threads=1,
)


def config(training: VQGANTraining = QUICK, **shape: Any) -> VQGANConfig:
    return VQGANConfig(weights=None, training=training, **{**SHAPE, **shape})


def tiles(num: int = 8) -> PixelArray:
    """Pictures of four flat squares in a few colours: learnable with 16 codes."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (5, 3), dtype=np.uint8)
    return colours[rng.integers(0, 5, (num, 2, 2))].repeat(8, axis=1).repeat(8, axis=2)


def train(
    out: Path, steps: int, training: VQGANTraining = QUICK, **options: Any
) -> dict[str, torch.Tensor]:
    config(training).train(tiles(), out, steps=steps, show_progress=False, **options)
    state = torch.load(out / "state.pt", weights_only=True)
    return {
        **state["trainer"]["model"],
        **{f"average.{k}": v for k, v in state["trainer"]["average"].items()},
    }


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.slow
def test_overfitting_few_tiles_raises_psnr(tmp_path: Path) -> None:
    """PSNR of training pictures grows by more than 10 dB, and is what the log says."""
    images = tiles()
    paths = [
        config().train(
            images,
            tmp_path / str(n),
            steps=n,
            show_progress=False,
            validation_NHWC=images,
        )
        for n in (6, 200)
    ]
    reports = [evaluate_image_tokenizer(config_of(path).build(), images) for path in paths]
    assert reports[1].psnr > reports[0].psnr + 10
    assert reports[1].psnr > 24
    assert reports[1].picture.shape == (2 * 16, 8 * 16, 3)
    lines = [json.loads(line) for line in (tmp_path / "200" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["psnr"] == pytest.approx(reports[1].psnr, abs=0.2)  # the file holds fp16
    assert {"step", "seconds", "loss", "l1", "l2", "codebook", "learning_rate", "revived"} <= lines[
        -2
    ].keys()
    assert (tmp_path / "200" / "reconstructions.png").is_file()


def config_of(weights: Path) -> VQGANConfig:
    return replace(config(), weights=str(weights))


def test_adversarial_and_perceptual_terms_train(tmp_path: Path) -> None:
    """All losses at once, gradient codebook: finite, and the generator's term appears at its
    start."""
    training = replace(
        QUICK,
        disc_weight=0.8,
        disc_start=0.5,
        disc_layers=1,
        disc_channels=8,
        perceptual_weight=0.1,
        perceptual_start=0.25,
        perceptual_stages=(0,),
        edge_weight=0.5,
        codebook_update="gradient",
    )
    train(tmp_path, 8, training)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert ["generator" in line for line in lines] == [False, False, True, True]
    assert ["perceptual" in line for line in lines] == [False, True, True, True]
    assert all(np.isfinite(value) for line in lines for value in line.values())


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_resume_is_exact(tmp_path: Path, update: Literal["ema", "gradient"]) -> None:
    """12 steps at once, and the same 12 cut off at 8 by an exception and resumed: equal bit for
    bit."""
    training = replace(
        QUICK,
        codebook_update=update,
        checkpoint_every_steps=4,
        align_code_space=update == "ema",
        disc_weight=0.5,
        disc_start=0.2,
        disc_layers=1,
        disc_channels=8,
    )
    whole = train(tmp_path / "whole", 12, training)
    saved = []

    def cut(path: Path) -> None:
        saved.append(path)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 12, training, on_checkpoint=cut)
    torch.manual_seed(123)  # nothing may depend on the global generator
    assert_same(whole, train(tmp_path / "cut", 12, training, resume=True))


_CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from dataclasses import replace
from test_vqgan_training import QUICK, config, tiles
training = replace(QUICK, checkpoint_every_steps=5)
config(training).train(tiles(), {out!r}, steps=40, resume=True, show_progress=False)
"""


@pytest.mark.slow
def test_sigkill_then_resume_is_exact(tmp_path: Path) -> None:
    """A real process, killed after its first checkpoint, gives the weights of an uninterrupted run
    when resumed."""
    training = replace(QUICK, checkpoint_every_steps=5)
    whole = train(tmp_path / "whole", 40, training)
    out = tmp_path / "killed"
    code = _CHILD.format(here=str(Path(__file__).parent), out=str(out))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 60
    while (
        not (out / "state.pt").exists() and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the process ended before it could be killed"
    assert torch.load(out / "state.pt", weights_only=True)["step"] < 40
    assert_same(whole, train(out, 40, training, resume=True))


def test_ctrl_c_ends_the_step_saves_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    whole = train(tmp_path / "whole", 12)
    step = TokenizerTrainer.step

    def interrupted(self: TokenizerTrainer, pixels: Any, number: int, progress: float) -> Any:
        if number == 6:
            signal.raise_signal(signal.SIGINT)
        return step(self, pixels, number, progress)

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTrainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", 12)
    assert torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["step"] == 7
    assert signal.getsignal(signal.SIGINT) is before
    assert_same(whole, train(tmp_path / "cut", 12, resume=True))


def test_another_configuration_is_not_resumed(tmp_path: Path) -> None:
    train(tmp_path, 6)
    with pytest.raises(CheckpointError) as caught:
        train(tmp_path, 6, replace(QUICK, learning_rate=1e-3), resume=True)
    assert tells(
        caught.value, f"{tmp_path / 'state.pt'}: belongs to ... training.learning_rate was 0.003"
    )


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch hostile-code-ran",)


def test_hostile_state_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that runs code is not run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state.pt").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match="is not a readable training state"):
        train(tmp_path, 6, resume=True)
    torch.save({"x": Hostile()}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="delete it to start from scratch"):
        train(tmp_path, 6, resume=True)
    assert not (tmp_path / "hostile-code-ran").exists()


def test_truncated_state_is_refused(tmp_path: Path) -> None:
    train(tmp_path, 6)
    whole = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is not a readable training state"):
        train(tmp_path, 6, resume=True)


def test_wrong_pictures_and_budgets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        config().train(np.zeros((2, 8, 8, 3), np.uint8), tmp_path, steps=1)
    assert tells(caught.value, "training pictures: uint8 [2, 8, 8 ... 3 ... 16")
    with pytest.raises(DataError, match="either minutes or steps"):
        config().train(tiles(), tmp_path, steps=1, minutes=1.0)


@pytest.mark.slow
def test_minutes_end_the_run(tmp_path: Path) -> None:
    started = time.monotonic()
    config().train(tiles(), tmp_path, minutes=0.02, show_progress=False)
    assert 1.0 < time.monotonic() - started < 10.0
    rates = [
        json.loads(line)["learning_rate"]
        for line in (tmp_path / "log.jsonl").read_text().splitlines()
    ]
    assert rates[-1] < 0.2 * max(rates)  # the cosine follows the clock


def test_dead_codes_are_revived() -> None:
    """Codes that nothing chose for three steps restart at remembered vectors; used ones stay where
    averages put them."""
    quantizer = VectorQuantizer(4, 2, beta=0.25, l2_normalize=False)
    quantizer.embedding.weight.data.copy_(
        torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 60.0], [70.0, 70.0]])
    )
    updater = CodebookUpdater(
        quantizer, use_ema=False, decay=0.9, revive_after_steps=3, reservoir_size=8
    )
    z = torch.tensor([[0.1, 0.0], [0.0, 0.2], [50.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    revived = [
        updater.update(z, quantizer.nearest(z, quantizer.entries()), generator).tolist()
        for _ in range(3)
    ]
    assert revived == [[], [], [2, 3]]
    codes = quantizer.embedding.weight.detach()
    assert codes[:2].tolist() == [[0.0, 0.0], [50.0, 0.0]]
    assert all(code.tolist() in z.tolist() for code in codes[2:])
    assert updater.num_revived == 2


def test_moving_average_by_hand() -> None:
    """decay 0.5: counts (1 + 2) / 2 and (1 + 0) / 2; sums (0 + 4) / 2 and (10 + 0) / 2."""
    quantizer = VectorQuantizer(2, 1, beta=0.25, l2_normalize=False)
    quantizer.embedding.weight.data.copy_(torch.tensor([[0.0], [10.0]]))
    updater = CodebookUpdater(
        quantizer, use_ema=True, decay=0.5, revive_after_steps=9, reservoir_size=8
    )
    updater.update(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]), torch.Generator())
    assert quantizer.embedding.weight.flatten().tolist() == pytest.approx([2 / 1.5, 5 / 0.5])


def test_kmeans_start_finds_the_clusters() -> None:
    """Three tight clusters, three codes: each ends at a cluster's mean."""
    quantizer = VectorQuantizer(3, 1, beta=0.25, l2_normalize=False)
    updater = CodebookUpdater(
        quantizer, use_ema=True, decay=0.9, revive_after_steps=9, reservoir_size=300
    )
    clusters = torch.tensor([-5.0, 0.0, 7.0])
    updater.remember((clusters.repeat(100) + torch.linspace(-0.1, 0.1, 300))[:, None])
    updater.start_from_kmeans(torch.Generator().manual_seed(3))
    assert sorted(quantizer.embedding.weight.flatten().tolist()) == pytest.approx(
        [-5.0, 0.0, 7.0], abs=0.01
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 5))
def test_every_epoch_sees_every_picture_once(num_pictures: int, batch_size: int, seed: int) -> None:
    """The order is a function of (seed, step); consecutive batches cut consecutive permutations."""
    seen = [i for step in range(6) for i in batch_indices(seed, step, batch_size, num_pictures)]
    assert len(seen) == 6 * batch_size
    for epoch in range(len(seen) // num_pictures):
        assert sorted(seen[epoch * num_pictures : (epoch + 1) * num_pictures]) == list(
            range(num_pictures)
        )


def test_weights_file_is_half_precision_but_for_the_codebook(tmp_path: Path) -> None:
    path = config().train(tiles(), tmp_path, steps=6, show_progress=False)
    dtypes = {name: tensor.dtype for name, tensor in load_file(path).items()}
    assert dtypes.pop("quantize.embedding.weight") == torch.float32
    assert set(dtypes.values()) == {torch.float16}


def test_code_space_is_aligned_with_pixels() -> None:
    """The autoencoder computes what it did, codes move by L, and small squared distances become
    squared pixel errors."""
    torch.manual_seed(0)
    model = VQModel(config().architecture)
    pixels = torch.rand(16, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        before, drawn = model.features(pixels), model.decode_features(model.features(pixels))
        scale = align_with_pixels(model, before, torch.Generator().manual_seed(0))
        after = model.features(pixels)
        assert torch.allclose(after, torch.einsum("de,beyx->bdyx", scale, before), atol=1e-5)
        assert torch.allclose(model.decode_features(after), drawn, atol=1e-5)
        noise = 0.01 * torch.randn_like(after)
        error = (model.decode_features(after + noise) - model.decode_features(after)).square().sum()
    assert error.item() == pytest.approx(noise.square().sum().item(), rel=0.15)
