"""The command line of `cm3 start`. Light: heavy modules are imported when it runs."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli import (
    MAX_MINUTES,
    add_device,
    add_training_precision,
    add_trust,
    real_number,
    registry_of,
    training_precision,
)
from cm3core.errors import DataError

if TYPE_CHECKING:
    from cm3apps.start.choices import Chosen, Codes, Trial
    from cm3apps.start.survey import Survey
    from cm3core.interfaces.dataset import SkippedRecord
    from cm3core.plugins.registry import Registry

EXAMPLE = """examples:
  cm3 start my/pictures
  cm3 start my/pictures --minutes 120 -o mine.yaml
  cm3 start my/pictures --tune bundled:emoji64 -o mine.yaml
Captions are in a .txt beside each picture, in captions.csv or metadata.csv, or in the names of files and folders.
Then: cm3 train my-pictures.yaml, or with --tune: cm3 tune MODEL mine.yaml"""
#: Skipped records and blank pictures to name.
NUM_NAMED = 5
#: With fewer steps, `quickstart`'s model draws little.
FEW_STEPS = 1000
#: Scripts without spaces between words.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "MYANMAR", "KHMER")


def configure(parser: ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Look at a folder of your own pictures, say what training on them will do, and write a recipe "
        "of a few lines for `cm3 train`, with a reason behind each choice."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("folder", type=Path, help="your pictures; subfolders are searched, too")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE.yaml",
        help="the recipe (default: FOLDER.yaml, here)",
    )
    parser.add_argument(
        "--minutes",
        type=real_number(0, MAX_MINUTES, above=True),
        default=60.0,
        help="length of all training, image codes included (default: %(default)g)",
    )
    parser.add_argument(
        "--valid",
        type=real_number(0, 0.5, above=True),
        default=0.05,
        help="share of the pictures to hold out (default: %(default)g)",
    )
    parser.add_argument(
        "--most-skipped",
        type=real_number(0, 1),
        default=0.05,
        metavar="SHARE",
        help="share of the pictures that may be unreadable or blank; with more, no recipe is written "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--tune",
        metavar="MODEL",
        help="write a recipe for `cm3 tune MODEL`, which goes on from a trained model, instead of one that starts from "
        "nothing; it is not tried",
    )
    parser.add_argument(
        "--no-trial", action="store_true", help="write the recipe without trying it for a few steps"
    )
    add_device(parser, "where codes are measured and the trial is trained")
    add_training_precision(parser)
    add_trust(parser, plugins=False)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Look, choose, try, and write; return the exit code."""
    from cm3apps.start.survey import Survey, reader_of
    from cm3core.images import claim_png
    from cm3core.outputs import claim_file

    out = args.out or Path(f"{args.folder.resolve().name or 'pictures'}.yaml")
    sheet = out.with_name(f"{out.stem}-codes.png")
    claim_file(out)
    claim_png(sheet)
    registry = registry_of(args)
    survey = Survey.of(reader_of(args.folder), args.valid)
    _print(_survey_lines(args.folder, survey, _known_words(survey, registry, args.tune)))
    _check_share(args.folder, survey, args.most_skipped)
    write = _write_new if args.tune is None else _write_tuning
    following = write(args, survey, registry, out, sheet)
    print(f"{out}: the recipe, with a reason behind each choice\nnext: {shlex.join(following)}")
    return 0


def _write_new(
    args: Namespace, survey: Survey, registry: Registry, out: Path, sheet: Path
) -> list[str]:
    """Write the recipe of a model from nothing, and try it; the words of the command that trains it."""
    from cm3apps.start.choices import Chosen, measured_codes, own_codes, recipe_text, tried
    from cm3core.files import write_text
    from cm3core.recipe import compose

    codes = measured_codes(survey, registry)
    chosen = Chosen(survey, codes, own_codes(survey, codes, registry), args.minutes)
    _tell_of_codes(codes, sheet)
    _print([("steps", f"pictures become recognisable from some {FEW_STEPS:,} training steps on")])
    write_text(out, recipe_text(chosen, out.stem, registry))
    recipe = compose(str(out), training_precision(args), registry=registry)
    recipe.check()
    if not args.no_trial:
        _print(_trial_lines(chosen, tried(recipe, chosen, registry)))
    return ["cm3", "train", str(out)]


def _write_tuning(
    args: Namespace, survey: Survey, registry: Registry, out: Path, sheet: Path
) -> list[str]:
    """Write the recipe that tunes a model; the words of the command."""
    from cm3apps.start.choices import measured_on
    from cm3apps.start.tuning import composed, tuning_text
    from cm3core.files import write_text

    write_text(out, tuning_text(survey, args.tune, out.stem, args.minutes, registry))
    recipe = composed(args.tune, out, registry, args.trust_endpoints)
    recipe.check()
    assert recipe.image_tokenizer is not None  # checked by `composed`
    codes = measured_on(survey, recipe.image_tokenizer, args.tune)
    _tell_of_codes([codes], sheet)
    if not codes.suits:
        print(
            "note: these codes don't show your pictures, so no tuning can draw them; without --tune, codes are trained on "
            "them first",
            file=sys.stderr,
        )
    return ["cm3", "tune", args.tune, str(out)]


def _tell_of_codes(codes: Sequence[Codes], sheet: Path) -> None:
    """Print what codes keep, and write the sheet."""
    from cm3apps.start.choices import sheet_of
    from cm3core.images import save_png

    if any(one.kept is not None for one in codes):
        save_png(sheet, sheet_of(codes))
    _print(_codes_lines(codes, sheet))


def _print(lines: Iterable[tuple[str, str]]) -> None:
    for title, text in lines:
        print(f"  {title:<11} {text}", flush=True)


def _survey_lines(folder: Path, survey: Survey, known: str) -> Iterator[tuple[str, str]]:
    """What was found, as titles and sentences."""
    from cm3run.printing import printable

    print(f"{folder}: {len(survey):,} pictures ({survey.reader.name})")
    yield "sizes", survey.size_in_words
    example = printable(survey.captions[len(survey) // 2][:60])
    yield "captions", f"{survey.reader.reason}, such as {example!r}"
    yield "", f"{len(survey.words):,} different words{known}"
    if survey.unnamed:
        yield (
            "",
            f"{len(survey.unnamed):,} captions have no word, as files and folders are only numbered, such as "
            f"{printable(survey.unnamed[0])!r}: no prompt finds or draws these pictures. Put them into folders that say "
            "what they show, or write captions.csv (image,text) or a .txt beside each",
        )
    yield "scripts", _scripts(survey)
    alike, largest = sum(survey.looks), next(iter(survey.looks), 0)
    yield "copies", f"{survey.num_copies:,} with the bytes of an earlier picture"
    yield (
        "look-alikes",
        f"{alike:,} pictures look like another one, {largest:,} of them in the largest group",
    )
    across, held = survey.num_across
    yield (
        "held out",
        (
            f"{survey.num_valid:,} pictures, with all that look like them; by file name, {across:,} of {held:,} would look "
            "like one in train"
        ),
    )
    yield "blank", _named(len(survey.blank), survey.blank)
    yield "skipped", _named(len(survey.skipped), _reasons(survey.skipped))


def _named(number: int, items: Iterable[str]) -> str:
    """A number, and the first items below it."""
    from cm3run.printing import printable

    shown = [
        f"\n              {printable(one)}" for one, _ in zip(items, range(NUM_NAMED), strict=False)
    ]
    more = f"\n              and {number - NUM_NAMED:,} more" if number > NUM_NAMED else ""
    return f"{number:,}" + "".join(shown) + more


def _reasons(records: Iterable[SkippedRecord]) -> list[str]:
    return [f"{record.place}: {record.cause}" for record in records]


def _known_words(survey: Survey, registry: Registry, tuned: str | None) -> str:
    """How many of the words the model knows that is tuned, or could be: what tuning can build on."""
    from cm3run import DEFAULT_MODEL
    from cm3run.checkpoint import find_checkpoint, find_model, model_name
    from cm3run.checkpoint.words import TrainingWords

    model = model_name(tuned or DEFAULT_MODEL, registry)
    known = TrainingWords.read(find_checkpoint(find_model(model, registry)))
    if known is None or not survey.words:
        return ""
    share = sum(word in known.words for word in survey.words) / len(survey.words)
    return (
        f"; {model}{'' if tuned else ', which could be tuned instead,'} knows {share:.0%} of them"
    )


def _scripts(survey: Survey) -> str:
    """The scripts of the captions, and what is different for some."""
    shown = ", ".join(
        f"{script.title() if script != 'CJK' else script} in {number:,}"
        for script, number in survey.scripts.items()
    )
    note = ""
    if any(script in UNSPACED for script in survey.scripts):
        note = "; where words have no spaces between them, each character is one when pictures are retrieved"
    return (shown or "no letters") + note


def _check_share(folder: Path, survey: Survey, most: float) -> None:
    """Raise `DataError` if too many pictures are unusable."""
    bad, every = len(survey.skipped) + len(survey.blank), len(survey) + len(survey.skipped)
    if bad > most * every:
        raise DataError(
            str(folder),
            f"{bad:,} of {every:,} pictures can't be read, have no caption or are blank, more than {most:.0%}",
            f"correct or remove them ('cm3 data validate {shlex.quote(str(folder))}' lists them), or give --most-skipped "
            f"{min(1.0, round(bad / every + 0.005, 2)):g}",
        )


def _codes_lines(codes: Iterable[Codes], sheet: Path) -> Iterator[tuple[str, str]]:
    """What each kind of codes keeps."""
    for one in codes:
        kept = "nothing to measure" if one.kept is None else one.kept.in_words()
        yield "codes", f"{one.name}, {one.num} a picture: {kept}"
    yield "", f"{sheet}: your pictures above what codes keep of them"


def _trial_lines(chosen: Chosen, trial: Trial) -> Iterator[tuple[str, str]]:
    """What the recipe takes here, by a short trial."""
    if trial.codes_step is not None and chosen.codes_minutes is not None:
        steps = 60 * chosen.codes_minutes / trial.codes_step
        yield (
            "codes",
            (
                f"{chosen.codes_minutes:g} minutes: some {steps:,.0f} steps of {trial.codes_step:.2f} s, as measured here"
            ),
        )
    steps = 60 * chosen.train_minutes / trial.seconds_a_step
    yield (
        "training",
        (
            f"{chosen.train_minutes:g} minutes: some {steps:,.0f} steps of {trial.seconds_a_step:.2f} s, as measured here"
        ),
    )
    yield "before it", f"{trial.preparing / 60:.1f} minutes for image codes and retrieved documents"
    yield "memory", f"{trial.peak_memory / 2**30:.1f} GiB at most in this trial"
    if steps < FEW_STEPS:
        print(
            f"note: {steps:,.0f} steps are few; --minutes {chosen.minutes * FEW_STEPS / max(steps, 1):,.0f} would give "
            f"{FEW_STEPS:,}",
            file=sys.stderr,
        )
