"""Verdicts: a line of a report each, with a next step where action is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

#: Status -> how it is written at the start of a line.
SHOWN = {"ok": "ok", "fail": "FAIL", "warn": "warn", "skip": "skip"}


@dataclass(frozen=True)
class Verdict:
    """The result of one check.

    Args:
        check: one of "install", "api", "hooks", "names", "keys", "defaults", "import", "output",
            "build", "law", "command", "benchmark" or "model".
        subject: what was checked: "KIND/NAME", a law as "KIND/NAME LAW", a hook, a name; "" for the whole
            plugin.
        status: "ok", "fail", "warn" or "skip".
        text: what was found, in one line.
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
        """The verdict as it is printed."""
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
        verdicts: in the order in which they were reached.
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
        """Whether nothing fails; with `strict`, whether there are no warnings or skips either."""
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
