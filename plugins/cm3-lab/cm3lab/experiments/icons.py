"""The command line of `cm3 experiment icons`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from typing import Any

from cm3apps.cli import real_number
from cm3apps.evaluation.icons.settings import CONDITIONS, JUDGES, SPLITS, IconSettings
from cm3lab.experiments.options import add_model_options, each_once, loaded, typed

SAMPLING = ("guidance_scale", "temperature", "top_p")
EXAMPLE = """examples:
  cm3 experiment icons runs/icons -o icons-figures
  cm3 experiment icons runs/icons --num 24 --draw none retrieved-all --guidance-scale 1.5 -o trial
The same command resumes an interrupted run. Open report.md in the folder when it is done."""


def configure(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    parser.description = (
        "Measure a model of the data set `icons`: the probability of the true pictures with and without another\n"
        "version prepended; whether generated pictures show the requested object (R@1, R@5) in the requested\n"
        "set and style; and what the image tokenizer preserves. Writes report.md,\n"
        "figures.json and sheets of all pictures."
    )
    add_model_options(
        parser,
        {
            "--splits": (SPLITS, SPLITS, "splits to measure"),
            "--draw": (
                CONDITIONS,
                ("none", "version"),
                "what to prepend when generating pictures",
            ),
            "--judges": (JUDGES, JUDGES, "features used by R@k to compare pictures"),
        },
        num="pictures per split",
        out="cm3-icons",
    )
    parser.add_argument(
        "--guidance-scale",
        type=real_number(0, 1e6),
        metavar="X",
        help="guidance scale of the sampler (default: the model's recipe)",
    )
    parser.add_argument(
        "--temperature",
        type=real_number(0, 1e6),
        metavar="X",
        help="setting for image codes (default: the model's recipe)",
    )
    parser.add_argument(
        "--top-p",
        type=real_number(0, 1, above=True),
        metavar="X",
        help="setting for image codes (default: the model's recipe)",
    )
    parser.add_argument("--no-tokenizer", action="store_true", help="skip the image tokenizer")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the experiment; return the exit code."""
    from cm3apps.evaluation.icons.experiment import IconExperiment

    settings = IconSettings(
        num=args.num,
        splits=each_once(args.splits),
        drawn=each_once(args.draw),
        judges=each_once(args.judges),
        seed=args.seed,
        sampling=_sampling(args),
        tokenizer=not args.no_tokenizer,
    )
    model = loaded(args)
    try:
        report = IconExperiment(model, args.out, settings, _typed(args)).run()
    except KeyboardInterrupt:
        print(f"interrupted; resume with: {_typed(args)}", file=sys.stderr)
        return 130
    print(f"\ndone: open {report}")
    return 0


def _sampling(args: Namespace) -> dict[str, Any]:
    """Return the sampler keys that were set."""
    return {key: getattr(args, key) for key in SAMPLING if getattr(args, key) is not None}


def _typed(args: Namespace) -> str:
    """Return the complete command, so that readers of the report can repeat it."""
    more = [
        word
        for key, value in _sampling(args).items()
        for word in (f"--{key.replace('_', '-')}", f"{value:g}")
    ]
    more += ["--no-tokenizer"] * args.no_tokenizer
    choices = {"--splits": args.splits, "--draw": args.draw, "--judges": args.judges}
    return shlex.join(typed(args, "icons", choices, more))
