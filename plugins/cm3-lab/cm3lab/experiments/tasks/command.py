"""The command line of `cm3 experiment tasks`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter

from cm3lab.experiments.options import add_model_options, each_once, loaded, typed
from cm3lab.experiments.tasks import SPLITS, TASKS, TaskSettings

EXAMPLE = """examples:
  cm3 experiment tasks runs/icons-tuned -o tasks
  cm3 experiment tasks runs/icons-tuned --tasks edit caption --splits unseen --num 24 -o trial
The same command resumes an interrupted run. Open report.md in the folder when it is done."""


def configure(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    parser.description = (
        "Measure an icon model tuned on tasks, on held-out icons: edits, generation from edges and boxes,\n"
        "grounding, answers, captions, enlarging, each with baselines.\n"
        "Writes report.md, figures.json and sheets of all pictures."
    )
    add_model_options(
        parser,
        {
            "--splits": (SPLITS, ("comp", "unseen"), "splits to measure"),
            "--tasks": (TASKS, (), "tasks to measure; default: all that the model was tuned for"),
        },
        num="records per task and split",
        out="cm3-tasks",
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the experiment; return the exit code."""
    from cm3lab.experiments.tasks.experiment import TaskExperiment, tasks_of

    model = loaded(args)
    settings = TaskSettings(
        num=args.num,
        splits=each_once(args.splits),
        tasks=each_once(args.tasks) or tasks_of(model),
        seed=args.seed,
    )
    try:
        report = TaskExperiment(model, args.out, settings, _typed(args)).run()
    except KeyboardInterrupt:
        print(f"interrupted; resume with: {_typed(args)}", file=sys.stderr)
        return 130
    print(f"\ndone: open {report}")
    return 0


def _typed(args: Namespace) -> str:
    return shlex.join(typed(args, "tasks", {"--splits": args.splits, "--tasks": args.tasks}))
