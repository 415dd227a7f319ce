"""`cm3 eval card`: write a model's card, or check one."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import add_trust, registry_of, whole_number
from cm3core.errors import CM3Error, DataError
from cm3core.outputs import claim_file

if TYPE_CHECKING:
    from cm3apps.evaluation.card_text import Evaluated

_COLUMNS = 8
_MOST_PICTURES = 256


def configure(parser: ArgumentParser) -> None:
    """Add the model, the results, and the facts that are not stored."""
    add = parser.add_argument
    add(
        "model", metavar="MODEL", help="a run's folder, a checkpoint, PLUGIN:NAME or hf://USER/NAME"
    )
    add(
        "results",
        nargs="*",
        type=Path,
        metavar="RESULTS",
        help="folders of `cm3 eval run` for this model; nothing is measured again",
    )
    add(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="the card, e.g. CARD.md; sheets of pictures go beside it",
    )
    add(
        "--check",
        type=Path,
        metavar="FILE",
        help="check whether this card was written for the model's weights",
    )
    add("--licence", metavar="SPDX", help="licence of the weights (default: not stated)")
    add("--machine", metavar="TEXT", help="the machine of the training (default: not stated)")
    add("--notes", type=Path, metavar="FILE", help="Markdown to append to the card's limits")
    add(
        "--pictures",
        type=whole_number(0, _MOST_PICTURES),
        default=16,
        metavar="N",
        help="number of pictures from each evaluation, the first by their numbers (default: 16)",
    )
    add_trust(parser)


def run(args: Namespace) -> int:
    """Write or check."""
    if (args.out is None) == (args.check is None):
        raise CM3Error(
            "cm3 eval card",
            "neither -o nor --check is given" if args.out is None else "-o and --check are given",
            "give -o FILE to write a card, or --check FILE",
        )
    from cm3run.model import load

    registry = registry_of(args)
    if args.check is not None:
        text = _read(args.check, "name a card")
        model = load(
            args.model,
            registry=registry,
            trust_plugins=args.trust_plugins,
            trust_endpoints=args.trust_endpoints,
        )
        check_card(text, str(args.check), model)
        print(f"{args.check}: was written for the weights of {args.model}")
        return 0
    claim_file(args.out)
    notes = "" if args.notes is None else _read(args.notes, "correct --notes")
    model = load(
        args.model,
        registry=registry,
        trust_plugins=args.trust_plugins,
        trust_endpoints=args.trust_endpoints,
    )
    write_card(args, model, registry, notes)
    return 0


def check_card(text: str, place: str, model: Any) -> None:
    """Raise `DataError` unless a card was written for a model's weights."""
    from cm3apps.evaluation.card_text import marked_weights
    from cm3apps.evaluation.made import weights_sha256

    stated, found = marked_weights(text), weights_sha256(model)
    if stated != found:
        cause = "is not a card of `cm3 eval card`"
        if stated is not None:
            cause = f"was written for the weights {stated[:12]}..., the model has {found[:12]}..."
        raise DataError(
            place, cause, "evaluate the model, and write the card again (cm3 eval card)"
        )


def write_card(args: Namespace, model: Any, registry: Any, notes: str) -> None:
    """Write the card and its sheets; the card comes last, so that an existing card is complete."""
    from cm3apps.evaluation.card_text import Stated, card_text, facts_of, read_result
    from cm3core.files import write_text

    facts = facts_of(args.model, model, registry)
    results = [read_result(folder, facts.weights_sha256) for folder in args.results]
    names = [one.protocol for one in results]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            "RESULTS",
            f"have two evaluations by {twice}",
            "name only the one that the card should show",
        )
    shown = results if args.pictures else []
    claim_file(args.out, *(_sheet_of(args.out, one) for one in shown))
    sheets = _write_sheets(args.out, results, args.pictures)
    stated = Stated(
        licence=args.licence,
        machine=args.machine,
        notes=notes,
        command=shlex.join(["cm3", *sys.argv[1:]]),
    )
    write_text(args.out, card_text(facts, results, sheets, stated))
    for file in sheets.values():
        print(args.out.with_name(file))
    print(args.out)


def _write_sheets(out: Path, results: list[Evaluated], num: int) -> dict[str, str]:
    """Protocol -> file with the first pictures of its evaluation, if it has any."""
    from cm3core.images import save_png
    from cm3run.sheets import grid

    sheets: dict[str, str] = {}
    for one in results:
        if num and (shown := one.pictures(num)):
            rows = [shown[start : start + _COLUMNS] for start in range(0, len(shown), _COLUMNS)]
            scale = max(1, 96 // max(shown[0][1].shape[:2]))
            sheet = grid(
                [[pixels for _, pixels in row] for row in rows],
                captions=[[prompt for prompt, _ in row] for row in rows],
                scale=scale,
                font_size=10,
            )
            save_png(_sheet_of(out, one), sheet)
            sheets[one.protocol] = _sheet_of(out, one).name
    return sheets


def _sheet_of(out: Path, one: Evaluated) -> Path:
    return out.with_name(f"{out.stem}-{one.protocol}.png")


def _read(path: Path, step: str) -> str:
    if not path.is_file():
        raise DataError(str(path), "there is no such file", step)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"can't be read as text ({error})", step) from error
