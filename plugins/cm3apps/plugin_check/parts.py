"""A process that loads a plugin's commands, benchmarks and models. See `worker`.

They may import anything.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cm3apps.cli.commands import COMMANDS, CommandParser
from cm3apps.plugin_check.worker import ANY_ERROR, Request, Teller, registry_of, started
from cm3core.errors import DeviceError, MissingPackageError, PluginError
from cm3core.plugins.describe import BENCHMARKS_HOOK, COMMANDS_HOOK
from cm3core.plugins.discovery import load_registry
from cm3core.plugins.registry import Registry


def main() -> None:
    """Report which commands, benchmarks and models load."""
    request, teller = started()
    registry = registry_of(request)
    for name in registry.commands():
        teller.begin(f"setting up the command {name!r}", "command", name)
        _check_command(name, registry, teller)
    for name in registry.plugins[0].benchmarks:
        teller.begin(f"importing the benchmark {name!r}", "benchmark", name)
    if registry.plugins[0].benchmarks:
        try:
            registry.benchmarks()
        except ANY_ERROR as error:
            teller.error("benchmark", "", error, next_step=_corrected(error, BENCHMARKS_HOOK))
        else:
            for name in registry.plugins[0].benchmarks:
                teller.verdict("benchmark", name, "ok", "its function can be imported")
    for name, folder in registry.models().items():
        teller.begin(f"opening the model {name!r}", "model", name)
        _check_model(name, folder, request, teller)


def _corrected(error: BaseException, hook: str) -> str:
    """The next step for a function that can't be imported; "" means the error's own."""
    return f'correct its "module:function" in {hook}' if isinstance(error, PluginError) else ""


def _check_command(name: str, registry: Registry, teller: Teller) -> None:
    if COMMANDS.get(name, ("", ""))[0]:
        teller.verdict(
            "command",
            name,
            "fail",
            f"`cm3 {name}` is a command of cm3leon itself, which takes precedence",
            "rename it",
        )
        return
    parser = CommandParser(prog=f"cm3 {name}", formatter_class=argparse.RawDescriptionHelpFormatter)
    try:
        configure = registry.command(name)
        assert configure is not None
        configure(parser)
        parser.format_help()
    except ANY_ERROR as error:
        teller.error("command", name, error, next_step=_corrected(error, COMMANDS_HOOK))
        return
    actions = [
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    ]
    parsers = [inner for action in actions for inner in action.choices.values()] or [parser]
    if parser.get_default("run") is None and any(
        inner.get_default("run") is None for inner in parsers
    ):
        teller.verdict(
            "command",
            name,
            "fail",
            "its parser does not set `run`",
            "write parser.set_defaults(run=run)",
        )
    else:
        teller.verdict("command", name, "ok", "its parser can be set up")


def _check_model(name: str, folder: Path, request: Request, teller: Teller) -> None:
    if not (folder / "state.json").is_file():
        teller.verdict(
            "model",
            name,
            "fail",
            f"{folder} has no model (no state.json)",
            "write it with cm3run.checkpoint.export_model, and package its files",
        )
        return
    if request.quick:
        teller.verdict("model", name, "ok", f"{folder} exists")
        return
    from cm3run.model.model import load

    registry = load_registry(environ={})
    if name not in registry.models():  # not installed
        own = registry_of(request)
        registry.add_all(own)
    try:
        model = load(name, registry=registry)
    except (MissingPackageError, DeviceError) as error:
        teller.verdict("model", name, "skip", error.cause, error.next_step)
    except ANY_ERROR as error:
        teller.error("model", name, error)
    else:
        teller.verdict("model", name, "ok", f"opens (step {model.step})")


if __name__ == "__main__":
    main()
