"""A complete check, which runs each part in its own process and collects all verdicts."""

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

from cm3apps.plugin_check.targets import Target, find_targets
from cm3apps.plugin_check.worker import Report, Request, Verdict
from cm3core.errors import FileError, PluginError, close_match
from cm3core.plugins.info import DISABLE_VARIABLE, STRICT_VARIABLE

#: Seconds that describing a plugin may take in addition to the time for cm3core.
IMPORT_BUDGET = 0.5
#: Seconds after which describing is stopped, because such a slow plugin probably hangs.
DESCRIBE_TIMEOUT = 60.0


@dataclass(frozen=True)
class Options:
    """The options of a check.

    Args:
        overrides: `KIND.KEY=VALUE` or `NAME.KEY=VALUE`.
        max_examples: number of examples per law.
        quick: build nothing and test no laws.
        timeout: seconds for each component's laws, and for commands, benchmarks and models
            together.
        only: names of components, `NAME` or `KIND/NAME`, to check; (): all.
        waived: laws not to test: (component or "", law, reason).
    """

    overrides: Sequence[str] = ()
    max_examples: int = 25
    quick: bool = False
    timeout: float = 300.0
    only: Sequence[str] = ()
    waived: Sequence[tuple[str, str, str]] = ()


@dataclass
class _Answer:
    """The lines that a process reported, and how it ended."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    output: str = ""
    returncode: int | None = None

    def get(self, key: str) -> Any:
        """The value of the last line with the key, or None."""
        return next((line[key] for line in reversed(self.lines) if key in line), None)

    @property
    def verdicts(self) -> list[Verdict]:
        return [Verdict(**line["verdict"]) for line in self.lines if "verdict" in line]

    def unfinished(self, seconds: float) -> list[Verdict]:
        """The unfinished step as a verdict; [] if the process ended normally."""
        if self.returncode == 0:
            return []
        step = next(
            (line for line in reversed(self.lines) if "begin" in line),
            {"begin": "starting", "check": "import", "subject": ""},
        )
        if self.returncode is None:
            text = f"{step['begin']} took longer than {seconds:g} s and was killed"
            advice = "find what it waits for, or raise --timeout"
        elif self.returncode < 0:
            name = signal.Signals(-self.returncode).name
            text = f"the process was killed by {name} while {step['begin']}"
            advice = "run that step in a debugger (python -X faulthandler)"
        elif "Traceback (most recent call last)" in self.output:
            text = f"there was an unexpected error while {step['begin']}"
            advice = "correct the plugin, or report it to cm3leon"
        else:
            text = f"the process exited with code {self.returncode} while {step['begin']}"
            advice = "a plugin must not exit the program"
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
    """Check the plugins named by an argument.

    Args:
        argument: see `find_targets`.
        options: how to check.
        tell: called with each new report (and None), and with every verdict as soon as it
            exists.

    Returns:
        A report for each plugin.

    Raises:
        PluginError, RecipeError: the argument or an option is invalid.
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
    answer = _ask("probe", request, limit := min(options.timeout, DESCRIBE_TIMEOUT))
    if (usage := answer.get("usage")) is not None:
        raise PluginError(*usage)
    yield from _of_description(answer, request, limit)
    if answer.get("components") is None:
        return
    # The following processes would only find the same errors.
    if any(one.status == "fail" and one.check in ("api", "hooks") for one in answer.verdicts):
        yield Verdict(
            "build",
            "",
            "skip",
            "nothing is built, because cm3 refuses the plugin",
            "correct the failures above",
        )
        return
    if answer.get("commands") or answer.get("benchmarks") or answer.get("models"):
        parts = _ask("parts", request, options.timeout)
        yield from parts.verdicts
        yield from parts.unfinished(options.timeout)
    yield from _of_components(answer, request, options)


def _of_description(answer: _Answer, request: Request, limit: float) -> Iterator[Verdict]:
    """The verdicts from describing the plugin."""
    yield from answer.verdicts
    yield from answer.unfinished(limit)
    if answer.get("provided") is not None:
        yield from _names(dataclasses.replace(request, provided=answer.get("provided")), limit)
    if answer.get("seconds") is not None:
        yield from _import_time(answer, request, limit)
    if answer.output.strip() and answer.returncode == 0:
        yield Verdict(
            "output",
            "",
            "warn",
            "it prints while it is described, and every cm3 command would show this on stderr",
            "remove the print, or use logging",
            "\n".join(answer.output.strip().splitlines()[:5]),
        )


def _of_components(answer: _Answer, request: Request, options: Options) -> Iterator[Verdict]:
    """The verdicts of the laws of the components' kinds.

    Raises:
        PluginError: a waived law does not exist.
    """
    components = [(kind, name) for kind, name in answer.get("components")]
    if options.quick and components:
        yield Verdict("law", "", "skip", "no laws are tested with --quick")
        return
    unready = {
        verdict.subject
        for verdict in answer.verdicts
        if verdict.check == "defaults" and verdict.status != "ok"
    }
    known: set[str] = set()
    for kind, name in components:
        if f"{kind}/{name}" in unready:
            yield Verdict(
                "law", f"{kind}/{name}", "skip", "no laws are tested without a config, see above"
            )
            continue
        laws = _ask("laws", dataclasses.replace(request, component=(kind, name)), options.timeout)
        known |= set(laws.get("laws") or ())
        yield from _of_laws(laws, f"{kind}/{name}", options.timeout)
    unknown = [law for _, law, _ in options.waived if known and law not in known]
    if unknown:
        raise PluginError(
            f"--waive {unknown[0]}",
            "no tested law has this name",
            close_match(unknown[0], known),
        )


def _of_laws(answer: _Answer, subject: str, timeout: float) -> Iterator[Verdict]:
    yield from answer.verdicts
    ended = answer.unfinished(timeout)
    yield from ended
    reported = {verdict.subject for verdict in [*answer.verdicts, *ended]}
    built = any(verdict.check == "build" and verdict.status == "ok" for verdict in answer.verdicts)
    left = [law for law in answer.get("laws") or () if f"{subject} {law}" not in reported]
    if left and built:
        yield Verdict(
            "law", subject, "skip", f"{len(left)} more were not tested: {', '.join(left)}"
        )
    elif left and not built:
        yield Verdict(
            "law", subject, "skip", f"{len(left)} laws were not tested: the component was not built"
        )


def _names(request: Request, limit: float) -> Iterator[Verdict]:
    """Names that other plugins also have; skipped if one of these plugins can't be imported."""
    answer = _ask("others", request, limit)
    yield from answer.verdicts
    for verdict in answer.unfinished(limit):
        yield dataclasses.replace(
            verdict,
            status="skip",
            text=f"its names can't be compared with other plugins': {verdict.text}",
            next_step="find out which plugin that is: CM3_DISABLE_PLUGINS=NAME cm3 plugin list",
        )


def _import_time(answer: _Answer, request: Request, limit: float) -> Iterator[Verdict]:
    """The time to describe the plugin; if it is long, the shorter of two runs.

    The first run may have compiled bytecode or read from a cold disk.
    """
    seconds = float(answer.get("seconds"))
    if answer.get("heavy"):
        return  # already reported with their lines
    request = dataclasses.replace(request, describe_only=True)
    if seconds > IMPORT_BUDGET:
        again = _ask("probe", request, limit).get("seconds")
        seconds = seconds if again is None else min(seconds, float(again))
    text = f"describing it takes {seconds:.2f} s more than cm3core itself"
    if seconds <= IMPORT_BUDGET:
        yield Verdict("import", "", "ok", f"{text} and imports nothing heavy")
    else:
        yield Verdict(
            "import",
            "",
            "warn",
            f"{text}; more than {IMPORT_BUDGET:g} s is slow",
            "defer slow imports (python -X importtime shows them)",
            "\n".join(_slowest(request, limit)),
        )


def _slowest(request: Request, limit: float, most: int = 3) -> list[str]:
    """The packages that take longest to import, according to `python -X importtime`."""
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
    """Run a part in its own process in a temporary folder; on timeout, kill it and its children."""
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
            f"cm3apps.plugin_check.{part}",
            str(folder / "request.json"),
            str(folder / "answer"),
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
        if answer.returncode:
            _check_room(folder)
        answer.output = (folder / "output").read_text(encoding="utf-8", errors="replace")
        answered = folder / "answer"
        if answered.is_file():
            lines = answered.read_text(encoding="utf-8").splitlines(keepends=True)
            answer.lines = [json.loads(line) for line in lines if line.endswith("\n")]
    return answer


def _check_room(folder: Path) -> None:
    """Raise `FileError` if the disk of temporary files is full: this is not the plugin's fault, and the process's
    report is lost too."""
    try:
        (folder / "room").write_bytes(bytes(4096))
    except OSError as error:
        raise FileError(
            str(folder.parent),
            f"can't be written ({error.strerror or error})",
            "free space on that disk, or set TMPDIR to a folder on another one",
        ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environ(folder: Path) -> dict[str, str]:
    """The environment without variables that would affect the check: strictness, disabled plugins, and
    pytest's options.
    """
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
