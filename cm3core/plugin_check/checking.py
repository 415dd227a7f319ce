"""A check from its beginning to its end: each part in a process of its own, all verdicts
gathered."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cm3core.errors import PluginError, close_match
from cm3core.plugin_check.targets import Target, find_targets
from cm3core.plugin_check.verdicts import Report, Verdict
from cm3core.plugin_check.worker import Request
from cm3core.plugins.discovery import STRICT_VARIABLE
from cm3core.plugins.registry import DISABLE_VARIABLE

#: Seconds that describing a plugin may take beyond what cm3core takes itself.
IMPORT_BUDGET = 0.5
#: Seconds that describing may take until it is ended; what is slower is not only slow.
DESCRIBE_TIMEOUT = 60.0


@dataclass(frozen=True)
class Options:
    """How to check.

    Args:
        overrides: `KIND.KEY=VALUE` or `NAME.KEY=VALUE`.
        max_examples: of each law.
        quick: no laws, nothing is built.
        timeout: seconds for each component's laws, and for commands, benchmarks and models
            together.
        only: names of components, `NAME` or `KIND/NAME`, to look at; (): all.
        waived: laws that are not tried: (component or "", law, reason).
    """

    overrides: Sequence[str] = ()
    max_examples: int = 25
    quick: bool = False
    timeout: float = 300.0
    only: Sequence[str] = ()
    waived: Sequence[tuple[str, str, str]] = ()


@dataclass
class _Answer:
    """What a process told, line by line, and how it ended."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    output: str = ""
    returncode: int | None = None

    def get(self, key: str) -> Any:
        """The value of the last line that has the key, else None."""
        return next((line[key] for line in reversed(self.lines) if key in line), None)

    @property
    def verdicts(self) -> list[Verdict]:
        return [Verdict(**line["verdict"]) for line in self.lines if "verdict" in line]

    def unfinished(self, seconds: float) -> list[Verdict]:
        """The step that it did not come back from, as a verdict; [] when it ended in order."""
        if self.returncode == 0:
            return []
        step = next(
            (line for line in reversed(self.lines) if "begin" in line),
            {"begin": "starting", "check": "import", "subject": ""},
        )
        if self.returncode is None:
            text = f"{step['begin']} took longer than {seconds:g} s and was ended"
            advice = "find what it waits for, or give --timeout more"
        elif self.returncode < 0:
            name = signal.Signals(-self.returncode).name
            text = f"the process was ended by {name} while {step['begin']}"
            advice = "run that step in a debugger (python -X faulthandler)"
        elif "Traceback (most recent call last)" in self.output:
            text = f"there was an error that was not expected while {step['begin']}"
            advice = "correct the plugin, or report it to cm3leon"
        else:
            text = (
                f"the process ended itself with exit code {self.returncode} while {step['begin']}"
            )
            advice = "a plugin must not end the program"
        return [
            Verdict(
                step["check"],
                step["subject"],
                "fail",
                text,
                advice,
                "\n".join(self.output.strip().splitlines()[-8:]),
            )
        ]


def check(
    argument: str, options: Options, *, tell: Callable[[Report, Verdict | None], None] | None = None
) -> list[Report]:
    """Check the plugins that an argument names.

    Args:
        argument: see `find_targets`.
        options: how.
        tell: is called with a report when it begins (and None), and with every verdict as soon as
            it is reached.

    Returns:
        A report for each plugin.

    Raises:
        PluginError, RecipeError: the argument or an option means nothing.
    """
    reports = []
    for target in find_targets(argument):
        report = Report(target.name, target.version, target.origin)
        reports.append(report)
        if tell is not None:
            tell(report, None)
        for verdict in _verdicts(target, argument, options):
            report.verdicts.append(verdict)
            if tell is not None:
                tell(report, verdict)
    return reports


def _verdicts(target: Target, argument: str, options: Options) -> Iterator[Verdict]:
    yield from target.verdicts
    if not target.module and not target.file:
        return
    request = Request(
        target.name,
        target.module,
        target.file,
        argument,
        target.paths,
        [path for path in sys.path if path],
        overrides=options.overrides,
        only=options.only,
        max_examples=options.max_examples,
        waived=options.waived,
        quick=options.quick,
    )
    limit = min(options.timeout, DESCRIBE_TIMEOUT)
    answer = _ask("probe", request, limit)
    if (usage := answer.get("usage")) is not None:
        raise PluginError(*usage)
    yield from answer.verdicts
    yield from answer.unfinished(limit)
    if answer.get("seconds") is not None:
        yield from _import_time(answer, request, limit)
    if answer.output.strip() and answer.returncode == 0:
        yield Verdict(
            "output",
            "",
            "warn",
            "it prints when it is described, which ends up in what cm3 commands print",
            "take the print out, or use logging",
            "\n".join(answer.output.strip().splitlines()[:5]),
        )
    if answer.get("components") is None:
        return
    components = [(kind, name) for kind, name in answer.get("components")]
    # What was found wrong above would be found again by each process that follows.
    broken = any(
        verdict.status == "fail" and verdict.check in ("api", "hooks")
        for verdict in answer.verdicts
    )
    if broken:
        yield Verdict(
            "build",
            "",
            "skip",
            "nothing is built of a plugin that cm3 refuses",
            "correct what failed above",
        )
        return
    if answer.get("commands") or answer.get("benchmarks") or answer.get("models"):
        parts = _ask("parts", request, options.timeout)
        yield from parts.verdicts
        yield from parts.unfinished(options.timeout)
    unready = {
        verdict.subject
        for verdict in answer.verdicts
        if verdict.check == "defaults" and verdict.status != "ok"
    }
    if options.quick and components:
        yield Verdict("law", "", "skip", "no laws are tried with --quick")
        return
    known: set[str] = set()
    for kind, name in components:
        if f"{kind}/{name}" in unready:
            yield Verdict(
                "law", f"{kind}/{name}", "skip", "no laws are tried without a config, see above"
            )
            continue
        laws = _ask("laws", dataclasses.replace(request, component=(kind, name)), options.timeout)
        known |= set(laws.get("laws") or ())
        yield from _of_laws(laws, f"{kind}/{name}", options.timeout)
    unknown = [law for _, law, _ in options.waived if known and law not in known]
    if unknown:
        raise PluginError(
            f"--waive {unknown[0]}",
            "no law that was tried is called so",
            close_match(unknown[0], known),
        )


def _of_laws(answer: _Answer, subject: str, timeout: float) -> Iterator[Verdict]:
    yield from answer.verdicts
    ended = answer.unfinished(timeout)
    yield from ended
    told = {verdict.subject for verdict in [*answer.verdicts, *ended]}
    built = any(verdict.check == "build" and verdict.status == "ok" for verdict in answer.verdicts)
    left = [law for law in answer.get("laws") or () if f"{subject} {law}" not in told]
    if left and built:
        yield Verdict("law", subject, "skip", f"{len(left)} more were not tried: {', '.join(left)}")
    elif left and not built:
        yield Verdict(
            "law", subject, "skip", f"{len(left)} laws were not tried: the component was not built"
        )


def _import_time(answer: _Answer, request: Request, limit: float) -> Iterator[Verdict]:
    """Time to describe the plugin; when it is long, the shorter of two (the first may have
    compiled, or read a cold disk)."""
    seconds = float(answer.get("seconds"))
    if answer.get("heavy"):
        return  # told with their lines already
    request = dataclasses.replace(request, describe_only=True)
    if seconds > IMPORT_BUDGET:
        again = _ask("probe", request, limit).get("seconds")
        seconds = seconds if again is None else min(seconds, float(again))
    text = f"it is described in {seconds:.2f} s beyond cm3core's own"
    if seconds <= IMPORT_BUDGET:
        yield Verdict("import", "", "ok", f"{text}, and imports nothing heavy")
    else:
        yield Verdict(
            "import",
            "",
            "warn",
            f"{text}; {IMPORT_BUDGET:g} s is much",
            "import later what takes long (python -X importtime shows it)",
            "\n".join(_slowest(request, limit)),
        )


def _slowest(request: Request, limit: float, most: int = 3) -> list[str]:
    """The packages that take longest to import, by `python -X importtime`."""
    answer = _ask("probe", request, limit, options=("-X", "importtime"))
    imported = set(answer.get("imported") or ())
    rows = []
    for line in answer.output.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and len(parts) == 3 and parts[0].strip().isdigit():
            rows.append((int(parts[0]), parts[2].strip()))
    totals: dict[str, int] = {}
    for own, module in rows:
        top = module.partition(".")[0]
        if top in imported:
            totals[top] = totals.get(top, 0) + own
    slowest = sorted(totals.items(), key=lambda item: -item[1])[:most]
    return [
        f"{name}: {microseconds / 1e6:.2f} s in its own modules"
        for name, microseconds in slowest
        if microseconds > 20_000
    ]


def _ask(part: str, request: Request, timeout: float, options: Sequence[str] = ()) -> _Answer:
    """Run a part in a process of its own, in a temporary folder, and end it and what it started
    when the time is over."""
    answer = _Answer()
    with tempfile.TemporaryDirectory(prefix="cm3-plugin-check-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(
            json.dumps(dataclasses.asdict(request)), encoding="utf-8"
        )
        (folder / "work").mkdir()
        command = [
            sys.executable,
            "-P",
            *options,
            "-m",
            f"cm3core.plugin_check.{part}",
            str(folder / "request.json"),
            str(folder / "told"),
        ]
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=folder / "work",
                env=_environ(folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    answer.returncode = process.wait(timeout)
            finally:
                _end(process)
        answer.output = (folder / "output").read_text(encoding="utf-8", errors="replace")
        told = folder / "told"
        if told.is_file():
            lines = told.read_text(encoding="utf-8").splitlines(keepends=True)
            answer.lines = [json.loads(line) for line in lines if line.endswith("\n")]
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environ(folder: Path) -> dict[str, str]:
    """The environment without what would change the check: strictness, disabled plugins, options of
    pytest."""
    left_out = {
        STRICT_VARIABLE,
        DISABLE_VARIABLE,
        "PYTEST_ADDOPTS",
        "PYTEST_PLUGINS",
        "PYTHONPROFILEIMPORTTIME",
    }
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {
        **kept,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
    }
