"""Train a VQGAN tokenizer on pictures: a plain function that can be interrupted and resumed.

Everything random is a function of (seed, step), so a run in `steps` mode that was killed and resumed
gives the same weights, bit for bit, as an uninterrupted one (on the same machine, with the same number
of threads). Shape legend: N pictures, C channels, H W pixels.

`encoder: squares` has a codebook of k-means centres of squares of pixels, computed separately for grey and coloured
squares. Most squares of a drawing are blank, and few have colour, so joint centres would barely represent colours. One
code is plain white; a share of the others are centres of coloured squares, the rest centres of grey squares that are not
blank. If there are fewer squares of one type than codes for it, the other type gets the remaining codes. With `depth`,
this is the first code of a place; those of each further one are "nothing" and centres of what the codes before it leave.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.files import atomic_path, write_text
from cm3plugins.image_tokenizers.by_network import to_input
from cm3plugins.image_tokenizers.vqgan.model import VQModel
from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture, VQGANTraining, facts
from cm3plugins.image_tokenizers.vqgan.tokenizer import VQGANTokenizer, save_weights
from cm3plugins.image_tokenizers.vqgan.trainer import TokenizerTrainer
from cm3plugins.trained.training_run import WEIGHTS, RunOptions, TrainingRun, check_order
from cm3run.evaluation.quality import evaluate_image_tokenizer

NUM_ITERATIONS = 12
BLANK_FROM = 250
"""A square whose darkest channel is at least this is blank."""
COLOUR_FROM = 20
"""A square has colour if the channels of some pixel differ by more than this."""

_PICTURES_AT_ONCE = 1000
_SQUARES_AT_ONCE = 10_000


def fit_squares(model: VQModel, training: VQGANTraining, images_NHWC: PixelArray) -> None:
    """Set the codebook to centres of the pictures' squares.

    Args:
        model: model whose `arch.encoder` is "squares".
        training: uses `codebook_squares`, `colour_share` and `seed`.
        images_NHWC: uint8 [N, H, W, 3].

    Raises:
        DataError: the pictures have fewer different squares than the codebook has codes.
    """
    rng = np.random.default_rng(training.seed)
    grey_ND, coloured_ND = _sample(model, training, images_NHWC, rng)
    num_codes = model.arch.codebook_size // model.arch.depth - 1
    num_coloured = min(round(num_codes * training.colour_share), len(coloured_ND))
    num_grey = min(num_codes - num_coloured, len(grey_ND))
    num_coloured = min(num_codes - num_grey, len(coloured_ND))  # photographs have few grey squares
    if num_grey + num_coloured < num_codes:
        raise DataError(
            "image_tokenizer",
            f"only {num_grey + num_coloured} squares of the pictures are not blank, but there are {num_codes} codes",
            "add more pictures, or lower image_tokenizer.codebook_size",
        )
    white_1D = model.features(torch.ones(1, 3, *(model.arch.downsampling,) * 2)).flatten()[None]
    centres = [white_1D.numpy()]
    for squares_ND, count in ((coloured_ND, num_coloured), (grey_ND, num_grey)):
        if count > 0:
            centres.append(_kmeans(squares_ND, count, training.seed))
    stages = [np.concatenate(centres)]
    left_ND = np.concatenate([grey_ND, coloured_ND])
    for _ in range(model.arch.depth - 1):
        left_ND = left_ND - stages[-1][_nearest(model, left_ND, stages[-1])]
        nothing_1D = np.zeros_like(white_1D.numpy())
        stages.append(np.concatenate([nothing_1D, _kmeans(left_ND, num_codes, training.seed)]))
    model.quantize.embedding.weight.data.copy_(torch.from_numpy(np.concatenate(stages)))


def _nearest(
    model: VQModel, squares_ND: NDArray[np.float32], centres_KD: NDArray[np.float32]
) -> NDArray[np.int64]:
    """The nearest centre of each square, in parts that fit the memory."""
    centres = torch.from_numpy(centres_KD)
    parts = torch.from_numpy(squares_ND).split(_SQUARES_AT_ONCE)
    found = torch.cat([model.quantize.nearest(part, centres) for part in parts])
    chosen_N: NDArray[np.int64] = found.numpy()
    return chosen_N


def _sample(
    model: VQModel, training: VQGANTraining, images_NHWC: PixelArray, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw squares until there are enough of both types, or no more pictures."""
    side, limit = model.arch.downsampling, training.codebook_squares
    kinds: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
    order = rng.permutation(len(images_NHWC))
    for start in range(0, len(order), _PICTURES_AT_ONCE):
        images_BHWC = images_NHWC[np.sort(order[start : start + _PICTURES_AT_ONCE])]
        squares_NPC = rearrange(images_BHWC, "B (Y y) (X x) C -> (B Y X) (y x) C", y=side, x=side)
        features_BDYX: Tensor = model.features(to_input(images_BHWC))
        features_ND = rearrange(features_BDYX, "B D Y X -> (B Y X) D").numpy()
        coloured_N = (np.ptp(squares_NPC, axis=2) > COLOUR_FROM).any(1)
        grey_N = ~coloured_N & (squares_NPC.min((1, 2)) < BLANK_FROM)
        for kind, chosen_N in zip(kinds, (grey_N, coloured_N), strict=True):
            if sum(map(len, kind)) < limit:
                kind.append(features_ND[chosen_N])
        if all(sum(map(len, kind)) >= limit for kind in kinds):
            break
    empty = [np.zeros((0, model.arch.embed_dim), np.float32)]
    grey_ND, coloured_ND = (np.concatenate(kind or empty)[:limit] for kind in kinds)
    return grey_ND, coloured_ND


def _kmeans(squares_ND: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    import faiss

    kmeans = faiss.Kmeans(
        squares_ND.shape[1],
        count,
        niter=NUM_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(squares_ND),
    )
    kmeans.train(np.ascontiguousarray(squares_ND))
    assert kmeans.centroids is not None
    centres_KD: NDArray[np.float32] = kmeans.centroids
    return centres_KD


def batch_indices(seed: int, step: int, batch_size: int, num_pictures: int) -> list[int]:
    """Return the pictures of step `step`.

    Each epoch is a permutation seeded by (seed, epoch); batches can span epochs.
    """
    indices: list[int] = []
    first = step * batch_size
    for epoch in range(first // num_pictures, (first + batch_size - 1) // num_pictures + 1):
        order = np.random.default_rng((seed, epoch)).permutation(num_pictures)
        start = max(first - epoch * num_pictures, 0)
        indices += order[start : first + batch_size - epoch * num_pictures].tolist()
    return indices


def train_image_tokenizer(
    arch: VQGANArchitecture,
    training: VQGANTraining,
    images_NHWC: PixelArray,
    out_dir: str | Path,
    options: RunOptions,
) -> Path:
    """Train and write `out_dir/model.safetensors` (averaged weights, fp16); returns its path.

    Args:
        arch: architecture of the network.
        training: training settings.
        images_NHWC: uint8 [N, H, W, 3], sides as `arch.resolution`.
        out_dir: folder for `model.safetensors`, `state.pt` (to resume from), `log.jsonl`,
            `reconstructions.png`.
        options: budget, resuming, validation pictures (for PSNR), progress.

    Raises:
        DataError: the pictures have another shape or dtype.
        CheckpointError: `state.pt` is unreadable or belongs to another configuration.
    """
    size = (arch.resolution, arch.resolution)
    check_order("train_image_tokenizer", images_NHWC, size, options)
    if training.num_threads is not None:
        torch.set_num_threads(training.num_threads)
    run = _Run(arch, training, Path(out_dir), options)
    if options.resume:
        run.resume()
    return run.fit(images_NHWC)


class _Run(TrainingRun):
    """A training run of a `TokenizerTrainer`."""

    def __init__(
        self,
        arch: VQGANArchitecture,
        training: VQGANTraining,
        out_dir: Path,
        options: RunOptions,
    ) -> None:
        self.trainer = TokenizerTrainer(arch, training)
        out_dir.mkdir(parents=True, exist_ok=True)
        stored = {"architecture": facts(arch, arch), "training": facts(training, arch)}
        super().__init__(out_dir, self.trainer, training, options, facts=stored)

    def fit(self, images_NHWC: PixelArray) -> Path:
        """Train on pictures until the budget is spent; returns the weights' path."""
        trainer, training = self.trainer, self.trainer.training
        if trainer.model.has_squares and self.step_count == 0:
            fit_squares(trainer.model, training, images_NHWC)

        def step(number: int, progress: float) -> dict[str, float]:
            indices = batch_indices(training.seed, number, training.batch_size, len(images_NHWC))
            report = trainer.step(to_input(images_NHWC[indices]), number, progress)
            return {"revived": trainer.codebook.num_revived, **report}

        return self.train(
            step,
            lambda stopped: self.save(None if stopped else self.options.validation_NHWC),
            label="tokenizer",
        )

    def save(self, validation_NHWC: PixelArray | None) -> Path:
        """Write weights, state and, with validation pictures, a log line and the reconstructions.

        Each file is written atomically.
        """
        trainer = self.trainer
        weights = self.out_dir / WEIGHTS
        save_weights(weights, trainer.arch, trainer.average, half=True, notes=self.notes)
        self.save_state()
        if validation_NHWC is not None and trainer.has_codes(self.step_count):
            result = evaluate_image_tokenizer(
                VQGANTokenizer(trainer.averaged_model()), validation_NHWC
            )
            self.log(
                {
                    "psnr": round(result.psnr, 3),
                    "num_used_codes": result.num_used_codes,
                    "perplexity": round(result.perplexity, 1),
                }
            )
            with atomic_path(self.out_dir / "reconstructions.png") as temporary:
                Image.fromarray(result.picture).save(temporary, format="PNG")
        write_text(self.out_dir / "run.json", self.identity + "\n")
        return weights
