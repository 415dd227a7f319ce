"""Print the tests that a change concerns.

    python .ci/affected.py plain [BASE]  plain tests of what differs from BASE: what changed and its own tests, by folder, not
                                         what stands above it
    python .ci/affected.py slow [BASE]   folders whose slow tests must run: their tests, the code that they are of, or what
                                         either imports of `cm3core` and `tests/fixtures` differs from BASE

BASE is a commit. Without it: of `plain`, the commit before the last; of `slow`, the newest of the last tag and the commit
in `.ci/proven`, at which all slow tests passed (`.ci/run` writes it), and without both the last commit but 200. What
concerns everything, such as a dependency, prints everything, and so does a checkout without git or without that commit.
What is left out is on stderr, with the reason.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROVEN = ROOT / ".ci" / "proven"
#: Commits back to the base if nothing names one.
FAR = 200
#: Changes of these concern every test.
ALL = ("pyproject.toml", "conftest.py", ".ci/run")
#: The root's packages -> the tests that mirror them. Its other folders of tests are of all packages.
MIRRORED = {
    "cm3core": "tests/core",
    "plugins/cm3run": "tests/run",
    "plugins/cm3kits": "tests/kits",
    "plugins/cm3plugins": "tests/plugins",
    "plugins/cm3apps": "tests/apps",
    "kernels/cm3kernels": "tests/kernels",
}
FIXTURES = "tests/fixtures"


def git(*arguments: str) -> str | None:
    """What a command of git prints; None if it fails, or if there is no git."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def last_proof() -> str | None:
    """The commit that slow tests are compared with; None: there is none here."""
    proven = PROVEN.read_text().split()[0] if PROVEN.exists() else ""
    known = [one for one in (proven, git("describe", "--tags", "--abbrev=0")) if one]
    behind = {
        int(count): one
        for one in known
        if git("merge-base", "--is-ancestor", one, "HEAD") is not None
        and (count := git("rev-list", "--count", f"{one}..HEAD")) is not None
    }
    return behind[min(behind)] if behind else git("rev-parse", "--verify", f"HEAD~{FAR}")


def changed(base: str) -> list[str] | None:
    """The files that differ from a commit, those that git does not know among them; None: it can't be told."""
    committed = git("diff", "--name-only", "--no-renames", base)
    added = git("ls-files", "--others", "--exclude-standard")
    return None if committed is None or added is None else [*committed.split(), *added.split()]


def parts() -> dict[str, list[str]]:
    """Folder of tests -> the folders of code that they are of."""
    own = {tests: [code] for code, tests in MIRRORED.items() if (ROOT / tests).is_dir()}
    every = [*MIRRORED, "recipes", "docs", "examples", "README.md"]
    for path in sorted((ROOT / "tests").iterdir()):
        name = f"tests/{path.name}"
        if path.is_dir() and any(path.rglob("test_*.py")) and name not in own:
            own[name] = every
    for path in sorted(ROOT.glob("plugins/cm3-*/tests")):
        folder = path.parent.relative_to(ROOT).as_posix()
        own[f"{folder}/tests"] = [f"{folder}/{path.parent.name.replace('-', '')}"]
    return own


@cache
def imported(folder: str) -> frozenset[str]:
    """Files of `cm3core` and of `tests/fixtures` that the modules of a folder import."""
    found = set[str]()
    for path in (ROOT / folder).rglob("*.py"):
        for name in modules_of(path):
            place = name.replace(".", "/")
            for one in (f"{place}.py", f"{place}/__init__.py"):
                places = (one,) if one.startswith("cm3core") else (f"{FIXTURES}/{one}",)
                found.update(each for each in places if (ROOT / each).is_file())
    return frozenset(found)


def modules_of(path: Path) -> Iterator[str]:
    """The modules that a file imports, also inside of functions; names of what it takes from them may be modules, too."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)


def slow(base: str | None) -> list[str]:
    """Folders whose slow tests must run."""
    everything = parts()
    base = base or last_proof()
    differing = None if base is None else changed(base)
    if differing is None:
        say("slow tests: all, as there is no commit to compare with")
        return list(everything)
    if common := [one for one in differing if one in ALL]:
        say(f"slow tests: all, as {common[0]} differs from {base}")
        return list(everything)
    found, left = list[str](), list[str]()
    for tests, code in everything.items():
        folders = [tests, *code]
        uses = set[str]().union(*map(imported, folders))
        if why := [one for one in differing if one in uses or within(one, folders)]:
            found.append(tests)
            say(f"slow tests of {tests}: {why[0]} differs")
        else:
            left.append(tests)
    if left:
        say(f"left out, as nothing of theirs differs from {base}: slow tests of {', '.join(left)}")
    return found


def plain(base: str | None) -> list[str]:
    """Files and folders of plain tests of what changed."""
    differing = changed(base or "HEAD~1")
    if differing is None:
        say("plain tests: all, as there is no commit to compare with")
        return ["tests", *(one for one in parts() if one.startswith("plugins/"))]
    found = {"tests/docs/test_generated.py", "tests/architecture/test_layout.py"}
    for one in differing:
        own = list(own_tests(one))
        if not own and one.endswith((".py", ".yaml")):
            say(f"no plain tests of its own: {one}")
        found.update(own)
    return sorted(
        one for one in found if not any(within(one, [other]) for other in found if other != one)
    )


def own_tests(path: str) -> Iterator[str]:
    """The tests of a file, or of the nearest folder whose tests mirror its own."""
    place = Path(path)
    if within(path, ["recipes"]):
        yield "tests/recipes"
    elif place.suffix == ".md":
        yield "tests/docs/test_words.py"
    elif "tests" in place.parts:
        if place.name.startswith("test_") and (ROOT / path).is_file():
            yield path
        elif place.name in ("conftest.py", "messages.txt") and (ROOT / path).is_file():
            yield place.parent.as_posix()
    else:
        beside = {code: tests for tests, (code, *_) in parts().items()}
        for code, tests in (beside | MIRRORED).items():
            if within(path, [code]):
                *folders, name = place.relative_to(code).with_suffix("").parts
                yield from nearest(ROOT / tests, folders, name)


def nearest(top: Path, folders: list[str], name: str) -> Iterator[str]:
    """The tests of a module, below the tests of its package: the nearest folder; if there is only that of the whole package,
    the files and the folder that have its name, or its folder's."""
    tests = top
    for folder in folders:
        tests = tests / folder if (tests / folder).is_dir() else tests
    found = [tests] if tests != top else []
    for word in [] if found else [name, *reversed(folders)]:
        if word != "__init__" and not found:
            found = [*tests.glob(f"test_*{word.strip('_')}*.py")]
            found += [tests / word] if (tests / word).is_dir() else []
    yield from (one.relative_to(ROOT).as_posix() for one in found)


def within(path: str, folders: list[str]) -> bool:
    """Whether a file is in one of the folders, or is one of them.

    >>> within("cm3core/plugins/info.py", ["cm3core"]), within("cm3core_a/info.py", ["cm3core"])
    (True, False)
    """
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def say(what: str) -> None:
    """Say it beside the answer."""
    print(what, file=sys.stderr)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["plain", *base] if len(base) < 2:
            found = plain(base[0] if base else None)
        case ["slow", *base] if len(base) < 2:
            found = slow(base[0] if base else None)
        case _:
            sys.exit("usage: .ci/affected.py plain|slow [BASE]")
    sys.stdout.writelines(f"{one}\n" for one in found)
