"""Write what the pages show of code, shipped data and stored figures: `python docs/_generate.py`.

It measures nothing. `cm3 eval card`, the benchmarks of kernels/bench/results and the other scripts of this folder
measure, and store what they find; this command makes the pages' tables of that, and docs/plugins/reference.md of the
code. In a page a table stands between two comments:

    <!-- table: NAME, by python docs/_generate.py -->
    <!-- end -->

`tests/docs/test_generated.py` fails when a page is not what this command writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import _code_tables
import _figures
import _icons
import _plugin_reference

DOCS = Path(__file__).parent
COMMAND = "python docs/_generate.py"
TABLE = re.compile(
    r"(<!-- table: (?P<name>[^,\n]+), by [^\n]*-->\n)(?P<rows>.*?)(?=<!-- end -->)", re.DOTALL
)


def tables() -> dict[str, dict[str, list[str]]]:
    """The tables of each page, by name: their lines."""
    made = {name: dict(own) for name, own in _figures.tables().items()}
    more = {
        "icons.md": _icons.tables(),
        "kernels.md": {"ops of the benchmark": _code_tables.costs()},
    }
    for name, own in more.items():
        made.setdefault(name, {}).update(own)
    return made


def with_tables(name: str, text: str, own: Mapping[str, Sequence[str]]) -> str:
    """Return a page with its tables made anew.

    Raises:
        ValueError: a table has no place in the page, or a place has no table.
    """
    places = [match["name"] for match in TABLE.finditer(text)]
    if sorted(places) != sorted(own):
        raise ValueError(
            f"{name} has places for the tables {sorted(places)}, and {COMMAND} makes {sorted(own)}: "
            "add the place to the page, or the table to the script"
        )
    return TABLE.sub(
        lambda match: match[1] + "".join(f"{row}\n" for row in own[match["name"]]), text
    )


def pages() -> dict[Path, str]:
    """Every page that is generated, or has tables that are, and its text."""
    made = {_plugin_reference.PAGE: _plugin_reference.page()}
    own_tables = tables()
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        own = own_tables.pop(path.name, {})
        if own or TABLE.search(text):
            made[path] = with_tables(path.name, text, own)
    if own_tables:
        raise ValueError(f"{sorted(own_tables)} are no pages of docs/")
    return made


if __name__ == "__main__":
    for page, new_text in pages().items():
        if page.read_text(encoding="utf-8") != new_text:
            page.write_text(new_text, encoding="utf-8")
            print(page.relative_to(DOCS.parent))
