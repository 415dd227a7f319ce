"""Parsed icon names, and the fixed splits, computed from names and near-duplicates alone.

Names are compositional (`bell-off`, `file-lock`, `user-plus`): they name the object shown by the icon, word by word,
and its style.

- `unseen`: a name is held out in all sets and styles; the object may be in `train` under another name.
- `compose`: a pair of parts is held out: `bell` and `lock` are both in `train`, but `bell-lock` is not, nor is
  any other name with both.
- `comp`: one drawing is held out whose name is in `train` in other sets or styles.
- `train`: the rest.

The split is chosen by a hash of names, never by order, so adding a set moves no drawing whose near-duplicates
stay the same. No held-out drawing has a near-duplicate (`comparison.py`) in another split, as far as they are found
among the nearest twelve of each drawing. In the bundled corpus one pair is missed (docs/icons.md).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from cm3icons.data.sets import ASSETS, IconSet, matches, style_words

_LEADING_ZEROS = re.compile(r"0+(?=[1-9])")
_SKIN_TONE = re.compile(r"-(light|medium-light|medium|medium-dark|dark)(-skin-tone)?$")
_NOT_A_PART = frozenset(("one", "two", "three", "four", "alt", "variant", "a", "of", "the", "and"))


@dataclass(frozen=True)
class IconName:
    """A parsed name.

    Args:
        words: object shown by the icon, in the name's order: ``("bell", "off")``.
        style: words from ``STYLE_WORDS``, in vocabulary order.
    """

    words: tuple[str, ...]
    style: tuple[str, ...]

    @property
    def thing(self) -> str:
        """The joined words, ``bell-off``; the same in all styles and sets."""
        return "-".join(self.words)


def read_name(name: str, icon_set: IconSet) -> IconName | None:
    """Parse a name of a set.

    Returns:
        None if the set's rules exclude the icon: it is another size of a drawing, another skin
        tone, or a logo.

    Example:
        >>> from cm3icons.data.sets import all_sets
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
    """Return the words of names that only logos have; a name that starts with them is excluded."""
    lines = (ASSETS / "brands.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(tuple(line.split("-")) for line in lines if line and not line.startswith("#"))


#: Most words of a name that are read as one: "ko fi", "tik tok".
_MOST_JOINED = 3


@cache
def _logos() -> tuple[frozenset[str], frozenset[str]]:
    """Return names that are only logos', their words joined, and ids of drawings that are logos."""
    lines = (ASSETS / "logos.txt").read_text(encoding="utf-8").splitlines()
    named = [line for line in lines if line and not line.startswith("#")]
    return (
        frozenset(one for one in named if "/" not in one),
        frozenset(one for one in named if "/" in one),
    )


def is_logo(icon: str, words: str) -> bool:
    """Whether a drawing of the bundled corpus is a logo that its set doesn't mark as one, or shows one.

    Args:
        icon: its id.
        words: of its name.

    Example:
        >>> is_logo("hugeicons/new-twitter", "new twitter"), is_logo("mdi/food-apple", "food apple")
        (True, False)
    """
    names, drawings = _logos()
    own = words.split()
    joined = (
        "".join(own[start:end])
        for start in range(len(own))
        for end in range(start + 1, min(len(own), start + _MOST_JOINED) + 1)
    )
    return own[:1] == ["logo"] or icon in drawings or any(one in names for one in joined)


def parts(words: tuple[str, ...]) -> frozenset[str]:
    """Return the words that name something, comparable between sets: without order and plural endings,
    and without numbers, single letters and words that only distinguish variants.

    Example:
        >>> sorted(parts(("arrows", "up", "2")))
        ['arrow', 'up']
    """
    return frozenset(
        word.removesuffix("s") if len(word) > 3 else word
        for word in words
        if len(word) > 1 and not word[0].isdigit() and word not in _NOT_A_PART
    )


SPLITS = ("train", "comp", "compose", "unseen")
UNSEEN_SHARE = 0.05
COMPOSE_SHARE = 0.04
COMP_SHARE = 0.04
MIN_VERSIONS = 2
"""Minimum number of drawings of an object that is held out entirely, so that one can be retrieved for another."""
MIN_VERSIONS_COMP = 3
MIN_OTHER_THINGS = 4
"""Minimum number of objects in `train` with each part of a held-out pair."""

_SEED = "cm3leon icons splits 1"

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Decided:
    """Another corpus' split, which this one keeps: a model trained on either must not have
    seen drawings that the other holds out.

    Args:
        unseen, trained: objects.
        pairs, trained_pairs: pairs of parts.
        comp, trained_ids: ids of drawings.
    """

    unseen: frozenset[str] = frozenset()
    trained: frozenset[str] = frozenset()
    pairs: frozenset[Pair] = frozenset()
    trained_pairs: frozenset[Pair] = frozenset()
    comp: frozenset[str] = frozenset()
    trained_ids: frozenset[str] = frozenset()


def decided_by(
    ids: Sequence[str], words: Sequence[tuple[str, ...]], splits: Sequence[str]
) -> Decided:
    """Return the split of a corpus with these drawings."""
    things = [thing_of(name) for name in words]
    of_split: dict[str, list[int]] = defaultdict(list)
    for index, split in enumerate(splits):
        of_split[split].append(index)
    trained_pairs = {pair for index in of_split["train"] for pair in _pairs(words[index])}
    composed = {pair for index in of_split["compose"] for pair in _pairs(words[index])}
    return Decided(
        unseen=frozenset(things[index] for index in of_split["unseen"]),
        trained=frozenset(things[index] for index in of_split["train"]),
        pairs=frozenset(composed - trained_pairs),
        trained_pairs=frozenset(trained_pairs),
        comp=frozenset(ids[index] for index in of_split["comp"]),
        trained_ids=frozenset(ids[index] for index in of_split["train"]),
    )


def thing_of(name: tuple[str, ...]) -> str:
    """Return the object named by a name's words: their parts in alphabetical order."""
    return " ".join(sorted(parts(name) or name))


def unit_hash(*names: str) -> float:
    """Return a number in [0, 1) that depends only on the names and the splits' seed."""
    digest = hashlib.sha256("\0".join((_SEED, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_splits(
    ids: Sequence[str],
    words: Sequence[tuple[str, ...]],
    near: Mapping[int, Collection[int]],
    decided: Decided | None = None,
) -> list[str | None]:
    """Return the split of every drawing; None if it must be left out, because it would show a held-out pair in
    `train` or has a near-duplicate there.

    Args:
        ids: unique names of the drawings.
        words: words of their names.
        near: drawing -> its near-duplicates.
        decided: another corpus' split; hashes decide the rest. Drawings that it holds out in a split that this
            one lacks are left out, too.
    """
    free = Decided() if decided is None else decided
    things = [thing_of(name) for name in words]
    drawings: dict[str, list[int]] = defaultdict(list)
    for index, thing in enumerate(things):
        drawings[thing].append(index)
    alone = {
        thing: all(things[other] == thing for index in indices for other in near.get(index, ()))
        for thing, indices in drawings.items()
    }
    unseen = {
        thing
        for thing, indices in drawings.items()
        if alone[thing]
        and len(indices) >= MIN_VERSIONS
        and unit_hash("unseen", thing) < UNSEEN_SHARE
        and thing not in free.trained
    } | (free.unseen & drawings.keys())
    pairs = (
        _held_out_pairs(words, things, drawings, alone, unseen) - free.trained_pairs | free.pairs
    )

    def split(index: int) -> str | None:
        thing = things[index]
        if thing in unseen:
            return "unseen"
        if any(pair in pairs for pair in _pairs(words[index])):
            return "compose" if alone[thing] else None
        held_out = ids[index] in free.comp or (
            ids[index] not in free.trained_ids
            and len(drawings[thing]) >= MIN_VERSIONS_COMP
            and not near.get(index)
            and unit_hash("comp", ids[index]) < COMP_SHARE
        )
        return "comp" if held_out else "train"

    splits = [split(index) for index in range(len(ids))]
    return splits if decided is None else _true_to_name(splits, words, things, near)


def _true_to_name(
    splits: list[str | None],
    words: Sequence[tuple[str, ...]],
    things: Sequence[str],
    near: Mapping[int, Collection[int]],
) -> list[str | None]:
    """Drop drawings that another corpus' split leaves inconsistent: near-duplicates in `train` of held-out ones,
    and held-out ones without a counterpart in `train`."""
    chosen = [
        None if split == "train" and _looks_held_out(index, splits, near) else split
        for index, split in enumerate(splits)
    ]
    trained = [index for index, split in enumerate(chosen) if split == "train"]
    trained_things = {things[index] for index in trained}
    trained_parts = {part for index in trained for part in parts(words[index])}
    trained_pairs = {pair for index in trained for pair in _pairs(words[index])}
    for index, split in enumerate(chosen):
        if split == "comp" and things[index] not in trained_things:
            chosen[index] = None
        if split == "compose" and not any(
            trained_parts.issuperset(pair)
            for pair in _pairs(words[index])
            if pair not in trained_pairs
        ):
            chosen[index] = None
    return chosen


def _looks_held_out(
    index: int, splits: Sequence[str | None], near: Mapping[int, Collection[int]]
) -> bool:
    return any(splits[other] not in ("train", None) for other in near.get(index, ()))


def _pairs(name: tuple[str, ...]) -> list[Pair]:
    return list(combinations(sorted(parts(name)), 2))


def _held_out_pairs(
    words: Sequence[tuple[str, ...]],
    things: Sequence[str],
    drawings: Mapping[str, Sequence[int]],
    alone: Mapping[str, bool],
    unseen: Collection[str],
) -> frozenset[Pair]:
    """Choose pairs: an object with exactly these two parts exists, is not a near-duplicate of another, and both parts
    occur in enough other objects."""
    of_thing = {thing: parts(words[indices[0]]) for thing, indices in drawings.items()}
    others = Counter(
        part for thing, named in of_thing.items() if thing not in unseen for part in named
    )
    chosen = set()
    for thing, named in of_thing.items():
        if len(named) != 2 or thing in unseen or not alone[thing]:
            continue
        first, second = sorted(named)
        if (
            min(others[first], others[second]) > MIN_OTHER_THINGS
            and unit_hash("compose", first, second) < COMPOSE_SHARE
        ):
            chosen.add((first, second))
    return frozenset(chosen)
