"""`cm3 complete`: draw the icons that a set lacks."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import (
    INPUT,
    MAX_MINUTES,
    MODEL,
    OUTPUT,
    RESULTS,
    grouped,
    real_number,
    whole_number,
)
from cm3apps.cli.opening import add_loading_options, open_model, progress_bar, settings_of
from cm3icons import COMPLETING_MODEL
from cm3run.printing import printable

if TYPE_CHECKING:
    from cm3icons.complete.completing import Completing, Settings
    from cm3icons.complete.sets import OwnSet
    from cm3run.model.model import Model

EXAMPLE = """examples:
  cm3 complete my-icons "bell off" plug "credit card" -o new-icons
  cm3 complete lucide violin --n 8
  cm3 complete my-icons house --draw                         (beside your own house)
The same command resumes an interrupted call."""
#: Skipped files that are listed on the terminal; the report has all.
_NUM_SHOWN = 5


def configure(parser: ArgumentParser) -> None:
    """Add the set, the names and the options."""
    parser.description = "draw the icons that a set lacks, in its own hand, as SVG files"
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    grouped(parser, INPUT).add_argument(
        "set",
        metavar="SET",
        help="a folder of SVG files in one hand, or a set of the model's memory, such as lucide",
    )
    grouped(parser, INPUT).add_argument(
        "names", nargs="+", metavar="NAME", help="what to draw, such as 'bell off'"
    )
    grouped(parser, OUTPUT).add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("cm3-complete"),
        metavar="FOLDER",
        help="folder for NAME.svg, all candidates, adapted versions, sheet.png, report.json and LICENSES; results of an "
        "earlier call with the same settings are kept, unchanged ones with other settings are replaced (default: %(default)s)",
    )
    grouped(parser, RESULTS).add_argument(
        "-n",
        "--n",
        type=whole_number(1, 64),
        default=4,
        dest="number",
        metavar="N",
        help="candidates for each name, drawn after different documents (default: %(default)s)",
    )
    grouped(parser, RESULTS).add_argument(
        "--draw",
        action="store_true",
        help="also draw what the set has already; its own drawing is not shown to the model",
    )
    _add_form(parser)
    grouped(parser, RESULTS).add_argument(
        "--judge",
        action="store_true",
        help="judge each candidate (is it the thing, in the set's hand, and no copy), and sort by that; the first use "
        "reads all bundled icons, which takes some minutes",
    )
    grouped(parser, MODEL).add_argument(
        "--tune",
        type=real_number(0, MAX_MINUTES, above=True),
        metavar="MINUTES",
        help="first tune the model on the set's own drawings for so long, and use it if it then reads drawings better "
        "that were left out; FOLDER/tuned keeps it for the next call",
    )
    add_loading_options(parser, COMPLETING_MODEL)
    parser.set_defaults(run=run, bank=None, retriever=None)


def _add_form(parser: ArgumentParser) -> None:
    """Add the options for captions and files."""
    grouped(parser, INPUT).add_argument(
        "--style",
        metavar="WORDS",
        help="style words for captions, such as 'outline rounded'; of a set with several styles, the one to complete "
        "(default: as most of the set is drawn)",
    )
    grouped(parser, INPUT).add_argument(
        "--title",
        metavar="TEXT",
        help="name of the set in captions (default: the folder's name, or the set's)",
    )
    grouped(parser, RESULTS).add_argument(
        "--clean",
        action="store_true",
        help="write SVG files without metadata; LICENSES then has the only credits",
    )


def run(args: Namespace) -> int:
    """Draw, write the files, print a table."""
    from cm3icons.complete.completing import Completing, Settings, name_of
    from cm3icons.complete.folder import results_folder
    from cm3icons.complete.sets import open_set

    names = list(dict.fromkeys(name_of(one) for one in args.names))
    folder = Path(args.set) if Path(args.set).is_dir() else None
    with results_folder(args.out, folder, names):
        model = open_model(args)
        _check_tracer(model)
        dataset = model.recipe.dataset
        memory = None if dataset is None else dataset.memory_config()
        # the folder of the results, there by now, may have a set's name
        own = open_set(args.set, memory, args.style, args.title, is_folder=folder is not None)
        _report_set(own)
        settings = Settings(
            number=args.number,
            seed=args.seed,
            draw=args.draw,
            clean=args.clean,
            judge=args.judge,
            sampler=args.sampler,
            sampling=settings_of(args.settings, "sampler"),
        )
        if args.tune is None:
            return _complete(Completing(model, own, args.out, settings), names, args.out)
        return _tuned(model, own, args, settings, names)


def _tuned(model: Model, own: OwnSet, args: Namespace, settings: Settings, names: list[str]) -> int:
    """Tune the model, compare it, and draw with the better of the two; return the exit code."""
    from cm3icons.complete.completing import Completing
    from cm3icons.complete.drawing import Completer
    from cm3icons.complete.tuning import compared, tuned
    from cm3run.training import TrainingInterrupted

    try:
        other = tuned(model, own, args.out, args.tune)
    except TrainingInterrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    found = compared(model, other, Completer(model, own, settings.sampler, dict(settings.sampling)))
    print(found.told)
    better = other if found.helps else model
    completing = Completing(better, own, args.out, settings, memory=model)
    completing.results.notes["tuned"] = {"minutes": args.tune, "used": found.helps} | asdict(found)
    return _complete(completing, names, args.out)


def _check_tracer(model: Model) -> None:
    """Raise `MissingPackageError` for a model of pixels if the tracer is missing."""
    from cm3run.model.tracing import check_tracer

    if not model.components.image_tokenizer.reads_drawings:
        check_tracer("cm3 complete")


def _report_set(own: OwnSet) -> None:
    hand = own.hand
    lines = f"lines {', '.join(f'{one:g}' for one in hand.widths)}" if hand.widths else "no lines"
    grid = "no grid" if hand.step is None else f"grid {hand.step:g}"
    box = " ".join(f"{one:g}" for one in hand.box)
    print(
        f"{own.place}: {len(own.source):,} drawings, {own.style or 'no style'}, canvas {box}, {grid}, {lines}"
    )
    if own.note:
        print(f"note: {own.note}", file=sys.stderr)
    for one in own.skipped[:_NUM_SHOWN]:
        print(f"note: {printable(one.place)} is skipped: {one.cause}", file=sys.stderr)
    if (more := len(own.skipped) - _NUM_SHOWN) > 0:
        print(f"note: {more:,} more files are skipped; the report lists them", file=sys.stderr)


def _complete(completing: Completing, names: list[str], out: Path) -> int:
    """Draw all names; return the exit code."""
    done = 0
    if number := completing.results.num_replaced:
        things = "1 thing" if number == 1 else f"{number} things"
        print(
            f"note: {out}: {things} of an earlier call with other settings are replaced",
            file=sys.stderr,
        )
    try:
        with progress_bar("drawing") as progress:
            for entry in completing.run(names, progress):
                done += 1
                _note(entry)
    except KeyboardInterrupt:
        print(
            f"interrupted: {done} of {len(names)} things are done; the same command resumes",
            file=sys.stderr,
        )
        return 130
    print()
    for line in completing.table(names):
        print(line)
    print(completing.sheet())
    print(out / "report.json")
    return 0


def _note(entry: dict[str, Any]) -> None:
    from tqdm import tqdm

    name, thing = repr(entry["name"]), repr(entry["thing"])
    if entry["kind"] == "composed":
        if "examples" in entry:
            example = entry["examples"][0]
            text = f"the index has no {name}; what is drawn, after the set's {thing} and {example!r}, is a guess"
        elif entry.get("remark"):
            after = f", after {thing}," if entry["thing"] else ""
            text = f"{name} in the index: {entry['remark']}; what is drawn{after} is a guess"
        elif entry["thing"]:
            text = f"the index has no {name}; the nearest is {thing}: what is drawn is a guess"
        else:
            text = f"the index has nothing like {name}: what is drawn is a guess"
        tqdm.write(f"note: {text}", file=sys.stderr)
    elif entry.get("remark"):
        tqdm.write(f"note: {entry['remark']}", file=sys.stderr)
    best = next(iter(entry["candidates"]), None)
    if best is not None and best["copy"]:
        text = f"all candidates for {name} are nearly copies of a document"
        tqdm.write(f"note: {text}", file=sys.stderr)
