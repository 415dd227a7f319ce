"""`cm3 infill`: inpaint part of a picture, or draw one path of a drawing again."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli import INPUT, OUTPUT, grouped, whole_number
from cm3apps.cli._model import (
    Retrieval,
    claim_retrieved,
    printable,
    report_copy,
    report_unknown_words,
    seen,
    show_choice,
    show_retrieved,
    task_options,
    write_retrieved,
    written_facts,
)
from cm3apps.cli.opening import add_model_options, open_model, progress_bar
from cm3core.errors import GenerationError
from cm3core.files import check_not_input, write_bytes
from cm3core.outputs import claim_file

if TYPE_CHECKING:
    from cm3run.attribution import PictureFacts
    from cm3run.model.crop import Box
    from cm3run.model.model import Model
    from cm3run.model.results import InfilledImage

#: Largest coordinate of a pixel; no picture is larger.
COORDINATE = re.compile(r"-?[0-9]{1,9}")

HELP = "inpaint part of a picture"
EXAMPLE = """  cm3 infill picture.png --box 8,8,40,40 --text "a red apple with a leaf" -o out.png
  cm3 infill picture.png --box 8,8,24,24 --box 40,8,56,24 --seed 3 --decoded whole.png
  cm3 infill picture.png --mask brush.png --text "a red apple"
  cm3 infill picture.png --text "a red apple" --keep 32
  cm3 infill bell.svg --path 2 --text "bell off, outline, lucide" --model runs/icons-svg -o new.svg"""


def configure(parser: ArgumentParser) -> None:
    """Add the picture, the box and the options."""
    grouped(parser, INPUT).add_argument(
        "picture",
        type=Path,
        help="a picture's file; the model sees its largest centred square. With --path: an SVG file",
    )
    region = grouped(parser, INPUT).add_mutually_exclusive_group(required=True)
    region.add_argument(
        "--box",
        action="append",
        metavar="x0,y0,x1,y1",
        help="the region to inpaint, in pixels: x to the right, y down, x1 and y1 excluded; "
        "may be given several times",
    )
    region.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="a picture of the same size, white where to inpaint",
    )
    region.add_argument(
        "--keep",
        type=whole_number(0, 2**20),
        metavar="ROWS",
        help="keep the top ROWS rows of pixels, at the model's size, and generate the rest",
    )
    region.add_argument(
        "--path",
        type=whole_number(1, 2**20),
        metavar="N",
        help="draw path or shape N of an SVG file again, counted from 1 in the order of the file; each M of a path "
        "begins one. For models that write SVG (recipe icons-svg)",
    )
    grouped(parser, INPUT).add_argument(
        "--text",
        help="caption of the whole picture (default: the model captions the rest of it)",
    )
    grouped(parser, INPUT).add_argument(
        "--truncate",
        action="store_true",
        help="cut a text that is longer than the training texts",
    )
    grouped(parser, OUTPUT).add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="the inpainted picture, all other pixels unchanged (default: infilled.png); with --path: an SVG "
        "file, all other paths unchanged (default: infilled.svg)",
    )
    grouped(parser, OUTPUT).add_argument(
        "--decoded",
        type=Path,
        metavar="FILE.png",
        help="also write the whole picture as decoded by the image tokenizer, at the model's size",
    )
    add_model_options(parser)


def run(args: Namespace) -> int:
    """Inpaint, write, print the paths."""
    from cm3core import images
    from cm3run.attribution import png

    if args.path is not None:
        return _redraw(args)
    args.out = args.out or Path("infilled.png")
    for path in filter(None, (args.out, args.decoded)):
        check_not_input(path, *filter(None, (args.picture, args.mask)))
        images.claim_png(path)
    claim_retrieved(args, args.out.parent)
    if args.decoded is not None and args.decoded.resolve() == args.out.resolve():
        raise GenerationError(
            f"--decoded {args.decoded}",
            "is also the file of -o, but two pictures are written",
            "give one of them another name",
        )
    boxes, options = (
        [parse_box(box) for box in args.box or ()],
        task_options(args) | {"truncate": args.truncate},
    )
    model = open_model(args)
    report_unknown_words(model, [args.text])
    with progress_bar("generating") as progress:
        if args.keep is not None:
            result = model.continue_image(
                args.picture, args.keep, args.text, progress=progress, **options
            )
        else:
            result = model.infill(
                args.picture, boxes or None, args.text, mask=args.mask, progress=progress, **options
            )
    box = " ".join(args.box or [",".join(map(str, result.box))])
    facts = _told(args, model, result, box=box)
    for path, pixels in ((args.out, result.pixels), (args.decoded, result.decoded)):
        if path is not None:
            write_bytes(path, png(pixels, facts))
            print(path)
    report_copy(args.out, result)
    return 0


def _told(args: Namespace, model: Model, result: InfilledImage, **settings: str) -> PictureFacts:
    """Print what was generated after what; return what the files are to say."""
    from cm3run.attribution import facts_of_file

    facts = written_facts(model, args, result, **settings)
    if (given := facts_of_file(args.picture)) is not None:
        facts = facts.after(given.credits)
    if args.text is None:
        print(f"text: {printable(result.text)}")
    show_choice(result.choice)
    if args.show_retrieved:
        show_retrieved(result.retrieved)
        query = seen(args.picture, model)
        write_retrieved(
            args.out.parent, [Retrieval(result.text, query, result.retrieved, "", result.decoded)]
        )
    return facts


def _redraw(args: Namespace) -> int:
    """Draw a path again, write the SVG, and the picture with --decoded."""
    from cm3core import images
    from cm3run.attribution import png, svg

    args.out = args.out or Path("infilled.svg")
    check_not_input(args.out, args.picture)
    if args.out.suffix != ".svg":
        raise GenerationError(
            f"-o {args.out}", "is no SVG file, which --path writes", "name it with the end .svg"
        )
    claim_file(args.out)
    claim_retrieved(args, args.out.parent)
    if args.decoded is not None:
        images.claim_png(args.decoded)
    options = task_options(args) | {"truncate": args.truncate}
    model = open_model(args)
    report_unknown_words(model, [args.text])
    with progress_bar("generating") as progress:
        result = model.redraw(args.picture, args.path, args.text, progress=progress, **options)
    facts = _told(args, model, result, path=str(args.path))
    drawing = model.components.image_tokenizer.svg(result.codes.codes)
    assert drawing is not None
    write_bytes(args.out, svg(drawing, facts).encode())
    print(args.out)
    if args.decoded is not None:
        write_bytes(args.decoded, png(result.decoded, facts))
        print(args.decoded)
    report_copy(args.out, result)
    return 0


def parse_box(text: str) -> Box:
    """(x0, y0, x1, y1) from "x0,y0,x1,y1".

    >>> parse_box("8, 8, 40, 40")
    (8, 8, 40, 40)
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(COORDINATE.fullmatch(part) for part in parts):
        raise GenerationError(
            f"--box {text[:100]}",
            "is not four whole numbers",
            "write x0,y0,x1,y1, e.g. 8,8,40,40",
        )
    x0, y0, x1, y1 = (int(part) for part in parts)
    return x0, y0, x1, y1
