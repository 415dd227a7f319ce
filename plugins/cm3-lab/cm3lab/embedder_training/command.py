"""`cm3 embedder train | eval`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

import json
import shlex
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import TYPE_CHECKING

from cm3apps.cli import (
    MAX_MINUTES,
    add_device,
    add_overrides,
    real_number,
    registry_of,
    whole_number,
)
from cm3core.errors import CM3Error, close_match
from cm3core.outputs import claim_file

if TYPE_CHECKING:
    from cm3core.interfaces.embedder import Embedder

EXAMPLE = """examples:
  cm3 embedder eval light_encoder
  cm3 embedder eval light_encoder --bm25
  cm3 embedder eval clip embedder.path=ViT-B-32.pt
  cm3 embedder train bi_encoder -o runs/bi_encoder.safetensors
  cm3 embedder eval bi_encoder embedder.path=runs/bi_encoder.safetensors"""
TRAINABLE = ("bi_encoder", "light_encoder", "looks")
CORPORA = ("emoji", "icons")
TRAINED_ON_ICONS = ("light_encoder",)


def configure(parser: ArgumentParser) -> None:
    """The actions `train` and `eval`."""
    parser.description = "Train a bundled embedder, or evaluate any embedder."
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    line = (
        "train light_encoder on the bundled icons, or looks, with which it compares pictures with pictures, or "
        "bi_encoder on the bundled emoji; bi_encoder's image features are cached and reused by later runs"
    )
    train = actions.add_parser("train", help=line, description=line)
    train.add_argument("name", help=f"{', '.join(TRAINABLE[:-1])} or {TRAINABLE[-1]}")
    train.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FILE.safetensors",
        help="file of weights to write",
    )
    _add_length(train)
    train.add_argument(
        "--seed", type=whole_number(0, 2**63 - 1), default=0, help="default: %(default)s"
    )
    train.add_argument("--quiet", action="store_true", help="no progress bars")
    add_device(train, "device for training")
    train.set_defaults(run=_train)
    line = "how well texts and pictures of a bundled corpus find each other, with held-out splits listed separately"
    evaluate = actions.add_parser("eval", help=line, description=line)
    evaluate.add_argument("name", help="the embedder's recipe name")
    evaluate.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE.json",
        help="also write the figures to this JSON file",
    )
    evaluate.add_argument(
        "--corpus",
        choices=CORPORA,
        help="corpus to evaluate on (default: the training corpus of the bundled weights: icons for "
        "light_encoder, emoji for others)",
    )
    evaluate.add_argument(
        "--bm25",
        action="store_true",
        help="with icons: also evaluate the retriever bm25, which needs no embedder",
    )
    evaluate.add_argument("--quiet", action="store_true", help="no progress bars")
    add_device(evaluate, "device for the embedder")
    add_overrides(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _add_length(train: ArgumentParser) -> None:
    length = train.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes",
        type=real_number(0, MAX_MINUTES, above=True),
        metavar="M",
        help="minutes to train, after the pictures are prepared, instead of so many steps",
    )
    length.add_argument(
        "--steps",
        type=whole_number(1, 2**31 - 1),
        help="optimiser steps (default: as for the shipped weights)",
    )


def _train(args: Namespace) -> int:
    if args.name not in TRAINABLE:
        raise CM3Error(
            f"embedder {args.name}",
            "can't be trained with this command",
            close_match(args.name, TRAINABLE),
        )
    if args.name == "looks" and (args.steps, args.minutes) != (None, None):
        given = "--minutes" if args.steps is None else "--steps"
        raise CM3Error(given, "looks is fitted in closed form, without steps", "leave it out")
    claim_file(args.out)
    options = {"steps": args.steps, "minutes": args.minutes, "seed": args.seed, "quiet": args.quiet}
    if args.name == "light_encoder":
        from cm3lab.embedder_training import light_encoder
        from cm3plugins.datasets.icons.corpus import IconCorpus

        light_encoder.train_on_corpus(IconCorpus(), args.out, **options)
    elif args.name == "looks":
        from cm3lab.embedder_training.light_encoder import fit_looks
        from cm3plugins.datasets.icons.corpus import IconCorpus

        fit_looks(IconCorpus(), args.out, quiet=args.quiet)
    else:
        from cm3lab.embedder_training import bi_encoder
        from cm3plugins.datasets.emoji.corpus import EmojiCorpus

        bi_encoder.train_on_corpus(EmojiCorpus(), args.out, **options)
    name, key = ("light_encoder", "looks") if args.name == "looks" else (args.name, "path")
    trained = shlex.quote(f"embedder.{key}={args.out}")
    print(f"{args.out}\nevaluate it: cm3 embedder eval {name} {trained}")
    print(f"use it: cm3 train quickstart embedder={name} {trained}")
    return 0


def _evaluate(args: Namespace) -> int:
    from cm3apps.cli._dataset import composed
    from cm3core.files import write_text
    from cm3run.devices import choose_device

    corpus = args.corpus or ("icons" if args.name in TRAINED_ON_ICONS else "emoji")
    if args.bm25 and corpus != "icons":
        raise CM3Error("--bm25", f"needs the corpus icons, not {corpus}", "add --corpus icons")
    if args.out is not None:
        claim_file(args.out)
    recipe = composed({"embedder": {"name": args.name}}, args.overrides, registry_of(args))
    assert recipe.embedder is not None
    recipe.embedder.check()
    embedder = recipe.embedder.build()
    if args.device is not None:
        embedder.move_to(choose_device(args.device))
    what = getattr(embedder, "summary", type(embedder).__name__)
    print(f"{args.name}: {what}, {embedder.dimension} dimensions, {embedder.fingerprint}")
    measured = (_on_icons if corpus == "icons" else _on_emoji)(embedder, args)
    width = max(map(len, measured))
    print(f"\n{'query -> searched':<{width}}   R@1    R@5")
    for name, values in measured.items():
        print(f"{name:<{width}}  {values['R@1']:.3f}  {values['R@5']:.3f}")
    if args.out is not None:
        write_text(args.out, json.dumps(measured, indent=1) + "\n")
    return 0


def _on_emoji(embedder: Embedder, args: Namespace) -> dict[str, dict[str, float]]:
    from cm3lab.embedder_training.figures import figures
    from cm3plugins.datasets.emoji.corpus import EmojiCorpus

    corpus = EmojiCorpus()
    return figures(embedder, corpus.entries, corpus.render_all(64), quiet=args.quiet)


def _on_icons(embedder: Embedder, args: Namespace) -> dict[str, dict[str, float]]:
    from cm3lab.embedder_training.figures import Ground, bm25_figures, icon_figures
    from cm3plugins.datasets.icons.captions import caption
    from cm3plugins.datasets.icons.corpus import IconCorpus

    corpus = IconCorpus()
    captions = [caption(entry) for entry in corpus.entries]
    ground = Ground(corpus.entries, captions, corpus.pictures(64).__getitem__)
    words_alone = bm25_figures(ground, quiet=args.quiet) if args.bm25 else {}
    return icon_figures(embedder, ground, quiet=args.quiet) | words_alone
