"""Shared by a check's processes: the request, the reporting of verdicts, the import of the plugin. A verdict is a line of
a report, with a next step if the author must act.

A process reads one JSON request from a file and writes lines of JSON into another: `{"begin":
WHAT}` before each step, so that the parent knows where it stopped if it is killed or exits, and
`{"verdict": {...}}` or other keys after it.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cm3core
from cm3core.errors import CM3Error
from cm3core.interfaces.component import BrokenLawError

if TYPE_CHECKING:
    from cm3core.interfaces.component import Kind
    from cm3core.plugins.registry import Registry


#: Status -> its form at the start of a line.
SHOWN = {"ok": "ok", "fail": "FAIL", "warn": "warn", "skip": "skip"}


@dataclass(frozen=True)
class Verdict:
    """The result of one check.

    Args:
        check: one of "install", "api", "hooks", "names", "keys", "defaults", "import", "output",
            "build", "law", "command", "benchmark" or "model".
        subject: what was checked: "KIND/NAME", a law as "KIND/NAME LAW", a hook, a name; "" for the
            whole plugin.
        status: "ok", "fail", "warn" or "skip".
        text: the finding, in one line.
        next_step: what the author can do about it, or "".
        detail: more lines: a falsifying example, the end of a traceback.
    """

    check: str
    subject: str
    status: str
    text: str
    next_step: str = ""
    detail: str = ""

    def lines(self) -> list[str]:
        """The verdict in printed form."""
        head = f"{self.check} {self.subject}".rstrip()
        lines = [
            f"{SHOWN[self.status]:<4}  {head}: {self.text}"
            if self.text
            else f"{SHOWN[self.status]:<4}  {head}"
        ]
        lines += [f"      | {line}".rstrip() for line in self.detail.splitlines()]
        return [*lines, f"      next: {self.next_step}"] if self.next_step else lines


@dataclass
class Report:
    """All verdicts about one plugin.

    Args:
        name: the entry point's name, or the file's without `.py`.
        version: its distribution's, "" if there is none.
        origin: where it was found.
        verdicts: the verdicts in their order.
    """

    name: str
    version: str
    origin: str
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Status -> number of verdicts, with every status."""
        counted = Counter(verdict.status for verdict in self.verdicts)
        return {status: counted[status] for status in SHOWN}

    def passed(self, *, strict: bool = False) -> bool:
        """Whether nothing failed; with `strict`, whether there are no warnings or skips either."""
        counts = self.counts
        return not counts["fail"] and not (strict and (counts["warn"] or counts["skip"]))

    def summary(self) -> str:
        """The last line of a report."""
        counts = self.counts
        parts = [f"{counts['ok']} ok"]
        parts += [
            f"{counts[status]} {word}"
            for status, word in (("fail", "failed"), ("warn", "warned"), ("skip", "skipped"))
            if counts[status]
        ]
        return f"{self.name}: {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "version": self.version,
            "origin": self.origin,
            "counts": self.counts,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
        }


def to_json(argument: str, reports: Sequence[Report], *, strict: bool) -> dict[str, Any]:
    """The whole result for `--json`, documented in docs/plugins/check.md."""
    return {
        "target": argument,
        "passed": all(report.passed(strict=strict) for report in reports),
        "strict": strict,
        "plugins": [report.to_dict() for report in reports],
    }


#: The folder of the kits, found without importing them.
_KITS = getattr(find_spec("cm3kits"), "submodule_search_locations", None) or []

#: The exceptions that plugin code may raise, other than KeyboardInterrupt.
ANY_ERROR = (Exception, SystemExit)


@dataclass(frozen=True)
class Request:
    """The request to a process.

    Args:
        name, module, file, paths: see `Target`.
        argument: the check's argument, for next steps that name a command.
        search: the rest of `sys.path`, as in the parent process.
        component: (kind, name), for `laws`.
        overrides: `KIND.KEY=VALUE` or `NAME.KEY=VALUE`, for components whose configs have required
            keys.
        only: components to check; () means all.
        max_examples: number of examples per law.
        waived: (component or "", law, reason), for `laws`.
        quick: skip slow checks.
        describe_only: report only the time for describing, for `probe`.
        provided: (kind, name) of all its components, for `others`.
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
    provided: Sequence[Sequence[str]] = ()


class Teller:
    """Writes a process's findings, each line flushed in case the process ends right after."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def tell(self, **line: Any) -> None:
        """Write one line."""
        print(json.dumps(line), file=self._file, flush=True)

    def begin(self, what: str, check: str, subject: str = "") -> None:
        """Announce a step that may never return: `what` it does, its check and its subject."""
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
        """Write one verdict, see `Verdict`."""
        self.tell(
            verdict=dataclasses.asdict(Verdict(check, subject, status, text, next_step, detail))
        )

    def error(
        self, check: str, subject: str, error: BaseException, *, what: str = "", next_step: str = ""
    ) -> None:
        """Write the verdict of a step that raised."""
        cause, step, detail = worded(error)
        self.verdict(check, subject, "fail", f"{what}{cause}", next_step or step, detail)


def started() -> tuple[Request, Teller]:
    """This process's request, and the writer for its findings."""
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
    """A registry of this plugin alone, which was checked before."""
    from cm3core.plugins.discovery import registry_of_one
    from cm3core.plugins.registry import PluginInfo

    plugin = import_plugin(request)
    info = PluginInfo(request.name, "", "")
    return registry_of_one(info, lambda: plugin, kinds_beside(plugin, request.name))


def kinds_beside(plugin: object, name: str) -> Mapping[str, Kind]:
    """The kinds other than the plugin's own. Other plugins are described only if this plugin implements a hook that
    isn't in the core."""
    from cm3core import hookspecs
    from cm3core.plugins.discovery import GROUP, load_registry
    from cm3core.plugins.kinds import KINDS
    from cm3core.plugins.registry import DISABLE_VARIABLE

    if all(hook in vars(hookspecs) for hook in dir(plugin) if hook.startswith("cm3_")):
        return KINDS
    installed = name in {point.name for point in entry_points(group=GROUP)}
    return load_registry(environ={DISABLE_VARIABLE: name} if installed else {}).kinds


def worded(error: BaseException) -> tuple[str, str, str]:
    """An error's cause in one line, the next step, and the plugin's part of its traceback."""
    detail = plugin_traceback(error)
    if isinstance(error, BrokenLawError):  # its own next step, for users, is this check
        return error.cause, "correct the plugin", detail
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
            f"install {error.name!r} and add it to the plugin's dependencies, or correct the "
            "import",
            detail,
        )
    if isinstance(error, SystemExit):
        return cause, "importing a module must not exit the program", detail
    return cause, "correct the plugin", detail


def plugin_traceback(error: BaseException, most: int = 6) -> str:
    """The innermost frames of the plugin's own code as "file, line: code", outermost first."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not is_ours(frame.filename)
    ]
    return "\n".join(
        f"{shortened(frame.filename)}, line {frame.lineno}: {frame.line}"
        for frame in frames[-most:]
    )


def is_ours(filename: str) -> bool:
    """Whether a file belongs to the check, or to the machinery between it and the plugin."""
    path, core = Path(filename), Path(cm3core.__file__).parent
    if filename.startswith("<frozen ") or path.parent == Path(__file__).parent:
        return True
    others = {"importlib", "pluggy", "hypothesis", "_pytest"} & set(path.parts)
    return bool(others) or path in (
        core / "config" / "schema.py",
        core / "plugins" / "discovery.py",
        core / "plugins" / "registry.py",
        core / "plugins" / "describe.py",
        *(Path(folder) / "_laws.py" for folder in _KITS),
    )


def shortened(filename: str) -> str:
    """A file's path relative to its entry of `sys.path`, or unchanged."""
    path = Path(filename)
    below = [
        str(path.relative_to(entry)) for entry in sys.path if entry and path.is_relative_to(entry)
    ]
    return min(below, key=len, default=filename)
