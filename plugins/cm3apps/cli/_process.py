"""Process-wide settings of the console script: output that any terminal accepts, Ctrl-C, and the printing of errors.

While plugins are imported and described, stdout is reserved for the command's own output: a script that reads
`cm3 plugin list --json` must get JSON, whatever a plugin prints.

An error is printed as two lines, and on request with its traceback. An exception from a plugin's code, unless it is one of
ours, is reported as an error of that plugin, and `-v` or `CM3_TRACEBACK=1` shows the traceback. An exception from our own
code is shown with its traceback, which a bug report needs. Modules needed only for errors are imported on demand.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, MutableMapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from cm3core._version import OUR_DISTRIBUTIONS
from cm3core.errors import CM3Error, DeviceError, FileError, PluginError
from cm3run.machine_memory import first_line, is_out_of_memory

#: The framework's packages whose warnings are for users.
_OWN = ("cm3core", "cm3run", "cm3apps")


def prepare_output() -> None:
    """Write characters that the terminal's encoding lacks as escapes (`\\xe4`) instead of failing halfway.

    Captions, file names and labels may have any characters, and a terminal may support only ASCII.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_own(path: Path) -> bool:
    """Whether a file belongs to the framework."""
    specs = [find_spec(package) for package in _OWN]
    return any(
        path.is_relative_to(folder)
        for spec in specs
        if spec is not None
        for folder in spec.submodule_search_locations or ()
    )


def plain_warnings() -> None:
    """Print the framework's own warnings as notes, without file, line and code, which users don't need. Warnings of
    other packages keep them."""
    usual = warnings.formatwarning

    def formatted(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if category is UserWarning and _is_own(Path(filename)):
            return f"note: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = formatted


def calm_threads(environment: MutableMapping[str, str] | None = None) -> None:
    """Let idle torch threads sleep early, unless the user has set this.

    OpenMP's threads (libgomp) wait for the next operation in a busy loop of 300,000 turns, which takes the core from
    the thread that they wait for: on busy cores, two threads were 300 times slower than one. libgomp reads the setting
    when torch is imported.
    """
    environment = os.environ if environment is None else environment
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = "1000"


class Interrupts:
    """Context in which Ctrl-C is recorded in `received` and raises KeyboardInterrupt as usual.

    Afterwards Ctrl-C ends the process at once, without a traceback from the interpreter's exit.
    """

    def __init__(self) -> None:
        self.received = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.default_int_handler(number, frame)

    def __enter__(self) -> Interrupts:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise it is ignored
            signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if signal.getsignal(signal.SIGINT) == self._receive:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


_STDOUT, _STDERR = 1, 2


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Context that redirects stdout of this process, and of children started meanwhile, to stderr."""
    with _descriptor_to_stderr(), contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _descriptor_to_stderr() -> Iterator[None]:
    """Redirect the descriptor, because children inherit it and don't use `sys.stdout`."""
    _flush()
    try:
        kept = os.dup(_STDOUT)
        os.dup2(_STDERR, _STDOUT)
    except OSError:  # one of the two is closed: there is nothing to redirect
        yield
        return
    try:
        yield
    finally:
        _flush()
        os.dup2(kept, _STDOUT)
        os.close(kept)


def flush() -> None:
    """Flush stdout while errors can still be reported.

    Raises:
        OSError: stdout can't be written.
    """
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def lost_output(error: BaseException) -> FileError | None:
    """The error of a stdout that can't be written, such as a file on a full disk; None if it can be written. An `OSError`
    does not name it, so one more character is written to get the error from the system. Later output is discarded."""
    if not isinstance(error, OSError) or error.filename is not None or sys.stdout is None:
        return None
    try:
        flush()
        os.write(sys.stdout.fileno(), b"\n")
    except ValueError:  # closed, or no real file, as in a test or a notebook
        return None
    except OSError as found:
        from cm3core.files import FREE_SPACE

        with open(os.devnull, "w") as nowhere:  # noqa: PTH123  # a device
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return FileError(
            "standard output", f"can't be written ({found.strerror or found})", FREE_SPACE
        )
    return None


def _flush() -> None:
    """Flush what was printed so far."""
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not stream.closed:
            stream.flush()


#: Environment variable that shows tracebacks of errors.
TRACEBACK_VARIABLE = "CM3_TRACEBACK"
#: The option with the same effect.
VERBOSE = ("-v", "--verbose")
HOW = f"see the traceback: cm3 -v, or {TRACEBACK_VARIABLE}=1"


def print_error(error: CM3Error, arguments: Sequence[str]) -> None:
    """Print an error, after its traceback if the arguments or the environment ask for it."""
    shown = os.environ.get(TRACEBACK_VARIABLE, "") not in {"", "0"} or any(
        option in arguments for option in VERBOSE
    )
    if shown:
        import traceback

        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr)
    # a plugin's exception, reported by one of our errors
    if not shown and TRACEBACK_VARIABLE not in error.next_step and _is_of_plugin(error.__cause__):
        print(f"  {HOW}", file=sys.stderr)


def failure_of(error: Exception) -> CM3Error | None:
    """Return the error to print for an exception that ended a command; None for an exception from our own code,
    whose traceback a bug report needs."""
    if isinstance(error, CM3Error):
        return error
    if isinstance(error, (MemoryError, RuntimeError)) and is_out_of_memory(error):
        failure: CM3Error | None = DeviceError(
            "memory",
            f"there is too little ({first_line(error)})",
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
    """The error for a path that the system refuses, if no command has a better one: for example a name
    that is too long, or an unreadable folder."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return FileError(
        str(name), f"can't be used ({error.strerror or error})", "correct the path, or name another"
    )


def plugin_failure(error: Exception) -> PluginError | None:
    """Return a plugin's error for an exception from the plugin's code; None for other exceptions."""
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
    """Whether an exception, or its cause, is not ours and came from a plugin's code."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error may be raised from itself
        if not isinstance(error, CM3Error) and _frame_of_plugin(error) is not None:
            return True
        seen.add(id(error))
        error = error.__cause__
    return False


def _frame_of_plugin(error: BaseException) -> tuple[str, FrameType, int] | None:
    """Return the innermost frame of an unbundled plugin: the plugin's name, the frame, the line."""
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
    """Yield each top-level module of an installed plugin, with the plugin; bundled ones are left out."""
    from importlib.metadata import entry_points, packages_distributions

    from cm3core.plugins.discovery import GROUP

    points = [
        point
        for point in entry_points(group=GROUP)
        if point.dist is None or point.dist.name not in OUR_DISTRIBUTIONS
    ]
    of_distribution = {point.dist.name: point.name for point in points if point.dist is not None}
    if of_distribution:
        for top, distributions in packages_distributions().items():
            for distribution in distributions:
                if distribution in of_distribution:
                    yield top, of_distribution[distribution]
    for point in points:
        yield point.value.partition(":")[0].partition(".")[0], point.name
