"""The pinned icon sets, and how each of them writes a style into an icon's name.

A set is one npm package of Iconify. A rule maps an ending or a beginning of the name to words of the
one style vocabulary that all sets share; what is left is the thing that the icon shows. The table is
`assets/sets.toml`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cm3core.errors import DataError, close_match
from cm3plugins.datasets.vector.packages import NpmPackage

ASSETS = Path(__file__).parent / "assets"

SET_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
"""Iconify's rule for prefixes and names; a set's name is part of file names, too."""

STYLE_WORDS = (
    "outline",
    "filled",
    "duotone",
    "colour",
    "broken",
    "thin",
    "light",
    "bold",
    "rounded",
    "sharp",
)
"""Every word that a style may hold, in the order in which captions write them: what is painted first, then
the weight of the line, then the corners."""

PERMITTED_LICENCES = ("MIT", "Apache-2.0", "ISC", "CC0-1.0", "CC-BY-4.0")
"""SPDX names of the licences under which a set may enter the corpus: no share-alike, no copyleft."""

EMOJI_SET = "emoji-"
"""The beginning of the names of the sets that are styles of the emoji corpus."""

EMOJI_TITLES = {
    "noto": "noto",
    "noto-v1": "noto v1",
    "fluent": "fluent emoji",
    "twemoji": "twemoji",
    "emojione": "emojione",
}
"""Styles of the emoji corpus, which is part of this one as the sets ``emoji-STYLE`` -> what captions call
them."""

EMOJI_LICENCES = {
    "noto": "Apache-2.0",
    "noto-v1": "Apache-2.0",
    "fluent": "MIT",
    "twemoji": "CC-BY-4.0",
    "emojione": "CC-BY-4.0",
}
"""Styles of the emoji corpus -> SPDX name of the licence that their package states."""


@dataclass(frozen=True, kw_only=True)
class IconSet:
    """One icon set.

    Args:
        name: Iconify's prefix, ``material-symbols``; the package is ``@iconify-json/NAME``.
        title: what captions call it, ``material``.
        version, sha256: of the tarball that ``npm pack`` writes.
        licence: SPDX name that the package must state.
        author, url: for the attribution.
        default: style words of a name without ending or beginning.
        endings: ``-ENDING`` of a name -> style words; the longest that fits is taken.
        beginnings: ``BEGINNING-`` of a name -> style words.
        always: style words of every icon of the set, besides.
        size: for sets that draw an icon in several sizes, a regular expression that the name must
            match; its groups ``name`` and ``style`` make the name without the size.
        brand_marks: regular expression of names that are logos of companies.
    """

    name: str
    title: str
    version: str
    sha256: str
    licence: str
    author: str
    url: str
    default: str = ""
    endings: Mapping[str, str] = field(default_factory=dict)
    beginnings: Mapping[str, str] = field(default_factory=dict)
    always: str = ""
    size: str | None = None
    brand_marks: str | None = None

    @property
    def package(self) -> NpmPackage:
        """The npm package."""
        return NpmPackage(f"@iconify-json/{self.name}", self.version, self.sha256)

    def check(self) -> None:
        """Raise `DataError` for a style word that is not in the vocabulary or a licence that is not permitted."""
        place = f"icon set {self.name}"
        rules = (self.default, self.always, *self.endings.values(), *self.beginnings.values())
        for word in " ".join(rules).split():
            if word not in STYLE_WORDS:
                raise DataError(
                    place,
                    f"the style word {word!r} is not known; {close_match(word, STYLE_WORDS)}",
                    f"use words out of {', '.join(STYLE_WORDS)}",
                )
        if self.licence not in PERMITTED_LICENCES:
            raise DataError(
                place,
                f"its licence is {self.licence or 'not stated'}, which is not permitted here",
                f"use sets under {', '.join(PERMITTED_LICENCES)}",
            )


@cache
def all_sets() -> dict[str, IconSet]:
    """Return the pinned sets by name, in the corpus' order."""
    table: dict[str, list[dict[str, Any]]] = tomllib.loads(
        (ASSETS / "sets.toml").read_text(encoding="utf-8")
    )
    sets = {row["name"]: IconSet(**row) for row in table["set"]}
    for icon_set in sets.values():
        icon_set.check()
    return sets


def title_of(set_name: str) -> str:
    """Return what captions call a set."""
    style = set_name.removeprefix(EMOJI_SET)
    if style != set_name and style in EMOJI_TITLES:
        return EMOJI_TITLES[style]
    return all_sets()[set_name].title if set_name in all_sets() else set_name.replace("-", " ")


def style_words(text: str) -> tuple[str, ...]:
    """Return the style words of a text, each once, in the vocabulary's order."""
    found = frozenset(text.split())
    return tuple(word for word in STYLE_WORDS if word in found)


def matches(pattern: str | None, name: str) -> re.Match[str] | None:
    """Match a whole name; None if there is no pattern."""
    return None if pattern is None else re.fullmatch(pattern, name)
