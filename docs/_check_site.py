"""Check the built site: `python docs/_check_site.py site`.

Every link leads to a file and an anchor in it, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: What a browser fetches automatically: tag -> attributes. (Only a reader follows an <a href>.)
LOADED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src",),
    "audio": ("src",),
    "link": ("href",),
    "object": ("data",),
    "embed": ("src",),
}


class Page(HTMLParser):
    """A page's anchors, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loaded += [values[name] for name in LOADED.get(tag, ()) if name in values]


def problems(site: Path) -> Iterator[str]:
    """The problems, one line each."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: there are no pages"
    for path, page in pages.items():
        place = path.relative_to(site)
        yield from (
            f"{place}: loads {target} from elsewhere"
            for target in page.loaded
            if urlsplit(target).netloc
        )
        for target in [*page.links, *page.loaded]:
            parts = urlsplit(target)
            if (
                parts.scheme
                or parts.netloc
                or (place.name == "404.html" and target.startswith("/"))
            ):
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if file.is_dir():
                file = file / "index.html"
            if not file.is_file():
                yield f"{place}: {target} leads to no file"
            elif (
                parts.fragment
                and file in pages
                and unquote(parts.fragment) not in pages[file].anchors
            ):
                yield f"{place}: {target} leads to no anchor"
    for style in sorted(site.rglob("*.css")):
        text = style.read_text(encoding="utf-8")
        yield from (
            f"{style.relative_to(site)}: has {word}, which loads from elsewhere"
            for word in ("url(http", "url(//", "@import")
            if word in text
        )


def main(site: Path) -> int:
    """Print the problems; return 1 if there are any."""
    found, number = list(problems(site.resolve())), len(list(site.rglob("*.html")))
    print(
        "\n".join(found)
        or f"{site}: {number} pages, all links lead somewhere, nothing is loaded from elsewhere"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
