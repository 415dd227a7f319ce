"""The command line of `cm3 postgres`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import INPUT, OUTPUT, grouped, real_number, registry_of, whole_number
from cm3core.errors import CM3Error, DataError

if TYPE_CHECKING:
    from cm3postgres import ConnectionOptions
    from cm3postgres.memory import SharedMemory
    from cm3postgres.schema import About

DESCRIPTION = (
    "Keep the documents of memory banks in a PostgreSQL database, from which many models retrieve while it\n"
    "changes (retriever=pgvector). Defaults are libpq's: PGHOST, PGPORT, PGDATABASE, PGUSER, PGSERVICE.\n"
    "Set a password in ~/.pgpass, PGPASSWORD or a service file; there is no option "
    "for it."
)
EXAMPLES = """examples:
  cm3 postgres init my/bank --host db.example --database art
  cm3 postgres push my/bank --licence CC0-1.0 --host db.example --database art
  cm3 postgres stat --host db.example --database art
  cm3 generate "a red apple" --retriever pgvector --set retriever.host=db.example --set retriever.database=art"""
PLACE = "cm3 postgres"
NUM_SHOWN = 5


#: Adds an action: name, summary, description, example and function.
_Add = Callable[[str, str, str, str, Any], ArgumentParser]


def configure(parser: ArgumentParser) -> None:
    """Add the actions."""
    parser.description = DESCRIPTION
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, line: str, description: str, example: str, run: Any) -> ArgumentParser:
        action: ArgumentParser = actions.add_parser(
            name,
            help=line,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=RawDescriptionHelpFormatter,
        )
        _add_connection(action)
        action.set_defaults(run=run)
        return action

    for configure_action in (
        _configure_init,
        _configure_index,
        _configure_push,
        _configure_pull,
        _configure_remove,
        _configure_stat,
    ):
        configure_action(add)


def _configure_init(add: _Add) -> None:
    init = add(
        "init",
        "create a memory for a bank's embedder and image tokenizer",
        "Creates a schema with the tables of a memory, without documents, and an HNSW index. The user\n"
        "needs the right to create schemas, and the extension pgvector 0.7 or newer.",
        "cm3 postgres init my/bank --database art",
        _init,
    )
    init.add_argument("bank", type=Path, metavar="BANK", help="a memory bank's folder")
    init.add_argument(
        "--no-index",
        action="store_true",
        help="don't build the index, to add many documents faster; build it later with cm3 postgres index",
    )
    _add_index(init)


def _configure_index(add: _Add) -> None:
    index = add(
        "index",
        "build the index of a memory created without one",
        "Builds the HNSW index. Documents can be searched meanwhile; adding waits until it is done.",
        "cm3 postgres index --database art",
        _index,
    )
    _add_index(index)


def _configure_push(add: _Add) -> None:
    push = add(
        "push",
        "add the documents of a bank",
        "Adds a bank's documents, a thousand per transaction, while others search. Unchanged documents "
        "that\nalready exist are skipped, so an interrupted push can be repeated.",
        "cm3 postgres push my/bank --data my/pictures --style watercolour --database art",
        _push,
    )
    documents = grouped(push, INPUT)
    documents.add_argument("bank", type=Path, metavar="BANK", help="a memory bank's folder")
    documents.add_argument(
        "--data",
        metavar="RECIPE|PATH|NAME",
        help="the bank's data set, which gives licences, sources and styles by id",
    )
    documents.add_argument(
        "--id-prefix", default="", metavar="TEXT", help="with --data: the prefix of the bank's ids"
    )
    documents.add_argument(
        "--licence", metavar="NAME", help="licence of documents without one in --data"
    )
    documents.add_argument(
        "--source", metavar="TEXT", help="source of documents without one in --data"
    )
    documents.add_argument(
        "--style", metavar="TEXT", help="style of documents without one in --data"
    )
    there = documents.add_mutually_exclusive_group()
    there.add_argument(
        "--replace",
        action="store_true",
        help="replace documents with the same id but other content (default: an error)",
    )
    there.add_argument(
        "--skip-duplicates",
        action="store_true",
        help="skip documents whose id exists with other content",
    )
    grouped(push, OUTPUT).add_argument("--quiet", action="store_true", help="no progress bar")


def _configure_pull(add: _Add) -> None:
    pull = add(
        "pull",
        "write the documents into a new bank",
        "Writes a snapshot of the documents into a new memory bank, with metadata.jsonl: their "
        "licences,\nsources and styles, which push reads.",
        "cm3 postgres pull -o my/bank --licence CC0-1.0 --database art",
        _pull,
    )
    pull.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FOLDER", help="the new bank"
    )
    _add_filter(pull)
    pull.add_argument(
        "--shard-size",
        type=whole_number(1, 2**40),
        default=4096,
        metavar="N",
        help="documents per shard (default: %(default)s)",
    )
    pull.add_argument("--quiet", action="store_true", help="no progress bar")


def _configure_remove(add: _Add) -> None:
    remove = add(
        "remove",
        "remove documents, by id or by licence, source or style",
        "Removes documents in one transaction: later searches do not find them.",
        "cm3 postgres remove cat.png dogs/rex.png --database art",
        _remove,
    )
    remove.add_argument("ids", nargs="*", metavar="ID", help="ids of documents")
    _add_filter(remove)


def _configure_stat(add: _Add) -> None:
    add(
        "stat",
        "show the contents of a memory",
        "Shows the number of documents by licence, source and style, and their embedder and tokenizer.",
        "cm3 postgres stat --database art",
        _stat,
    )


def _add_connection(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("connection")
    group.add_argument("--service", metavar="NAME", help="a section of the service file")
    group.add_argument("--host", metavar="NAME", help="the server, or the folder of its socket")
    group.add_argument("--port", type=whole_number(1, 65535), metavar="N", help="its port")
    group.add_argument("--database", metavar="NAME", help="the database")
    group.add_argument("--user", metavar="NAME", help="the user")
    group.add_argument(
        "--schema",
        default="cm3_memory",
        metavar="NAME",
        help="the schema of the memory's tables (default: %(default)s)",
    )
    group.add_argument(
        "--retry-seconds",
        type=real_number(0, 86400),
        default=10.0,
        metavar="S",
        help="seconds to retry a lost connection (default: %(default)g)",
    )
    group.add_argument(
        "--timeout-seconds",
        type=real_number(0.1, 86400),
        default=30.0,
        metavar="S",
        help="seconds to wait for an answer before the connection counts as lost (default: %(default)g)",
    )


def _add_index(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--links",
        type=whole_number(2, 100),
        default=16,
        metavar="N",
        help="links per node of the graph (default: %(default)s)",
    )
    parser.add_argument(
        "--construction",
        type=whole_number(4, 1000),
        default=64,
        metavar="N",
        help="size of the candidate list while building, at least twice the links "
        "(default: %(default)s)",
    )


def _add_filter(parser: ArgumentParser) -> None:
    for name in ("licence", "source", "style"):
        parser.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="TEXT",
            help=f"only documents with this {name}; can be repeated",
        )


def _options(args: Namespace) -> ConnectionOptions:
    from cm3postgres import ConnectionOptions

    names = {item.name for item in fields(ConnectionOptions)} - {"num_connections"}  # one thread
    options = ConnectionOptions(**{name: getattr(args, name) for name in names})
    options.check_connection("--")
    return options


def _opened(args: Namespace) -> SharedMemory:
    from cm3postgres.config import open_shared_memory

    return open_shared_memory(_options(args))


def _check_index(args: Namespace) -> None:
    if args.construction < 2 * args.links:
        raise DataError(
            "--construction",
            f"is {args.construction}, less than twice the {args.links} links",
            f"use {2 * args.links} or more",
        )


def _init(args: Namespace) -> int:
    from cm3run.bank import MemoryBank

    options = _options(args)
    _check_index(args)
    bank = MemoryBank.open(args.bank)
    from cm3postgres.schema import MOST_INDEXED, build_index
    from cm3postgres.transfer import new_memory

    memory = new_memory(options, bank)
    print(f"{memory.place}: created, for vectors of {bank.manifest.dimension:,} numbers")
    if bank.manifest.dimension > MOST_INDEXED:
        print(f"no index: pgvector indexes at most {MOST_INDEXED:,} numbers; every search is exact")
    elif not args.no_index:
        build_index(memory.database, bank.manifest.dimension, args.links, args.construction)
    return 0


def _index(args: Namespace) -> int:
    _check_index(args)
    memory = _opened(args)
    from cm3postgres.schema import build_index

    built = build_index(memory.database, memory.manifest.dimension, args.links, args.construction)
    number = f"{memory.num_documents:,} documents"
    print(f"{memory.place}: {'indexed' if built else 'the index already exists'}, {number}")
    return 0


def _push(args: Namespace) -> int:
    from cm3run.bank import MemoryBank

    bank = MemoryBank.open(args.bank)
    memory = _opened(args)
    from cm3postgres.transfer import push

    abouts, default = _abouts(args)
    report = push(
        bank,
        memory,
        lambda name: abouts.get(name, default),
        replace=args.replace,
        skip_duplicates=args.skip_duplicates,
        progress=not args.quiet,
    )
    replaced = f", {report.num_replaced:,} replaced" if report.num_replaced else ""
    there = f"; already present: {report.num_there:,}" if report.num_there else ""
    print(
        f"{memory.place}: {report.num_added:,} added{replaced}{there}; "
        f"{memory.num_documents:,} documents"
    )
    return 0


def _abouts(args: Namespace) -> tuple[dict[str, About], About]:
    """Return licence, source and style by id, and for the other documents."""
    from dataclasses import replace

    from cm3apps.cli._dataset import data_source, recipe_of
    from cm3core.interfaces.dataset import UNKNOWN_LICENCE, Provenance
    from cm3postgres.schema import About
    from cm3postgres.transfer import METADATA, abouts_of, read_metadata

    default = About(
        Provenance(args.licence or UNKNOWN_LICENCE, args.source or ""), args.style or ""
    )
    found = read_metadata(args.bank / METADATA)
    if args.data is not None:
        recipe = recipe_of(args.data, [], registry_of(args))
        found |= abouts_of(data_source(recipe, None), args.id_prefix)
    for name, about in found.items():
        told = about.provenance
        licence = told.licence if told.licence != UNKNOWN_LICENCE else default.provenance.licence
        found[name] = About(
            replace(told, licence=licence, source=told.source or default.provenance.source),
            about.style or default.style,
        )
    return found, default


def _pull(args: Namespace) -> int:
    from cm3core.files import user_path

    if user_path(args.out).exists():
        raise DataError(str(args.out), "already exists", "choose a new folder")
    memory = _opened(args)
    from cm3postgres.memory import Filter
    from cm3postgres.transfer import pull

    bank = pull(
        memory,
        args.out,
        Filter(args.licence, args.source, args.style),
        shard_size=args.shard_size,
        progress=not args.quiet,
    )
    print(f"{args.out}: {len(bank):,} documents")
    return 0


def _remove(args: Namespace) -> int:
    given = bool(args.licence or args.source or args.style)
    if given == bool(args.ids):
        raise CM3Error(
            f"{PLACE} remove",
            "got both ids and a filter" if given else "got neither ids nor a filter",
            "give ids, or --licence, --source, --style",
        )
    memory = _opened(args)
    from cm3postgres.memory import Filter

    if given:
        removed = memory.remove_where(Filter(args.licence, args.source, args.style))
    else:
        removed = memory.remove(args.ids)
        missing = [name for name in dict.fromkeys(args.ids) if name not in set(removed)]
        if missing:
            shown = ", ".join(map(repr, missing[:NUM_SHOWN]))
            print(f"not found: {shown}{', ...' if len(missing) > NUM_SHOWN else ''}")
    print(f"{memory.place}: {len(removed):,} removed; {memory.num_documents:,} documents")
    return 0


def _stat(args: Namespace) -> int:
    memory = _opened(args)
    from cm3postgres.stat import facts

    print("\n".join(f"{name:<16} {value}" for name, value in facts(memory)))
    return 0
