"""`cm3`: find the command, run it, and turn user errors into two lines and an exit code.

Exit codes: 0 done; 2 wrong input, a file that can't be used, not enough memory, or a plugin that
failed (reported on stderr, without a traceback unless `-v` or `CM3_TRACEBACK=1` asks for it); 130
interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cm3apps.cli._hints import other_option, override_hint, takes_overrides
from cm3apps.cli._process import (
    TRACEBACK_VARIABLE,
    VERBOSE,
    Interrupts,
    calm_threads,
    failure_of,
    flush,
    lost_output,
    plain_warnings,
    prepare_output,
    print_error,
)
from cm3apps.cli.commands import BESIDE, COMMANDS, CommandParser
from cm3core._version import __version__, how_to_install
from cm3core.errors import CM3Error, close_match
from cm3core.recipe.forms import plain
from cm3run.ending import end_of_several, end_soon
from cm3run.faults import contained
from cm3run.printing import make_safe, safe_output

#: The exit code after Ctrl-C.
INTERRUPTED = 130


def entry() -> None:
    """The console script."""
    codes: list[int] = []
    atexit.register(end_of_several, codes)  # first, so that it runs last
    prepare_output()
    plain_warnings()
    make_safe()
    calm_threads()
    with Interrupts() as interrupts:
        codes.append(main(interrupts=interrupts))
    if codes[0] == INTERRUPTED:
        end_soon(INTERRUPTED)
    sys.exit(codes[0])


def main(argv: Sequence[str] | None = None, *, interrupts: Interrupts | None = None) -> int:
    """Run `cm3` with these arguments (None: `sys.argv`) and return the exit code.

    `interrupts` records whether Ctrl-C was pressed; None if nothing records it.
    """
    with safe_output():
        return _main(sys.argv[1:] if argv is None else list(argv), interrupts)


def _main(arguments: list[str], interrupts: Interrupts | None) -> int:
    try:
        code = _run(arguments)
        flush()
        return code
    except BrokenPipeError:  # the reader (`head`, `less`) exited: not an error
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return _interrupted()
    except (
        Exception
    ) as error:  # distinguished below: ours, memory, a plugin, a file; others are raised
        # a library whose import is interrupted may raise anything instead of KeyboardInterrupt
        if interrupts is not None and interrupts.received:
            return _interrupted()
        failure = lost_output(error) or failure_of(error)
        if failure is None:
            raise
        print_error(failure, arguments)
        return 2


def _interrupted() -> int:
    print("interrupted; the same command resumes where it can", file=sys.stderr)
    return INTERRUPTED


def _run(argv: list[str]) -> int:
    files = CommandParser(prog="cm3", add_help=False, allow_abbrev=False)
    files.add_argument("--plugin", action="append", type=Path, default=[])
    given, argv = files.parse_known_args(argv)  # before or after the command
    top = _top_parser()
    options = top.parse_args(argv)
    if options.command is None:
        top.print_help()
        return 0
    parser, run = _command(options.command, given.plugin)
    args = _parse(parser, options.arguments, given.plugin)
    args.plugin = given.plugin
    chosen: Callable[[argparse.Namespace], int] = run or args.run
    with contextlib.ExitStack() as stack:
        if getattr(args, "quiet", False):
            from cm3run.progress import no_bars

            stack.enter_context(no_bars())
        if (device := getattr(args, "device", None)) is not None:
            from cm3run.devices import default_device

            stack.enter_context(default_device(device))
        with contained(f"cm3 {options.command}"):  # sys.exit(0) in a plugin is no success
            return chosen(args)


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    top = CommandParser(
        prog="cm3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="cm3 [-v] [--plugin FILE.py] COMMAND ...",
        description="CM3leon: one transformer that generates and captions pictures.\n\ncommands:\n"
        + table,
        epilog='examples:\n  cm3 generate "a red apple" --n 4 --seed 1 -o out/\n  cm3 train tiny -o runs/tiny\n'
        "  cm3 COMMAND --help\n\nplugins may provide more commands: cm3 plugin list",
    )
    top.add_argument(
        "--plugin",
        metavar="FILE.py",  # already parsed by `_run`; here for the help
        help="load a plugin module from a file; may be given several times",
    )
    top.add_argument(
        *VERBOSE,
        action="store_true",
        help=f"show the traceback of an error; so does {TRACEBACK_VARIABLE}=1",
    )
    top.add_argument("--version", action="version", version=f"cm3leon {__version__}")
    top.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    top.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return top


def _command(
    name: str, files: Sequence[Path]
) -> tuple[argparse.ArgumentParser, Callable[[argparse.Namespace], int] | None]:
    """The command's parser and its `run`; None when the parser sets `run` (plugins' commands)."""
    module_name, line = COMMANDS.get(name, ("", ""))
    if module_name:
        module = importlib.import_module(module_name)
        parser = CommandParser(
            prog=f"cm3 {name}",
            description=line,
            epilog=f"examples:\n{module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(parser)
        return parser, module.run
    parser = CommandParser(prog=f"cm3 {name}", formatter_class=argparse.RawDescriptionHelpFormatter)
    _of_plugin(name, files)(parser)
    return parser, None


def _of_plugin(name: str, files: Sequence[Path]) -> Callable[[argparse.ArgumentParser], None]:
    """The function that sets up a plugin's command. Plugins are described only if they were not before or have
    changed."""
    from cm3apps.cli._process import stdout_to_stderr
    from cm3core.plugins.info import keep_plugins, kept_plugins, load_function

    kept = None if files else kept_plugins()
    if kept is not None and name in kept.commands:
        with stdout_to_stderr():
            return load_function(f"command {name!r}", *kept.commands[name])
    from cm3core.plugins.discovery import load_registry

    with stdout_to_stderr():
        registry = load_registry(files)
    if kept is None and not files:
        keep_plugins(registry.plugins, registry.models().values(), registry.command_targets())
    configure = registry.command(name)
    if configure is not None:
        return configure
    if name in BESIDE:
        raise CM3Error(
            f"cm3 {name}",
            f"this command is in the distribution {BESIDE[name]}, which is not installed or not in use",
            how_to_install(BESIDE[name]),
        )
    if name in COMMANDS:
        raise CM3Error(
            f"cm3 {name}", "no plugin in use provides this command", "see `cm3 plugin list -v`"
        )
    raise CM3Error(
        f"cm3 {name}",
        "there is no such command",
        close_match(name, [*COMMANDS, *registry.commands()]),
    )


def _parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str], files: Sequence[Path] = ()
) -> argparse.Namespace:
    """Parse, with overrides anywhere among the options. `files`: those of `--plugin`.

    (argparse takes a list of positionals in one place only.)
    """
    before = ["cm3", *(word for file in files for word in ("--plugin", str(file)))]
    before += parser.prog.split()[1:]
    try:
        args, rest = parser.parse_known_args(arguments)
    except CM3Error as error:
        if takes_overrides(parser) and (other := other_option(parser, arguments, before)):
            raise other from error
        raise
    rest = [one for one in rest if one not in VERBOSE]  # options of every command, read by `main`
    options = [one for one in rest if one.startswith("-")]
    if hasattr(args, "overrides") and not options:
        args.overrides = [plain(one) for one in [*args.overrides, *rest]]
        return args
    if hasattr(args, "overrides"):
        if other := other_option(parser, arguments, before):
            raise other
        if hint := override_hint(options[0], arguments):
            raise CM3Error(parser.prog, f"unrecognized arguments: {' '.join(rest)}", hint)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


if __name__ == "__main__":
    entry()
