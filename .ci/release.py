"""Versions of the distributions, the changelog and the citation, in step; what a release needs of them.

python .ci/release.py check [TAG]       exit code 1 and a line for each thing that is out of step
python .ci/release.py prepare VERSION   write the version everywhere, and today's date where it belongs
python .ci/release.py notes             print the newest version's part of the changelog
python .ci/release.py address URL TAG   in the checkout that is released: the repository's address into the metadata,
                                        and links of the READMEs that work outside of it

The address is not in the sources: a copy of the repository is released from its own.
"""

from __future__ import annotations

import datetime
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: The version of each file: in the first group of its pattern.
VERSION = "cm3core/_version.py", re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
CITED = "CITATION.cff", re.compile(r"^version: (\S+)$", re.MULTILINE)
RELEASED = re.compile(r"^date-released: (\S+)$", re.MULTILINE)
IN_PROJECT = re.compile(r'^version = "([^"]+)"$', re.MULTILINE)
NEEDED = re.compile(r'"cm3leon((?:\[[\w,]+\])?)==([^"]+)"')
#: `## [0.1.0] - 2026-11-30`
HEADING = re.compile(r"^## \[([^\]]+)\](?: - (\S+))?$", re.MULTILINE)
UNRELEASED = "Unreleased"
#: A link or picture of Markdown to a place in the repository.
RELATIVE = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)\s]+)(?=\))")
PICTURES = (".png", ".jpg", ".svg", ".gif")


def projects(root: Path) -> list[Path]:
    """The pyproject.toml of each distribution, cm3leon's first."""
    return [root / "pyproject.toml", *sorted(root.glob("plugins/cm3-*/pyproject.toml"))]


def found(root: Path, place: tuple[str, re.Pattern[str]]) -> str:
    """The version that a file states; "" if it states none."""
    match = place[1].search((root / place[0]).read_text(encoding="utf-8"))
    return match[1] if match else ""


def parts(root: Path) -> list[tuple[str, str, str]]:
    """(version, date, text) of each part of the changelog, newest first; a missing date is ""."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = list(HEADING.finditer(text))
    ends = [one.start() for one in headings[1:]] + [len(text)]
    return [
        (one[1], one[2] or "", text[one.end() : end].strip())
        for one, end in zip(headings, ends, strict=True)
    ]


def problems(root: Path, tag: str | None = None) -> Iterator[str]:
    """What is out of step; with a tag, also what keeps it from being released."""
    version = found(root, VERSION)
    if found(root, CITED) != version:
        yield f"CITATION.cff: version is {found(root, CITED)!r}, not {version}"
    for path in projects(root)[1:]:
        text, place = path.read_text(encoding="utf-8"), path.relative_to(root)
        stated = tomllib.loads(text)["project"]["version"]
        if stated != version:
            yield f"{place}: version is {stated}, not {version}"
        needed = [match[2] for match in NEEDED.finditer(text)]
        if needed != [version]:
            yield f"{place}: needs cm3leon=={needed}, not the version {version} it is released with"
    written = parts(root)
    if not written or written[0][0] != UNRELEASED:
        yield f"CHANGELOG.md: the first heading is not ## [{UNRELEASED}]"
    elif len(written) < 2 or written[1][0] != version:
        yield f"CHANGELOG.md: the newest version is not {version}"
    else:
        yield from _dates(root, written[1][1])
        if tag is not None and written[0][2]:
            yield f"CHANGELOG.md: [{UNRELEASED}] is not empty: python .ci/release.py prepare {version}"
    if tag is not None and tag != f"v{version}":
        yield f"the tag is {tag}, the version {version}"


def _dates(root: Path, date: str) -> Iterator[str]:
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        yield f"CHANGELOG.md: the newest version's date is {date!r}, not like 2026-01-31"
    cited = RELEASED.search((root / "CITATION.cff").read_text(encoding="utf-8"))
    if cited is None or cited[1] != date:
        yield f"CITATION.cff: date-released is not {date}, as in CHANGELOG.md"


def prepare(root: Path, version: str, date: str) -> None:
    """Write a version and its date into all files, and what is unreleased under it."""
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        raise SystemExit(f"{version!r} is not a version such as 0.2.0 or 0.2.0rc1")
    _put(root / VERSION[0], VERSION[1], version)
    _put(root / CITED[0], CITED[1], version)
    _put(root / CITED[0], RELEASED, date)
    for path in projects(root)[1:]:
        _put(path, IN_PROJECT, version)
        text = path.read_text(encoding="utf-8")
        path.write_text(NEEDED.sub(rf'"cm3leon\1=={version}"', text), encoding="utf-8")
    path = root / "CHANGELOG.md"
    head = path.read_text(encoding="utf-8").split("\n## [")[0].rstrip()
    written = parts(root)
    new = written[0][2]
    if len(written) > 1 and written[1][0] == version:  # prepared before, and not released
        new = f"{new}\n\n{written[1][2]}".strip()
        written = written[1:]
    older = "".join(f"\n## [{one}] - {day}\n\n{text}\n" for one, day, text in written[1:])
    path.write_text(
        f"{head}\n\n## [{UNRELEASED}]\n\n## [{version}] - {date}\n\n{new}\n{older}",
        encoding="utf-8",
    )


def _put(path: Path, pattern: re.Pattern[str], value: str) -> None:
    text = path.read_text(encoding="utf-8")
    match = pattern.search(text)
    if match is None:
        raise SystemExit(f"{path}: nothing like {pattern.pattern}")
    path.write_text(text[: match.start(1)] + value + text[match.end(1) :], encoding="utf-8")


def address(root: Path, url: str, tag: str) -> None:
    """Write `project.urls` of all distributions, and links of their READMEs to the tag's files."""
    for path in projects(root):
        urls = {
            "Homepage": url,
            "Documentation": f"{url}/blob/{tag}/docs/index.md",
            "Changelog": f"{url}/blob/{tag}/CHANGELOG.md",
            "Source": url,
            "Issues": f"{url}/issues",
        }
        text = path.read_text(encoding="utf-8")
        lines = "".join(f'{name} = "{value}"\n' for name, value in urls.items())
        path.write_text(
            text.replace("[project.urls]\n", f"[project.urls]\n{lines}"), encoding="utf-8"
        )
        readme = path.parent / "README.md"
        shown = readme.read_text(encoding="utf-8")
        folder = PurePosixPath(readme.parent.relative_to(root).as_posix())
        readme.write_text(absolute(shown, folder, url, tag), encoding="utf-8")


def absolute(text: str, folder: PurePosixPath, url: str, tag: str) -> str:
    """A page's text with links to the repository's files as they are at a tag.

    >>> absolute("[a](docs/a.md#b), ![c](c.png)", PurePosixPath("."), "https://host/me/it", "v1")
    '[a](https://host/me/it/blob/v1/docs/a.md#b), ![c](https://host/me/it/raw/v1/c.png)'
    """

    def replaced(match: re.Match[str]) -> str:
        target, anchor, part = match[1].partition("#")
        place = os.path.normpath(folder / target)
        kind = "raw" if place.endswith(PICTURES) else "blob"
        return f"{url}/{kind}/{tag}/{place}{anchor}{part}"

    return RELATIVE.sub(replaced, text)


def main(arguments: list[str], root: Path) -> int:
    """Do what the arguments say; return the exit code."""
    match arguments:
        case ["check", *tag] if len(tag) < 2:
            lines = list(problems(root, *tag))
            print("\n".join(lines) or f"{found(root, VERSION)}: in step")
            return int(bool(lines))
        case ["prepare", version]:
            prepare(root, version, datetime.date.today().isoformat())
        case ["notes"]:
            print(parts(root)[1][2])
        case ["address", url, tag]:
            address(root, url.rstrip("/"), tag)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).parents[1]))
