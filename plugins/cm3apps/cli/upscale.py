"""`cm3 upscale`: enlarge a picture."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cm3apps.cli import MAX_SEED, add_device, add_overrides, add_trust, registry_of, whole_number
from cm3core.errors import CM3Error, DataError, GenerationError
from cm3core.files import check_not_input, write_bytes

if TYPE_CHECKING:
    from cm3core.document import PixelArray

    #: A picture, its enlarged version, and the metadata.
    Enlarged: TypeAlias = tuple[PixelArray, PixelArray, dict[str, str]]

HELP = "enlarge a picture"
EXAMPLE = """  cm3 upscale out/000.png -o large.png
  cm3 upscale picture.jpg -o large.png --upscaler lanczos upscaler.scale=3
  cm3 upscale picture.png -o large.png --upscaler external upscaler.path=4x-esrgan.safetensors
  cm3 upscale picture.png -o large.png --upscaler runs/upscaler
  cm3 upscale small.png -o sharp.png --model runs/tuned"""


def configure(parser: ArgumentParser) -> None:
    """Add the picture, the upscaler and the result."""
    parser.add_argument("picture", type=Path, help="a picture's file, of any size")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--upscaler",
        metavar="NAME|FOLDER",
        help="the component, or the folder of cm3 upscaler train (default: the installed plugins' default, such as "
        "edsr)",
    )
    chosen.add_argument(
        "--recipe",
        metavar="RECIPE",
        help="use this recipe's section upscaler, e.g. runs/upscaler/recipe.yaml",
    )
    chosen.add_argument(
        "--model",
        metavar="MODEL",
        help="redraw the picture at the model's size with a model tuned for that: a run's "
        "folder, a checkpoint, PLUGIN:NAME, or hf://USER/NAME",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, MAX_SEED),
        help="with --model: same seed, same result (default: 0)",
    )
    add_trust(parser)
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("upscaled.png"),
        metavar="FILE.png",
        help="the enlarged picture, with the metadata of the small one if that is a PNG (default: %(default)s)",
    )
    add_device(parser, "where a model, or an upscaler with the key device, runs")
    add_overrides(parser)


def run(args: Namespace) -> int:
    """Enlarge, write, print the path."""
    from cm3core import images
    from cm3run.attribution import facts_of_file, png

    check_not_input(args.out, args.picture)
    images.claim_png(args.out)
    pixels, large, made_by = (_by_upscaler if args.model is None else _by_model)(args)
    if (known := facts_of_file(args.picture)) is not None:
        write_bytes(args.out, png(large, known.again(**made_by)))
    else:
        try:
            texts = images.read_png_metadata(args.picture)
        except DataError:  # the picture was just read: it is valid, but not a PNG
            texts = {}
        images.save_png(args.out, large, texts | made_by)
    print(
        f"{args.out}: {large.shape[1]} x {large.shape[0]} pixels of {pixels.shape[1]} x "
        f"{pixels.shape[0]}, by {made_by['upscaler']}"
    )
    return 0


def _by_upscaler(args: Namespace) -> Enlarged:
    from cm3apps.cli._dataset import composed
    from cm3core import images
    from cm3core.plugins.registry import default_name
    from cm3core.recipe import compose
    from cm3run.build import section

    if args.seed is not None:
        print(
            "note: --seed has no effect, because an upscaler uses no random numbers",
            file=sys.stderr,
        )
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
    return pixels, large, {"upscaler": recipe.component_names["upscaler"]}


def _by_model(args: Namespace) -> Enlarged:
    """The picture redrawn by the model, at the model's size."""
    from cm3apps.cli.opening import progress_bar
    from cm3core import images
    from cm3run.model import load
    from cm3run.model.tasks import serving_task, task_for

    if args.overrides:
        raise CM3Error(
            f"cm3 upscale {args.overrides[0]}",
            "changes an upscaler's recipe, but --model has none",
            "leave it out, or use --upscaler",
        )
    pixels = images.open_image(args.picture)
    model = load(
        args.model,
        registry=registry_of(args),
        device=args.device,
        trust_plugins=args.trust_plugins,
        trust_endpoints=args.trust_endpoints,
    )
    name = serving_task(model, "upscale")
    if name is None:
        raise GenerationError(
            f"model {str(args.model)!r}",
            f"was not tuned to enlarge pictures; it was tuned for {', '.join(model.tasks.names) or 'no task'}",
            "use a model that was, tune one (docs/tuning.md), or leave --model out",
        )
    height, width = model.image_size
    if pixels.shape[0] >= height and pixels.shape[1] >= width:
        raise DataError(
            str(args.picture),
            f"has {pixels.shape[1]} x {pixels.shape[0]} pixels, and the model draws {width} x {height}",
            "give a smaller picture, or use an upscaler (--upscaler)",
        )
    task = task_for(model, "upscale", name)
    [field] = task.given
    args.seed = args.seed or 0
    with progress_bar("drawing") as progress:
        made = model.do(name, {field: pixels}, seed=args.seed, progress=progress)
    [large] = made.values()
    assert not isinstance(large, str), "the task's response is a picture"
    return pixels, large, {"upscaler": f"model {args.model}", "upscaler_seed": str(args.seed)}
