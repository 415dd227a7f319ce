"""Train an EDSR upscaler on large pictures: a plain function, interruptible and resumable.

It learns from two sorts of small pictures: large ones shrunk with Lanczos, and what the image
tokenizer makes of those, because the pictures of a tokenizer's decoder are what it will stand
behind. Everything random is a function of (seed, step), so a run in `steps` mode that was stopped
or killed and resumed gives the same weights, bit for bit, as one that was not (same machine, same
number of threads). Shape legend: N pictures, B crops, C channels, H W pixels.
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError, DataError
from cm3core.evaluation.upscaler import evaluate_upscaler, small_pictures
from cm3core.files import atomic_path, make_folder
from cm3core.images import save_png
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3core.stop_signals import StopSignals
from cm3core.training.device import choose_device, choose_precision
from cm3plugins.upscalers.edsr.config import EDSRConfig, EDSRTraining
from cm3plugins.upscalers.edsr.model import EDSR, channels_last
from cm3plugins.upscalers.edsr.upscaler import EDSRUpscaler, to_input
from cm3plugins.upscalers.edsr.weights import build_model, save_weights

WEIGHTS, STATE = "model.safetensors", "state.pt"


class CropSampler:
    """Crops of small pictures and the same places of the large ones; a step's crops are a function
    of (seed, step).

    Args:
        large_NHWC: uint8.
        small_NHWC, reconstructed_NHWC: uint8, `scale` times smaller.
        training: see `EDSRConfig`.
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
        """Small crops uint8 [B, c, c, 3] and large ones [B, scale * c, scale * c, 3], c =
        `crop_size`."""
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
        """Each epoch is a permutation by (seed, epoch); batches run across epochs."""
        num, size = len(self.large_NHWC), self.training.batch_size
        places = np.arange(step * size, (step + 1) * size)
        orders = {
            epoch: np.random.default_rng((self.training.seed, 1, epoch)).permutation(num)
            for epoch in set((places // num).tolist())
        }
        return [int(orders[place // num][place % num]) for place in places.tolist()]

    def _place(self, picture_HWC: PixelArray, rng: np.random.Generator) -> tuple[int, int]:
        """Of some places the one where the crop's colours vary most."""
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
    """A square picture in one of the eight ways it can lie: turned by `way` % 4 quarters, mirrored
    if `way` is 4 or more."""
    picture_HWC = np.rot90(picture_HWC, way % 4)
    return picture_HWC[:, ::-1] if way >= 4 else picture_HWC


def edge_error(error_BCHW: Tensor) -> Tensor:
    """Mean absolute first differences of an error, horizontal plus vertical: what blur and ringing
    cost."""
    return error_BCHW.diff(dim=-1).abs().mean() + error_BCHW.diff(dim=-2).abs().mean()


class UpscalerTrainer:
    """Network, losses and optimiser of one run, and one training step.

    Args:
        config: shape of the network and how to train it.
    """

    def __init__(self, config: EDSRConfig) -> None:
        self.arch, self.training = config.architecture, config.training
        self.device = choose_device(None if config.device == "auto" else config.device)
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
        """One update on crops in [0, 1]; returns the losses by name (floats; `loss` is their
        sum)."""
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
        # slow only after it has something to remember
        decay = min(training.weight_ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.values()), list(self.model.state_dict().values()), 1.0 - decay
            )
        report = {name: float(term.detach()) for name, term in terms.items()}
        return {"loss": float(loss.detach()), "learning_rate": rate, **report}

    def averaged(self) -> EDSRUpscaler:
        """An upscaler with a copy of the averaged weights."""
        return EDSRUpscaler(build_model(self.arch, self.average, "averaged weights"), self.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as plain containers of tensors."""
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
    config: EDSRConfig,
    images_NHWC: PixelArray,
    out_dir: str | Path,
    *,
    image_tokenizer: ImageTokenizer,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = False,
    validation_NHWC: PixelArray | None = None,
    show_progress: bool = True,
    on_checkpoint: Callable[[Path], None] | None = None,
) -> Path:
    """Train and write `out_dir/model.safetensors` (averaged weights, fp16); returns its path.

    The first Ctrl-C (or SIGTERM) lets the step end, writes a checkpoint and raises
    `KeyboardInterrupt`; the second stops at once.

    Args:
        config: shape of the network and how to train it; its `weights` are not used.
        images_NHWC: uint8 [N, H, W, 3], sides `config.scale` times the image tokenizer's.
        out_dir: gets `model.safetensors`, `state.pt` (to resume from), `log.jsonl`,
            `comparison.png`.
        image_tokenizer: its reconstructions are learned from too.
        minutes: wall-clock budget (resumed time counts, preparing pictures doesn't), or `steps`:
            number of updates; exactly one.
        resume: go on from `out_dir/state.pt` when there is one.
        validation_NHWC: large pictures that PSNR is reported on during training.
        show_progress: progress bars on stderr.
        on_checkpoint: called with the weights' path after each checkpoint.

    Raises:
        DataError: pictures of another shape or dtype, or smaller than a crop.
        CheckpointError: `state.pt` is unreadable or belongs to another configuration.
    """
    if (minutes is None) == (steps is None):
        raise DataError(
            "train_upscaler", "needs either minutes or steps", "give exactly one of them"
        )
    config.check()
    height, width = (side * config.scale for side in image_tokenizer.image_size)
    expected = (height, width, 3)
    if (
        images_NHWC.ndim != 4
        or images_NHWC.shape[1:] != expected
        or images_NHWC.dtype != np.uint8
        or not len(images_NHWC)
    ):
        raise DataError(
            "training pictures",
            f"{images_NHWC.dtype} {list(images_NHWC.shape)}, expected uint8 "
            f"[N, {height}, {width}, 3]",
            "resize with cm3core.images.fit",
        )
    if min(image_tokenizer.image_size) < config.training.crop_size:
        raise DataError(
            "upscaler.training.crop_size",
            f"is {config.training.crop_size}, and the image tokenizer's pictures are "
            f"{image_tokenizer.image_size[1]} x {image_tokenizer.image_size[0]}",
            "make it smaller",
        )
    run = _Run(config, Path(out_dir), minutes, steps, image_tokenizer, show_progress)
    if resume:
        run.resume()
    if run.progress() < 1.0:
        return run.train(images_NHWC, validation_NHWC, on_checkpoint)
    return run.out_dir / WEIGHTS


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Readable differences of two nested dicts of plain values."""
    out: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            out += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            out.append(f"{prefix}{key} was {old}, is {new}")
    return out


class _Run:
    """The loop around `UpscalerTrainer`: clock, log, checkpoints."""

    def __init__(
        self,
        config: EDSRConfig,
        out_dir: Path,
        minutes: float | None,
        steps: int | None,
        tokenizer: ImageTokenizer,
        show_progress: bool,
    ) -> None:
        self.out_dir, self.minutes, self.steps = out_dir, minutes, steps
        self.tokenizer, self.show_progress = tokenizer, show_progress
        self.trainer = UpscalerTrainer(config)
        self.step_count, self.seconds = 0, 0.0
        self.identity = json.dumps(
            {
                "architecture": asdict(config.architecture),
                "training": asdict(config.training),
                "minutes": minutes,
                "steps": steps,
                "image_tokenizer": tokenizer.fingerprint,
            },
            sort_keys=True,
        )
        make_folder(out_dir)

    def resume(self) -> None:
        path = self.out_dir / STATE
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointError(
                str(path),
                f"not a readable state of plain tensors ({type(error).__name__})",
                "delete it to start anew",
            ) from error
        if state["identity"] != self.identity:
            changes = _differences(json.loads(state["identity"]), json.loads(self.identity))
            raise CheckpointError(
                str(path),
                f"it belongs to a run with another configuration: {', '.join(changes)}",
                "resume with the same recipe and budget, or choose another folder",
            )
        self.trainer.load_state_dict(state["trainer"])
        self.step_count, self.seconds = state["step"], state["seconds"]

    def progress(self) -> float:
        """Share of the budget that is behind."""
        if self.steps is not None:
            return self.step_count / self.steps
        assert self.minutes is not None
        return self.seconds / (60.0 * self.minutes)

    def train(
        self,
        images_NHWC: PixelArray,
        validation_NHWC: PixelArray | None,
        on_checkpoint: Callable[[Path], None] | None,
    ) -> Path:
        training = self.trainer.training
        with tqdm(
            total=len(images_NHWC),
            desc="small pictures",
            unit="",
            disable=not self.show_progress,
            leave=False,
        ) as bar:
            small_NHWC, reconstructed_NHWC = small_pictures(
                images_NHWC, self.tokenizer, progress=bar.update
            )
        crops = CropSampler(images_NHWC, small_NHWC, reconstructed_NHWC, training)
        last_saved = time.monotonic()
        started = last_saved - self.seconds
        with (
            (self.out_dir / "log.jsonl").open("a", encoding="utf-8") as log,
            StopSignals() as stop,
            tqdm(
                total=100.0,
                unit="%",
                disable=not self.show_progress,
                desc=f"upscaler, {self.trainer.precision}",
                bar_format="{desc} {percentage:5.1f}% |{bar}| {elapsed}<{remaining} {postfix}",
            ) as bar,
        ):
            while self.progress() < 1.0 and not stop.received:
                small, large = crops.batch(self.step_count)
                report = self.trainer.step(
                    to_input(small), to_input(large), self.step_count, self.progress()
                )
                self.step_count += 1
                self.seconds = time.monotonic() - started
                bar.update(min(100.0 * self.progress(), 100.0) - bar.n)
                if self.step_count % training.log_every_steps == 0:
                    bar.set_postfix_str(f"step {self.step_count} loss {report['loss']:.4f}")
                    self._log(log, report)
                due = (
                    training.checkpoint_every_steps is not None
                    and self.step_count % training.checkpoint_every_steps == 0
                )
                if due or time.monotonic() - last_saved > 60.0 * training.checkpoint_every_minutes:
                    self.save(validation_NHWC, log, on_checkpoint)
                    last_saved = time.monotonic()
            path = self.save(None if stop.received else validation_NHWC, log, on_checkpoint)
        if stop.received:
            raise KeyboardInterrupt
        return path

    def _log(self, log: IO[str], values: dict[str, float]) -> None:
        log.write(
            json.dumps({"step": self.step_count, "seconds": round(self.seconds, 2), **values})
            + "\n"
        )
        log.flush()

    def save(
        self,
        validation_NHWC: PixelArray | None,
        log: IO[str],
        on_checkpoint: Callable[[Path], None] | None,
    ) -> Path:
        """Write weights, state and, with validation pictures, a log line and the picture; each file
        atomically."""
        weights = self.out_dir / WEIGHTS
        notes = {
            "steps": str(self.step_count),
            "seconds": f"{self.seconds:.0f}",
            "run": self.identity,
        }
        save_weights(weights, self.trainer.arch, self.trainer.average, notes)
        with atomic_path(self.out_dir / STATE) as temporary:
            torch.save(
                {
                    "identity": self.identity,
                    "step": self.step_count,
                    "seconds": self.seconds,
                    "trainer": self.trainer.state_dict(),
                },
                temporary,
            )
        if validation_NHWC is not None:
            report = evaluate_upscaler(
                self.trainer.averaged(), self.tokenizer, validation_NHWC, name="edsr"
            )
            self._log(
                log,
                {
                    f"psnr_{sort}{suffix}": round(quality.psnr, 3)
                    for sort, pair in report.quality.items()
                    for suffix, quality in zip(("_lanczos", ""), pair, strict=True)
                },
            )
            save_png(self.out_dir / "comparison.png", report.picture)
        if on_checkpoint is not None:
            on_checkpoint(weights)
        return weights
