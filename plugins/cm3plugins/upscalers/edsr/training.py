"""Train an EDSR upscaler on large pictures: a plain function that can be interrupted and resumed.

It learns from crops of small pictures and the matching large crops. The small ones are large pictures downscaled with
Lanczos, and the image tokenizer's reconstructions of those, because it will upscale the output of a tokenizer's decoder.
Everything random is a function of (seed, step), so a run in `steps` mode that was stopped or killed and
resumed gives the same weights, bit for bit, as an uninterrupted one (on the same machine, with the same
number of threads). Shape legend: N pictures, B crops, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.files import make_folder
from cm3core.images import save_png
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3plugins.trained.training_run import (
    WEIGHTS,
    RunOptions,
    TrainingRun,
    check_order,
    edge_error,
)
from cm3plugins.trained.weights_file import channels_last
from cm3plugins.upscalers.edsr.settings import EDSRArchitecture, EDSRTraining
from cm3plugins.upscalers.edsr.upscaler import (
    EDSR,
    EDSRUpscaler,
    build_model,
    save_weights,
    to_input,
)
from cm3run.devices import choose_device, choose_precision
from cm3run.evaluation.quality import evaluate_upscaler, small_pictures
from cm3run.progress import make_bar


class CropSampler:
    """Draws crops of small pictures and the matching crops of the large ones.

    The crops of a step are a function of (seed, step).

    Args:
        large_NHWC: uint8.
        small_NHWC, reconstructed_NHWC: uint8, `scale` times smaller.
        training: settings of the crops.
    """

    def __init__(
        self,
        large_NHWC: PixelArray,
        small_NHWC: PixelArray,
        reconstructed_NHWC: PixelArray,
        training: EDSRTraining,
    ) -> None:
        self.large_NHWC, self.sorts, self.training = (
            large_NHWC,
            (small_NHWC, reconstructed_NHWC),
            training,
        )
        self.scale = large_NHWC.shape[1] // small_NHWC.shape[1]

    def batch(self, step: int) -> tuple[PixelArray, PixelArray]:
        """Return small crops uint8 [B, c, c, 3] and large ones [B, scale * c, scale * c, 3]; c = `crop_size`."""
        training, scale = self.training, self.scale
        rng = np.random.default_rng((training.seed, step))
        pairs = []
        for index in self._indices(step):
            sort = int(rng.random() < training.reconstructed_share)
            y, x = self._place(self.sorts[sort][index], rng)
            size = training.crop_size
            small = self.sorts[sort][index, y : y + size, x : x + size]
            large = self.large_NHWC[
                index, y * scale : (y + size) * scale, x * scale : (x + size) * scale
            ]
            way = int(rng.integers(8)) if training.turn else 0
            pairs.append((turned(small, way), turned(large, way)))
        return np.stack([small for small, _ in pairs]), np.stack([large for _, large in pairs])

    def _indices(self, step: int) -> list[int]:
        """Return the pictures of a step. Each epoch is a permutation seeded by (seed, epoch); batches can span epochs."""
        num, size = len(self.large_NHWC), self.training.batch_size
        places = np.arange(step * size, (step + 1) * size)
        orders = {
            epoch: np.random.default_rng((self.training.seed, 1, epoch)).permutation(num)
            for epoch in set((places // num).tolist())
        }
        return [int(orders[place // num][place % num]) for place in places.tolist()]

    def _place(self, picture_HWC: PixelArray, rng: np.random.Generator) -> tuple[int, int]:
        """Return the tried position at which the crop's colours vary most."""
        size = self.training.crop_size
        limits = [side - size + 1 for side in picture_HWC.shape[:2]]
        tried = rng.integers(limits, size=(self.training.num_tried_crops, 2)).tolist()
        y, x = max(
            tried,
            key=lambda place: picture_HWC[
                place[0] : place[0] + size, place[1] : place[1] + size
            ].std(),
        )
        return y, x


def turned(picture_HWC: PixelArray, way: int) -> PixelArray:
    """Apply one of the eight symmetries: rotate by `way` % 4 quarters, mirror if `way` >= 4."""
    picture_HWC = np.rot90(picture_HWC, way % 4)
    return picture_HWC[:, ::-1] if way >= 4 else picture_HWC


class UpscalerTrainer:
    """Network, losses and optimiser of one run, and one training step.

    Args:
        arch: architecture of the network.
        training: training settings.
        device: device to run on; "auto" is a CUDA device if there is one.
    """

    def __init__(
        self, arch: EDSRArchitecture, training: EDSRTraining, device: str = "auto"
    ) -> None:
        self.arch, self.training = arch, training
        self.device = choose_device(None if device == "auto" else device)
        self.dtype, self.precision = choose_precision(self.training.precision, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.training.seed)
            self.model = channels_last(EDSR(self.arch)).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.training.learning_rate,
            betas=self.training.betas,
            weight_decay=self.training.weight_decay,
            fused=True,
        )
        self.average = {
            name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()
        }

    def step(
        self, small_BCHW: Tensor, large_BCHW: Tensor, step: int, progress: float
    ) -> dict[str, float]:
        """Run one update on crops in [0, 1]; returns the losses by name (floats; `loss` is the sum)."""
        training = self.training
        rate = (
            training.learning_rate
            * min(1.0, (step + 1) / training.warmup_steps)
            * 0.5
            * (1.0 + math.cos(math.pi * progress))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            drawn_BCHW = self.model(small_BCHW.to(self.device))
        error_BCHW = drawn_BCHW.float() - large_BCHW.to(self.device)
        terms = {
            "l1": training.l1_weight * error_BCHW.abs().mean(),
            "edge": training.edge_weight * edge_error(error_BCHW),
        }
        loss = terms["l1"] + terms["edge"]
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_norm)
        self.optimizer.step()
        # adapts faster at first, when there is little to average
        decay = min(training.weight_ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.values()), list(self.model.state_dict().values()), 1.0 - decay
            )
        report = {name: float(term.detach()) for name, term in terms.items()}
        return {"loss": float(loss.detach()), "learning_rate": rate, **report}

    def averaged(self) -> EDSRUpscaler:
        """Return an upscaler with a copy of the averaged weights."""
        return EDSRUpscaler(build_model(self.arch, self.average, "averaged weights"), self.device)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, as plain containers of tensors."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)


def train_upscaler(
    trainer: UpscalerTrainer,
    image_tokenizer: ImageTokenizer,
    images_NHWC: PixelArray,
    out_dir: str | Path,
    options: RunOptions,
) -> Path:
    """Train and write `out_dir/model.safetensors` (averaged weights, fp16); returns its path.

    The first Ctrl-C (or SIGTERM) finishes the current step, writes a checkpoint and raises
    `KeyboardInterrupt`; the second stops at once.

    Args:
        trainer: trainer with the network's architecture and settings.
        image_tokenizer: its reconstructions are used in training.
        images_NHWC: uint8 [N, H, W, 3], with sides of the network's scale times the image tokenizer's.
        out_dir: folder for `model.safetensors`, `state.pt` (to resume from), `log.jsonl`,
            `comparison.png`.
        options: budget (preparing pictures doesn't count), resuming, large validation pictures (for PSNR),
            progress.

    Raises:
        DataError: the pictures have another shape or dtype, or are smaller than a crop.
        CheckpointError: `state.pt` is unreadable or belongs to another configuration.
    """
    height, width = (side * trainer.arch.scale for side in image_tokenizer.image_size)
    check_order("train_upscaler", images_NHWC, (height, width), options)
    if min(image_tokenizer.image_size) < trainer.training.crop_size:
        raise DataError(
            "upscaler.training.crop_size",
            f"is {trainer.training.crop_size}, but the image tokenizer's pictures are "
            f"{image_tokenizer.image_size[1]} x {image_tokenizer.image_size[0]}",
            "make it smaller",
        )
    run = _Run(trainer, image_tokenizer, Path(out_dir), options)
    if options.resume:
        run.resume()
    if run.progress() < 1.0:
        return run.fit(images_NHWC)
    return run.out_dir / WEIGHTS


class _Run(TrainingRun):
    """A training run of an `UpscalerTrainer`."""

    def __init__(
        self,
        trainer: UpscalerTrainer,
        tokenizer: ImageTokenizer,
        out_dir: Path,
        options: RunOptions,
    ) -> None:
        self.trainer, self.tokenizer = trainer, tokenizer
        make_folder(out_dir)
        super().__init__(
            out_dir,
            trainer,
            trainer.training,
            options,
            facts={
                "architecture": asdict(trainer.arch),
                "training": asdict(trainer.training),
                "image_tokenizer": tokenizer.fingerprint,
            },
        )

    def fit(self, images_NHWC: PixelArray) -> Path:
        """Train on pictures until the budget is spent; returns the weights' path."""
        trainer = self.trainer
        with make_bar(
            total=len(images_NHWC),
            desc="small pictures",
            unit="",
            disable=not self.options.show_progress,
            leave=False,
        ) as bar:
            small_NHWC, reconstructed_NHWC = small_pictures(
                images_NHWC, self.tokenizer, progress=bar.update
            )
        crops = CropSampler(images_NHWC, small_NHWC, reconstructed_NHWC, trainer.training)

        def step(number: int, progress: float) -> dict[str, float]:
            small_BHWC, large_BHWC = crops.batch(number)
            return trainer.step(to_input(small_BHWC), to_input(large_BHWC), number, progress)

        return self.train(
            step,
            lambda stopped: self.save(None if stopped else self.options.validation_NHWC),
            label=f"upscaler, {trainer.precision}",
        )

    def save(self, validation_NHWC: PixelArray | None) -> Path:
        """Write weights, state and, with validation pictures, a log line and the comparison.

        Each file is written atomically.
        """
        weights = self.out_dir / WEIGHTS
        save_weights(weights, self.trainer.arch, self.trainer.average, self.notes)
        self.save_state()
        if validation_NHWC is not None:
            report = evaluate_upscaler(
                self.trainer.averaged(), self.tokenizer, validation_NHWC, name="edsr"
            )
            self.log(
                {
                    f"psnr_{sort}{suffix}": round(quality.psnr, 3)
                    for sort, pair in report.quality.items()
                    for suffix, quality in zip(("_lanczos", ""), pair, strict=True)
                }
            )
            save_png(self.out_dir / "comparison.png", report.picture)
        return weights
