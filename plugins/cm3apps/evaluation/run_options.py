"""The options of `cm3 eval run`, which the command reads and a card writes. Light."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cm3apps.cli import (
    DEVICE,
    INPUT,
    OUTPUT,
    RESULTS,
    RETRIEVAL,
    SAMPLING,
    add_device,
    add_precision,
    add_trust,
    grouped,
    real_number,
    whole_number,
)

#: Title of a group of options in the help.
SCORES = "scores"


#: What `--compare` can change, and the type of its values.
COMPARED: Mapping[str, Callable[[str], Any]] = {
    "retriever": str,
    "num_retrieved": whole_number(0, 2**20),
    "num_candidates": whole_number(1, 2**20),
    "reranker": str,
    "sampler": str,
    "guidance_scale": real_number(0, 1e6),
    "temperature": real_number(0, 1e6),
}


def compared(text: str) -> tuple[str, list[Any]]:
    """KEY=A,B,... as the key and its values.

    >>> compared("num_retrieved=0,2")
    ('num_retrieved', [0, 2])
    """
    key, _, values = text.partition("=")
    if key not in COMPARED:
        raise ArgumentTypeError(
            f"{text!r} is not KEY=A,B,... with one of the keys {', '.join(COMPARED)}"
        )
    given = [one.strip() for one in values.split(",")]
    if len(given) < 2 or len(set(given)) < len(given) or not all(given):
        raise ArgumentTypeError(f"{text!r} does not name two or more different values of {key}")
    return key, [COMPARED[key](one) for one in given]


def run_options(parser: ArgumentParser) -> None:
    """Add the arguments of `cm3 eval run`."""
    _what_to_score(parser)
    _how_to_draw(parser)
    _how_to_run(parser)


def _what_to_score(parser: ArgumentParser) -> None:
    """Add the model or the pictures, and the files for scores."""
    grouped(parser, INPUT).add_argument(
        "names",
        nargs="+",
        metavar="MODEL PROTOCOL",
        help="a run's folder, a checkpoint, PLUGIN:NAME or hf://USER/NAME; then a name of `cm3 eval protocols`, or a file, "
        "or captioned pictures, of which those that are held out are drawn: a folder (also of tars), or a recipe's file",
    )
    grouped(parser, RESULTS).add_argument(
        "--num",
        type=whole_number(1, 2**20),
        metavar="N",
        help="with a folder or recipe: pictures to draw at most (default: 100); with a protocol: only its first N samples, as "
        "a trial, under another name",
    )
    grouped(parser, INPUT).add_argument(
        "--from",
        type=Path,
        dest="pictures",
        metavar="FOLDER",
        help="score these pictures of any model: 000000.png, ..., numbered as in `cm3 eval "
        "prompts`",
    )
    grouped(parser, INPUT).add_argument(
        "--label",
        metavar="TEXT",
        help="name of the model in tables (default: its name, or the folder's)",
    )
    grouped(parser, INPUT).add_argument(
        "--data", type=Path, metavar="FOLDER", help="folder of the protocol's files (COCO)"
    )
    grouped(parser, SCORES).add_argument(
        "--compare",
        type=compared,
        metavar="KEY=A,B,...",
        help="evaluate the model with each of these values and print the paired differences from the first: "
        f"{', '.join(COMPARED)}; e.g. retriever=none,bm25,dense",
    )
    grouped(parser, SCORES).add_argument(
        "--inception",
        type=Path,
        metavar="FILE",
        help="the Inception network of FID: pt_inception-2015-12-05-6726825d.pth",
    )
    grouped(parser, SCORES).add_argument(
        "--inception-sha256",
        metavar="SHA256",
        help="accept another file of Inception weights; its scores have another hash",
    )
    grouped(parser, SCORES).add_argument(
        "--clip", type=Path, metavar="FILE", help="CLIP's weights, for CLIP score and R-precision"
    )
    grouped(parser, SCORES).add_argument(
        "--skip-missing",
        action="store_true",
        help="leave out scores whose weights are not given or whose packages are not installed",
    )


def _how_to_draw(parser: ArgumentParser) -> None:
    """Add the options that replace the recipe's retrieval, candidates and sampler."""
    grouped(parser, RETRIEVAL).add_argument(
        "--num-retrieved",
        type=whole_number(0, 2**20),
        metavar="K",
        help="documents to retrieve and prepend (default: the model's recipe)",
    )
    grouped(parser, RETRIEVAL).add_argument(
        "--bank", metavar="FOLDER", help="retrieve from this memory bank"
    )
    grouped(parser, RETRIEVAL).add_argument(
        "--retriever",
        metavar="NAME",
        help="use another retriever (cm3 kinds retriever), e.g. bm25, or none",
    )
    grouped(parser, RETRIEVAL).add_argument(
        "--memory-split",
        metavar="SPLIT",
        help="retrieve from this split of the model's data set, e.g. train, which contains no "
        "reference pictures",
    )
    grouped(parser, RESULTS).add_argument(
        "--candidates",
        type=whole_number(1, 2**20),
        dest="num_candidates",
        metavar="K",
        help="generate K candidates per sample and keep the best (default: the model's recipe)",
    )
    grouped(parser, RESULTS).add_argument(
        "--rerank", metavar="NAME", help="reranker that chooses the best"
    )
    grouped(parser, SAMPLING).add_argument("--sampler", metavar="NAME", help="use another sampler")
    grouped(parser, SAMPLING).add_argument(
        "--guidance-scale",
        type=real_number(0, 1e6),
        metavar="X",
        help="of the sampler (default: the model's recipe)",
    )
    grouped(parser, SAMPLING).add_argument(
        "--temperature",
        type=real_number(0, 1e6),
        metavar="X",
        help="of the sampler (default: the model's recipe)",
    )


def _how_to_run(parser: ArgumentParser) -> None:
    """Add the options for the machine, trust, permitted leaks, and the output."""
    add_device(parser, "where the model runs")
    add_precision(parser)
    grouped(parser, DEVICE).add_argument(
        "--threads", type=whole_number(1, 4096), metavar="N", help="CPU threads of the decoder"
    )
    add_trust(parser)
    grouped(parser, SCORES).add_argument(
        "--allow-leaks",
        action="store_true",
        help="score even if the memory contains reference pictures",
    )
    grouped(parser, SCORES).add_argument(
        "--allow-reranker",
        action="store_true",
        help="score even if the metric's network also chose the pictures",
    )
    grouped(parser, OUTPUT).add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder of all results (default: eval/PROTOCOL-MODEL)",
    )
