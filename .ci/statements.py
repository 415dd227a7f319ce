"""Print how many statements of Python each part of the repository has, beside the last tag: `python .ci/statements.py`.

A part is a package's folder, or its modules outside of folders. Docstrings and comments aren't counted, so no formatter changes
a figure. There is no limit; the figures tell where the code grows.
"""

from __future__ import annotations

import ast
import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
TOPS = ("cm3core", "kernels", "plugins", "docs", "examples", "tests")


def main() -> None:
    """Print the table."""
    now = counts((str(path.relative_to(ROOT)), path.read_bytes()) for path in files())
    tag = last_tag()
    before = counts(files_at(tag)) if tag else Counter[str]()
    print(f"{'statements':42s} {'now':>7s}" + (f" {tag:>12s}" if tag else ""))
    for part in sorted(now | before):
        print(f"{part:42s} {now[part]:7,d}" + (f" {before[part]:12,d}" if tag else ""))
    for name, is_product in (("product code", True), ("tests, docs, examples", False)):
        sums = [
            sum(
                number
                for part, number in of.items()
                if (part in ("tests", "docs", "examples")) != is_product
            )
            for of in (now, before)
        ]
        print(f"{name:42s} {sums[0]:7,d}" + (f" {sums[1]:12,d}" if tag else ""))


def files() -> Iterator[Path]:
    """Every file of Python, but for what tools leave."""
    for top in TOPS:
        for path in sorted((ROOT / top).rglob("*.py")):
            if not {"__pycache__", "node_modules", ".venv"} & set(path.parts):
                yield path


def last_tag() -> str | None:
    """The newest tag behind the commit; None without tags or without git."""
    command = ["git", "describe", "--tags", "--abbrev=0"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def files_at(tag: str) -> Iterator[tuple[str, bytes]]:
    """Path and content of every file of Python at a tag."""
    command = ["git", "archive", tag, *TOPS]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name.endswith(".py") else None
            if content:
                yield member.name, content.read()


def counts(sources: Iterator[tuple[str, bytes]]) -> Counter[str]:
    """Part -> its statements."""
    found: Counter[str] = Counter()
    for path, source in sources:
        found[part_of(PurePosixPath(path))] += statements(source)
    return found


def part_of(path: PurePosixPath) -> str:
    """
    >>> part_of(PurePosixPath("plugins/cm3run/model/jobs.py")), part_of(PurePosixPath("plugins/cm3-lab/tests/test_a.py"))
    ('cm3run/model', 'tests')
    """
    if "tests" in path.parts or path.parts[0] in ("docs", "examples"):
        return "tests" if "tests" in path.parts else path.parts[0]
    inside = [
        part
        for part in path.parts
        if part not in ("plugins", "kernels") and not part.startswith("cm3-")
    ]
    return "/".join(inside[:-1][:2]) or path.parts[0]


def statements(source: bytes) -> int:
    """Statements of a module that aren't docstrings."""
    return sum(
        isinstance(node, ast.stmt)
        and not (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        )
        for node in ast.walk(ast.parse(source))
    )


if __name__ == "__main__":
    main()
