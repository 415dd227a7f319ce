"""What an icon's name says: the thing that it shows, word by word, and the style in which it does.

Names are compositional (`bell-off`, `file-lock`, `user-plus`): the parts are kept, in order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from cm3plugins.datasets.icons.sets import ASSETS, IconSet, matches, style_words

_LEADING_ZEROS = re.compile(r"0+(?=[1-9])")
_SKIN_TONE = re.compile(r"-(light|medium-light|medium|medium-dark|dark)(-skin-tone)?$")
_NOT_A_PART = frozenset(("one", "two", "three", "four", "alt", "variant", "a", "of", "the", "and"))


@dataclass(frozen=True)
class IconName:
    """A name, taken apart.

    Args:
        words: what the icon shows, in the name's order: ``("bell", "off")``.
        style: words out of ``STYLE_WORDS``, in that order.
    """

    words: tuple[str, ...]
    style: tuple[str, ...]

    @property
    def thing(self) -> str:
        """The words as one: ``bell-off``; the same in all styles and sets."""
        return "-".join(self.words)


def read_name(name: str, icon_set: IconSet) -> IconName | None:
    """Take a name of a set apart.

    Returns:
        None if the set's rules leave the icon out: it is another size of a drawing, another skin
        tone, or a logo.

    Example:
        >>> from cm3plugins.datasets.icons.sets import all_sets
        >>> read_name("bell-outline-rounded", all_sets()["material-symbols"])
        IconName(words=('bell',), style=('outline', 'rounded'))
    """
    if matches(icon_set.brand_marks, name):
        return None
    if "emoji" in icon_set.name and _SKIN_TONE.search(name):
        return None
    if icon_set.size is not None:
        sized = matches(icon_set.size, name)
        if sized is None:
            return None
        name = "-".join(filter(None, (sized["name"], sized["style"])))
    style = icon_set.default
    for ending in sorted(icon_set.endings, key=len, reverse=True):
        if name.endswith(f"-{ending}"):
            name, style = name.removesuffix(f"-{ending}"), icon_set.endings[ending]
            break
    for beginning, its_style in icon_set.beginnings.items():
        if name.startswith(f"{beginning}-"):
            name, style = name.removeprefix(f"{beginning}-"), its_style
            break
    words = tuple(_LEADING_ZEROS.sub("", word) for word in name.split("-") if word)
    if any(words[:length] in brands() for length in range(1, len(words) + 1)):
        return None
    return IconName(words, style_words(f"{style} {icon_set.always}"))


@cache
def brands() -> frozenset[tuple[str, ...]]:
    """Return the words of names that only a logo has; a name that begins with them is left out."""
    lines = (ASSETS / "brands.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(tuple(line.split("-")) for line in lines if line and not line.startswith("#"))


def parts(words: tuple[str, ...]) -> frozenset[str]:
    """Return the words that name something, comparable between sets: order and plural endings gone,
    and numbers, single letters and words that only tell variants apart left out.

    Example:
        >>> sorted(parts(("arrows", "up", "2")))
        ['arrow', 'up']
    """
    return frozenset(
        word.removesuffix("s") if len(word) > 3 else word
        for word in words
        if len(word) > 1 and not word[0].isdigit() and word not in _NOT_A_PART
    )
