"""`cm3 caption`: caption pictures."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cm3apps.cli import INPUT, RESULTS, grouped, whole_number
from cm3apps.cli._model import (
    Retrieval,
    add_task,
    claim_retrieved,
    printable,
    report_unlike_picture,
    seen,
    show_choice,
    show_retrieved,
    task_options,
    write_retrieved,
)
from cm3apps.cli.opening import add_model_options, open_model, progress_bar

HELP = "caption a picture"
EXAMPLE = """  cm3 caption picture.png
  cm3 caption a.png b.png --model runs/apples --max-tokens 20 --set sampler.text_temperature=0
  cm3 caption picture.png --candidates 8 --rerank clip"""


def configure(parser: ArgumentParser) -> None:
    """Add the pictures and the options."""
    grouped(parser, INPUT).add_argument(
        "picture",
        nargs="+",
        type=Path,
        help="a picture's file; the model sees its largest centred square. A model of drawings also reads SVG files",
    )
    grouped(parser, RESULTS).add_argument(
        "--max-tokens",
        type=whole_number(1, 2**20),
        metavar="N",
        help="maximum length of the caption (default: the model's recipe)",
    )
    add_model_options(parser)
    add_task(parser, "captions")


def run(args: Namespace) -> int:
    """Print one line per picture."""
    options = task_options(args)
    claim_retrieved(args, Path())
    model = open_model(args, num_candidates=1)
    with progress_bar("captioning", may_end_early=True) as progress:
        texts = model.captions(
            args.picture, max_tokens=args.max_tokens, progress=progress, **options
        )
    for path, text in zip(args.picture, texts, strict=True):
        report_unlike_picture(model, path, text)
        print(printable(text.text) if len(texts) == 1 else f"{path}: {printable(text.text)}")
        show_choice(text.choice)
        if args.show_retrieved:
            show_retrieved(text.retrieved)
    if args.show_retrieved:
        write_retrieved(
            Path(),
            [
                Retrieval(path.name, seen(path, model), text.retrieved, text.text, None)
                for path, text in zip(args.picture, texts, strict=True)
            ],
        )
    return 0
