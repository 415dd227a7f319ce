"""mkdocs hooks: pages made from files outside docs/, and links that work on GitHub and on the site.

A file of the repository outside docs/ has the address `repository/PATH` on the site: Markdown files
become pages, others that a page links to are copied. `shipped-recipes.md` is made from
recipes/*.yaml, `api/MODULE.md` from docs/plugins/public-names.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parents[1]
#: Markdown files of the repository that are pages of the site.
OUTSIDE = (
    "README.md",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "kernels/**/README.md",
    "examples/**/*.md",
    "plugins/**/*.md",
)
#: Code, in which nothing is a link, or the target of a link or of a picture.
CODE_OR_TARGET = re.compile(
    r"^(?P<fence>`{3,}).*?^(?P=fence)$|``.+?``|`[^`\n]+`|(?<=\]\()(?P<target>[^)#\s:]+)(?=[)#])",
    re.MULTILINE | re.DOTALL,
)
API = "api"


def address(path: PurePosixPath) -> str:
    """The site address of a file of the repository; a folder is its README, or a list of files."""
    if (ROOT / path).is_dir():
        return (
            address(path / "README.md")
            if (ROOT / path / "README.md").is_file()
            else f"repository/{path}/index.md"
        )
    shown = str(path)
    return shown.removeprefix("docs/") if shown.startswith("docs/") else f"repository/{shown}"


def origin(uri: str) -> PurePosixPath:
    """The inverse of `address`: the file of the repository that a page's text is from."""
    return (
        PurePosixPath(uri.removeprefix("repository/"))
        if uri.startswith("repository/")
        else PurePosixPath("docs", uri)
    )


def linked(text: str, page: PurePosixPath) -> Iterator[PurePosixPath]:
    """The files of the repository that a page's text links to."""
    for match in CODE_OR_TARGET.finditer(text):
        if match["target"]:
            path = _normal(page.parent / match["target"])
            if (ROOT / path).exists():
                yield path


def with_site_links(text: str, uri: str) -> str:
    """A page's text with links relative to its place on the site; external links are unchanged."""
    page = origin(uri)

    def replaced(match: re.Match[str]) -> str:
        path = _normal(page.parent / match["target"]) if match["target"] else None
        if path is None or not (ROOT / path).exists():
            return match[0]
        return os.path.relpath(address(path), PurePosixPath(uri).parent)

    return CODE_OR_TARGET.sub(replaced, text)


def _normal(path: PurePosixPath) -> PurePosixPath:
    return PurePosixPath(os.path.normpath(path))


def recipes_page() -> str:
    """Each shipped recipe with its opening comment and its text."""
    parts = [
        "# Shipped recipes\n",
        "Each opens with what it is, the hardware that it needs, the command, and the usual "
        "overrides. `cm3 recipe show` prints every value; [recipes.md](recipes.md) explains how "
        "recipes compose.\n",
    ]
    own = sorted((ROOT / "recipes").rglob("*.yaml"), key=lambda path: (len(path.parts), path.name))
    for path in (*own, *sorted(ROOT.glob("plugins/*/*/recipes/**/*.yaml"))):
        text = path.read_text(encoding="utf-8")
        comment = re.match(r"(?:#.*\n)+", text)
        lines = (
            [line.removeprefix("#").removeprefix(" ") for line in comment[0].splitlines()]
            if comment
            else [path.stem]
        )
        title, _, about = lines[0].partition(": ")
        parts.append(f"## {title}\n\n{about[:1].upper() + about[1:]}.\n")
        parts.append("``` { .text .wrap }\n" + "\n".join(lines[1:]).strip("\n") + "\n```\n")
        body = "\n".join(
            f"    {line}" for line in text[comment.end() if comment else 0 :].strip().splitlines()
        )
        parts.append(
            f'??? note "The file, {path.relative_to(ROOT)}"\n\n    ```yaml\n{body}\n    ```\n'
        )
    return "\n".join(parts)


def folder_page(path: PurePosixPath) -> str:
    """A list of the files in a folder without a README; subfolders with a README are links."""
    names = sorted(
        child.name for child in (ROOT / path).iterdir() if not child.name.startswith((".", "__"))
    )
    rows = [
        f"- [{name}]({name}/README.md)"
        if (ROOT / path / name / "README.md").is_file()
        else f"- `{name}`"
        for name in names
    ]
    return "\n".join([f"# {path}\n", *rows]) + "\n"


def public_modules() -> list[tuple[str, list[str], str]]:
    """(module, names, what for) of docs/plugins/public-names.md."""
    page = (ROOT / "docs/plugins/public-names.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (`.*?) \| ?(.*?) ?\|$", page, re.MULTILINE)
    return [(module, re.findall(r"`(\w+)`", names), purpose) for module, names, purpose in rows]


def api_pages() -> dict[str, str]:
    """Address -> text of the pages of the API."""
    index = [
        "# API\n",
        "The public names, module by module; [stability.md](../plugins/stability.md) states how "
        "they may change.\n",
        "| module | names | for |",
        "| --- | --- | --- |",
    ]
    pages = {}
    for module, names, purpose in public_modules():
        listed = ", ".join(f"`{name}`" for name in names)
        index.append(f"| [`{module}`]({module}.md) | {listed} | {purpose} |")
        shown = [name for name in names if not name.startswith("__")]
        blocks = "\n\n".join(f"::: {module}.{name}" for name in shown)
        pages[f"{API}/{module}.md"] = f"# {module}\n\n{blocks}\n"
    return {f"{API}/index.md": "\n".join(index) + "\n", **pages}


def on_config(config: Any) -> Any:
    """Put the API's pages in the navigation."""
    pages = [
        {re.sub(r"^cm3(core|plugins)\.", "", uri.removeprefix(f"{API}/").removesuffix(".md")): uri}
        for uri in api_pages()
        if uri != f"{API}/index.md"
    ]
    config.nav = [
        {"API": [f"{API}/index.md", *pages]} if item == {"API": API} else item
        for item in config.nav
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add pages and copied files."""
    from mkdocs.structure.files import File

    def add(uri: str, **source: str) -> None:
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, **source))

    add("shipped-recipes.md", content=recipes_page())
    for uri, text in api_pages().items():
        add(uri, content=text)
    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        add(address(PurePosixPath(path.relative_to(ROOT))), abs_src_path=str(path))
    for file in list(files.documentation_pages()):
        for target in linked(file.content_string, origin(file.src_uri)):
            if (ROOT / target).is_file():
                add(address(target), abs_src_path=str(ROOT / target))
            elif address(target).endswith("/index.md"):
                add(address(target), content=folder_page(target))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links for the site."""
    return with_site_links(markdown, page.file.src_uri)
