"""`cm3 edit`: edit a picture by an instruction."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from cm3apps.cli import INPUT, grouped
from cm3apps.cli._model import (
    add_task,
    refuse_untuned,
    report_unknown_words,
    seen,
    show_note,
    task_options,
)
from cm3apps.cli.generate import (
    Series,
    add_drawing_options,
    check_not_replaced,
    pictures_folder,
    write_pictures,
)
from cm3apps.cli.opening import add_model_options, open_model, progress_bar

HELP = "edit a picture by an instruction"
EXAMPLE = """  cm3 edit apple.png "make it green" --n 4 --model runs/tuned --force -o out/
  cm3 edit apple.png "make it green" --set sampler.picture_guidance_scale=1.2 --force"""


def configure(parser: ArgumentParser) -> None:
    """Add the picture, the instruction and the options."""
    grouped(parser, INPUT).add_argument(
        "picture",
        type=Path,
        help="a picture's file; the model sees its largest centred square. A model of drawings also reads SVG files",
    )
    grouped(parser, INPUT).add_argument(
        "instruction", help="what to change; needs a model tuned for edits"
    )
    add_drawing_options(parser)
    add_model_options(parser)
    add_task(parser, "edits, or not on such an instruction")


def run(args: Namespace) -> int:
    """Generate, write the pictures with their metadata, print the paths."""
    refuse_untuned(args, "edit", "edits")
    check_not_replaced(args.out, args.picture)
    options = task_options(args) | {"truncate": args.truncate, "upscale": args.upscale}
    with pictures_folder(args, args.num_images or 1):
        return _run(args, options)


def _run(args: Namespace, options: dict[str, Any]) -> int:
    model = open_model(args, num_candidates=1)
    report_unknown_words(model, [args.instruction])
    with progress_bar("generating") as progress:
        pictures = model.edit(
            args.picture, args.instruction, args.num_images, progress=progress, **options
        )
    show_note(next((one.note for one in pictures), ""))
    series = Series([args.instruction], len(pictures), edited=seen(args.picture, model))
    return write_pictures(args, model, iter(pictures), series)
