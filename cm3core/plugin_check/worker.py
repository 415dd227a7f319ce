"""What the processes of a check share: the request, telling verdicts line by line, importing the
plugin, wording an error.

A process gets one JSON request in a file and writes lines of JSON into another: `{"begin": WHAT}`
before each step, so that the one that asked knows where it stopped when it is ended or ends itself,
and `{"verdict": {...}}` or other keys after it.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.errors import CM3Error
from cm3core.plugin_check.verdicts import Verdict

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry

#: What a process may do to end a check, other than KeyboardInterrupt.
ANY_ERROR = (Exception, SystemExit)


@dataclass(frozen=True)
class Request:
    """What a process is asked.

    Args:
        name, module, file, paths: see `Target`.
        argument: the check's own, for next steps that name a command.
        search: the rest of `sys.path`, as it is where the check was asked for.
        component: (kind, name), for `laws`.
        overrides: `KIND.KEY=VALUE` or `NAME.KEY=VALUE`, for components whose configs must be given
            something.
        only: components to look at, (): all.
        max_examples: of each law.
        waived: (component or "", law, reason), for `laws`.
        quick: leave out what takes long.
        describe_only: tell no more than the time that describing took, for `probe`.
    """

    name: str
    module: str
    file: str
    argument: str
    paths: Sequence[str] = ()
    search: Sequence[str] = ()
    component: Sequence[str] = ()
    overrides: Sequence[str] = ()
    only: Sequence[str] = ()
    max_examples: int = 25
    waived: Sequence[Sequence[str]] = ()
    quick: bool = False
    describe_only: bool = False


class Teller:
    """Writes what a process found; every line is there even if the process ends right after it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def tell(self, **line: Any) -> None:
        """One line."""
        print(json.dumps(line), file=self._file, flush=True)

    def begin(self, what: str, check: str, subject: str = "") -> None:
        """Before a step that may not come back: it "was doing `what`", which belongs to that check
        of that subject."""
        self.tell(begin=what, check=check, subject=subject)

    def verdict(
        self,
        check: str,
        subject: str,
        status: str,
        text: str,
        next_step: str = "",
        detail: str = "",
    ) -> None:
        """One verdict, see `Verdict`."""
        self.tell(
            verdict=dataclasses.asdict(Verdict(check, subject, status, text, next_step, detail))
        )

    def error(
        self, check: str, subject: str, error: BaseException, *, what: str = "", next_step: str = ""
    ) -> None:
        """The verdict of a step that raised."""
        cause, step, detail = worded(error)
        self.verdict(check, subject, "fail", f"{what}{cause}", next_step or step, detail)


def started() -> tuple[Request, Teller]:
    """The request that this process was started with, and where to tell what it found."""
    request = Request(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    sys.path[:0] = request.paths
    sys.path += [path for path in request.search if path not in sys.path]
    return request, Teller(Path(sys.argv[2]))


def import_plugin(request: Request) -> object:
    """The plugin's module or object."""
    if request.file:
        from cm3core.plugins.discovery import plugin_of_file

        return plugin_of_file(Path(request.file))
    module, _, attributes = request.module.partition(":")
    plugin: object = importlib.import_module(module)
    for attribute in filter(None, attributes.split(".")):
        plugin = getattr(plugin, attribute)
    return plugin


def registry_of(request: Request) -> Registry:
    """A registry with this plugin alone; it was found in order before."""
    from cm3core.plugins.discovery import registry_of_one
    from cm3core.plugins.registry import PluginInfo

    return registry_of_one(PluginInfo(request.name, "", ""), lambda: import_plugin(request))


def worded(error: BaseException) -> tuple[str, str, str]:
    """An error's cause in one line, the next step, and the end of its traceback, from the plugin's
    first line on."""
    detail = plugin_traceback(error)
    if isinstance(error, CM3Error):
        return error.cause, error.next_step, ""
    if isinstance(error, SyntaxError):
        place = f"{shortened(error.filename or '')}, line {error.lineno}"
        return f"{type(error).__name__}: {error.msg} ({place})", "correct the line", ""
    first = (str(error).splitlines() or [""])[0]
    cause = f"{type(error).__name__}: {first}" if first else type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            cause,
            f"install {error.name!r} and name it in the plugin's dependencies, or correct the "
            "import",
            detail,
        )
    if isinstance(error, SystemExit):
        return cause, "a module that is imported must not end the program", detail
    return cause, "correct the plugin", detail


def plugin_traceback(error: BaseException, most: int = 6) -> str:
    """ "file, line: code" of the innermost frames that are neither Python's import nor ours,
    outermost first."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not is_ours(frame.filename)
    ]
    return "\n".join(
        f"{shortened(frame.filename)}, line {frame.lineno}: {frame.line}"
        for frame in frames[-most:]
    )


def is_ours(filename: str) -> bool:
    """Whether a file belongs to the check itself, or to what is between it and the plugin."""
    path, core = Path(filename), Path(__file__).parents[1]
    if filename.startswith("<frozen ") or path.parent == Path(__file__).parent:
        return True
    others = {"importlib", "pluggy", "hypothesis", "_pytest"} & set(path.parts)
    return bool(others) or path in (
        core / "plugins" / "discovery.py",
        core / "plugins" / "registry.py",
        core / "plugins" / "describe.py",
        core / "testing" / "_laws.py",
    )


def shortened(filename: str) -> str:
    """A file's path below the entry of `sys.path` that it is found by, else as it is."""
    path = Path(filename)
    below = [
        str(path.relative_to(entry)) for entry in sys.path if entry and path.is_relative_to(entry)
    ]
    return min(below, key=len, default=filename)
