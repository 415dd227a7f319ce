"""`cm3 caption`: describe pictures."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cm3core.cli._model import add_model_options, open_model, printable, progress_bar, sampler_settings, show_retrieved

HELP = "describe a picture"
EXAMPLE = """  cm3 caption picture.png
  cm3 caption a.png b.png --model runs/apples --max-tokens 20 --set sampler.text_temperature=0"""


def configure(parser: ArgumentParser) -> None:
    """The pictures and the options."""
    parser.add_argument("picture", nargs="+", type=Path, help="a picture's file; the model sees its largest centred square")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest text (default: as the model's recipe says)")
    add_model_options(parser)


def run(args: Namespace) -> int:
    """Print one line for each picture."""
    settings = sampler_settings(args.settings)
    model = open_model(args)
    with progress_bar("describing") as progress:
        texts = model.captions(args.picture, seed=args.seed, max_tokens=args.max_tokens, num_retrieved=args.num_retrieved,
                               progress=progress, **settings)
    for path, text in zip(args.picture, texts, strict=True):
        print(printable(text.text) if len(texts) == 1 else f"{path}: {printable(text.text)}")
        if args.show_retrieved:
            show_retrieved(text.retrieved)
    return 0
