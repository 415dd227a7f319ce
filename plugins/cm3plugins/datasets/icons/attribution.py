"""The attribution that is shipped beside the drawings: one line for each set, written by the build."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cm3plugins.datasets.icons.sets import IconSet, all_sets

_HEAD = """\
# Attribution of the icon corpus

The drawings and names in this folder come from these npm packages (`@iconify-json/SET`). Licences are those that
the packages state; their texts are in `licenses/`. Checksums of the packages are in `manifest.json`. The emoji that
are part of the corpus have an attribution of their own, in the emoji corpus' folder.

"""

_USER_HEAD = """\
# Attribution of this icon corpus

The drawings and names in this folder come from these npm packages (`@iconify-json/SET`), and are under the licences
that the packages state.

"""

_TABLE = """\
| set | version | drawings | author | source | licence |
| --- | --- | --- | --- | --- | --- |
"""

_CHANGES = """
## Changes made

- Chosen: one size of a drawing, no logos of companies and products, no skin tones, nothing that the set has withdrawn;
  of drawings that can't be told apart at 64 x 64 pixels, the first stays.
- Each drawing's elements are unchanged but for `currentColor`, which became black; an `<svg>` element with a square,
  centred view box was put around them.
- Names are split into words and styles; aliases and categories are tags, in lower case.
- Pictures are drawn from these files at the size that a recipe asks for, on a white ground.
"""

_REBUILD = """
Rebuild and compare: `python -m cm3plugins.datasets.icons.build --check`.
"""


def attribution(num_drawings: Mapping[str, int]) -> str:
    """Return the text of the bundled corpus, in Markdown.

    Args:
        num_drawings: set -> number of drawings in the corpus.
    """
    return _HEAD + _rows(all_sets().values(), num_drawings) + _CHANGES + _REBUILD


def attribution_of(sets: Iterable[IconSet], num_drawings: Mapping[str, int]) -> str:
    """Return the text of a user's corpus, in Markdown."""
    return _USER_HEAD + _rows(sets, num_drawings) + _CHANGES


def _rows(sets: Iterable[IconSet], num_drawings: Mapping[str, int]) -> str:
    rows = [
        f"| `{s.name}` | {s.version} | {num_drawings[s.name]:,} | {s.author} | {s.url} | {s.licence} |\n"
        for s in sets
    ]
    return _TABLE + "".join(rows)
