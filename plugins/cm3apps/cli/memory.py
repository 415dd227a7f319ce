"""`cm3 memory build | add | remove | merge | stat | recall`: memory banks for retrieval."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cm3apps.cli import _memory_build, _memory_recall, registry_of
from cm3apps.cli._dataset import count_of, recipe_of
from cm3core.errors import DataError

HELP = "build, change, check and measure memory banks for retrieval"
EXAMPLE = """  cm3 memory build my/pictures -o my/bank
  cm3 generate "a red apple" --bank my/bank --show-retrieved
  cm3 memory add my/bank more/pictures
  cm3 memory stat my/bank --verify"""
NUM_SHOWN = 5


#: Adds an action, given its name, line of help, description and example.
_Add = Callable[[str, str, str, str], ArgumentParser]


def configure(parser: ArgumentParser) -> None:
    """Add the actions."""
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
        "embed and encode a data set into a new bank, or resume",
        "Writes every document's text, image codes and vector into a folder. If it is killed, the "
        "same command resumes.\n"
        "A recipe provides its training split, a path all its documents.",
        "cm3 memory build my/pictures -o my/bank --model runs/apples",
    )
    _memory_build.configure(build)
    _configure_add(add)
    _configure_remove(add)
    _configure_merge(add)
    _configure_stat(add)
    _memory_recall.configure(actions)


def _configure_add(add: _Add) -> None:
    more = add(
        "add",
        "add the documents of another data set",
        "Appends documents to a bank, using its own embedder and image tokenizer. The bank stays "
        "as it\n"
        "was until all are added.",
        "cm3 memory add my/bank more/pictures --id-prefix more/",
    )
    more.add_argument("bank", type=Path, metavar="BANK", help="the bank's folder")
    _memory_build.add_data(more)
    more.add_argument(
        "--skip-duplicates",
        action="store_true",
        help="skip documents whose ids the bank already has (default: an error)",
    )


def _configure_remove(add: _Add) -> None:
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


def _configure_merge(add: _Add) -> None:
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
        help="keep the first of documents with the same id (default: an error)",
    )
    merge.add_argument("--quiet", action="store_true", help="no progress bar")


def _configure_stat(add: _Add) -> None:
    stat = add(
        "stat",
        "show a bank's contents, and check it",
        "Shows a bank's contents and how it was built. Exit code 1 if a shard is damaged.",
        "cm3 memory stat my/bank --verify",
    )
    stat.add_argument("bank", type=Path, metavar="BANK", help="the bank's folder")
    stat.add_argument(
        "--verify",
        action="store_true",
        help="read everything: check the hash of every file, all vectors and all documents",
    )


def run(args: Namespace) -> int:
    """Run one action."""
    actions = {
        "build": _memory_build.run,
        "add": _add,
        "remove": _remove,
        "merge": _merge,
        "stat": _stat,
        "recall": _memory_recall.run,
    }
    return actions[args.action](args)


def _add(args: Namespace) -> int:
    from cm3run.bank import Shards, add_documents
    from cm3run.bank_tools import bank_tools

    registry = registry_of(args)
    tools = bank_tools(args.bank, registry, trust_endpoints=args.trust_endpoints).on(args.device)
    source = _memory_build.source_of(recipe_of(args.target, args.overrides, registry), args)
    report = add_documents(
        args.bank,
        source,
        tools,
        Shards(size=args.shard_size, id_prefix=args.id_prefix),
        skip_duplicates=args.skip_duplicates,
        progress=not args.quiet,
    )
    _memory_build.print_report(args.bank, report)
    return 0


def _remove(args: Namespace) -> int:
    from cm3run.bank import MemoryBank, remove_documents

    names = [*args.ids, *([] if args.file is None else _lines(args.file))]
    if not names and not args.damaged:
        raise DataError(
            "cm3 memory remove", "no document is given", "give ids, --from FILE, or --damaged"
        )
    if args.yes and not args.damaged:
        raise DataError("cm3 memory remove", "--yes needs --damaged", "leave it out")
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
        f"{_memory_build.contents(MemoryBank.open(args.bank))}"
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
    from cm3run.bank import merge_banks

    bank = merge_banks(
        args.banks, args.out, skip_duplicates=args.skip_duplicates, progress=not args.quiet
    )
    print(f"{args.out}: {_memory_build.contents(bank)}")
    return 0


def _stat(args: Namespace) -> int:
    from cm3run.bank import MemoryBank
    from cm3run.bank.manifest import Manifest
    from cm3run.training.data_notes import licences_of

    stored = Manifest.read(args.bank)
    bank = MemoryBank.open(args.bank, skip_damaged=True)
    tokenizer = stored.image_tokenizer
    height, width = tokenizer.grid
    # of one row are the arrays of sequences, and hardly any grid
    codes = f"{height} x {width} codes" if height > 1 else f"at most {width} codes"
    rows: dict[str, Any] = {
        "documents": _memory_build.contents(bank),
        "embedder": f"{stored.embedder.name}, {stored.dimension:,} numbers per vector, "
        f"fingerprint {stored.embedder.fingerprint[-12:]}",
        "image tokenizer": f"{tokenizer.name}, {codes} of {tokenizer.codebook_size:,}, "
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
