"""What `cm3` prints of an error: two lines, and on request the traceback.

An exception that is not ours and comes out of a plugin's code is an error of that plugin: it is
named, and `-v` or `CM3_TRACEBACK=1` shows the traceback. One of our own code stays a traceback,
which a report needs. What only an error needs is imported when there is one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from cm3core._version import is_ours
from cm3core.errors import CM3Error, DeviceError, FileError, PluginError
from cm3run.machine_memory import first_line, is_out_of_memory

#: Environment variable that shows the traceback of each error.
TRACEBACK_VARIABLE = "CM3_TRACEBACK"
#: The option that does.
VERBOSE = ("-v", "--verbose")
HOW = f"see the traceback: cm3 -v, or {TRACEBACK_VARIABLE}=1"


def print_error(error: CM3Error, arguments: Sequence[str]) -> None:
    """Print an error, after its traceback if the arguments or the environment ask for that."""
    shown = os.environ.get(TRACEBACK_VARIABLE, "") not in {"", "0"} or any(
        option in arguments for option in VERBOSE
    )
    if shown:
        import traceback

        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr)
    # a plugin's exception that one of our errors reports
    if not shown and TRACEBACK_VARIABLE not in error.next_step and _is_of_plugin(error.__cause__):
        print(f"  {HOW}", file=sys.stderr)


def failure_of(error: Exception) -> CM3Error | None:
    """Return the error to print for an exception that ended a command; None for one of our own code,
    whose traceback a report needs."""
    if isinstance(error, CM3Error):
        return error
    if isinstance(error, (MemoryError, RuntimeError)) and is_out_of_memory(error):
        failure: CM3Error | None = DeviceError(
            "memory",
            f"there is not enough of it ({first_line(error)})",
            "choose smaller sizes or fewer at once, or use a larger machine",
        )
    else:
        failure = plugin_failure(error)
    if failure is None and isinstance(error, OSError) and error.filename is not None:
        failure = unusable_file(error)
    if failure is not None:
        failure.__cause__ = error
    return failure


def unusable_file(error: OSError) -> FileError:
    """The error of a path that the system refuses, where no command has a better one: a name that
    is too long, a folder that may not be read."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return FileError(
        str(name), f"can't be used ({error.strerror or error})", "correct the path, or name another"
    )


def plugin_failure(error: Exception) -> PluginError | None:
    """Return the error of the plugin out of whose code an exception came; None if none is."""
    found = _frame_of_plugin(error)
    if found is None:
        return None
    plugin, frame, line = found
    first = (str(error).splitlines() or [""])[0]
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    code = frame.f_code
    return PluginError(
        f"plugin {plugin!r}",
        f"failed with {what} ({Path(code.co_filename).name}, line {line}, in {code.co_name})",
        f"{HOW}; report it to the plugin's author",
    )


def _is_of_plugin(error: BaseException | None) -> bool:
    """Whether an exception that is not ours, or what caused it, came out of a plugin's code."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error may be raised from itself
        if not isinstance(error, CM3Error) and _frame_of_plugin(error) is not None:
            return True
        seen.add(id(error))
        error = error.__cause__
    return False


def _frame_of_plugin(error: BaseException) -> tuple[str, FrameType, int] | None:
    """Return the innermost frame of a plugin that is not bundled: its name, the frame, the line."""
    from cm3core.plugins.discovery import FILE_MODULE

    plugins = dict(_modules())
    found = None
    trace = error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        top = module.partition(".")[0]
        plugin = plugins.get(top)
        if top.startswith(FILE_MODULE):
            plugin = top.removeprefix(FILE_MODULE)
        if plugin is not None:
            found = plugin, trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next
    return found


def _modules() -> Iterator[tuple[str, str]]:
    """Yield each top-level module of the installed plugins and the plugin, without the bundled."""
    from importlib.metadata import entry_points, packages_distributions

    from cm3core.plugins.discovery import GROUP

    points = [
        point
        for point in entry_points(group=GROUP)
        if point.dist is None or not is_ours(point.dist.name)
    ]
    of_distribution = {point.dist.name: point.name for point in points if point.dist is not None}
    if of_distribution:
        for top, distributions in packages_distributions().items():
            for distribution in distributions:
                if distribution in of_distribution:
                    yield top, of_distribution[distribution]
    for point in points:
        yield point.value.partition(":")[0].partition(".")[0], point.name
