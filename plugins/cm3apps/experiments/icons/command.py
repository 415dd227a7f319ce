"""The command line of `cm3 experiment icons`. Light: heavy modules are imported when it runs."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from cm3apps.experiments.icons.settings import CONDITIONS, JUDGES, SPLITS, IconSettings
from cm3core.cli import (
    add_device,
    add_precision,
    real_number,
    registry_of,
    whole_number,
)

SAMPLING = ("guidance_scale", "temperature", "top_p")
EXAMPLE = """examples:
  cm3 experiment icons runs/icons -o icons-figures
  cm3 experiment icons runs/icons --num 24 --draw none retrieved-all --guidance-scale 1.5 -o trial
The same command resumes an interrupted run. Open report.md in the folder when it is done."""


def configure(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    parser.description = (
        "Measure a model of the data set `icons`: how probable the true pictures are with and without\n"
        "another version prepended; whether drawn pictures show what was asked for (R@1, R@5), in the\n"
        "set and style that were asked for; and what the image tokenizer keeps. Writes report.md,\n"
        "figures.json and sheets of all pictures."
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
        help="pictures of each split (default: %(default)s)",
    )
    for option, values, default, text in (
        ("--splits", SPLITS, SPLITS, "splits to measure"),
        ("--draw", CONDITIONS, ("none", "version"), "what is prepended when pictures are drawn"),
        ("--judges", JUDGES, JUDGES, "what R@k compares pictures by"),
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
        type=whole_number(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="of the drawing (default: %(default)s)",
    )
    parser.add_argument(
        "--guidance-scale",
        type=real_number(0, 1e6),
        metavar="X",
        help="of the sampler (default: the model's recipe)",
    )
    parser.add_argument(
        "--temperature",
        type=real_number(0, 1e6),
        metavar="X",
        help="of image codes (default: the model's recipe)",
    )
    parser.add_argument(
        "--top-p",
        type=real_number(0, 1, above=True),
        metavar="X",
        help="of image codes (default: the model's recipe)",
    )
    parser.add_argument(
        "--no-tokenizer", action="store_true", help="don't measure the image tokenizer"
    )
    add_device(parser, "where the model runs")
    add_precision(parser)
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
        default=Path("cm3-icons"),
        metavar="FOLDER",
        help="folder of all results (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the experiment; return the exit code."""
    from cm3apps.experiments.icons.experiment import IconExperiment
    from cm3core.model import load

    def each_once(values: list[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(values))

    settings = IconSettings(
        num=args.num,
        splits=each_once(args.splits),
        drawn=each_once(args.draw),
        judges=each_once(args.judges),
        seed=args.seed,
        sampling=_sampling(args),
        tokenizer=not args.no_tokenizer,
    )
    model = load(
        args.model,
        registry=registry_of(args),
        device=args.device,
        num_threads=args.threads,
        precision=args.precision,
        trust_plugins=args.trust_plugins,
    )
    try:
        report = IconExperiment(model, args.out, settings, _typed(args)).run()
    except KeyboardInterrupt:
        print(f"interrupted; resume with: {_typed(args)}", file=sys.stderr)
        return 130
    print(f"\ndone: open {report}")
    return 0


def _sampling(args: Namespace) -> dict[str, Any]:
    """The sampler's keys that were given."""
    return {key: getattr(args, key) for key in SAMPLING if getattr(args, key) is not None}


def _typed(args: Namespace) -> str:
    """The whole command, so that readers of the report can repeat it."""
    words = [
        "cm3",
        *(word for path in args.plugin for word in ("--plugin", str(path))),
        "experiment",
        "icons",
        args.model,
        "--num",
        str(args.num),
        "--splits",
        *args.splits,
        "--draw",
        *args.draw,
        "--judges",
        *args.judges,
        "--seed",
        str(args.seed),
    ]
    for key, value in _sampling(args).items():
        words += [f"--{key.replace('_', '-')}", f"{value:g}"]
    words += ["--no-tokenizer"] * args.no_tokenizer
    if args.threads is not None:
        words += ["--threads", str(args.threads)]
    if args.device is not None:
        words += ["--device", args.device]
    if args.precision != "auto":
        words += ["--precision", args.precision]
    for trusted in args.trust_plugins:
        words += ["--trust-plugin", trusted]
    return shlex.join([*words, "-o", str(args.out)])
