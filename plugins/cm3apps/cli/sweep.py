"""`cm3 sweep`: train and evaluate every cell of a grid of recipes, and compare them."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import (
    DEVICE,
    INPUT,
    OUTPUT,
    RESULTS,
    add_device,
    add_overrides,
    add_trust,
    grouped,
    registry_of,
    whole_number,
)
from cm3core.errors import CM3Error, MissingPackageError

if TYPE_CHECKING:
    from cm3apps.sweep.block import SweepBlock
    from cm3core.plugins.registry import Registry

HELP = "train and evaluate every cell of a grid of recipes, and compare them by paired tests"
EXAMPLE = """  cm3 sweep tiny retriever=none,bm25 train.steps=200 --seeds 3
  cm3 sweep ./mine.yaml train.learning_rate=1e-3,2e-3 decoder.num_layers=4,8 -o sweeps/size
  cm3 sweep tiny sampler.guidance_scale=1,3 sampler=cfg      # one training, as training uses no sampler
  cm3 sweep bundled:emoji64 sampler=cfg,cd_k                 # of a trained model: nothing is trained
  cm3 sweep claims/documents                                 # a recipe that says how it is swept
Commas separate values, except within brackets, braces and quotation marks. The same command resumes; finished cells are
never trained again, and more values or seeds may be added."""
#: What `cm3 sweep PROMPT --vary` was, and is now.
_MOVED = "--vary"


def configure(parser: ArgumentParser) -> None:
    """Add the recipe, what is measured, and the processes."""
    grouped(parser, INPUT).add_argument(
        "recipe",
        help="a shipped recipe's name, or a path to a YAML file, whose block `sweep` may say what follows; or a trained model, "
        "of which nothing is trained",
    )
    grouped(parser, INPUT).add_argument(
        "--model",
        metavar="MODEL",
        help="vary what the recipe says, but of this trained model: a run's folder, PLUGIN:NAME or hf://USER/NAME; nothing is "
        "trained",
    )
    grouped(parser, INPUT).add_argument(
        "--seeds",
        type=whole_number(1, 1000),
        metavar="N",
        help="trainings of each cell, with the seeds from train.seed on; the same seed means the same order of data in all "
        "cells (default: the recipe's block, else 1)",
    )
    grouped(parser, RESULTS).add_argument(
        "--protocol",
        metavar="PROTOCOL",
        help="how cells are measured: a name of `cm3 eval protocols`, or a file (default: the recipe's block, else the loss of "
        "documents that the data set holds out; and drawings of them, if cells differ only in how is drawn)",
    )
    grouped(parser, RESULTS).add_argument(
        "--num",
        type=whole_number(1, 2**20),
        metavar="N",
        help="only the protocol's first N cases (default: all; 200 of the default protocol)",
    )
    grouped(parser, RESULTS).add_argument(
        "--metric",
        action="append",
        default=[],
        dest="metrics",
        metavar="NAME",
        help="a score to compare, e.g. image_loss; fewer are corrected for fewer tests; may be given several times "
        "(default: all)",
    )
    grouped(parser, RESULTS).add_argument(
        "--data", type=Path, metavar="FOLDER", help="folder of the protocol's files (COCO)"
    )
    grouped(parser, OUTPUT).add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder of all trainings and results (default: sweeps/<recipe name>)",
    )
    grouped(parser, DEVICE).add_argument(
        "--jobs",
        type=whole_number(1, 256),
        metavar="N",
        help="trainings at a time, each in a process (default: 2 if cores and memory suffice)",
    )
    add_device(parser, "where cells are trained and evaluated")
    add_trust(parser, plugins=False)
    add_overrides(parser)
    parser.parse_known_args = _WithoutVary(parser)  # type: ignore[method-assign,assignment]  # of this parser


class _WithoutVary:
    """Answers `cm3 sweep PROMPT --vary ...`, which is now `cm3 generate PROMPT --vary ...`."""

    def __init__(self, parser: ArgumentParser) -> None:
        self._parse = parser.parse_known_args

    def __call__(
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> Any:
        given = list(args or ())
        if any(one == _MOVED or one.startswith(f"{_MOVED}=") for one in given):
            raise CM3Error(
                "cm3 sweep --vary",
                "compares settings of one trained model on a prompt, which `cm3 generate` does now",
                shlex.join(["cm3", "generate", *_as_folder(given)]),
            )
        return self._parse(given, namespace)


def _as_folder(given: Sequence[str]) -> list[str]:
    """Arguments whose picture becomes a folder.

    >>> _as_folder(["bell", "-o", "out/a.png"])
    ['bell', '-o', 'out/a']
    """
    return [
        one.removesuffix(".png") if before in ("-o", "--out") or one.startswith("--out=") else one
        for before, one in zip(["", *given], given, strict=False)
    ]


def run(args: Namespace) -> int:
    """Check everything, run all cells, and write and print the comparison."""
    from cm3apps.sweep.grid import Grid
    from cm3apps.sweep.plan import check_claim, claim_folder, claim_of, names_a_model, plan_of
    from cm3apps.sweep.protocols import check_cases, protocol_for
    from cm3apps.sweep.running import Machine, Running, check_done, check_memory
    from cm3core.files import held_folder

    registry = registry_of(args)
    block = _block(args, registry)
    grid = Grid.of([*_not_overridden(block, args.overrides), *args.overrides], block.cells)
    trained = args.model is not None or names_a_model(args.recipe)
    seeds = args.seeds or (1 if trained else block.seeds)
    plan = plan_of(
        args.model or args.recipe,
        grid,
        seeds,
        registry,
        is_model=trained,
        trust_endpoints=args.trust_endpoints,
    )
    out = args.out or Path("sweeps") / plan.runs[0].recipe.name
    protocol = protocol_for(plan, args.protocol or block.protocol, args.num or block.num, registry)
    check_cases(protocol, args.data, registry)
    claim = claim_of(plan, protocol)
    check_claim(out, claim)
    jobs = check_memory(plan, args.device, args.jobs, registry)
    busy = CM3Error(str(out), "another sweep is running in this folder", "wait for it")
    machine = Machine(args.device, args.plugin, args.trust_endpoints, args.data)
    command = _command(args, out)
    print(_announced(plan, protocol, jobs), file=sys.stderr)
    with held_folder(out, busy):
        claim_folder(out, claim, protocol)
        try:
            failed = Running(out, plan, machine, jobs).run()
        except KeyboardInterrupt:
            print(f"interrupted; to continue: {command}", file=sys.stderr)
            return 130
        check_done(failed, len(list(plan.trainings())))
        _report(out, plan, args.metrics or block.metrics, command)
    return 0


def _block(args: Namespace, registry: Registry) -> SweepBlock:
    """The block of the recipe's file; a file that it names is relative to the recipe's."""
    from dataclasses import replace

    from cm3apps.sweep.block import SweepBlock, block_of
    from cm3apps.sweep.plan import names_a_model
    from cm3core.plugins.registry import moved_to
    from cm3core.recipe import library

    if names_a_model(args.recipe):
        return SweepBlock()
    path = library.find(args.recipe, distribution=moved_to(registry.plugins, "recipe", args.recipe))
    block = block_of(path)
    if block.protocol is not None and block.protocol.endswith(".json"):
        block = replace(block, protocol=str(path.parent / block.protocol))
    return block


def _not_overridden(block: SweepBlock, overrides: Sequence[str]) -> list[str]:
    """The block's overrides without those of keys that the command gives."""
    given = {one.partition("=")[0] for one in overrides}
    return [one for one in block.grid if one.partition("=")[0] not in given]


def _announced(plan: Any, protocol: Any, jobs: int) -> str:
    """What is going to be done."""
    cells, runs = len(plan.cells), len(plan.runs)
    trained = 0 if plan.model is not None else len(list(plan.trainings()))
    seeds = f" with {len(plan.seeds)} seeds" if len(plan.seeds) > 1 else ""
    shared = "; cells that differ only in generation share one" if 0 < trained < runs else ""
    at_once = f", {jobs} at a time" if jobs > 1 else ""
    return (
        f"{cells} cell{'s' * (cells > 1)}{seeds}: {trained} training{'s' * (trained != 1)}{shared}{at_once}; measured by "
        f"{protocol.name} ({protocol.title})"
    )


def _report(out: Path, plan: Any, metrics: Sequence[str], command: str) -> None:
    from cm3apps.sweep.report import PLOT, TABLE, markdown, shown, tables, write_plot
    from cm3core.files import write_text

    found = tables(out, plan, metrics)
    write_text(out / TABLE, markdown(found, plan, command))
    print("\n".join(shown(found, plan)))
    print(out / TABLE)
    try:
        write_plot(out / PLOT, found)
        print(out / PLOT)
    except MissingPackageError as error:
        print(
            f"note: {error.place} is not drawn: {error.cause}; {error.next_step}", file=sys.stderr
        )


def _command(args: Namespace, out: Path) -> str:
    """The complete command."""
    plugins = [word for path in args.plugin for word in ("--plugin", str(path))]
    options = {
        "--model": args.model,
        "--seeds": args.seeds,
        "--protocol": args.protocol,
        "--num": args.num,
        "--data": args.data,
        "--device": args.device,
        "--jobs": args.jobs,
    }
    own = [
        word for key, value in options.items() if value is not None for word in (key, str(value))
    ]
    own += [word for name in args.metrics for word in ("--metric", name)]
    own += [word for name in args.trust_endpoints for word in ("--trust-endpoints", name)]
    return shlex.join(
        ["cm3", *plugins, "sweep", args.recipe, *args.overrides, *own, "-o", str(out)]
    )
