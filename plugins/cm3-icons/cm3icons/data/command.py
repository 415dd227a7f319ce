"""The command line of `cm3 icons`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.errors import CM3Error, DataError

if TYPE_CHECKING:
    from cm3icons.data.user_build import Built, UserSet

EXAMPLE = """example:
  npm pack @iconify-json/la
  cm3 icons build iconify-json-la-*.tgz -o my-icons
  cm3 data show icons dataset.path=my-icons
The same command resumes a build that was killed."""
_NUM_SHOWN = 5


def configure(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.description = "Build icon corpora from sets that are not bundled."
    parser.epilog = EXAMPLE
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser(
        "build",
        help="build a corpus from Iconify's npm packages, for the data set 'icons'",
        description=(
            "Builds an icon corpus from tarballs written by `npm pack @iconify-json/SET`. Icons that the "
            "bundled corpus holds out are held out here, too. Exit code 1 if some sets were rejected "
            "and the others built."
        ),
        epilog=EXAMPLE,
        formatter_class=RawDescriptionHelpFormatter,
    )
    build.add_argument("tarballs", nargs="+", type=Path, metavar="TARBALL", help="npm packages")
    build.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FOLDER", help="the corpus' folder"
    )
    build.add_argument(
        "--any-version",
        action="store_true",
        help="also read other versions of bundled sets, with the rules of the known version",
    )
    build.add_argument(
        "--allow-licence",
        action="append",
        default=[],
        metavar="SPDX",
        help="permit this licence for your own use; can be repeated",
    )
    build.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Build a corpus; return the exit code."""
    from cm3icons.data.corpus import IconCorpus
    from cm3icons.data.user_build import build, check_output

    check_output(args.out)
    sets, num_refused = _read(args)
    if not sets:
        raise DataError("cm3 icons build", "no set can be used", "correct the errors above")
    _report(sets, build(sets, args.out, IconCorpus()), args.out)
    if num_refused:
        print(f"{num_refused} of {len(args.tarballs)} packages were rejected, see above")
    return 1 if num_refused else 0


def _read(args: Namespace) -> tuple[list[UserSet], int]:
    """Return the usable sets in order, and the number of rejected ones, each of which is reported."""
    from cm3icons.data.user_build import read_set

    sets: dict[str, UserSet] = {}
    num_refused = 0
    for path in args.tarballs:
        try:
            given = read_set(path, any_version=args.any_version, licences=args.allow_licence)
            if given.icon_set.name in sets:
                cause = f"holds the set {given.icon_set.name} a second time"
                raise DataError(str(path), cause, "keep one version of it")
            sets[given.icon_set.name] = given
        except CM3Error as error:
            num_refused += 1
            print(f"error: {error}", file=sys.stderr)
    return list(sets.values()), num_refused


def _report(sets: list[UserSet], built: Built, out: Path) -> None:
    for given in sets:
        icon_set = given.icon_set
        number = built.num_of_set[icon_set.name]
        print(f"{icon_set.name} {icon_set.version}: {number:,} icons, {icon_set.licence}")
        if given.num_left_out:
            print(f"  {given.num_left_out:,} left out: logos, other sizes or hidden")
        if given.unknown_styles:
            print(
                f"  {len(given.unknown_styles)} prefixes or suffixes are not known styles and stay in "
                f"the names: {_first(given.unknown_styles)}"
            )
        for reason, number in Counter(built.not_drawn[icon_set.name].values()).items():
            ids = [name for name, why in built.not_drawn[icon_set.name].items() if why == reason]
            print(f"  left out, {reason}: {number:,} ({_first(ids)})")
    for reason, count in built.left_out.items():
        if count and reason not in ("not rendered", "empty"):  # listed per set above
            print(f"left out, {reason}: {count:,}")
    print(f"{out}: {sum(built.num_of_set.values()):,} icons, {_table(built.num_of_split)}")
    print(f"use it: dataset=icons {shlex.quote(f'dataset.path={out}')}")


def _first(names: list[str]) -> str:
    more = f", and {len(names) - _NUM_SHOWN:,} more" if len(names) > _NUM_SHOWN else ""
    return ", ".join(names[:_NUM_SHOWN]) + more


def _table(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in sorted(numbers.items()))
