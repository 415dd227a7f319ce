"""The command line `cm3`. Each command is a module in this folder with four names:

    HELP: str                                one line for the table of `cm3 --help`
    EXAMPLE: str                             lines to copy; shown at the end of the command's help
    configure(parser: ArgumentParser)        adds the command's arguments
    run(args: Namespace) -> int              does the work, returns the exit code

`main` imports a command's module only when that command is called, so `cm3 --help` stays fast.
Modules here import no torch at module level. A command whose parser has a positional argument
`overrides` (see `add_overrides`) takes `key=value` anywhere among its options."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _ArgumentGroup

    from cm3core.plugins.registry import Registry


#: Largest values that several options share.
MAX_SEED = 2**63 - 1
MAX_THREADS = 4096
MAX_MINUTES = 10_000_000
MAX_STEPS = 2**63 - 1
#: Longest window of parallel decoding, as in `cm3core.recipe.sections`, which takes long to import.
MOST_AHEAD = 256
#: Maximum number of characters of an argument that an error repeats.
_MOST_SHOWN = 40


class NumberRange:
    """The `type` of an option: parses a number and checks that it lies in a range.

    It is not a dataclass, because importing `dataclasses` would double the time of `cm3 --help`.

    Args:
        least, most: the smallest and the largest value.
        whole: whether it must be a whole number; the result is then an int.
        above: whether it must be more than `least`.
    """

    def __init__(self, least: float, most: float, *, whole: bool, above: bool = False) -> None:
        self.least, self.most, self.whole, self.above = least, most, whole, above

    def __call__(self, text: str) -> int | float:
        """Return the number; raises `ArgumentTypeError` if the text is no number or out of range."""
        try:
            value: int | float = int(text) if self.whole else float(text)
        except ValueError:  # also for more digits than Python converts
            raise self._error(text) from None
        if not self.least <= value <= self.most or (self.above and value == self.least):
            raise self._error(text)
        return value

    def _error(self, text: str) -> ArgumentTypeError:
        what = "a whole number" if self.whole else "a number"
        shown = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
        first = f"more than {self.least:,}" if self.above else f"from {self.least:,}"
        last = "and at most" if self.above else "to"
        return ArgumentTypeError(f"is {shown!r}, must be {what} {first} {last} {self.most:,}")


def whole_number(least: int, most: int) -> NumberRange:
    """The `type` of an option that is a whole number from `least` to `most`.

    >>> whole_number(1, 4096)("8")
    8
    """
    return NumberRange(least, most, whole=True)


def real_number(least: float, most: float, *, above: bool = False) -> NumberRange:
    """The `type` of an option that is a number from `least` (excluded if `above`) to `most`.

    >>> real_number(0, 60, above=True)("0.5")
    0.5
    """
    return NumberRange(least, most, whole=False, above=above)


__all__ = [
    "DEVICE",
    "GROUPS",
    "INPUT",
    "MODEL",
    "OUTPUT",
    "RESULTS",
    "RETRIEVAL",
    "SAMPLING",
    "TRUST",
    "add_device",
    "add_length",
    "add_overrides",
    "add_parallel",
    "add_precision",
    "add_training_precision",
    "add_trust",
    "fitted",
    "grouped",
    "real_number",
    "registry_of",
    "training_length",
    "training_precision",
    "whole_number",
    "window",
    "wrapped",
]

#: Titles of the groups of options that commands share; a long help lists them in the order of `GROUPS`.
INPUT, MODEL, RESULTS, SAMPLING = "input", "model and task", "results", "sampling"
RETRIEVAL, OUTPUT, DEVICE, TRUST = "retrieval", "output", "device", "trust"
GROUPS = (INPUT, MODEL, RESULTS, SAMPLING, RETRIEVAL, OUTPUT, DEVICE, TRUST)


def grouped(parser: ArgumentParser, title: str) -> _ArgumentGroup:
    """The group of options with this title, made if there is none yet.

    >>> parser = ArgumentParser()
    >>> grouped(parser, DEVICE) is grouped(parser, DEVICE)
    True
    """
    groups = (one for one in parser._action_groups if one.title == title)
    return next(groups, None) or parser.add_argument_group(title)


def add_device(parser: ArgumentParser, what: str) -> None:
    """Add `--device`."""
    grouped(parser, DEVICE).add_argument(
        "--device",
        metavar="DEVICE",
        help=f"{what}: cpu, cuda, cuda:1, ... (default: the GPU if there is one)",
    )


def add_precision(parser: ArgumentParser) -> None:
    """Add `--precision` of a command that generates, with the values of `cm3core.load`."""
    grouped(parser, DEVICE).add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16", "int8", "int4"],
        help="precision of the decoder's weights for generation; int8 and int4 are refused if "
        "they would change predictions (default, auto: the fastest that this machine "
        "supports and that hardly changes predictions: bf16 on a GPU, int8 or bf16 on a "
        "CPU, else the stored precision)",
    )


def window(text: str) -> int | str:
    """The `type` of `--parallel`.

    >>> window("16"), window("off")
    (16, 'off')
    """
    if text in ("auto", "off"):
        return text
    try:
        return int(whole_number(1, MOST_AHEAD)(text))
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error}, or auto or off") from None


def add_parallel(parser: ArgumentParser) -> None:
    """Add `--parallel` of a command that draws pictures: what `cm3core.load` takes."""
    grouped(parser, DEVICE).add_argument(
        "--parallel",
        type=window,
        metavar="N",
        help="image codes drawn per step, for the same picture in less time: 1 to "
        f"{MOST_AHEAD}, auto (as many as gain most, on a CPU) or off (default: the model's recipe, else auto)",
    )


def add_training_precision(parser: ArgumentParser) -> None:
    """Add `--precision` of a command that trains a decoder."""
    grouped(parser, DEVICE).add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        help="precision of training, the same as train.precision=... (default: the recipe's)",
    )


def training_precision(args: Namespace) -> list[str]:
    """The recipe override for the option of `add_training_precision`."""
    return [] if args.precision is None else [f"train.precision={args.precision}"]


def add_length(parser: ArgumentParser) -> None:
    """Add `--minutes` and `--steps` of a command that trains by a recipe."""
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes",
        type=real_number(0, MAX_MINUTES, above=True),
        metavar="M",
        help="minutes to train (default: the recipe's train.minutes)",
    )
    length.add_argument(
        "--steps",
        type=whole_number(1, MAX_STEPS),
        metavar="N",
        help="steps to train (default: the recipe's train.steps)",
    )


def training_length(args: Namespace) -> list[str]:
    """The recipe overrides for the options of `add_length`.

    Raises:
        RecipeError: the length is given by an override, too.
    """
    if args.minutes is None and args.steps is None:
        return []
    from cm3core.errors import RecipeError

    name, other = ("minutes", "steps") if args.steps is None else ("steps", "minutes")
    for one in args.overrides:
        if (key := one.partition("=")[0]) in ("train.minutes", "train.steps"):
            raise RecipeError(f"--{name}", f"is given, and so is {key}", "give one of them")
    return [f"train.{name}={getattr(args, name)!r}", f"train.{other}=null"]


def add_trust(parser: ArgumentParser, *, plugins: bool = True) -> None:
    """Add `--trust-endpoints` and, for a command that builds a model's components, `--trust-plugin`."""
    group = grouped(parser, TRUST)
    if plugins:
        group.add_argument(
            "--trust-plugin",
            action="append",
            default=[],
            dest="trust_plugins",
            metavar="SHA256",
            help="run the checkpoint's plugin file with this hash; it can do anything that you "
            "can, so read it first; may be given several times",
        )
    group.add_argument(
        "--trust-endpoints",
        action="append",
        default=[],
        dest="trust_endpoints",
        metavar="WHERE",
        help="let a model, adapter or bank that someone else made use this host (HOST or "
        "HOST:PORT), address (s3://BUCKET) or outside path, and everything below it; may "
        "be given several times",
    )


def add_overrides(parser: ArgumentParser) -> None:
    """Let a command take recipe overrides: `args.overrides`, a list of `section.key=value`."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        default=[],
        help="values that override the recipe's, in any order; kind=name changes a component",
    )


def registry_of(args: Namespace, *, quiet: bool = False) -> Registry:
    """The registry for a command: installed plugins and the files given by `--plugin`.

    `quiet` suppresses warnings, for commands that show broken plugins anyway. What plugins print
    goes to stderr.
    """
    from cm3apps.cli._process import stdout_to_stderr
    from cm3core.plugins import discovery

    before = discovery.logger.level
    if quiet:
        discovery.logger.setLevel("ERROR")
    try:
        with stdout_to_stderr():
            return discovery.load_registry(args.plugin)
    finally:
        discovery.logger.setLevel(before)


#: Maximum line length, even on wide terminals, and minimum on narrow ones.
WIDTH, LEAST = 120, 40


def wrapped(text: str, first: str = "", rest: str | None = None) -> list[str]:
    """A text wrapped between words: the first line begins with `first`, the others with `rest` (None: the same)."""
    import shutil
    import textwrap

    width = min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH)
    return textwrap.wrap(
        text,
        max(width, LEAST),
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def fitted(text: str, first: str = "", rest: str = "      ") -> list[str]:
    """A line, wrapped on a terminal but not in a pipe or file."""
    return wrapped(text, first, rest) if sys.stdout.isatty() else [first + text]
