"""The command line of `cm3 mcp`. Light: heavy modules are imported when it runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from importlib.util import find_spec
from pathlib import Path

from cm3apps.cli import RESULTS, grouped, registry_of, whole_number
from cm3apps.cli.opening import add_loading_options, add_memory_options
from cm3core.errors import CheckpointError, CM3Error, MissingPackageError

PLACE = "cm3 mcp"
#: Title of a group of options in the help.
ADDRESS = "address and access"
EXAMPLE = """examples:
  cm3 mcp                                            (an agent starts this; see docs/agents.md)
  cm3 mcp --model runs/icons-svg --allow my-project
  cm3 mcp --http --port 8001                         (then http://127.0.0.1:8001/mcp)"""


def configure(parser: ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Serve a model to agents by the Model Context Protocol: tools that search its\nmemory, draw, edit, and tell licences; "
        "with cm3icons installed also one that completes sets of icons."
    )
    parser.epilog, parser.formatter_class = EXAMPLE, RawDescriptionHelpFormatter
    grouped(parser, ADDRESS).add_argument(
        "--http",
        action="store_true",
        help="serve over HTTP, on this machine only (default: over stdin and stdout)",
    )
    grouped(parser, ADDRESS).add_argument(
        "--port",
        type=whole_number(0, 65535),
        default=8001,
        help="port of --http; 0 chooses a free port and prints it (default: %(default)s)",
    )
    grouped(parser, ADDRESS).add_argument(
        "--host",
        default="127.0.0.1",
        help="loopback address of --http: 127.0.0.1, localhost or ::1 (default: %(default)s)",
    )
    grouped(parser, ADDRESS).add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name by which clients of --http reach the server, for example behind a proxy; may be given "
        "several times",
    )
    grouped(parser, ADDRESS).add_argument(
        "--allow",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="let complete_set read and write in this folder and below; without it, no tool reads or writes files; may be "
        "given several times",
    )
    grouped(parser, RESULTS).add_argument(
        "--max-n",
        type=whole_number(1, 1000),
        default=10,
        metavar="N",
        help="pictures of one call (default: %(default)s)",
    )
    add_memory_options(parser)
    add_loading_options(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Serve until the client closes stdin, or until SIGTERM or Ctrl-C; return the exit code."""
    if find_spec("mcp") is None:
        raise MissingPackageError.extra(PLACE, "mcp", "mcp")
    if args.http and args.host not in ("localhost", "::1") and not args.host.startswith("127."):
        raise CM3Error(
            f"{PLACE} --host {args.host}",
            "other machines can reach this address, and the server has no access control",
            "listen on 127.0.0.1, behind a proxy that asks for a password, or use cm3 serve",
        )
    from cm3run.checkpoint import find_model

    if not find_model(args.model, registry_of(args)).exists():
        raise CheckpointError(
            args.model,
            "does not exist",
            "name a run's folder (cm3 train -o), one of its checkpoints, or an exported model",
        )
    from cm3serve.mcp.given import AllowedFolders
    from cm3serve.mcp.serving import Tools, serve_http, serve_stdio

    tools = Tools(args, AllowedFolders(args.allow))
    if not args.http:
        return serve_stdio(tools)
    return serve_http(tools, args.host, args.port, args.allow_host)
