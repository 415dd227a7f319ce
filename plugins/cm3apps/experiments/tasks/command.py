"""The command line of `cm3 experiment tasks`. Light: heavy modules are imported when it runs."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from cm3apps.experiments.tasks.settings import SPLITS, TASKS, TaskSettings
from cm3core.cli import registry_of, whole_number

EXAMPLE = """examples:
  cm3 experiment tasks runs/icons-tuned -o tasks
  cm3 experiment tasks runs/icons-tuned --tasks edit caption --splits unseen --num 24 -o trial
The same command resumes an interrupted run. Open report.md in the folder when it is done."""


def configure(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    parser.description = (
        "Measure a model of icons that was tuned on tasks, on icons that are held out: edits, drawing\n"
        "after edges and at boxes, finding, answers, captions, each beside what a reader would ask for.\n"
        "Writes report.md, figures.json and sheets of all pictures."
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's folder, a checkpoint, or PLUGIN:NAME of a model shipped by a plugin",
    )
    parser.add_argument(
        "--num",
        type=whole_number(1, 2**20),
        default=48,
        metavar="N",
        help="records of each task and split (default: %(default)s)",
    )
    for option, values, default, text in (
        ("--splits", SPLITS, ("comp", "unseen"), "splits to measure"),
        ("--tasks", TASKS, TASKS, "tasks to measure"),
    ):
        parser.add_argument(
            option,
            nargs="+",
            choices=values,
            default=list(default),
            metavar=option.strip("-").upper().removesuffix("S"),
            help=f"{text}: {', '.join(values)} (default: {' '.join(default)})",
        )
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**62),
        default=0,
        metavar="N",
        help="of the drawing (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=whole_number(1, 1024),
        metavar="N",
        help="CPU threads of the decoder (default: 1 for a small one, else the number of cores)",
    )
    parser.add_argument(
        "--trust-plugin",
        action="append",
        default=[],
        dest="trust_plugins",
        metavar="SHA256",
        help="run the plugin file in the checkpoint that has this hash; read it first",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("cm3-tasks"),
        metavar="FOLDER",
        help="folder of all results (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the experiment; return the exit code."""
    from cm3apps.experiments.tasks.experiment import TaskExperiment
    from cm3core.model import load

    settings = TaskSettings(
        num=args.num,
        splits=tuple(dict.fromkeys(args.splits)),
        tasks=tuple(dict.fromkeys(args.tasks)),
        seed=args.seed,
    )
    model = load(
        args.model,
        registry=registry_of(args),
        num_threads=args.threads,
        trust_plugins=args.trust_plugins,
    )
    try:
        report = TaskExperiment(model, args.out, settings, _typed(args)).run()
    except KeyboardInterrupt:
        print(f"interrupted; resume with: {_typed(args)}", file=sys.stderr)
        return 130
    print(f"\ndone: open {report}")
    return 0


def _typed(args: Namespace) -> str:
    """The whole command, so that readers of the report can repeat it."""
    words = [
        "cm3",
        *(word for path in args.plugin for word in ("--plugin", str(path))),
        *("experiment", "tasks", args.model, "--num", str(args.num)),
        *("--splits", *args.splits),
        *("--tasks", *args.tasks),
        *("--seed", str(args.seed)),
    ]
    if args.threads is not None:
        words += ["--threads", str(args.threads)]
    for trusted in args.trust_plugins:
        words += ["--trust-plugin", trusted]
    return shlex.join([*words, "-o", str(args.out)])
