"""Closed splits of the icon corpus: what is held out is nowhere in `train` under another name, tag or look.

The splits by name (`splits.py`) hold out names: the same thing may be in `train` as a longer name, a tag, or the same
drawing under another word. Closed splits hold out

- `unseen`: things, by a word: with every icon whose name or tag has the word, a word that begins or ends with it, or
  one of nearly the same meaning;
- `compose`: two words together, each of which is in `train`;
- `restyle`: a thing in one set, which other designers' sets draw in `train`;
- `variant`: a set's own other drawing (`bell off`, or `bell` filled), whose base is in `train`;
- `strangers`: whole sets;

each without icons that look like one in `train`. `near`: neither trained nor judged, because it shows something that
is held out, or because too many icons in `train` look like it. `train`: the rest.

The bundled corpus has them in `assets/closed.json.xz`. The program that chose them is in commit `45423e62`;
`tests/fixtures/closed_proof.py` proves them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, TypedDict

from cm3core.arguments import Matching
from cm3icons.data.splits import parts
from cm3plugins.datasets.vector.files import unpack_lines
from cm3run.json_text import parse_json

FILE = "closed.json.xz"
LETTERS: Mapping[str, str] = {
    "train": "t",
    "unseen": "u",
    "compose": "c",
    "restyle": "r",
    "variant": "v",
    "strangers": "s",
    "near": "n",
}
CLOSED_SPLITS = tuple(LETTERS)
#: Splits whose icons are test cases.
JUDGED = CLOSED_SPLITS[1:-1]
#: A shorter word is part of too many others that have nothing to do with it.
MIN_COMPOUND = 4


def named(text: str) -> frozenset[str]:
    """Return the words of a name or tag that name something, comparable between sets.

    >>> sorted(named("arrows up 2"))
    ['arrow', 'up']
    """
    return parts(tuple(text.split()))


def is_compound(longer: str, word: str) -> bool:
    """Whether a word is another one, or begins or ends with it.

    >>> [is_compound(word, "fish") for word in ("fish", "starfish", "selfishness")]
    [True, True, False]
    """
    if longer == word:
        return True
    return len(word) >= MIN_COMPOUND and (longer.startswith(word) or longer.endswith(word))


Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What closed splits hold out. All words are as `named` returns them.

    Args:
        words: held-out word -> words of nearly the same meaning.
        names: names that mean a held-out word in several words.
        kin: words of things that several drawings of a held-out word look like.
        pairs: words held out together -> for each of them, itself and words of nearly the same meaning.
        variants: id of a variant's drawing -> id of its base.
        sets: sets that are held out whole.
    """

    words: Mapping[str, Sequence[str]]
    names: Sequence[str]
    kin: Sequence[Sequence[str]]
    pairs: Mapping[Pair, tuple[Sequence[str], Sequence[str]]]
    variants: Mapping[str, str]
    sets: Sequence[str]

    def split_by_words(self, words: str, tags: Iterable[str]) -> str:
        """Return the split that a name and tags allow: `unseen`, `compose`, `near` or `train`."""
        found = named(words)
        if not found.isdisjoint(self.words):
            return "unseen"
        shown = {self._shown(text) for text in (words, *tags)}
        if "word" in shown:
            return "near"
        if "pair" in shown and any(found.issuperset(pair) for pair in self.pairs):
            return "compose"
        return "near" if "pair" in shown else "train"

    def _shown(self, text: str) -> str:
        """What of what is held out a name or tag shows: "word", "pair" or ""."""
        if text not in self._read:
            pair = "pair" if self._shows_pair(text) else ""
            self._read[text] = "word" if self._shows_word(text) else pair
        return self._read[text]

    def _shows_word(self, text: str) -> bool:
        """Whether a name or tag has a held-out word, a compound with one, means one, or is its kin."""
        found, spelt = named(text), text.split()
        joined = named(" ".join(map("".join, pairwise(spelt))))  # qr code: qrcode
        return (
            text in self._names
            or any(map(self._means_word, found))
            or not joined.isdisjoint(self.words)
            or any(words <= found for word in found for words in self._kin.get(word, ()))
        )

    def _means_word(self, word: str) -> bool:
        if word not in self._known:
            self._known[word] = word in self._near or any(
                is_compound(word, held) for held in self.words
            )
        return self._known[word]

    def _shows_pair(self, text: str) -> bool:
        """Whether a name or tag has a held-out pair, or words that mean one."""
        found = named(text)
        return len(found) > 1 and any(
            not found.isdisjoint(first) and not found.isdisjoint(second)
            for first, second in self._pairs
        )

    @cached_property
    def _read(self) -> dict[str, str]:
        return {}

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def _kin(self) -> dict[str, list[frozenset[str]]]:
        """First word -> words of kin."""
        found: dict[str, list[frozenset[str]]] = {}
        for words in self.kin:
            found.setdefault(words[0], []).append(frozenset(words))
        return found

    @cached_property
    def _near(self) -> frozenset[str]:
        return frozenset(self.words).union(*self.words.values())

    @cached_property
    def _known(self) -> dict[str, bool]:
        return {}

    @cached_property
    def _pairs(self) -> list[tuple[frozenset[str], frozenset[str]]]:
        return [(frozenset(first), frozenset(second)) for first, second in self.pairs.values()]


@dataclass(frozen=True, kw_only=True)
class Closed:
    """The closed splits of a corpus.

    Args:
        data_sha256: hash of the corpus.
        made_with: thresholds and limits.
        held_out: see there.
        splits: split of each entry, in corpus order.
    """

    data_sha256: str
    made_with: Mapping[str, float]
    held_out: HeldOut
    splits: Sequence[str]


class _Form(TypedDict):
    data_sha256: str
    made_with: dict[str, float]
    words: dict[str, list[str]]
    names: list[str]
    kin: list[list[str]]
    pairs: list[tuple[str, str, list[str], list[str]]]
    variants: dict[str, str]
    sets: list[str]
    splits: Annotated[str, Matching(f"[{''.join(LETTERS.values())}]*", "letters of splits")]


def read_closed(folder: Path, next_step: str) -> Closed:
    """Read the closed splits in a corpus folder.

    Raises:
        DataError: the file can't be read, or is damaged.
    """
    path = folder / FILE
    lines = unpack_lines(path, next_step)
    split_of = {letter: split for split, letter in LETTERS.items()}
    values = parse_json(lines[0], str(path), next_step, form=_Form)
    pairs = {(a, b): (tuple(near_a), tuple(near_b)) for a, b, near_a, near_b in values["pairs"]}
    return Closed(
        data_sha256=values["data_sha256"],
        made_with=values["made_with"],
        held_out=HeldOut(
            words={word: tuple(near) for word, near in values["words"].items()},
            names=tuple(values["names"]),
            kin=tuple(map(tuple, values["kin"])),
            pairs=pairs,
            variants=values["variants"],
            sets=tuple(values["sets"]),
        ),
        splits=[split_of[letter] for letter in values["splits"]],
    )
