"""What the documentation shows runs, and prints what the documentation says; its links lead
somewhere."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from cm3apps.cli.main import main
from few_icons import few_icons_in_memory

ROOT = Path(__file__).parents[2]
#: Where pages lie (a source distribution has no git to ask): every Markdown file of the repository
#: is run.
PLACES = (
    "*.md",
    *(
        f"{folder}/**/*.md"
        for folder in ("cm3core", "plugins", "kernels", "recipes", "tests", "docs", "examples")
    ),
)
#: Pages that are not run, each with its reason.
LEFT_OUT: dict[str, str] = {}
#: Languages of blocks. `py` and `pycon` only show: the signatures and examples of
#: docs/plugins/reference.md.
LANGUAGES = {"bash", "python", "text", "toml", "yaml", "json", "csv", "console", "py", "pycon"}
PAGES = sorted(
    {path.relative_to(ROOT) for place in PLACES for path in ROOT.glob(place)}
    - set(map(Path, LEFT_OUT))
)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)?(#[^)\s]+)?\)")
#: Pages whose blocks search the memory of the default model.
WITH_ITS_MEMORY = [Path("docs/tuning.md")]
#: Pages whose blocks take long: they train, draw many pictures or build banks.
LONG = {
    Path("README.md"),
    Path("plugins/cm3plugins/assets/models/scenes32/README.md"),
    *(
        Path("docs", name)
        for name in (
            "tuning.md",
            "decoding.md",
            "guide.md",
            "data.md",
            "retrieval.md",
            "scale.md",
            "paper.md",
            "kernels.md",
            "icons.md",
            "scenes.md",
            "rl.md",
        )
    ),
}


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
            assert matches(block.text, self.printed), (
                f"{block.place}: the commands above it print\n{self.printed}"
            )

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
            assert code == (2 if "fails" in block.marks else 0), (
                f"{block.place}: {command}: exit code {code}\n{self.printed}"
            )


def matches(expected: str, printed: str) -> bool:
    """Whether `printed` is `expected`, in which a line `...` stands for any lines, and in a line
    for any text.

    >>> matches("a\\n...\\nd\\n", "a\\nb\\nc\\nd\\n"), matches("a\\n...\\n", "b\\n")
    (True, False)
    """
    lines = [
        r"(?:.*\n)*?"
        if line.strip() == "..."
        else re.escape(line.rstrip()).replace(r"\.\.\.", ".*") + "\n"
        for line in expected.splitlines()
    ]
    return (
        re.fullmatch("".join(lines), "".join(f"{line.rstrip()}\n" for line in printed.splitlines()))
        is not None
    )


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "compiled").symlink_to(compiled)
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    before, threads = set(sys.modules), torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # a page may measure on one
    # The page's own module, and those of its files, go again; what they imported of others stays
    # (libraries load once).
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__dict__", {}).get("__file__")
        if name.startswith("page_") or (file and Path(file).resolve().is_relative_to(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page in LONG else page for page in PAGES],
    ids=str,
)
def test_blocks_run(
    page: Path, read_blocks: Callable[[Path], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    runner = PageRunner(page.stem, capsys)
    with few_icons_in_memory():
        for block in read_blocks(ROOT / page):
            runner.run(block)


@pytest.mark.extended
@pytest.mark.parametrize("page", WITH_ITS_MEMORY, ids=str)
def test_blocks_run_with_the_whole_memory(
    page: Path, read_blocks: Callable[[Path], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """As a reader runs them first: all icons are encoded, which takes minutes."""
    runner = PageRunner(page.stem, capsys)
    for block in read_blocks(ROOT / page):
        runner.run(block)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_block_is_of_a_known_language_and_python_is_valid(
    page: Path, read_blocks: Callable[[Path], list[Any]]
) -> None:
    """Those too that are not run, and whose reason is told."""
    for block in read_blocks(ROOT / page):
        assert block.language in LANGUAGES, f"{block.place}: a block in {block.language!r}"
        assert block.language not in {"py", "pycon"} or page == Path("docs/plugins/reference.md"), (
            f"{block.place}: write python"
        )
        if block.language == "python":
            # of a function, which may return
            part = any(mark.startswith("not run: a part of ") for mark in block.marks)
            compile(
                f"def part():\n{textwrap.indent(block.text, '    ')}" if part else block.text,
                block.place,
                "exec",
            )


@pytest.mark.parametrize("page", [*PAGES, *map(Path, LEFT_OUT)], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    """To files of the repository, and to headings in them, as GitHub names those."""
    text = re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`", "", (ROOT / page).read_text(encoding="utf-8"))
    lost = []
    for match in LINK.finditer(text):
        target, anchor = match[1] or "", match[2] or ""
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        if (
            not path.exists()
            or not path.resolve().is_relative_to(ROOT)
            or (anchor and anchor[1:] not in anchors(path))
        ):
            lost.append(target + anchor)
    assert lost == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings: lower case, spaces are hyphens, most other signs are gone;
    a second one gets `-1`."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
    names: list[str] = []
    for heading in re.findall(r"^#+ +(.*?)(?: +\{#[\w-]+\})?$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        names.append(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return {
        name if (before := names[:index].count(name)) == 0 else f"{name}-{before}"
        for index, name in enumerate(names)
    }


def test_every_page_is_found() -> None:
    shown = {str(page) for page in PAGES}
    assert {
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/plugins/tutorial.md",
        "kernels/cm3kernels/attention/README.md",
    } <= shown
    assert [page for page in LEFT_OUT if not (ROOT / page).is_file()] == []
    assert all(reason for reason in LEFT_OUT.values())


def test_anchors_are_githubs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Two words\n\n## `cm3 plugin check`: what, when?\n\n## Two words\n\n```text\n# no "
        "heading\n```\n",
        encoding="utf-8",
    )
    assert anchors(page) == {"two-words", "cm3-plugin-check-what-when", "two-words-1"}


def test_outputs_are_compared() -> None:
    assert matches("one\n...\nfour\n", "one\ntwo\nthree\nfour\n")
    assert matches("...\nfour\n", "four\n")
    assert not matches("one\nfour\n", "one\ntwo\nfour\n")
    assert not matches("one\n...\n", "two\n")
    assert not matches("one\n", "")
    assert matches("hash ...)\n", "hash 12)\n")


def test_a_block_that_is_wrong_fails(
    tmp_path: Path, read_blocks: Callable[[Path], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nassert 1 == 2\n```\n\n```bash\ncm3 recipe show nothing\n```\n"
        "\n<!-- output -->\n```text\nother\n```\n"
        "\n<!-- not run: why -->\n```python\nraise RuntimeError\n```\n",
        encoding="utf-8",
    )
    python, bash, output, left_out = read_blocks(page)
    with pytest.raises(AssertionError):
        PageRunner("page", capsys).run(python)
    for block, message in (
        (bash, "line 5: cm3 recipe show nothing: exit code 2"),
        (output, "line 10"),
    ):
        with pytest.raises(AssertionError, match=message):
            PageRunner("page", capsys).run(block)
    PageRunner("page", capsys).run(left_out)
