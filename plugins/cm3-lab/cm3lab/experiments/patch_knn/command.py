"""The command line of `cm3 experiment patch-knn`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cm3apps.cli import (
    add_device,
    add_precision,
    add_trust,
    real_number,
    registry_of,
    whole_number,
)
from cm3core.errors import CM3Error
from cm3core.files import write_text

PLACE = "cm3 experiment patch-knn"
#: Keys of the sampler that are options, and their parsers.
KEYS: dict[str, Callable[[str], Any]] = {
    "neighbours": whole_number(1, 2**31 - 1),
    "scale": real_number(0, 1e9),
    "combine": str,
    "bank": str,
    "max_places": whole_number(1, 2**63 - 1),
}
EXAMPLE = """examples:
  cm3 experiment patch-knn
  cm3 experiment patch-knn --model runs/icons --splits unseen comp --documents 128 -o patch-knn.json
  cm3 experiment patch-knn --shares 0.2 --combine nearest --neighbours 2048"""


def configure(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    parser.description = (
        "Nats per image token on a model's held-out pictures, with its probabilities mixed with those of\n"
        "similar places in the memory's pictures (sampler patch_knn) and, as a control, with the\n"
        "frequencies of codes in the memory. Nothing is trained."
    )
    parser.add_argument(
        "--model", default="bundled:emoji64", help="model to measure (default: %(default)s)"
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["comp"],
        metavar="SPLIT",
        help="held-out splits of the model's data set (default: comp)",
    )
    parser.add_argument(
        "--documents",
        type=whole_number(2, 2**31 - 1),
        default=150,
        metavar="N",
        help="held-out pictures per split (default: %(default)s)",
    )
    parser.add_argument(
        "--shares",
        nargs="+",
        type=real_number(0, 1),
        default=[0.1, 0.2, 0.3, 0.4],
        metavar="SHARE",
        help="weights of the memory's probabilities (default: 0.1 0.2 0.3 0.4)",
    )
    parser.add_argument(
        "--retrieved",
        nargs="+",
        type=whole_number(0, 16),
        default=[0, 1],
        metavar="N",
        help="numbers of prepended documents (default: 0 1)",
    )
    for name, kind in KEYS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            metavar="FOLDER" if name == "bank" else name.upper(),
            help=f"the sampler's key {name!r}",
        )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="also write the figures to this JSON file"
    )
    add_device(parser, "device for the model")
    add_precision(parser)
    add_trust(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Measure and print a table; return the exit code."""
    import cm3core
    from cm3core.config.overrides import with_options
    from cm3core.outputs import claim_file
    from cm3lab.experiments.patch_knn.measuring import HeldOut
    from cm3plugins.samplers.patch_knn import PatchKNNSamplerConfig
    from cm3plugins.samplers.patch_knn.sampler import PatchKNNSampler

    keys = {name: getattr(args, name) for name in KEYS}
    given = {name: value for name, value in keys.items() if value is not None}
    for share in args.shares:
        with_options(PatchKNNSamplerConfig(), {"share": share})
    if args.out is not None:
        claim_file(args.out)
    config = with_options(PatchKNNSamplerConfig(share=0.2), given)
    model = cm3core.load(
        args.model,
        registry=registry_of(args),
        device=args.device,
        precision=args.precision,
        trust_plugins=args.trust_plugins,
        trust_endpoints=args.trust_endpoints,
    )
    parts = model.components
    sampler = config.build_for(parts.parts)
    assert isinstance(sampler, PatchKNNSampler)
    if parts.retriever is None and any(args.retrieved):
        raise CM3Error(
            PLACE, "the model has no retriever for --retrieved", "measure with --retrieved 0"
        )
    found = {}
    print(f"| split | documents | mixed with | share | nats | difference |\n| {'--- | ' * 6}")
    for split in args.splits:
        held = HeldOut(model, parts.split(split), args.documents)
        if len(held.documents) < 2:
            raise CM3Error(
                PLACE,
                f"split {split!r} has fewer than two pictures",
                "choose another with --splits",
            )
        found[split] = held.figures(sampler, args.shares, args.retrieved)
        for one in found[split]:
            print(
                f"| {split} ({len(held.documents)}) | {one.documents} | {one.mixed_with or '-'} | "
                f"{one.share:g} | {one.nats:.3f} | {one.difference:+.3f} ± {one.error:.3f} |"
            )
    if args.out is not None:
        figures = {split: [asdict(one) for one in own] for split, own in found.items()}
        settings = {name: getattr(config, name) for name in KEYS}
        facts = {"model": args.model, **settings, "distinct_places": len(sampler.database)}
        write_text(args.out, json.dumps({**facts, "figures": figures}, indent=1) + "\n")
    return 0
