"""`cm3 generate`: draw pictures for a prompt."""

from __future__ import annotations

import sys
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
#: Pictures of a prompt in the contact sheet, at most: it must fit the memory, and a screen.
SHEET = 64

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
                        help="where 000.png, 001.png, ... are written, each batch as soon as it is drawn, and at the end "
                             f"grid.png with the first {SHEET} of each prompt (default: %(default)s)")
    parser.add_argument("--truncate", action="store_true", help="read only the beginning of a prompt longer than training texts")
    add_model_options(parser)


def run(args: Namespace) -> int:
    """Draw, write the pictures with their metadata, print the paths. Ctrl-C keeps what was drawn."""
    from tqdm import tqdm

    from cm3core import images

    check_writable(args.out, folder=True)
    settings = sampler_settings(args.settings)
    model = open_model(args)
    each = model.recipe.generate.num_images if args.num_images is None else args.num_images
    number = each * len(args.prompt)
    shown: list[list[GeneratedImage]] = [[] for _ in args.prompt]
    written = 0
    try:
        with progress_bar("drawing") as progress:
            for picture in model.stream(args.prompt, each, seed=args.seed, num_retrieved=args.num_retrieved,
                                        truncate=args.truncate, progress=progress, **settings):
                place, candidate = divmod(written, each)
                if args.show_retrieved and candidate == 0:
                    with tqdm.external_write_mode():
                        print(picture.prompt)
                        show_retrieved(picture.retrieved)
                path = args.out / f"{written:0{max(3, len(str(number - 1)))}d}.png"
                images.save_png(path, picture.pixels, metadata(model, settings, prompt=picture.prompt, seed=picture.seed,
                                                               retrieved=picture.retrieved))
                written += 1
                tqdm.write(str(path))
                if candidate < SHEET:
                    shown[place].append(picture)
    except KeyboardInterrupt:
        print(f"interrupted: {written} of {number} pictures are written to {args.out}", file=sys.stderr)
        return 130
    sheet = args.out / "grid.png"
    images.save_png(sheet, _contact_sheet(shown), {"prompt": "\n".join(args.prompt), "seed": str(args.seed),
                                                   "model": model.name, "recipe_hash": model.recipe.hash})
    print(sheet)
    return 0


def _contact_sheet(pictures: list[list[GeneratedImage]]) -> PixelArray:
    """Each prompt's pictures beside its words; small ones enlarged."""
    from cm3core import images

    starts = [(own, start) for own in pictures for start in range(0, len(own), COLUMNS)]
    rows = [[picture.pixels for picture in own[start:start + COLUMNS]] for own, start in starts]
    labels = ["" if start else own[0].prompt for own, start in starts]
    return images.grid(rows, row_labels=labels, scale=max(1, 256 // pictures[0][0].pixels.shape[0]))
