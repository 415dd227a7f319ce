"""`cm3 upscale`: enlarge a picture."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cm3core.cli import add_device, add_overrides, registry_of
from cm3core.errors import DataError
from cm3core.files import check_not_input, check_writable

HELP = "enlarge a picture"
EXAMPLE = """  cm3 upscale out/000.png -o large.png
  cm3 upscale picture.jpg -o large.png --upscaler lanczos upscaler.scale=3
  cm3 upscale picture.png -o large.png --upscaler external upscaler.path=4x-esrgan.safetensors"""


def configure(parser: ArgumentParser) -> None:
    """The picture, the upscaler and the result."""
    parser.add_argument("picture", type=Path, help="a picture's file, of any size")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--upscaler",
        metavar="NAME",
        help="the component (default: the installed plugins' default, such as edsr)",
    )
    chosen.add_argument(
        "--recipe",
        metavar="RECIPE",
        help="use this recipe's section upscaler, e.g. runs/upscaler/recipe.yaml",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("upscaled.png"),
        metavar="FILE.png",
        help="the enlarged picture, with the metadata of the small one if that is a PNG (default: %(default)s)",
    )
    add_device(parser, "where it runs, of an upscaler that has the key device")
    add_overrides(parser)


def run(args: Namespace) -> int:
    """Enlarge, write, print the path."""
    from cm3core import images
    from cm3core.build import section
    from cm3core.cli._dataset import composed
    from cm3core.plugins.marks import default_name
    from cm3core.recipe import compose

    check_writable(args.out)
    check_not_input(args.out, args.picture)
    registry = registry_of(args)
    if args.device is not None:
        args.overrides.append(f"upscaler.device={args.device}")
    if args.recipe is not None:
        recipe = compose(args.recipe, args.overrides, registry=registry)
    else:
        name = args.upscaler or default_name(registry, "upscaler", place="--upscaler")
        recipe = composed({"upscaler": {"name": name}}, args.overrides, registry)
    config = section(recipe, "upscaler")
    config.check()
    pixels = images.open_image(args.picture)
    large = config.build().upscale(pixels)
    try:
        facts = images.read_png_metadata(args.picture)
    except DataError:  # the picture was just read: it is valid, but not a PNG
        facts = {}
    name = recipe.component_names["upscaler"]
    images.save_png(args.out, large, facts | {"upscaler": name})
    print(
        f"{args.out}: {large.shape[1]} x {large.shape[0]} pixels of {pixels.shape[1]} x "
        f"{pixels.shape[0]}, by {name}"
    )
    return 0
