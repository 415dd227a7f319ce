"""The command line of `cm3 bench retrieval`. Light: it imports heavy modules only when it runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3apps.cli import real_number, registry_of, whole_number
from cm3core.errors import CM3Error, close_match
from cm3plugins.retrievers.index.opening import INDEX_TYPES

if TYPE_CHECKING:
    from cm3run.benchmarks import Where

HELP = "searching a memory bank: recall, latency, memory, compared with faiss called directly"
DESCRIPTION = (
    "Write a bank with vectors like a two-tower embedder's, open it, build each index over it, "
    "and search\n"
    "by text and by picture: recall against exact search, latency, and batches compared with faiss "
    "called directly on the\n"
    "same vectors. Then the loader's share of a training step. Prints a table; with -o also writes JSON "
    "and a plot."
)
EXAMPLE = """examples:
  cm3 bench retrieval --quick
  cm3 bench retrieval --threads 2 -o results/retrieval.json
  cm3 bench retrieval --num 100000 --index ivf --postgres --no-loader
  cm3 bench retrieval --num 100000 --index ivf --postgres --clients 8 --latency 5 --no-loader
  cm3 bench retrieval --quick --index ivf --lancedb --qdrant --no-loader
  cm3 bench retrieval --num 100000 --dimension 768 --index ivf --index hnsw --no-loader"""
PLACE = "cm3 bench retrieval"
#: Number of documents, and of queries of each modality.
FULL, QUICK = (1_000_000, 500), (20_000, 100)


def configure(parser: ArgumentParser) -> None:
    """The action's options."""
    parser.add_argument(
        "--num",
        type=whole_number(1000, 2**31 - 1),
        metavar="N",
        help=f"documents (default: {FULL[0]:,}; with --quick {QUICK[0]:,})",
    )
    parser.add_argument(
        "--dimension",
        type=whole_number(8, 2**16),
        default=512,
        metavar="N",
        help="vector dimension (default: %(default)s)",
    )
    parser.add_argument(
        "--index",
        action="append",
        default=[],
        metavar="NAME",
        help="flat, ivf, pq or hnsw; can be repeated (default: all)",
    )
    parser.add_argument(
        "--threads",
        type=whole_number(1, 4096),
        metavar="N",
        help="threads for all searches, including faiss's own",
    )
    _add_engines(parser)
    parser.add_argument(
        "--retriever",
        action="append",
        default=[],
        dest="retrievers",
        metavar="NAME",
        help="also measure this retriever with its defaults (also from plugins); can be repeated",
    )
    parser.add_argument(
        "--no-loader", action="store_true", help="skip the loader's share of a training step"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help="where to write the bank, which is removed afterwards (default: the temporary folder)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="use fewer documents and queries (about a minute)"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="JSON file to write; a plot goes next to it"
    )
    parser.set_defaults(run=run)


def _add_engines(parser: ArgumentParser) -> None:
    """Databases to measure beside the indexes."""
    parser.add_argument(
        "--postgres",
        action="store_true",
        help="also measure PostgreSQL: fills the database named by PGHOST, PGDATABASE, ... "
        "(schema cm3_bench, removed afterwards)",
    )
    parser.add_argument(
        "--clients",
        type=whole_number(2, 1000),
        metavar="N",
        help="with --postgres: also measure N threads that ask at a time, compared with one",
    )
    parser.add_argument(
        "--latency",
        type=real_number(0, 10_000),
        default=0.0,
        metavar="MS",
        help="with --clients: let each answer come this many milliseconds later, as over a network "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--lancedb", action="store_true", help="also measure LanceDB, if it is installed"
    )
    parser.add_argument(
        "--qdrant",
        action="store_true",
        help="also measure Qdrant's in-process engine, if qdrant-edge-py is installed",
    )


def run(args: Namespace) -> int:
    """Run the command; returns the exit code 0."""
    known = [name for name in INDEX_TYPES if name != "auto"]
    for name in args.index:
        if name not in known:
            raise CM3Error(
                f"{PLACE} --index", f"no index is called {name!r}", close_match(name, known)
            )
    for name, needed in (("latency", "clients"), ("clients", "postgres")):
        if getattr(args, name) and not getattr(args, needed):
            raise CM3Error(f"{PLACE} --{name}", f"needs --{needed}", f"give --{needed}, too")
    from cm3core.files import check_writable
    from cm3core.outputs import claim_file
    from cm3lab.benchmarks.retrieval.report import plot_of

    if args.out is not None:
        claim_file(args.out, plot_of(args.out))
    if args.folder is not None:
        check_writable(args.folder, folder=True)
    return _run(args, [name for name in known if not args.index or name in args.index])


def _run(args: Namespace, indexes: list[str]) -> int:
    import tempfile

    import torch

    from cm3core.files import make_folder, new_place
    from cm3lab.benchmarks.retrieval import engines, report, runner
    from cm3lab.benchmarks.retrieval.clients import Clients
    from cm3lab.benchmarks.retrieval.synthetic import Towers
    from cm3run.benchmarks import Where

    others = engines.retrievers_of(args.retrievers, registry_of(args))
    clients = None if args.clients is None else Clients(args.clients, args.latency)
    asked = engines.Engines(args.postgres, args.lancedb, args.qdrant, others, clients)
    engines.check_engines(args.dimension, asked)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    num, num_queries = QUICK if args.quick else FULL
    extent = runner.Extent(args.num or num, args.dimension, num_queries)
    results = _Results(
        args.out, Where(torch.device("cpu"), "cpu", "quick" if args.quick else "full")
    )
    if args.folder is not None:
        make_folder(args.folder)
    try:
        # a killed run leaves gigabytes, which the next one removes
        with new_place(Path(args.folder or tempfile.gettempdir()) / "cm3-bench") as bank:
            runner.run_bank(bank, extent, indexes, results.add)
            if asked:
                queries = Towers(extent.num, extent.dimension).queries(extent.num_queries)
                engines.run_engines(bank, queries, indexes, asked, results.add)
        if not args.no_loader:
            results.add(runner.loader_part(registry_of(args), quick=args.quick))
    finally:  # Ctrl-C keeps the results so far
        print("\n".join(report.verdicts(results.rows)))
        results.plot()
    return 0


class _Results:
    """Rows, printed and written immediately; starts with a line about the machine.

    Args:
        out: the JSON file; None: write nothing.
        where: the machine.
    """

    def __init__(self, out: Path | None, where: Where) -> None:
        from importlib.metadata import version

        import torch

        from cm3lab.benchmarks import machine
        from cm3lab.benchmarks.retrieval.runner import load

        self.out, self.rows = out, list[dict[str, Any]]()
        self._limits = machine.roofs(where, machine.stopwatch_for(where))
        faiss, before = version("faiss-cpu"), load()
        self._environment: dict[str, Any] = machine.environment(where) | {
            "faiss": faiss,
            "load": [before, None],
            "clock": "processor time" if torch.get_num_threads() == 1 else "wall clock",
        }
        print(
            f"{machine.heading(self._environment, self._limits)}\nfaiss {faiss}, "
            f"{self._environment['clock']}, load {before}",
            flush=True,
        )

    def add(self, row: dict[str, Any]) -> None:
        """Add a row."""
        from cm3lab.benchmarks.machine import write_json
        from cm3lab.benchmarks.retrieval import report, runner

        self.rows.append(row)
        self._environment["load"][1] = runner.load()
        print(report.line(row), flush=True)
        if self.out is not None:
            write_json(self.out, "retrieval", self._environment, self._limits, self.rows)

    def plot(self) -> None:
        """Write the plot next to the JSON file, if an index was measured."""
        from cm3lab.benchmarks.retrieval import report

        if self.out is not None and any(row["part"] == "index" for row in self.rows):
            plot = report.write_plot(self.out, self.rows, self._environment)
            print(f"written: {self.out}, {plot}")
