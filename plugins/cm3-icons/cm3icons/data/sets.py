"""The pinned icon sets, and the way each encodes styles in icon names.

A set is an Iconify npm package. A rule maps a suffix or prefix of a name to words of the style vocabulary
shared by all sets; the rest names the object shown by the icon. The table is
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
"""Iconify's pattern of prefixes and names; file names contain a set's name, too."""

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
"""All style words, in the order used in captions: first the fill, then the stroke weight, then
the corners."""

PERMITTED_LICENCES = ("MIT", "Apache-2.0", "ISC", "CC0-1.0", "CC-BY-4.0")
"""SPDX names of licences permitted in the corpus: no share-alike, no copyleft."""

EMOJI_SET = "emoji-"
"""Prefix of sets that are styles of the emoji corpus."""

EMOJI_TITLES = {
    "noto": "noto",
    "noto-v1": "noto v1",
    "fluent": "fluent emoji",
    "twemoji": "twemoji",
    "emojione": "emojione",
}
"""Styles of the emoji corpus, which are part of this corpus as the sets ``emoji-STYLE`` -> their names in
captions."""

EMOJI_LICENCES = {
    "noto": "Apache-2.0",
    "noto-v1": "Apache-2.0",
    "fluent": "MIT",
    "twemoji": "CC-BY-4.0",
    "emojione": "CC-BY-4.0",
}
"""Styles of the emoji corpus -> SPDX name of the licence stated in their package."""


@dataclass(frozen=True, kw_only=True)
class IconSet:
    """One icon set.

    Args:
        name: Iconify's prefix, ``material-symbols``; the package is ``@iconify-json/NAME``.
        title: name in captions, ``material``.
        version, sha256: version and SHA-256 of the tarball written by ``npm pack``.
        licence: SPDX name that the package must state.
        author, url: for the attribution.
        default: style words of a name without suffix or prefix.
        endings: suffix ``-ENDING`` of a name -> style words; the longest match is used.
        beginnings: prefix ``BEGINNING-`` of a name -> style words.
        always: further style words of every icon of the set.
        size: for sets that draw icons in several sizes, a regular expression that names must match; its
            groups ``name`` and ``style`` form the name without the size.
        brand_marks: regular expression of names that are company logos.
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
        """Raise `DataError` for an unknown style word or a licence that is not permitted."""
        place = f"icon set {self.name}"
        rules = (self.default, self.always, *self.endings.values(), *self.beginnings.values())
        for word in " ".join(rules).split():
            if word not in STYLE_WORDS:
                raise DataError(
                    place,
                    f"the style word {word!r} is not known; {close_match(word, STYLE_WORDS)}",
                    f"use words from {', '.join(STYLE_WORDS)}",
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
    """Return a set's name in captions."""
    style = set_name.removeprefix(EMOJI_SET)
    if style != set_name and style in EMOJI_TITLES:
        return EMOJI_TITLES[style]
    return all_sets()[set_name].title if set_name in all_sets() else set_name.replace("-", " ")


def style_words(text: str) -> tuple[str, ...]:
    """Return the style words of a text without duplicates, in vocabulary order."""
    found = frozenset(text.split())
    return tuple(word for word in STYLE_WORDS if word in found)


def matches(pattern: str | None, name: str) -> re.Match[str] | None:
    """Match a whole name; None if there is no pattern."""
    return None if pattern is None else re.fullmatch(pattern, name)
