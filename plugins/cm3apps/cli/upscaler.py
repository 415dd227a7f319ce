"""`cm3 upscaler train | eval`: train an upscaler, compare it with Lanczos."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli import registry_of
from cm3apps.cli._dataset import data_source, limit_threads
from cm3apps.cli._training import (
    RECIPE_FILE,
    action_adder,
    add_evaluation_arguments,
    add_training_arguments,
    budget_of,
    claim_training,
    place_of,
    require_section,
    validation_split,
    with_precision,
    with_weights,
    write_part,
)
from cm3core.document import Image
from cm3core.errors import DataError, RecipeError
from cm3core.interfaces.dataset import DocumentSource
from cm3run.picture_arrays import pictures_of

if TYPE_CHECKING:
    import numpy as np

    from cm3core.document import Document, PixelArray
    from cm3core.interfaces.dataset import SkippedRecord
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

HELP = "train and evaluate upscalers"
EXAMPLE = """  cm3 upscaler train upscaler-emoji256 --minutes 25 -o runs/upscaler
  cm3 upscaler eval runs/upscaler --split comp --split unseen -o comparison.png"""
#: Reading stops if this many pictures from the beginning are all too small.
NUM_SMALL = 16
#: Number of validation pictures in training.
NUM_VALIDATION = 24


def configure(parser: ArgumentParser) -> None:
    """Add the two actions."""
    add = action_adder(parser)
    train = add(
        "train",
        "train a recipe's upscaler on its image tokenizer's output, or resume",
        "cm3 upscaler train upscaler-emoji256 --minutes 25 -o runs/upscaler",
    )
    add_training_arguments(train, "where weights, log and a comparison are written")

    evaluate = add(
        "eval",
        "compare an upscaler with Lanczos: PSNR, SSIM, and a picture of both",
        "cm3 upscaler eval upscaler-emoji256 upscaler.weights=bundled:emoji256",
    )
    evaluate.add_argument(
        "recipe", metavar="RECIPE|FOLDER", help="a recipe, or the folder written by train"
    )
    evaluate.add_argument(
        "--split",
        action="append",
        help="split of the data set; may be given several times (default: the recipe's "
        "train.validation_splits, else its own)",
    )
    add_evaluation_arguments(
        evaluate,
        num_help="maximum number of pictures per split, spread over it",
        picture="comparison.png",
        picture_help="pictures of the last split enlarged both ways, next to the real ones",
    )


def run(args: Namespace) -> int:
    """Run one action."""
    return {"train": _train, "eval": _evaluate}[args.action](args)


class LargePictures(DocumentSource):
    """A data set that refuses pictures smaller than `size` = (height, width).

    Enlarged small pictures would teach blur. If the first `NUM_SMALL` are all too small, the data set is wrong or
    rendered at the wrong size.
    """

    def __init__(self, source: DocumentSource, size: tuple[int, int]) -> None:
        self._source, self._size = source, size
        self._num_small, self._any_large = 0, False

    def __len__(self) -> int:
        return len(self._source)

    def id(self, index: int) -> str:
        return self._source.id(index)

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return tuple(
            replace(segment, load=partial(self._load, segment, index))
            if isinstance(segment, Image)
            else segment
            for segment in self._source.document(index, rng)
        )

    def _load(self, picture: Image, index: int) -> PixelArray:
        pixels_HWC = picture.load()
        height, width = self._size
        if pixels_HWC.shape[0] >= height and pixels_HWC.shape[1] >= width:
            self._any_large = True
            return pixels_HWC
        self._num_small += 1
        if self._num_small == NUM_SMALL and not self._any_large:
            raise RecipeError(
                "dataset",
                f"its first {NUM_SMALL} pictures are all smaller than an enlarged one, which has "
                f"{width} x {height} pixels",
                "give larger pictures (of the emoji corpus: dataset.image_size)",
            )
        found = f"{pixels_HWC.shape[1]} x {pixels_HWC.shape[0]} pixels"
        raise DataError(
            self.id(index),
            f"{found}, an enlarged one has {width} x {height}",
            "give a larger picture",
        )

    @property
    def skipped(self) -> list[SkippedRecord]:
        return self._source.skipped

    @property
    def fingerprint(self) -> str:
        return self._source.fingerprint


def _large_pictures(
    recipe: Recipe, split: str | None, scale: int, num: int | None = None
) -> PixelArray:
    """Pictures of a split at `scale` times the image tokenizer's size, uint8 [N, H, W, 3]."""
    assert recipe.image_tokenizer is not None
    height, width = (side * scale for side in recipe.image_tokenizer.image_size)
    return pictures_of(
        LargePictures(data_source(recipe, split), (height, width)), (height, width), num
    )


def _composed(target: str, overrides: Sequence[str], registry: Registry) -> Recipe:
    """The recipe, with an upscaler and its image tokenizer; `target` may be a folder of `train`."""
    from cm3core.recipe import compose

    if Path(target).is_dir():
        target = str(Path(target) / RECIPE_FILE)
    recipe = compose(target, overrides, registry=registry)
    for kind in ("upscaler", "image_tokenizer"):
        require_section(recipe, kind)
    return recipe


def _train(args: Namespace) -> int:
    from cm3run.devices import choose_device

    registry = registry_of(args)
    recipe = _composed(args.recipe, args.overrides, registry)
    recipe = replace(recipe, upscaler=with_precision(recipe.upscaler, args.precision))
    assert recipe.upscaler is not None
    assert recipe.image_tokenizer is not None
    scale = recipe.upscaler.training_scale
    claim_training(args.out)
    budget = budget_of(args, recipe, "cm3 upscaler train")
    limit_threads(recipe)
    tokenizer = recipe.image_tokenizer.build()
    tokenizer.move_to(choose_device(None))
    images_NHWC = _large_pictures(recipe, None, scale)
    path = recipe.upscaler.train(
        images_NHWC,
        args.out,
        image_tokenizer=tokenizer,
        **budget,
        resume=True,
        validation_NHWC=_validation_pictures(recipe, scale),
        show_progress=not args.quiet,
    )
    trained = with_weights(recipe.upscaler, path)
    write_part(recipe, "upscaler", trained, args.out, registry)
    folder = shlex.quote(str(args.out))
    place = shlex.quote(place_of("upscaler", args.out, registry))
    print(
        f"{path}: trained on {len(images_NHWC):,} pictures\n"
        f"measure it: cm3 upscaler eval {folder}\n"
        f"use it: cm3 upscale PICTURE.png --upscaler {place}"
    )
    return 0


def _validation_pictures(recipe: Recipe, scale: int) -> PixelArray | None:
    """Pictures of the recipe's validation split (see `validation_split`); None if there is none."""
    split = validation_split(recipe)
    return (
        _large_pictures(recipe, split, scale, NUM_VALIDATION)
        if split is not None and len(data_source(recipe, split))
        else None
    )


def _evaluate(args: Namespace) -> int:
    from cm3core.images import claim_png, save_png
    from cm3run.devices import choose_device
    from cm3run.evaluation.quality import evaluate_upscaler
    from cm3run.progress import make_bar

    claim_png(args.out)
    recipe = _composed(args.recipe, args.overrides, registry_of(args))
    assert recipe.upscaler is not None
    assert recipe.image_tokenizer is not None
    limit_threads(recipe)
    upscaler, tokenizer = recipe.upscaler.build(), recipe.image_tokenizer.build()
    tokenizer.move_to(choose_device(None))
    name, (height, width) = recipe.component_names["upscaler"], tokenizer.image_size
    scale = upscaler.scale
    known = recipe.dataset.splits if recipe.dataset is not None else ()
    for split in (
        args.split
        or [split for split in recipe.train.validation_splits if split in known]
        or [None]
    ):
        large_NHWC = _large_pictures(recipe, split, scale, args.num)
        with make_bar(
            total=len(large_NHWC), desc="measuring", unit="", disable=None, leave=False
        ) as bar:
            report = evaluate_upscaler(
                upscaler, tokenizer, large_NHWC, name=name, progress=bar.update
            )
        shown = split or (recipe.dataset.split if recipe.dataset is not None else "")
        sizes = f"{width} x {height} -> {width * scale} x {height * scale} pixels"
        print(
            f"{len(large_NHWC):,} pictures of split {shown!r}, {sizes}\n"
            f"{'':<15}{'PSNR, dB: lanczos':>19}{name:>10}{'SSIM: lanczos':>17}{name:>10}"
        )
        for sort, (base, ours) in report.quality.items():
            print(
                f"{sort:<15}{base.psnr:>19.2f}{ours.psnr:>10.2f}{base.ssim:>17.4f}{ours.ssim:>10.4f}"
            )
    save_png(args.out, report.picture)
    print(f"{args.out}: enlarged both ways, next to the real ones")
    return 0
