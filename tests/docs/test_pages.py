"""What the documentation shows runs, and prints what the documentation says; its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cm3core.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)]*)?\)")


class PageRunner:
    """Runs a page's blocks in order, in the working folder."""

    def __init__(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys, self.printed = capsys, ""
        self.module = ModuleType(f"page_{re.sub(r'[^a-z]', '_', name.lower())}")

    def run(self, block: Any) -> None:
        if block.left_out:
            return
        if block.file is not None:
            path = Path(block.file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self._python(block)
        elif block.commands:
            self._commands(block)
        elif "output" in block.marks:
            assert matches(block.text, self.printed), f"{block.place}: the commands above it print\n{self.printed}"

    def _python(self, block: Any) -> None:
        sys.modules[self.module.__name__] = self.module  # dataclasses look their module up
        exec(compile(block.text, block.place, "exec"), vars(self.module))

    def _commands(self, block: Any) -> None:
        self.capsys.readouterr()
        for command in block.commands:
            try:
                code = main(shlex.split(command, comments=True)[1:])
            except SystemExit as ended:  # argparse: --help, a wrong option
                code = ended.code if isinstance(ended.code, int) else 1
            shown = self.capsys.readouterr()
            self.printed = "" if command == block.commands[0] else self.printed
            self.printed += shown.out + shown.err
            assert code == (2 if "fails" in block.marks else 0), f"{block.place}: {command}: exit code {code}\n{self.printed}"


def matches(expected: str, printed: str) -> bool:
    """Whether `printed` is `expected`, in which a line `...` stands for any lines, and in a line for any text.

    >>> matches("a\\n...\\nd\\n", "a\\nb\\nc\\nd\\n"), matches("a\\n...\\n", "b\\n")
    (True, False)
    """
    lines = [r"(?:.*\n)*?" if line.strip() == "..." else re.escape(line.rstrip()).replace(r"\.\.\.", ".*") + "\n"
             for line in expected.splitlines()]
    return re.fullmatch("".join(lines), "".join(f"{line.rstrip()}\n" for line in printed.splitlines())) is not None


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    before = set(sys.modules)
    yield
    # The page's own module, and those of its files, go again; what they imported of others stays (libraries load once).
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__dict__", {}).get("__file__")
        if name.startswith("page_") or (file and Path(file).resolve().is_relative_to(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page: Path, read_blocks: Callable[[Path], list[Any]], capsys: pytest.CaptureFixture[str]) -> None:
    runner = PageRunner(page.stem, capsys)
    for block in read_blocks(page):
        runner.run(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_is_valid(page: Path, read_blocks: Callable[[Path], list[Any]]) -> None:
    """Those too that are not run, and whose reason is told."""
    for block in read_blocks(page):
        if block.language == "python":
            compile(block.text, block.place, "exec")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = [match[1] for match in LINK.finditer(page.read_text(encoding="utf-8"))]
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_outputs_are_compared() -> None:
    assert matches("one\n...\nfour\n", "one\ntwo\nthree\nfour\n")
    assert matches("...\nfour\n", "four\n")
    assert not matches("one\nfour\n", "one\ntwo\nfour\n")
    assert not matches("one\n...\n", "two\n")
    assert not matches("one\n", "")
    assert matches("hash ...)\n", "hash 12)\n")


def test_a_block_that_is_wrong_fails(tmp_path: Path, read_blocks: Callable[[Path], list[Any]],
                                     capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 == 2\n```\n\n```bash\ncm3 recipe show nothing\n```\n"
                    "\n<!-- output -->\n```text\nother\n```\n"
                    "\n<!-- not run: why -->\n```python\nraise RuntimeError\n```\n", encoding="utf-8")
    python, bash, output, left_out = read_blocks(page)
    with pytest.raises(AssertionError):
        PageRunner("page", capsys).run(python)
    for block, message in ((bash, "line 5: cm3 recipe show nothing: exit code 2"), (output, "line 10")):
        with pytest.raises(AssertionError, match=message):
            PageRunner("page", capsys).run(block)
    PageRunner("page", capsys).run(left_out)
