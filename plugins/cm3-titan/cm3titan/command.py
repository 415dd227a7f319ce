"""The command line of `cm3 titan`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli import (
    add_device,
    add_length,
    add_overrides,
    add_training_precision,
    registry_of,
    training_length,
    training_precision,
)
from cm3core._version import __version__
from cm3core.errors import MissingPackageError

if TYPE_CHECKING:
    from cm3core.recipe import Recipe
    from cm3run.processes import Processes

DESCRIPTION = (
    "Train a recipe's decoder cm3leon with torchtitan, which divides it among processes by tensors, layers\n"
    "and tokens as well as by rows and weights. Weights, data, optimiser and schedule are those of cm3 train.\n"
    "The same command resumes from the newest of torchtitan's checkpoints, also with another division. At the\n"
    "end, the folder has a model that every command opens."
)
EXAMPLES = """examples:
  torchrun --nproc-per-node 8 --no-python cm3 titan cm3leon-7b dataset=tokens dataset.path=DATA -o runs/7b \\
      --titan parallelism.tensor_parallel_degree=2
  cm3 titan tiny -o runs/titan --device cpu
  cm3 titan tiny -o runs/titan --export"""


def configure(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("recipe", help="a shipped recipe's name, or a path to a YAML file")
    parser.add_argument(
        "-o", "--out", type=Path, help="the run's folder (default: runs/<recipe name>)"
    )
    parser.add_argument(
        "--titan",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="a setting of torchtitan, such as parallelism.pipeline_parallel_degree=2; repeatable",
    )
    parser.add_argument(
        "--export",
        action="store_true",
        help="only write the newest of torchtitan's checkpoints as a model",
    )
    parser.add_argument(
        "--trust-checkpoints",
        action="store_true",
        help="read torchtitan's checkpoints in the folder although another user, or another machine, made them",
    )
    add_length(parser)
    add_device(parser, "where it is trained")
    add_training_precision(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    add_overrides(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Train in all processes, and print the checkpoint's path."""
    from cm3run.processes import started_processes

    args.overrides += [*training_length(args), *training_precision(args)]
    same = {"package version": __version__, "torchtitan version": _installed()}
    with started_processes(args.device, same=same) as (processes, device):
        with processes.only_first_talks():
            checkpoint = _run(args, processes, device)
        if processes.is_first:
            print(checkpoint)
    return 0


def _installed() -> str:
    try:
        return version("torchtitan")
    except PackageNotFoundError as error:
        raise MissingPackageError(
            "cm3 titan",
            "torchtitan is not installed",
            "run pip install 'cm3titan[torchtitan]'; in a checkout: pip install './plugins/cm3-titan[torchtitan]'",
        ) from error


def _run(args: Namespace, processes: Processes, device: str | None) -> Path:
    from cm3core.recipe import compose
    from cm3run.devices import choose_device
    from cm3titan.run import Job, export_only, train
    from cm3titan.settings import Setting

    settings = [Setting.read(one) for one in args.titan]
    registry = registry_of(args)
    recipe: Recipe = compose(args.recipe, args.overrides, registry=registry)
    recipe.check()
    out = args.out if args.out is not None else Path("runs") / recipe.name
    job = Job(
        recipe,
        registry,
        out,
        processes,
        choose_device(device),
        settings=settings,
        progress=not args.quiet,
        trusted=args.trust_checkpoints,
    )
    return export_only(job) if args.export else train(job)
