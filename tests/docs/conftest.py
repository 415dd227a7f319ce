"""Pages of the documentation as code blocks. A block obeys the HTML comments directly above it:

    <!-- not run: reason -->    leave it out
    <!-- file: NAME -->         write it to that file
    <!-- fails -->              every command of the block ends with exit code 2
    <!-- output -->             what the commands of the block before print; `...` stands for any lines, in a line for any text

Of ```bash, the lines that begin with `cm3
` are run; other shell commands are for the reader. All ```python blocks of a page share a
namespace, and all blocks of a page a temporary folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

BLOCK = re.compile(r"((?:^<!--[^\n]*-->\n)*)^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"^<!-- (not run: .+|file: .+|fails|output) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its place, its language, its text, and the comments for the runner."""

    place: str
    language: str
    text: str
    marks: tuple[str, ...]

    @property
    def left_out(self) -> bool:
        return any(mark.startswith("not run: ") for mark in self.marks)

    @property
    def file(self) -> str | None:
        return next(
            (mark.removeprefix("file: ") for mark in self.marks if mark.startswith("file: ")), None
        )

    @property
    def commands(self) -> list[str]:
        """The `cm3` commands of a bash block, continued lines joined."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        return (
            [line for line in lines if line.startswith("cm3 ")] if self.language == "bash" else []
        )


def blocks_of(page: Path) -> list[Block]:
    """The page's blocks, in order."""
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^```", text, re.MULTILINE)) % 2 == 0, (
        f"{page.name}: a block is not closed"
    )
    blocks = []
    for match in BLOCK.finditer(text):
        marks = [COMMENT.match(line) for line in match[1].splitlines()]
        assert all(marks), (
            f"{page.name}: a comment above a block that says nothing to the tests: {match[1]}"
        )
        place = f"{page.name}, line {text.count(chr(10), 0, match.start(2)) + 1}"
        blocks.append(Block(place, match[2], match[3], tuple(mark[1] for mark in marks if mark)))
    return blocks


@pytest.fixture(scope="session")
def read_blocks() -> Callable[[Path], list[Block]]:
    """`blocks_of`, for the tests of this folder (which is no package)."""
    return blocks_of
