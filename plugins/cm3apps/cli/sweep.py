"""`cm3 sweep`: compare values of one or two keys on the same prompts and seeds, in one picture."""

from __future__ import annotations

import itertools
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from einops import rearrange

from cm3apps.cli import INPUT, OUTPUT, RESULTS, grouped, whole_number
from cm3apps.cli._model import (
    add_model_options,
    open_model,
    progress_bar,
    report_unknown_words,
    settings_of,
    task_options,
)
from cm3core.errors import GenerationError
from cm3core.files import write_bytes

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3run.model.jobs import Job
    from cm3run.model.model import Model
    from cm3run.model.results import GeneratedImage

#: A key, and each of its values as text and as arguments of `Model.image_jobs`.
Varied: TypeAlias = tuple[str, list[tuple[str, dict[str, Any]]]]

HELP = "compare settings side by side on the same prompts"
EXAMPLE = """  cm3 sweep "red apple" "bell" --vary sampler.guidance_scale=1,1.5,3 --vary sampler.plausible_top_p=0.8,1
  cm3 sweep "red apple" --vary sampler=cfg,cd_k,mixture --n 4 --score clip
  cm3 sweep "red apple" --vary seed=1,2,3 --vary num_retrieved=0,1"""
#: Arguments of `Model.generate` that may be varied, in addition to `sampler.KEY`.
ARGUMENTS = ("sampler", "seed", "num_retrieved", "num_candidates", "reranker")


def configure(parser: ArgumentParser) -> None:
    """Add the prompts, the varied keys, and the options."""
    grouped(parser, INPUT).add_argument("prompt", nargs="+", help="a prompt, used in every cell")
    grouped(parser, INPUT).add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="KEY=A,B,...",
        help=f"sampler.KEY or one of {', '.join(ARGUMENTS)}, and its values; the first key varies down, a "
        "second one across",
    )
    grouped(parser, RESULTS).add_argument(
        "--n",
        type=whole_number(1, 2**20),
        default=1,
        dest="num_images",
        metavar="N",
        help="pictures per prompt in a cell (default: %(default)s)",
    )
    grouped(parser, RESULTS).add_argument(
        "--score",
        metavar="NAME",
        help="also print each cell's mean score by this reranker",
    )
    grouped(parser, OUTPUT).add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("sweep.png"),
        metavar="FILE.png",
        help="the picture, one cell per combination (default: %(default)s)",
    )
    add_model_options(parser)


def run(args: Namespace) -> int:
    """Generate all cells in one batch, write the picture, print the scores."""
    from cm3core import images
    from cm3run import sheets
    from cm3run.attribution import png
    from cm3run.model.facts import facts_of_sheet
    from cm3run.model.jobs import results

    images.check_writable_png(args.out)
    (down, values), (across, other_values) = _down_and_across(args.vary)
    model = open_model(args)
    report_unknown_words(model, args.prompt)
    cells = [
        task_options(args) | {"draw": True} | own | other
        for (_, own), (_, other) in itertools.product(values, other_values)
    ]
    planned = [model.image_jobs(args.prompt, args.num_images, **options) for options in cells]
    if args.score is not None:
        model.reranker(args.score)  # report a wrong name before anything is generated
    jobs: Iterator[Job[GeneratedImage]] = itertools.chain.from_iterable(own for own, _ in planned)
    with progress_bar("generating") as progress:
        pictures = list(
            results(model.engine, jobs, progress=progress, total=sum(total for _, total in planned))
        )
    each = len(args.prompt) * args.num_images
    drawn = [pictures[start : start + each] for start in range(0, len(pictures), each)]
    tiles = [_mosaic(own, args.num_images) for own in drawn]
    width = len(other_values)
    rows = [tiles[start : start + width] for start in range(0, len(tiles), width)]
    sheet = sheets.grid(
        rows,
        row_labels=[f"{down} {text}" for text, _ in values],
        column_labels=[f"{across} {text}" for text, _ in other_values] if across else None,
        scale=max(1, 128 // pictures[0].pixels.shape[0]),
    )
    facts = facts_of_sheet(
        model,
        pictures,
        prompt="\n".join(args.prompt),
        vary="\n".join(args.vary),
        seed=str(args.seed),
    )
    write_bytes(args.out, png(sheet, facts))
    if args.score is not None:
        _print_scores(
            model,
            args.score,
            drawn,
            [text for text, _ in values],
            [text for text, _ in other_values],
        )
    print(args.out)
    return 0


def _down_and_across(texts: list[str]) -> tuple[Varied, Varied]:
    """The varied keys with their values; with one key, the columns have a single empty value."""
    varied = [_varied(text) for text in texts]
    if len(varied) > 2:
        raise GenerationError(
            "--vary", f"is given {len(varied)} times", "vary one key down and at most one across"
        )
    if len({name for name, _ in varied}) < len(varied):  # the second key would win in every cell
        raise GenerationError(
            "--vary", f"names {varied[0][0]} twice", "give all values of a key in one --vary"
        )
    return varied[0], varied[1] if len(varied) == 2 else ("", [("", {})])


def _varied(text: str) -> Varied:
    """The key's last part, and each value as text and as arguments of `Model.image_jobs`.

    >>> _varied("sampler.top_p=0.5,1")
    ('top_p', [('0.5', {'top_p': 0.5}), ('1', {'top_p': 1})])
    >>> _varied("seed=1,2")
    ('seed', [('1', {'seed': 1}), ('2', {'seed': 2})])
    """
    key, equals, listed = text.partition("=")
    parts = [part.strip() for part in listed.split(",")]
    if not equals or not all(parts) or not (key in ARGUMENTS or key.startswith("sampler.")):
        raise GenerationError(
            f"--vary {text}",
            f"is not sampler.KEY=A,B,... nor {', '.join(ARGUMENTS)}",
            "write e.g. --vary sampler.guidance_scale=1,1.5,3",
        )
    name = key.removeprefix("sampler.")
    found = [settings_of([f"sampler.{name}={part}"], "sampler") for part in parts]
    return name, list(zip(parts, found, strict=True))


def _mosaic(pictures: list[GeneratedImage], columns: int) -> PixelArray:
    """A cell: a row per prompt."""
    tiles = np.stack([one.pixels for one in pictures])
    return rearrange(tiles, "(rows columns) h w rgb -> (rows h) (columns w) rgb", columns=columns)


def _print_scores(
    model: Model, name: str, drawn: list[list[GeneratedImage]], rows: list[str], columns: list[str]
) -> None:
    """A table of mean scores, cell by cell."""
    reranker = model.reranker(name)
    means = [float(np.mean([model.score(picture, name) for picture in cell])) for cell in drawn]
    print(f"mean {reranker.measure}")
    print("\t".join(["", *columns]))
    for place, row in enumerate(rows):
        own = means[place * len(columns) : (place + 1) * len(columns)]
        print("\t".join([row, *(f"{mean:.4f}" for mean in own)]))
