"""`cm3 infill`: draw a part of a picture anew."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.cli._model import add_model_options, metadata, open_model, printable, progress_bar, sampler_settings, show_retrieved
from cm3core.errors import GenerationError
from cm3core.files import check_writable

if TYPE_CHECKING:
    from cm3core.boxes import Box

HELP = "redraw a part of a picture"
EXAMPLE = """  cm3 infill picture.png --box 8,8,40,40 --text "a red apple with a leaf" -o out.png
  cm3 infill picture.png --box 0,32,64,64 --seed 3 --decoded whole.png"""


def configure(parser: ArgumentParser) -> None:
    """The picture, the box and the options."""
    parser.add_argument("picture", type=Path, help="a picture's file; the model sees its largest centred square")
    parser.add_argument("--box", required=True, metavar="x0,y0,x1,y1",
                        help="in pixels of the picture, x to the right, y down, x1 and y1 not included")
    parser.add_argument("--text", help="what the whole picture shows (default: the model writes it from what is left)")
    parser.add_argument("--truncate", action="store_true", help="read only the beginning of a text longer than training texts")
    parser.add_argument("-o", "--out", type=Path, default=Path("infilled.png"), metavar="FILE.png",
                        help="the picture with the box drawn anew, every other pixel as it was (default: %(default)s)")
    parser.add_argument("--decoded", type=Path, metavar="FILE.png",
                        help="also write the whole picture as the image tokenizer decodes it, at the model's size")
    add_model_options(parser)


def run(args: Namespace) -> int:
    """Draw, write, print the paths."""
    from cm3core import images

    for path in filter(None, (args.out, args.decoded)):
        check_writable(path)
    box, settings = parse_box(args.box), sampler_settings(args.settings)
    model = open_model(args)
    with progress_bar("drawing") as progress:
        result = model.infill(args.picture, box, args.text, seed=args.seed, num_retrieved=args.num_retrieved,
                              truncate=args.truncate, progress=progress, **settings)
    facts = metadata(model, settings, prompt=result.text, seed=result.seed, retrieved=result.retrieved) | {"box": args.box}
    if args.text is None:
        print(f"text: {printable(result.text)}")
    if args.show_retrieved:
        show_retrieved(result.retrieved)
    for path, pixels in ((args.out, result.pixels), (args.decoded, result.decoded)):
        if path is not None:
            images.save_png(path, pixels, facts)
            print(path)
    return 0


def parse_box(text: str) -> Box:
    """(x0, y0, x1, y1) from "x0,y0,x1,y1".

    >>> parse_box("8, 8, 40, 40")
    (8, 8, 40, 40)
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.lstrip("-").isdecimal() for part in parts):
        raise GenerationError(f"--box {text}", "is not four whole numbers", "write x0,y0,x1,y1, for instance 8,8,40,40")
    x0, y0, x1, y1 = (int(part) for part in parts)
    return x0, y0, x1, y1
