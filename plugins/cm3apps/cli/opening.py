"""The options of commands that open a model, and opening it; also for commands of plugins."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cm3apps.cli import (
    DEVICE,
    MAX_SEED,
    MAX_THREADS,
    MODEL,
    RESULTS,
    RETRIEVAL,
    SAMPLING,
    add_device,
    add_parallel,
    add_precision,
    add_trust,
    grouped,
    registry_of,
    whole_number,
)
from cm3core.errors import GenerationError
from cm3run import DEFAULT_MODEL

if TYPE_CHECKING:
    from cm3run.generation.engine import Progress
    from cm3run.model.model import Model

#: Sections that `--set` changes; the last belongs to `cm3 generate --condition`.
SECTIONS = ("sampler", "retriever", "embedder", "condition")


def add_model_options(parser: ArgumentParser) -> None:
    """Add the options of every command that uses a model."""
    add_loading_options(parser)
    grouped(parser, RETRIEVAL).add_argument(
        "--num-retrieved",
        type=whole_number(0, 2**20),
        metavar="K",
        help="documents to retrieve and prepend; 0: none (default: the model's recipe)",
    )
    add_memory_options(parser)
    grouped(parser, RETRIEVAL).add_argument(
        "--context",
        nargs=2,
        action="append",
        default=[],
        metavar=("FILE", "TEXT"),
        help="prepend this picture and its text; may be given several times",
    )
    grouped(parser, RESULTS).add_argument(
        "--candidates",
        type=whole_number(1, 2**20),
        dest="num_candidates",
        metavar="K",
        help="generate K candidates per result and keep the best (default: the model's recipe; the paper: 8)",
    )
    grouped(parser, RESULTS).add_argument(
        "--rerank",
        metavar="NAME",
        help="reranker that chooses the best: clip, likelihood, pmi or a plugin's "
        "(default: the recipe's)",
    )
    grouped(parser, RETRIEVAL).add_argument(
        "--show-retrieved",
        action="store_true",
        help="list the prepended documents, and show them in retrieved.png",
    )


def add_memory_options(parser: ArgumentParser) -> None:
    """Add the options that choose the retriever and its documents."""
    grouped(parser, RETRIEVAL).add_argument(
        "--bank",
        metavar="FOLDER",
        help="retrieve from this memory bank (cm3 memory build) instead of the model's training data",
    )
    grouped(parser, RETRIEVAL).add_argument(
        "--retriever",
        metavar="NAME",
        help="use another retriever (cm3 kinds retriever), e.g. bm25, or none; counts and bank keep the recipe's values",
    )


#: The default model, for help: `cm3 --help` loads no plugin, so it is not known which it is.
MODEL_TOLD = "icons:icons64-tuned with cm3icons installed, else bundled:emoji64"


def add_loading_options(parser: ArgumentParser, model: str = DEFAULT_MODEL) -> None:
    """Add the options that need neither a memory nor candidates; `model` is the default one."""
    grouped(parser, MODEL).add_argument(
        "--model",
        default=model,
        metavar="MODEL",
        help="a run's folder, a checkpoint, PLUGIN:NAME of a model shipped by a plugin, or hf://USER/NAME[@REVISION] of one on "
        f"the Hugging Face Hub (default: {MODEL_TOLD if model == DEFAULT_MODEL else model})",
    )
    grouped(parser, SAMPLING).add_argument(
        "--seed",
        type=whole_number(0, MAX_SEED),
        default=0,
        help="same seed, same result (default: %(default)s)",
    )
    grouped(parser, SAMPLING).add_argument(
        "--sampler",
        metavar="NAME",
        help="use another sampler, e.g. cd_k; temperature and filters keep the recipe's values",
    )
    grouped(parser, SAMPLING).add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="SECTION.KEY=VALUE",
        help="change a key of the recipe's sampler, retriever or embedder, or of --condition, e.g. "
        "sampler.guidance_scale=1.5, retriever.min_similarity=0.3, retriever.parts.words=bm25; may be given "
        "several times",
    )
    add_device(parser, "where the decoder and the image tokenizer run")
    grouped(parser, DEVICE).add_argument(
        "--threads",
        type=whole_number(1, MAX_THREADS),
        metavar="N",
        help="CPU threads for the decoder (default: 1 for a small one, else the number of cores)",
    )
    add_precision(parser)
    add_parallel(parser)
    add_trust(parser)


def open_model(args: Namespace, num_candidates: int | None = None) -> Model:
    """The model named by the options.

    Args:
        args: the options.
        num_candidates: the command's default number of candidates; None: the model's recipe decides.

    Raises:
        GenerationError: one option makes another useless.
    """
    _check_retrieves(args)
    if settings_of(args.settings, "condition") and not getattr(args, "condition", None):
        raise GenerationError(
            "--set condition", "changes a condition, but none is given", "give --condition, too"
        )
    from cm3run.model.model import load

    model = load(
        args.model,
        registry=registry_of(args),
        device=args.device,
        num_threads=args.threads,
        precision=args.precision,
        parallel=args.parallel,
        trust_plugins=args.trust_plugins,
        trust_endpoints=args.trust_endpoints,
    )
    model.told = lambda line: print(f"note: {line}", file=sys.stderr)
    if getattr(args, "rerank", None) is not None:
        number = args.num_candidates or num_candidates
        if (number or model.components.recipe.generate.num_candidates) == 1:
            model.told("--rerank has one candidate to choose from: give --candidates 2 or more")
    settings = settings_of(args.settings, "retriever")
    embedder = settings_of(args.settings, "embedder") or None
    if args.bank is None and args.retriever is None and not settings and embedder is None:
        return model
    return model.with_memory(args.bank, args.retriever, embedder=embedder, **settings)


def _check_retrieves(args: Namespace) -> None:
    """Refuse options for retrieval if nothing is to be retrieved."""
    if getattr(args, "num_retrieved", None) != 0:
        return
    for option, is_given in (
        ("--bank", args.bank is not None),
        ("--retriever", args.retriever is not None),
        ("--set retriever", bool(settings_of(args.settings, "retriever"))),
    ):
        if is_given:
            raise GenerationError(
                option,
                "chooses how to retrieve, but --num-retrieved 0 retrieves nothing",
                "leave one of the two out",
            )


def settings_of(settings: Sequence[str], wanted: str) -> dict[str, Any]:
    """Keys of one section from `SECTION.KEY=VALUE`; values are parsed as YAML.

    >>> settings_of(["sampler.temperature=0.5", "sampler.null_prompt=mask", "retriever.max_similarity=0.9"], "sampler")
    {'temperature': 0.5, 'null_prompt': 'mask'}
    """
    from cm3core.config.schema import check_interpolations
    from cm3core.recipe.layers import check_numbers, value_of

    result: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        section, _, name = key.strip().partition(".")
        if not equals or section not in SECTIONS or not all(map(str.isidentifier, name.split("."))):
            raise GenerationError(
                f"--set {setting}",
                f"is not {', '.join(f'{one}.KEY=VALUE' for one in SECTIONS[:-1])} or {SECTIONS[-1]}.KEY=VALUE",
                "write e.g. --set sampler.guidance_scale=1.5",
            )
        parsed = value_of(f"value={value}", f"--set {setting}")["value"]
        check_numbers(parsed, f"--set {key.strip()}")
        check_interpolations(f"--set {key.strip()}", parsed)
        if section == wanted:
            result[name] = parsed
    return result


@contextmanager
def progress_bar(what: str, *, may_end_early: bool = False) -> Iterator[Progress]:
    """A progress bar of tokens on the terminal, shown from the first token on.

    Args:
        what: what is done.
        may_end_early: the total is only the greatest number, as of texts; no time left is shown then.
    """
    from cm3run.progress import make_bar

    bars: list[Any] = []

    def show(done: int, total: int) -> None:
        if not bars:
            bars.append(
                make_bar(
                    desc=what,
                    total=None if may_end_early else total,
                    postfix=f"at most {total:,}" if may_end_early else None,
                    unit="token",
                    file=sys.stderr,
                    leave=False,
                    dynamic_ncols=True,
                )
            )
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()
