"""`cm3 memory build | add | remove | merge | stat | recall`: memory banks for retrieval."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.cli import _memory_recall, add_device, add_overrides, registry_of, whole_number
from cm3core.cli._dataset import count_of, data_source, limit_threads, recipe_of
from cm3core.errors import DataError
from cm3core.model.default import DEFAULT_MODEL

if TYPE_CHECKING:
    from cm3core.bank import BuildReport, MemoryBank, Tools
    from cm3core.interfaces.dataset import DocumentSource, SkippedRecord
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

HELP = "build, change, check and measure memory banks for retrieval"
EXAMPLE = """  cm3 memory build my/pictures -o my/bank
  cm3 generate "a red apple" --bank my/bank --show-retrieved
  cm3 memory add my/bank more/pictures
  cm3 memory stat my/bank --verify"""
NUM_SHOWN = 5
#: Documents of a shard, see `cm3core.bank`.
SHARD_SIZE = 4096


def configure(parser: ArgumentParser) -> None:
    """The actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, line: str, description: str, example: str) -> ArgumentParser:
        return actions.add_parser(
            name,
            help=line,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=RawDescriptionHelpFormatter,
        )

    build = add(
        "build",
        "embed and encode a data set into a new bank, or resume that",
        "Writes every document's text, image codes and vector into a folder. If it is killed, the "
        "same command resumes.\n"
        "From a recipe it takes the training split, from a path everything.",
        "cm3 memory build my/pictures -o my/bank --model runs/apples",
    )
    _add_data(build)
    build.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="the bank")
    build.add_argument(
        "--embedder",
        metavar="NAME",
        help="computes the vectors (default: that of --model, else of the recipe)",
    )
    codes = build.add_mutually_exclusive_group()
    codes.add_argument(
        "--image-tokenizer", metavar="NAME", help="computes the codes (default: that of the recipe)"
    )
    codes.add_argument(
        "--model",
        metavar="MODEL",
        help="use the image tokenizer and embedder of this model, which will retrieve "
        f"from the bank (default, where the recipe has none: {DEFAULT_MODEL})",
    )

    more = add(
        "add",
        "add the documents of another data set",
        "Appends documents to a bank, using its own embedder and image tokenizer. The bank stays "
        "as it\n"
        "was until all are added.",
        "cm3 memory add my/bank more/pictures --id-prefix more/",
    )
    more.add_argument("bank", type=Path, metavar="BANK", help="the bank's folder")
    _add_data(more)
    more.add_argument(
        "--skip-duplicates",
        action="store_true",
        help="skip documents whose ids the bank already has (default: an error)",
    )

    remove = add(
        "remove",
        "remove documents",
        "Removes documents from a bank, including their bytes on disk.",
        "cm3 memory remove my/bank cat.png dogs/rex.png",
    )
    remove.add_argument("bank", type=Path, metavar="BANK", help="the bank's folder")
    remove.add_argument("ids", nargs="*", metavar="ID", help="ids of documents")
    remove.add_argument(
        "--from", dest="file", type=Path, metavar="FILE", help="a file of ids, one per line"
    )
    remove.add_argument(
        "--damaged",
        action="store_true",
        help="remove damaged shards, with all their documents; their files are moved to BANK/set-aside",
    )
    remove.add_argument(
        "--yes",
        action="store_true",
        help="with --damaged: delete these files instead of moving them",
    )

    merge = add(
        "merge",
        "merge several banks into a new one",
        "Writes the documents of several banks into a new one, in order. All must have been "
        "built with the\n"
        "same embedder and image tokenizer.",
        "cm3 memory merge my/bank your/bank -o our/bank",
    )
    merge.add_argument("banks", nargs="+", type=Path, metavar="BANK", help="two banks or more")
    merge.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FOLDER", help="the new bank"
    )
    merge.add_argument(
        "--skip-duplicates",
        action="store_true",
        help="of documents with the same id keep the first (default: an error)",
    )
    merge.add_argument("--quiet", action="store_true", help="no progress bar")

    stat = add(
        "stat",
        "show what a bank holds, and check it",
        "Shows what a bank holds and how it was built. Exit code 1 if a shard is damaged.",
        "cm3 memory stat my/bank --verify",
    )
    stat.add_argument("bank", type=Path, metavar="BANK", help="the bank's folder")
    stat.add_argument(
        "--verify",
        action="store_true",
        help="read everything: the hashes of all files, all vectors, all documents",
    )
    _memory_recall.configure(actions)


def _add_data(parser: ArgumentParser) -> None:
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
        help="documents written at once, the most that a kill can lose (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_device(parser, "where codes and, where the embedder can be moved, vectors are computed")
    add_overrides(parser)


def run(args: Namespace) -> int:
    """Run one action."""
    actions = {
        "build": _build,
        "add": _add,
        "remove": _remove,
        "merge": _merge,
        "stat": _stat,
        "recall": _memory_recall.run,
    }
    return actions[args.action](args)


def _build(args: Namespace) -> int:
    from cm3core.bank import build_bank

    registry = registry_of(args)
    chosen = [
        f"{kind}={name}"
        for kind, name in (("embedder", args.embedder), ("image_tokenizer", args.image_tokenizer))
        if name
    ]
    recipe = recipe_of(args.target, [*chosen, *args.overrides], registry)
    tools = _tools(recipe, registry, args).on(args.device)
    report = build_bank(
        _source(recipe, args),
        args.out,
        tools,
        shard_size=args.shard_size,
        id_prefix=args.id_prefix,
        progress=not args.quiet,
    )
    _print_report(args.out, report)
    print(f'retrieve from it: cm3 generate "..." --bank {args.out} --show-retrieved')
    return 0


def _tools(recipe: Recipe, registry: Registry, args: Namespace) -> Tools:
    """The embedder and image tokenizer.

    Those named by the command, else those of the model it names, else the recipe's, else those of
    the default model.
    """
    from cm3core.bank_tools import tools_of

    named = {override.partition("=")[0] for override in args.overrides}
    named |= {
        kind
        for kind, name in (("embedder", args.embedder), ("image_tokenizer", args.image_tokenizer))
        if name
    }
    wanted = [
        kind
        for kind in ("embedder", "image_tokenizer")
        if kind not in named and (args.model is not None or getattr(recipe, kind) is None)
    ]
    folder = None
    if wanted:
        from cm3core.checkpoint import find_checkpoint, find_model, read_recipe
        from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER

        model = args.model or DEFAULT_MODEL
        checkpoint = find_checkpoint(find_model(model, registry))
        stored = read_recipe(checkpoint, registry)
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
    return tools_of(recipe, folder)


def _source(recipe: Recipe, args: Namespace) -> DocumentSource:
    """The recipe's split; everything of a path, unless the command names a split."""
    config = recipe.dataset
    is_path = (
        config is not None
        and getattr(config, "path", None) == args.target
        and "all" in config.splits
    )
    split_given = any(override.startswith("dataset.split=") for override in args.overrides)
    return data_source(recipe, "all" if is_path and not split_given else None)


def _add(args: Namespace) -> int:
    from cm3core.bank import add_documents
    from cm3core.bank_tools import bank_tools

    registry = registry_of(args)
    tools = bank_tools(args.bank, registry).on(args.device)
    source = _source(recipe_of(args.target, args.overrides, registry), args)
    report = add_documents(
        args.bank,
        source,
        tools,
        shard_size=args.shard_size,
        id_prefix=args.id_prefix,
        skip_duplicates=args.skip_duplicates,
        progress=not args.quiet,
    )
    _print_report(args.bank, report)
    return 0


def _print_report(folder: Path, report: BuildReport) -> None:
    from cm3core.bank import MemoryBank

    print(f"{folder}: {_contents(MemoryBank.open(folder))}")
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


def _contents(bank: MemoryBank) -> str:
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


def _remove(args: Namespace) -> int:
    from cm3core.bank import MemoryBank, remove_documents

    names = [*args.ids, *([] if args.file is None else _lines(args.file))]
    if not names and not args.damaged:
        raise DataError(
            "cm3 memory remove", "no document is given", "give ids, --from FILE, or --damaged"
        )
    if args.yes and not args.damaged:
        raise DataError("cm3 memory remove", "--yes goes with --damaged", "leave it out")
    report = remove_documents(args.bank, names, damaged=args.damaged, delete=args.yes)
    if report.num_damaged_shards:
        where = "" if report.set_aside is None else f"; its files are in {report.set_aside}"
        print(f"removed: {count_of(report.num_damaged_shards, 'damaged shard')}{where}")
    elif args.damaged:
        print("no shard is damaged")
    if report.missing:
        shown = ", ".join(map(repr, report.missing[:NUM_SHOWN])) + (
            ", ..." if len(report.missing) > NUM_SHOWN else ""
        )
        print(f"not found: {shown}")
    print(
        f"removed: {count_of(report.num_removed, 'document')}\n{args.bank}: "
        f"{_contents(MemoryBank.open(args.bank))}"
    )
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            str(path), f"can't be read ({error})", "name a text file in UTF-8, one id per line"
        ) from error


def _merge(args: Namespace) -> int:
    from cm3core.bank import merge_banks

    bank = merge_banks(
        args.banks, args.out, skip_duplicates=args.skip_duplicates, progress=not args.quiet
    )
    print(f"{args.out}: {_contents(bank)}")
    return 0


def _stat(args: Namespace) -> int:
    from cm3core.bank import MemoryBank
    from cm3core.bank.manifest import Manifest
    from cm3core.training.licences import licences_of

    stored = Manifest.read(args.bank)
    bank = MemoryBank.open(args.bank, skip_damaged=True)
    tokenizer = stored.image_tokenizer
    rows: dict[str, Any] = {
        "documents": _contents(bank),
        "embedder": f"{stored.embedder.name}, {stored.dimension:,} numbers per vector, "
        f"fingerprint {stored.embedder.fingerprint[-12:]}",
        "image tokenizer": f"{tokenizer.name}, {tokenizer.grid[0]} x {tokenizer.grid[1]} codes of {tokenizer.codebook_size:,}, "
        f"fingerprint {tokenizer.fingerprint[-12:]}",
        "fingerprint": bank.fingerprint[:24],
    }
    print("\n".join(f"{name:<16} {value}" for name, value in rows.items()))
    wrong = (
        bank.verify()
        if args.verify
        else [DataError(one.place, one.cause, one.next_step) for one in bank.skipped]
    )
    for error in wrong:
        print(f"damaged          {error}")
    if wrong:
        print(f"damaged: {len(wrong):,} of {count_of(len(stored.shards), 'shard')}")
    elif args.verify:
        print(
            "verified         every file is as written, every vector has length 1, every "
            "document can be read"
        )
        found = ", ".join(f"{name} ({num:,})" for name, num in licences_of(bank).items())
        print(f"licences         {found}")
    return 1 if wrong else 0
