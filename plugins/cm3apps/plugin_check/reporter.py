"""pytest's reports on a component's laws, as verdicts.

It imports pytest; `laws` has checked that it is installed.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from typing import Any

import pytest

from cm3apps.catalog import summary
from cm3apps.plugin_check.worker import Teller, plugin_traceback, worded
from cm3core.errors import DeviceError, MissingPackageError
from cm3core.interfaces.component import BrokenLawError


class Reporter:
    """pytest hooks that write a verdict for each test."""

    def __init__(self, subject: str, teller: Teller) -> None:
        self.subject, self.teller = subject, teller

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Record the law that starts, in case it never returns."""
        law = _law(nodeid)
        self.teller.begin(f"testing the law {law}", "law", f"{self.subject} {law}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Generator[None, Any, Any]:
        """Write the verdict; a skipped test gives its reason."""
        report = yield
        law = _law(item.nodeid)
        subject = f"{self.subject} {law}"
        if report.skipped:
            reason = str(call.excinfo.value).removeprefix("Skipped: ")
            self.teller.verdict("law", subject, "skip", reason)
        elif report.failed and isinstance(call.excinfo.value, (DeviceError, MissingPackageError)):
            self.teller.verdict(
                "law",
                subject,
                "skip",
                f"can't be tested here: {call.excinfo.value.cause}",
                call.excinfo.value.next_step,
            )
        elif report.failed:
            error = call.excinfo.value
            cause, _, _ = worded(error)
            step = f"the law: {summary(inspect.getdoc(item.function) or '')}"
            if hasattr(error, "in_a_line"):  # a law's own finding
                cause, step = error.in_a_line(), f"{error.next_step}; {step}"
            self.teller.verdict("law", subject, "fail", cause, step, _detail(error))
        elif report.when == "call":
            self.teller.verdict("law", subject, "ok", "")
        return report

    def pytest_warning_recorded(self, warning_message: Any, nodeid: str) -> None:
        """Record a key that seems to have no effect as a warning of its law."""
        if warning_message.category.__name__ == "UnusedKeyWarning":
            first, *rest = str(warning_message.message).splitlines()
            steps = [line.strip().removeprefix("next: ") for line in rest if "next: " in line]
            subject = f"{self.subject} {_law(nodeid)}"
            self.teller.verdict("law", subject, "warn", first, "".join(steps[:1]))


def _law(nodeid: str) -> str:
    return nodeid.rpartition("::test_")[2]


def _detail(error: BaseException) -> str:
    """The falsifying example, and where the law failed."""
    # the second line of a broken law would only recommend this check
    told = [] if isinstance(error, BrokenLawError) else str(error).splitlines()[1:]
    if hasattr(error, "tested_lines"):
        told = error.tested_lines()
    message = [line for line in told if line.strip()][:12]
    drawn = [
        line.partition("  # or any other")[0]
        for note in getattr(error, "__notes__", [])
        for line in note.splitlines()
        if line.startswith("Draw ")
    ]
    drawn = [line if len(line) <= 300 else f"{line[:297]}..." for line in drawn[:12]]
    heading = [f"falsified by: {'; '.join(drawn)}"] if drawn else []
    return "\n".join([*heading, *message, *plugin_traceback(error, most=4).splitlines()])
