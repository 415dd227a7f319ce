"""`cm3 memory build`, in one or several processes, and the parts that `cm3 memory add` shares.

`--processes` starts this module once for each additional process. It gets the command's arguments as a line of JSON, and
exits when its input ends, that is when the process that started it exits for any reason. If it fails, it outputs the
error, and the parent reports it: both may fail for the same reason, which is then reported once.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import threading
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cm3apps.cli import add_device, add_overrides, add_trust, registry_of, whole_number
from cm3apps.cli._dataset import count_of, data_source, limit_threads, recipe_of
from cm3apps.cli.opening import MODEL_TOLD
from cm3run import DEFAULT_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable

    from cm3core.interfaces.dataset import DocumentSource, SkippedRecord
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.bank import BuildReport, MemoryBank, Tools


#: Maximum number of unusable records in a report.
NUM_SHOWN = 5
#: The components that a bank and the model that reads it must share.
PARTS = ("embedder", "image_tokenizer")
#: Documents per shard, see `cm3run.bank`.
SHARD_SIZE = 4096


def configure(build: ArgumentParser) -> None:
    """The options of `cm3 memory build`."""
    add_data(build)
    build.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="the bank")
    build.add_argument(
        "--embedder",
        metavar="NAME",
        help="embedder for the vectors (default: that of --model, else of the recipe)",
    )
    codes = build.add_mutually_exclusive_group()
    codes.add_argument(
        "--image-tokenizer",
        metavar="NAME",
        help="image tokenizer for the codes (default: that of the recipe)",
    )
    codes.add_argument(
        "--model",
        metavar="MODEL",
        help=f"use the image tokenizer and embedder of the model that will retrieve from the "
        f"bank (default if the recipe has none: {MODEL_TOLD})",
    )

    build.add_argument(
        "--processes",
        type=whole_number(1, 4096),
        default=1,
        metavar="N",
        help="number of processes, which take the GPUs in turn; the bank does not depend on it (default: %(default)s)",
    )
    build.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="build part I of N, for several machines; cm3 memory merge joins the parts, in order",
    )


def _part(text: str) -> tuple[int, int]:
    """The `type` of `--part`."""
    number, _, parts = text.partition("/")
    try:
        part = int(number), int(parts)
    except ValueError:
        part = 0, 0
    if not 1 <= part[0] <= part[1] <= 1 << 20:
        raise ArgumentTypeError(f"is {text[:40]!r}, must be I/N with I from 1 to N, such as 1/8")
    return part


def add_data(parser: ArgumentParser) -> None:
    """Add the options for choosing and writing documents."""
    parser.add_argument(
        "target",
        metavar="RECIPE|PATH|NAME",
        help="a recipe's name or file, a folder, .jsonl or .tar of data, or a data set's name",
    )
    parser.add_argument(
        "--id-prefix", default="", metavar="TEXT", help="prefix for the documents' ids"
    )
    parser.add_argument(
        "--shard-size",
        type=whole_number(1, 2**40),
        default=SHARD_SIZE,
        metavar="N",
        help="documents per shard; a killed process loses at most one shard (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_trust(parser, plugins=False)
    add_device(parser, "where codes and, if the embedder can be moved, vectors are computed")
    add_overrides(parser)


def run(args: Namespace) -> int:
    """Build a bank, or resume building it."""
    from cm3run.bank import Shards, build_bank
    from cm3run.training.data_notes import codes_kept, note_of_codes

    source, tools, model = _work(args)
    kept = codes_kept(source, tools.image_tokenizer)
    if kept is not None and not args.quiet and (note := note_of_codes(kept)) is not None:
        print(f"note: {note}. A model reads only the codes of a bank", file=sys.stderr)
    if kept is not None and math.isfinite(kept.psnr):
        # stored in a file; the number of digits must not depend on the processor
        tools = replace(tools, codes_psnr=round(kept.psnr, 1))
    report = build_bank(
        source,
        args.out,
        tools,
        Shards(size=args.shard_size, id_prefix=args.id_prefix, part=args.part),
        helpers=helpers_of(args),
        progress=not args.quiet,
    )
    print_report(args.out, report)
    if args.part is not None and args.part[1] > 1:
        print(f"part {args.part[0]} of {args.part[1]}; merge all in order: cm3 memory merge")
    else:
        reader = "--model MODEL " if model is None else f"--model {shlex.quote(model)} "
        is_default = args.model is None and model is not None
        reader, bank = "" if is_default else reader, shlex.quote(str(args.out))
        command = f'cm3 generate "..." {reader}--bank {bank} --show-retrieved'
        who = ", by a model with this embedder and image tokenizer" if model is None else ""
        print(f"retrieve from it{who}: {command}")
    return 0


def help_building(args: Namespace, share: tuple[int, int]) -> None:
    """Make part of the shards of another process's bank, with that process's arguments."""
    from cm3run.bank import Shards, help_build

    source, tools, _ = _work(args)
    help_build(
        source,
        args.out,
        tools,
        share,
        Shards(size=args.shard_size, id_prefix=args.id_prefix, part=args.part),
    )


def _work(args: Namespace) -> tuple[DocumentSource, Tools, str | None]:
    """The data set, the embedder and image tokenizer, and the model that has both. The processes of a build share the
    processors, unless the recipe sets the number of threads."""
    registry = registry_of(args)
    chosen = [
        f"{kind}={name}"
        for kind, name in (("embedder", args.embedder), ("image_tokenizer", args.image_tokenizer))
        if name
    ]
    recipe = recipe_of(args.target, [*chosen, *args.overrides], registry)
    if args.processes > 1 and recipe.train.num_threads is None:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // args.processes))
    tools, model = _tools(recipe, registry, args)
    return source_of(recipe, args), tools.on(args.device), model


def _tools(recipe: Recipe, registry: Registry, args: Namespace) -> tuple[Tools, str | None]:
    """The embedder and image tokenizer, and the model that has both, or None if that is unknown.

    They come from the command, else from the model that it names, else from the recipe, else from
    the default model.
    """
    from cm3run.bank_tools import tools_of
    from cm3run.checkpoint import model_name

    named = {override.partition("=")[0] for override in args.overrides}
    named |= {
        kind
        for kind, name in (("embedder", args.embedder), ("image_tokenizer", args.image_tokenizer))
        if name
    }
    wanted = [
        kind
        for kind in PARTS
        if kind not in named and (args.model is not None or getattr(recipe, kind) is None)
    ]
    folder, model = None, model_name(args.model or DEFAULT_MODEL, registry)
    if wanted:
        from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
        from cm3run.checkpoint import find_checkpoint, find_model, read_recipe

        checkpoint = find_checkpoint(find_model(model, registry))
        stored = read_recipe(checkpoint, registry, trust_endpoints=args.trust_endpoints)
        for kind in wanted:
            if getattr(stored, kind) is not None:
                recipe = replace(
                    recipe,
                    **{kind: getattr(stored, kind)},
                    component_names={**recipe.component_names, kind: stored.component_names[kind]},
                )
        if "image_tokenizer" in wanted:
            folder = checkpoint / IMAGE_TOKENIZER
        print(f"{' and '.join(wanted).replace('_', ' ')} of the model {model}")
    limit_threads(recipe)
    return tools_of(recipe, folder), model if len(wanted) == len(PARTS) else None


def source_of(recipe: Recipe, args: Namespace) -> DocumentSource:
    """The recipe's split; for a path all data, unless the command names a split."""
    config = recipe.dataset
    is_path = (
        config is not None
        and getattr(config, "path", None) == args.target
        and "all" in config.splits
    )
    split_given = any(override.startswith("dataset.split=") for override in args.overrides)
    return data_source(recipe, "all" if is_path and not split_given else None)


def print_report(folder: Path, report: BuildReport) -> None:
    """Print a summary of the documents that were added or skipped."""
    from cm3run.bank import MemoryBank

    print(f"{folder}: {contents(MemoryBank.open(folder))}")
    if report.num_added == 0 and report.num_duplicates == 0:
        print("nothing to do: this is already the bank of this data")
    elif report.num_added < report.num_documents or report.num_duplicates:
        duplicates = (
            f"; already present: {report.num_duplicates:,}" if report.num_duplicates else ""
        )
        print(f"new: {report.num_added:,}{duplicates}")
    _print_skipped(report.skipped)


def _print_skipped(skipped: Sequence[SkippedRecord]) -> None:
    if skipped:
        print(
            f"{count_of(len(skipped), 'record')} skipped as unusable (for details: 'cm3 "
            "data validate'):"
        )
        for record in skipped[:NUM_SHOWN]:
            print(f"  {record.place}: {record.cause}")


def contents(bank: MemoryBank) -> str:
    """The number of documents by modality, and the size."""
    both = int((bank.has_text & bank.has_image).sum())
    texts, pictures = int(bank.has_text.sum()) - both, int(bank.has_image.sum()) - both
    counts = {"of text and picture": both, "of text": texts, "of a picture": pictures}
    parts = [f"{number:,} {what}" for what, number in counts.items() if number]
    size = sum(shard.num_bytes for shard in bank.manifest.shards)
    shards = count_of(len(bank.shards), "shard")
    return (
        f"{count_of(len(bank), 'document')} ({', '.join(parts)}), {size / 1e6:,.1f} MB in {shards}"
    )


#: Arguments that are paths, and the other arguments that an additional process needs.
PATHS = ("out",)
_VALUES = (
    "target",
    "trust_endpoints",
    "overrides",
    "embedder",
    "image_tokenizer",
    "model",
    "device",
    "shard_size",
    "id_prefix",
    "part",
    "processes",
)


def helpers_of(args: Namespace) -> list[Callable[[], subprocess.Popen[bytes]]]:
    """The commands that start the other processes of a build."""
    return [
        lambda share=share: _start(args, share)  # type: ignore[misc]  # mypy infers no lambda with a default
        for share in range(1, args.processes)
    ]


def _start(args: Namespace, share: int) -> subprocess.Popen[bytes]:
    from cm3run.devices import device_of_process

    values: dict[str, Any] = {name: getattr(args, name) for name in _VALUES}
    values |= {name: str(getattr(args, name)) for name in PATHS}
    values |= {"plugin": [str(path) for path in args.plugin], "share": share}
    values["device"] = device_of_process(args.device, share)
    process = subprocess.Popen(
        # -P: don't import from the current folder, which may have the data's own grp.py
        [sys.executable, "-P", "-m", "cm3apps.cli._memory_build"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,  # for one line, see `_main`
        # it imports the same packages as this process
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(values).encode() + b"\n")
    process.stdin.flush()
    return process


#: Maximum bytes of an error; a pipe that nobody reads yet can hold more.
MAX_LETTERS = 4096


def _main() -> int:
    from cm3apps.cli._process import failure_of

    told = _own_output()
    values = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    args = Namespace(**values)
    for name in PATHS:
        setattr(args, name, Path(values[name]))
    args.plugin = [Path(path) for path in values["plugin"]]
    try:
        help_building(args, (args.share, args.processes))
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # distinguished below, as in `cm3apps.cli.main`
        failure = failure_of(error)
        if failure is None:
            raise
        with told:
            told.write(str(failure)[:MAX_LETTERS])
        return 2
    return 0


def _own_output() -> TextIO:
    """The output, reserved for errors: anything printed from now on, also by plugins, is discarded."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123  # a device
        os.dup2(nowhere.fileno(), 1)
    return told


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_main())
