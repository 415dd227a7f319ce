"""Train a VQGAN tokenizer on pictures: a plain function, interruptible and resumable.

Everything random is a function of (seed, step), so a run in `steps` mode that was killed and
resumed gives the same weights, bit for bit, as one that was not (same machine, same number of
threads). Shape legend: B pictures, C channels, H W pixels, D code dimension, Y X code grid, N = B *
Y * X positions.
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError, DataError
from cm3core.evaluation.image_tokenizer import evaluate_image_tokenizer
from cm3core.files import atomic_path, write_text
from cm3plugins.image_tokenizers.vqgan.codebook import CodebookUpdater, align_with_pixels
from cm3plugins.image_tokenizers.vqgan.config import VQGANArchitecture, VQGANConfig, VQGANTraining
from cm3plugins.image_tokenizers.vqgan.losses import (
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    edge_loss,
    hinge_discriminator_loss,
)
from cm3plugins.image_tokenizers.vqgan.model import VQModel, channels_last
from cm3plugins.image_tokenizers.vqgan.tokenizer import VQGANTokenizer, to_input
from cm3plugins.image_tokenizers.vqgan.weights import build_model, save_weights


def batch_indices(seed: int, step: int, batch_size: int, num_pictures: int) -> list[int]:
    """Which pictures step `step` sees: each epoch is a permutation by (seed, epoch), batches run
    across epochs."""
    indices: list[int] = []
    first = step * batch_size
    for epoch in range(first // num_pictures, (first + batch_size - 1) // num_pictures + 1):
        order = np.random.default_rng((seed, epoch)).permutation(num_pictures)
        start = max(first - epoch * num_pictures, 0)
        indices += order[start : first + batch_size - epoch * num_pictures].tolist()
    return indices


class TokenizerTrainer:
    """Network, losses, optimisers and codebook of one run, and one training step.

    Args:
        arch: shape of the network.
        training: how to train.
    """

    def __init__(self, arch: VQGANArchitecture, training: VQGANTraining) -> None:
        self.arch, self.training = arch, training
        torch.manual_seed(training.seed)
        self.device = torch.device(
            "cuda"
            if training.device == "auto" and torch.cuda.is_available()
            else training.device.replace("auto", "cpu")
        )
        self.model = channels_last(VQModel(arch)).to(self.device)
        self.codebook = CodebookUpdater(
            self.model.quantize,
            use_ema=training.codebook_update == "ema",
            decay=training.codebook_decay,
            revive_after_steps=training.revive_after_steps,
            reservoir_size=training.reservoir_size,
        )
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.average = {
            name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()
        }
        self.perceptual = (
            PerceptualLoss(
                training.perceptual_source,
                training.perceptual_stages,
                training.perceptual_resolution,
            ).to(self.device)
            if training.perceptual_weight > 0
            else None
        )
        self.discriminator: PatchDiscriminator | None = None
        self.disc_optimizer: torch.optim.Optimizer | None = None
        if training.disc_weight > 0:
            self.discriminator = PatchDiscriminator(
                training.disc_layers, training.disc_channels
            ).to(self.device)
            self.disc_optimizer = torch.optim.Adam(
                self.discriminator.parameters(), lr=training.disc_learning_rate, betas=(0.5, 0.9)
            )

    def step(self, pixels_BCHW: Tensor, step: int, progress: float) -> dict[str, float]:
        """One update on pictures in [-1, 1] [B, 3, H, W]; returns the losses by name (floats;
        `loss` is their weighted sum)."""
        training, model = self.training, self.model
        pixels_BCHW = pixels_BCHW.to(self.device)
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + step)
        if training.flip:
            flip_B = (torch.rand(len(pixels_BCHW), generator=generator) < 0.5).to(self.device)
            pixels_BCHW = torch.where(flip_B[:, None, None, None], pixels_BCHW.flip(3), pixels_BCHW)
        rate = (
            min(1.0, (step + 1) / training.warmup_steps)
            * 0.5
            * (1.0 + math.cos(math.pi * min(progress, 1.0)))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = training.learning_rate * rate
        if step == training.codebook_init_steps and step > 0:
            if training.align_code_space:
                self._align_code_space(pixels_BCHW, generator)
            self.codebook.start_from_kmeans(generator)
        z_BDYX = model.features(pixels_BCHW)
        quantized = model.quantize(z_BDYX)
        warming_up = step < training.codebook_init_steps
        reconstruction_BCHW = model.decode_features(z_BDYX if warming_up else quantized.z_q_BDYX)
        terms = self._terms(reconstruction_BCHW, pixels_BCHW, progress)
        loss = sum(terms.values(), start=pixels_BCHW.new_zeros(()))
        if not warming_up:
            terms["codebook"] = quantized.loss
            loss = loss + quantized.loss
        self._update_weights(loss)
        self._update_discriminator(reconstruction_BCHW, pixels_BCHW, progress)
        z_ND = z_BDYX.detach().float().permute(0, 2, 3, 1).reshape(-1, self.arch.embed_dim)
        if warming_up:
            self.codebook.remember(z_ND)
        else:
            self.codebook.update(z_ND, quantized.codes_BYX.flatten(), generator)
        self._update_average(step)
        report = {name: float(term.detach()) for name, term in terms.items()}
        return {
            "loss": float(loss.detach()),
            "learning_rate": training.learning_rate * rate,
            **report,
        }

    @torch.no_grad()
    def _align_code_space(self, pixels_BCHW: Tensor, generator: torch.Generator) -> None:
        model = self.model
        self.codebook.change_basis(align_with_pixels(model, model.features(pixels_BCHW), generator))
        for name in ("quant_conv.weight", "quant_conv.bias", "post_quant_conv.weight"):
            # an average over two bases would mean nothing
            self.average[name].copy_(model.state_dict()[name])
            self.optimizer.state[model.get_parameter(name)].clear()

    def _terms(
        self, reconstruction_BCHW: Tensor, pixels_BCHW: Tensor, progress: float
    ) -> dict[str, Tensor]:
        """Weighted losses of the reconstruction."""
        training = self.training
        error_BCHW = reconstruction_BCHW - pixels_BCHW
        terms = {"l1": training.l1_weight * error_BCHW.abs().mean()}
        if training.l2_weight > 0:
            terms["l2"] = training.l2_weight * error_BCHW.square().mean()
        if training.edge_weight > 0:
            terms["edge"] = training.edge_weight * edge_loss(reconstruction_BCHW, pixels_BCHW)
        if self.perceptual is not None and progress >= training.perceptual_start:
            terms["perceptual"] = training.perceptual_weight * self.perceptual(
                reconstruction_BCHW, pixels_BCHW
            )
        if self.discriminator is not None and progress >= training.disc_start:
            self.discriminator.requires_grad_(False)
            generator_loss = -self.discriminator(reconstruction_BCHW).mean()
            reconstruction_loss = sum(terms.values(), start=pixels_BCHW.new_zeros(()))
            weight = adaptive_weight(
                reconstruction_loss,
                generator_loss,
                self.model.decoder.conv_out.weight,
                training.disc_weight,
            )
            terms["generator"] = weight * generator_loss
        return terms

    def _update_weights(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
        self.optimizer.step()

    def _update_discriminator(
        self, reconstruction_BCHW: Tensor, pixels_BCHW: Tensor, progress: float
    ) -> None:
        if (
            self.discriminator is None
            or self.disc_optimizer is None
            or progress < self.training.disc_start
        ):
            return
        self.discriminator.requires_grad_(True)
        loss = hinge_discriminator_loss(
            self.discriminator(pixels_BCHW), self.discriminator(reconstruction_BCHW.detach())
        )
        self.disc_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.disc_optimizer.step()

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        """Moving average of the weights, slow only after it has something to remember; the codebook
        is copied."""
        decay = min(self.training.weight_ema_decay, (step + 1) / (step + 10))
        state = self.model.state_dict()
        names = [name for name in state if not name.startswith("quantize.")]
        torch._foreach_lerp_(
            [self.average[n] for n in names], [state[n] for n in names], 1.0 - decay
        )
        self.average["quantize.embedding.weight"].copy_(state["quantize.embedding.weight"])

    def averaged_model(self) -> VQModel:
        """A copy of the network with the averaged weights, in evaluation mode."""
        return build_model(self.arch, self.average, "averaged weights")

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as plain containers of tensors."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "codebook": self.codebook.state_dict(),
        }
        if self.discriminator is not None and self.disc_optimizer is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["disc_optimizer"] = self.disc_optimizer.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)
        self.codebook.load_state_dict(state["codebook"])
        if self.discriminator is not None and self.disc_optimizer is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.disc_optimizer.load_state_dict(state["disc_optimizer"])


def train_image_tokenizer(
    config: VQGANConfig,
    images_NHWC: PixelArray,
    out_dir: str | Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = False,
    validation_NHWC: PixelArray | None = None,
    show_progress: bool = True,
    on_checkpoint: Callable[[Path], None] | None = None,
) -> Path:
    """Train and write `out_dir/model.safetensors` (averaged weights, fp16); returns its path.

    Args:
        config: shape of the network and how to train it; its `weights` are not used.
        images_NHWC: uint8 [N, H, W, 3], sides as `config.resolution`.
        out_dir: gets `model.safetensors`, `state.pt` (to resume from), `log.jsonl`,
            `reconstructions.png`.
        minutes: wall-clock budget of training (resumed time counts), or `steps`: number of updates;
            exactly one.
        resume: go on from `out_dir/state.pt` when there is one.
        validation_NHWC: pictures that PSNR is reported on during training.
        show_progress: a progress bar on stderr.
        on_checkpoint: called with the weights' path after each checkpoint.

    Raises:
        DataError: pictures of another shape or dtype.
        CheckpointError: `state.pt` is unreadable or belongs to another configuration.
    """
    if (minutes is None) == (steps is None):
        raise DataError(
            "train_image_tokenizer", "needs either minutes or steps", "give exactly one of them"
        )
    config.check()
    arch, training = config.architecture, config.training
    expected = (arch.resolution, arch.resolution, 3)
    if (
        images_NHWC.ndim != 4
        or images_NHWC.shape[1:] != expected
        or images_NHWC.dtype != np.uint8
        or not len(images_NHWC)
    ):
        raise DataError(
            "training pictures",
            f"{images_NHWC.dtype} {list(images_NHWC.shape)}, expected uint8 "
            f"[N, {arch.resolution}, {arch.resolution}, 3]",
            "resize with cm3core.images.fit",
        )
    if training.num_threads is not None:
        torch.set_num_threads(training.num_threads)
    run = _Run(arch, training, Path(out_dir), minutes, steps)
    if resume:
        run.resume()
    return run.train(images_NHWC, validation_NHWC, show_progress, on_checkpoint)


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
    """The loop around `TokenizerTrainer`: clock, log, checkpoints."""

    def __init__(
        self,
        arch: VQGANArchitecture,
        training: VQGANTraining,
        out_dir: Path,
        minutes: float | None,
        steps: int | None,
    ) -> None:
        self.out_dir, self.minutes, self.steps = out_dir, minutes, steps
        self.trainer = TokenizerTrainer(arch, training)
        self.step_count, self.earlier_seconds = 0, 0.0
        self.identity = json.dumps(
            {
                "architecture": asdict(arch),
                "training": asdict(training),
                "minutes": minutes,
                "steps": steps,
            },
            sort_keys=True,
        )
        out_dir.mkdir(parents=True, exist_ok=True)

    def resume(self) -> None:
        path = self.out_dir / "state.pt"
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
        self.step_count, self.earlier_seconds = state["step"], state["seconds"]

    def _progress(self, seconds: float) -> float:
        if self.steps is not None:
            return self.step_count / self.steps
        assert self.minutes is not None
        return seconds / (60.0 * self.minutes)

    def train(
        self,
        images_NHWC: PixelArray,
        validation_NHWC: PixelArray | None,
        show_progress: bool,
        on_checkpoint: Callable[[Path], None] | None,
    ) -> Path:
        training = self.trainer.training
        started = last_saved = time.monotonic()
        bar = tqdm(
            total=100.0,
            unit="%",
            disable=not show_progress,
            desc="tokenizer",
            bar_format="{desc} {percentage:5.1f}% |{bar}| {elapsed}<{remaining} {postfix}",
        )
        with (self.out_dir / "log.jsonl").open("a", encoding="utf-8") as log:
            while (
                progress := self._progress(self.earlier_seconds + time.monotonic() - started)
            ) < 1.0:
                indices = batch_indices(
                    training.seed, self.step_count, training.batch_size, len(images_NHWC)
                )
                report = self.trainer.step(
                    to_input(images_NHWC[indices]), self.step_count, progress
                )
                self.step_count += 1
                seconds = self.earlier_seconds + time.monotonic() - started
                bar.update(min(100.0 * self._progress(seconds), 100.0) - bar.n)
                if self.step_count % training.log_every_steps == 0:
                    bar.set_postfix_str(f"step {self.step_count} loss {report['loss']:.4f}")
                    revived = self.trainer.codebook.num_revived
                    line = {
                        "step": self.step_count,
                        "seconds": round(seconds, 2),
                        "revived": revived,
                        **report,
                    }
                    log.write(json.dumps(line) + "\n")
                    log.flush()
                due = training.checkpoint_every_steps is not None and (
                    self.step_count % training.checkpoint_every_steps == 0
                )
                if due or time.monotonic() - last_saved > 60.0 * training.checkpoint_every_minutes:
                    path = self.save(seconds, validation_NHWC, log)
                    last_saved = time.monotonic()
                    if on_checkpoint is not None:
                        on_checkpoint(path)
            path = self.save(
                self.earlier_seconds + time.monotonic() - started, validation_NHWC, log
            )
        bar.close()
        if on_checkpoint is not None:
            on_checkpoint(path)
        return path

    def save(self, seconds: float, validation_NHWC: PixelArray | None, log: Any) -> Path:
        """Write weights, state and, with validation pictures, a log line and the picture; each file
        atomically."""
        trainer = self.trainer
        weights = self.out_dir / "model.safetensors"
        notes = {"steps": str(self.step_count), "seconds": f"{seconds:.0f}", "run": self.identity}
        save_weights(weights, trainer.arch, trainer.average, half=True, notes=notes)
        with atomic_path(self.out_dir / "state.pt") as temporary:
            torch.save(
                {
                    "identity": self.identity,
                    "step": self.step_count,
                    "seconds": seconds,
                    "trainer": trainer.state_dict(),
                },
                temporary,
            )
        if validation_NHWC is not None and self.step_count > trainer.training.codebook_init_steps:
            result = evaluate_image_tokenizer(
                VQGANTokenizer(trainer.averaged_model()), validation_NHWC
            )
            line = {
                "step": self.step_count,
                "seconds": round(seconds, 2),
                "psnr": round(result.psnr, 3),
                "num_used_codes": result.num_used_codes,
                "perplexity": round(result.perplexity, 1),
            }
            log.write(json.dumps(line) + "\n")
            log.flush()
            with atomic_path(self.out_dir / "reconstructions.png") as temporary:
                Image.fromarray(result.picture).save(temporary, format="PNG")
        write_text(self.out_dir / "run.json", self.identity + "\n")
        return weights
