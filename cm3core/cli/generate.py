"""`cm3 generate`: draw pictures for a prompt."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.cli._model import add_model_options, metadata, open_model, progress_bar, sampler_settings, show_retrieved
from cm3core.files import check_writable

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3core.results import GeneratedImage

#: Pictures beside each other in the contact sheet.
COLUMNS = 8

HELP = "draw pictures for a prompt"
EXAMPLE = """  cm3 generate "a red apple" --n 4 --seed 1 -o out/
  cm3 generate "a red apple" "a green pear" --model runs/apples --num-retrieved 0
  cm3 generate "a red apple" --set sampler.guidance_scale=1.2 --set sampler.temperature=0.9"""


def configure(parser: ArgumentParser) -> None:
    """The prompts and the options."""
    parser.add_argument("prompt", nargs="+", help="what to draw, worded like the training captions")
    parser.add_argument("--n", type=int, dest="num_images", metavar="N",
                        help="pictures for each prompt (default: as the model's recipe says)")
    parser.add_argument("-o", "--out", type=Path, default=Path("cm3-out"), metavar="FOLDER",
                        help="where 000.png, 001.png, ... and grid.png are written (default: %(default)s)")
    parser.add_argument("--truncate", action="store_true", help="read only the beginning of a prompt longer than training texts")
    add_model_options(parser)


def run(args: Namespace) -> int:
    """Draw, write the pictures with their metadata, print the paths."""
    from cm3core import images

    check_writable(args.out, folder=True)
    settings = sampler_settings(args.settings)
    model = open_model(args)
    with progress_bar("drawing") as progress:
        pictures = model.generate(args.prompt, args.num_images, seed=args.seed, num_retrieved=args.num_retrieved,
                                  truncate=args.truncate, progress=progress, **settings)
    each = len(pictures) // len(args.prompt)
    for place, picture in enumerate(pictures):
        if args.show_retrieved and place % each == 0:
            print(picture.prompt)
            show_retrieved(picture.retrieved)
        path = args.out / f"{place:03d}.png"
        images.save_png(path, picture.pixels, metadata(model, settings, prompt=picture.prompt, seed=picture.seed,
                                                       retrieved=picture.retrieved))
        print(path)
    sheet = args.out / "grid.png"
    images.save_png(sheet, _contact_sheet(pictures, each), {"prompt": "\n".join(args.prompt), "seed": str(args.seed),
                                                             "model": model.name, "recipe_hash": model.recipe.hash})
    print(sheet)
    return 0


def _contact_sheet(pictures: list[GeneratedImage], each: int) -> PixelArray:
    """All pictures, each prompt's beside its words; small ones enlarged."""
    from cm3core import images

    starts = [(first, start) for first in range(0, len(pictures), each) for start in range(first, first + each, COLUMNS)]
    rows = [[picture.pixels for picture in pictures[start:min(start + COLUMNS, first + each)]] for first, start in starts]
    labels = [pictures[start].prompt if start == first else "" for first, start in starts]
    return images.grid(rows, row_labels=labels, scale=max(1, 256 // pictures[0].pixels.shape[0]))
