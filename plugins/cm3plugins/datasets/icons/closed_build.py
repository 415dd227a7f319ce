"""Choose the closed splits of the bundled corpus, and prove them; `python -m cm3lab.closed_splits` is the command.

Nothing is chosen by hand but the sets and the limits: words, pairs and drawings come in the order of a hash of their
names. A word is held out only if few icons that lack it mean it, look like it or are tagged with it, so that closing
over all of these costs `train` little; words that tie everything together (arrow, circle, plus) are never chosen. The
closure is one pass from what is held out: an icon that is `near` need not have its own neighbours removed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cm3plugins.datasets import looks
from cm3plugins.datasets.icons.closed import (
    JUDGED,
    Closed,
    HeldOut,
    Pair,
    is_compound,
    named,
)
from cm3plugins.datasets.icons.corpus import IconCorpus, IconEntries, has_colour, set_of
from cm3plugins.datasets.icons.splits import thing_of, unit_hash
from cm3run.progress import make_bar

#: Share of the icons with a held-out word or pair that few others must look like.
MIN_DISTINCT = 0.7
#: Number of look-alikes from which an icon shows something common, such as a circle.
MANY = 60
#: Most icons of a set that show a held-out thing or variant.
MOST_BESIDE = 8
#: Names of a set with and without a word, from which on the word makes variants.
MIN_ADDED = 40
SETS = ("iconoir", "fa6-solid", "fa6-regular", "lets-icons", "teenyicons")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Thresholds and sizes.

    Args:
        meaning: cosine of MiniLM's vectors from which a word or name means a held-out word.
        sharp, soft: correlations from which drawings look alike, see `looks`.
        most_alike: icons in `train` that one held-out icon may remove from it by looking like them; with more, it is
            not held out but `near`. 0 for strangers, which remove none.
        most_icons: of a held-out word.
        most_near: icons that a held-out word may remove from `train` besides its own, as a share of these.
        unseen, compose, restyle, variant: icons to choose, at least.
    """

    meaning: float = 0.7
    sharp: float = looks.SHARP
    soft: float = looks.SOFT
    most_alike: float = 2
    most_icons: float = 60
    most_near: float = 1.0
    unseen: float = 3000
    compose: float = 1500
    restyle: float = 2000
    variant: float = 2000


class Meaning:
    """Which words and names mean a word, by vectors.

    Args:
        texts: words and names of the corpus.
        embed: texts -> vectors of length 1.
        least: cosine from which two mean the same.
    """

    def __init__(
        self,
        texts: Iterable[str],
        embed: Callable[[Sequence[str]], NDArray[np.float32]],
        least: float,
    ) -> None:
        self._texts = sorted(set(texts))
        self._vectors_ND, self._least = embed(self._texts), least
        self._row = {text: row for row, text in enumerate(self._texts)}
        self._spellings: dict[str, list[str]] = defaultdict(list)
        for text in self._texts:
            if " " not in text:
                for word in named(text):
                    self._spellings[word].append(text)

    def of(self, word: str) -> list[str]:
        """Return the texts that mean a word, as `named` returns it."""
        rows = [self._row[text] for text in self._spellings[word]]
        if not rows:
            return []
        nearness_N = (self._vectors_ND @ self._vectors_ND[rows].T).max(1)
        return [self._texts[row] for row in np.flatnonzero(nearness_N >= self._least)]

    def words(self, word: str) -> list[str]:
        """Return the words that mean it, as `named` returns them."""
        found = {own for text in self.of(word) if " " not in text for own in named(text)}
        return sorted(found - {word})

    def names(self, word: str) -> list[str]:
        """Return the texts of several words that mean it."""
        return [text for text in self.of(word) if " " in text]


class Names:
    """The corpus by words.

    Args:
        entries: of the corpus.
    """

    def __init__(self, entries: IconEntries) -> None:
        every = list(entries)
        self.ids, self.sets = [entry.id for entry in every], [entry.set_name for entry in every]
        self.texts, self.styles = [e.words for e in every], [e.style for e in every]
        self.tags = [entry.tags for entry in every]
        self.words = [named(text) for text in self.texts]
        self.things = [thing_of(tuple(text.split())) for text in self.texts]
        self.of_word: dict[str, set[int]] = defaultdict(set)
        self.tagged: dict[str, set[int]] = defaultdict(set)
        self.of_text: dict[str, set[int]] = defaultdict(set)
        self.of_thing: dict[str, list[int]] = defaultdict(list)
        for index, found in enumerate(self.words):
            self.of_text[self.texts[index]].add(index)
            self.of_thing[self.things[index]].append(index)
            for word in found:
                self.of_word[word].add(index)
            for tag in self.tags[index]:
                self.of_text[tag].add(index)
                for word in named(tag):
                    self.tagged[word].add(index)
        self.vocabulary = sorted({*self.of_word, *self.tagged})

    def __len__(self) -> int:
        return len(self.ids)

    def showing(self, words: Iterable[str]) -> set[int]:
        """Icons with one of the words in a name or tag."""
        return {index for word in words for index in (*self.of_word[word], *self.tagged[word])}

    def num_sets_alone(self, word: str) -> int:
        """Number of sets in which the word alone names an icon."""
        alone = [index for index in self.of_word[word] if len(self.words[index]) == 1]
        return len({self.sets[index] for index in alone})


class Chooser:
    """Chooses what to hold out, one kind after the other, among the icons that are still in `train`.

    Args:
        names: the corpus by words.
        families: set -> its designer.
        meaning: which texts mean a word.
        alike: which drawings look like which.
        limits: see there.
    """

    def __init__(
        self,
        names: Names,
        families: Mapping[str, str],
        meaning: Meaning,
        alike: looks.Alike,
        limits: Limits,
    ) -> None:
        self.names, self.families, self.meaning = names, families, meaning
        self.alike, self.limits = alike, limits
        self.splits = ["train"] * len(names)

    def is_free(self, index: int) -> bool:
        """Whether an icon is still in `train`."""
        return self.splits[index] == "train"

    def free(self, indices: Iterable[int]) -> set[int]:
        """Return those of the icons that are still in `train`."""
        return set(filter(self.is_free, indices))

    def put(self, split: str, indices: Iterable[int]) -> None:
        """Put icons into a split."""
        for index in indices:
            self.splits[index] = split

    def put_by_words(self, held: HeldOut) -> None:
        """Put what names and tags show of what is held out into its split."""
        for index, split in enumerate(self.splits):
            found = held.split_by_words(self.names.texts[index], self.names.tags[index])
            if split in ("train", "strangers") and found != "train":
                self.splits[index] = found if split == "train" else "near"

    def distinct(self, indices: Iterable[int], group: Collection[int]) -> set[int]:
        """Return those of the icons that few others in `train` look like, besides a group."""
        most = self.limits.most_alike
        return {i for i in indices if len(self.free(self.alike.to(i)) - set(group)) <= most}

    def kin(self, own: Collection[int]) -> set[frozenset[str]]:
        """Return the words of things that several icons look like: the same thing by another name (a stroller is a
        baby buggy). Icons that look like very many are left out of account."""
        found: dict[frozenset[str], set[int]] = defaultdict(set)
        for index in own:
            others = self.alike.to(index)
            for other in others if len(others) < MANY else ():
                if other not in own:
                    found[self.names.words[other]].add(index)
        least = max(3, len(own) / 10)
        return {words for words, icons in found.items() if words and len(icons) >= least}

    def words(self) -> HeldOut:
        """Choose words until enough icons have one."""
        names, limits = self.names, self.limits
        words: dict[str, list[str]] = {}
        phrases: set[str] = set()
        kin: set[frozenset[str]] = set()
        chosen: set[int] = set()
        for word in sorted(names.of_word, key=lambda own: unit_hash("closed word", own)):
            own = self.free(names.of_word[word])
            if (
                not 4 <= len(own) <= limits.most_icons
                or len(word) < 3
                or not word.isalpha()
                or names.num_sets_alone(word) < 2
            ):
                continue
            most = limits.most_near * len(own) + 2
            family = [other for other in names.vocabulary if is_compound(other, word)]
            near = self.free(names.showing(family)) - own - chosen
            if len(near) > most:
                continue
            meant, said = self.meaning.words(word), self.meaning.names(word)
            near |= self.free(names.showing(meant)) - own - chosen
            near |= self.free(i for text in said for i in names.of_text[text]) - own - chosen
            related = self.kin(own)
            for others in related:
                near |= self.free(set.intersection(*(names.of_word[one] for one in others)))
            distinct = self.distinct(own, own | near)
            near |= self.free(i for index in distinct for i in self.alike.to(index))
            if len(near - own - chosen) > most or len(distinct) < MIN_DISTINCT * len(own):
                continue
            words[word] = meant
            phrases.update(said)
            kin |= related
            chosen |= own
            if len(chosen) >= limits.unseen:
                break
        return HeldOut(
            words=words,
            names=sorted(phrases),
            kin=sorted(map(sorted, kin)),
            pairs={},
            variants={},
            sets=(),
        )

    def pairs(self) -> dict[Pair, tuple[list[str], list[str]]]:
        """Choose pairs of words until enough icons have both. Each word names an icon by itself and is in many other
        names, and a name of exactly these two exists."""
        names, limits = self.names, self.limits
        pairs = {(a, b) for own in set(names.words) if len(own) == 2 for a, b in [sorted(own)]}
        result: dict[Pair, tuple[list[str], list[str]]] = {}
        chosen: set[int] = set()
        for pair in sorted(pairs, key=lambda one: unit_hash("closed pair", *one)):
            own = self.free(names.of_word[pair[0]] & names.of_word[pair[1]])
            if not 2 <= len(own) <= 40 or not all(map(self._is_known, pair)):
                continue
            first, second = map(self._family, pair)
            near = self.free(names.showing(first) & names.showing(second)) - own
            distinct = self.distinct(own, own | near)
            if len(near) > limits.most_near * len(own) + 2 or len(distinct) < MIN_DISTINCT * len(
                own
            ):
                continue
            result[pair] = (first, second)
            chosen |= own
            if len(chosen) >= limits.compose:
                break
        return result

    def _is_known(self, word: str) -> bool:
        return (
            len(self.free(self.names.of_word[word])) >= 12 and self.names.num_sets_alone(word) >= 2
        )

    @cached_property
    def _families(self) -> dict[str, list[str]]:
        return {}

    def _family(self, word: str) -> list[str]:
        """A word, compounds with it, and words that mean it."""
        if word not in self._families:
            compounds = {own for own in self.names.vocabulary if is_compound(own, word)}
            self._families[word] = sorted({word, *compounds, *self.meaning.words(word)})
        return self._families[word]

    def restyled(self) -> tuple[set[int], set[int]]:
        """Choose things of one designer's sets, which at least three other designers draw, until there are enough.

        Returns:
            the icons; and others of the same designer that show the thing with something else.
        """
        names, families = self.names, self.families
        chosen: set[int] = set()
        beside: set[int] = set()
        options = {
            (families[names.sets[index]], thing)
            for thing, indices in names.of_thing.items()
            for index in indices
            if self.is_free(index) and not has_colour(names.styles[index])
        }
        for family, thing in sorted(options, key=lambda one: unit_hash("closed restyle", *one)):
            drawings = names.of_thing[thing]
            others = {families[names.sets[i]] for i in self.free(drawings)} - {family}
            words = names.words[drawings[0]]
            if len(others) < 3 or not words:
                continue
            shown = {
                index
                for index in set.intersection(*(names.of_word[word] for word in words))
                if families[names.sets[index]] == family
            }
            grey = {
                i for i in shown if names.things[i] == thing and not has_colour(names.styles[i])
            }
            if (
                len(shown) > MOST_BESIDE
                or not all(map(self.is_free, shown))
                or not shown.isdisjoint(chosen | beside)
                or self.distinct(grey, shown) != grey
            ):
                continue
            chosen |= grey
            beside |= shown - grey
            if len(chosen) >= self.limits.restyle:
                break
        return chosen, beside

    def variants(self) -> tuple[dict[int, int], set[int]]:
        """Choose variants of drawings that their own set has, until there are enough: the name with one more word that
        many names have (`bell off` of `bell`), or the same name in another style.

        Returns:
            variant -> base; and other icons of the set that show the variant with something else.
        """
        chosen: dict[int, int] = {}
        beside: set[int] = set()
        taken: set[int] = set()
        for option in sorted(self._variants, key=lambda one: unit_hash("closed variant", *one)):
            made, shown = self._variants[option], self._showing(*option)
            if (
                len(shown) > MOST_BESIDE
                or any(has_colour(self.names.styles[index]) for index in made)
                or not all(map(self.is_free, (*shown, *made.values())))
                or not shown.isdisjoint({*taken, *made.values()})
                or any(base in chosen or base in beside for base in made.values())
                or self.distinct(made, shown) != set(made)
                or any(base in self.alike.to(index) for index, base in made.items())
            ):
                continue
            chosen |= made
            beside |= shown - made.keys()
            taken |= {*shown, *made.values()}
            if len(chosen) >= self.limits.variant:
                break
        return chosen, beside

    def _showing(self, own: str, text: str, style: str) -> set[int]:
        """Icons of a set with all words of a name, in the style if one is given."""
        names, words = self.names, named(text)
        return {
            index
            for index in set.intersection(*(names.of_word[word] for word in words))
            if names.sets[index] == own and style in ("", names.styles[index])
        }

    @cached_property
    def _variants(self) -> dict[tuple[str, str, str], dict[int, int]]:
        """(set, name, style; "": all styles) -> drawings of the variant and of their bases."""
        names = self.names
        drawn: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        for index, key in enumerate(zip(names.sets, names.texts, strict=True)):
            drawn[key].setdefault(names.styles[index], index)
        bases = {key: (key[0], key[1].rpartition(" ")[0]) for key in drawn}
        added = Counter(
            text for text in (key[1].rpartition(" ")[2] for key in drawn if bases[key] in drawn)
        )
        found: dict[tuple[str, str, str], dict[int, int]] = {}
        for key, own in drawn.items():
            if not named(key[1]):
                continue
            badge, plain = key[1].rpartition(" ")[2], drawn.get(bases[key], {})
            made = {index: plain[style] for style, index in own.items() if style in plain}
            if made and added[badge] >= MIN_ADDED and badge.isalpha() and len(badge) > 1:
                found[*key, ""] = made
            first, *others = own.items()
            found |= {(*key, style): {index: first[1]} for style, index in others}
        return found


def families_of(corpus: IconCorpus) -> dict[str, str]:
    """Return set -> the designers' address: sets of one address are the same drawings in several styles."""
    sets = dict.fromkeys(map(set_of, corpus.entries.ids))
    return {name: corpus.manifest.source(name)[2] or name for name in sets}


def by_words(chooser: Chooser, sets: Sequence[str]) -> HeldOut:
    """Choose what to hold out, and put each icon into its split, as far as words decide it."""
    names = chooser.names
    chooser.put("strangers", (index for index, own in enumerate(names.sets) if own in sets))
    held = replace(chooser.words(), sets=sets)
    chooser.put_by_words(held)
    held = replace(held, pairs=chooser.pairs())
    chooser.put_by_words(held)
    restyled, beside = chooser.restyled()
    chooser.put("restyle", restyled)
    chooser.put("near", beside)
    variants, beside = chooser.variants()
    chooser.put("variant", variants)
    chooser.put("near", beside)
    ids = {names.ids[index]: names.ids[base] for index, base in sorted(variants.items())}
    return replace(held, variants=ids)


def by_looks(splits: Sequence[str], alike: looks.Alike, most_alike: float) -> list[str]:
    """Return the splits after what looks like a held-out icon has left `train`; or that icon its split, if too much
    looks like it."""
    result = list(splits)
    for index, split in enumerate(splits):
        if split not in JUDGED:
            continue
        others = [other for other in alike.to(index) if splits[other] == "train"]
        most = 0 if split == "strangers" else most_alike
        for left_out in others if len(others) <= most else [index]:
            result[left_out] = "near"
    return result


def _without_counterpart(
    names: Names, families: Mapping[str, str], held: HeldOut, splits: Sequence[str]
) -> list[int]:
    """Icons that are no test case, since `train` lacks what they are to be drawn from: their base, the thing by two
    other designers, or either word."""
    trained = [split == "train" for split in splits]
    place = {own: index for index, own in enumerate(names.ids)}
    hands: dict[str, set[str]] = defaultdict(set)
    words: Counter[str] = Counter()
    for index in np.flatnonzero(trained).tolist():
        hands[names.things[index]].add(families[names.sets[index]])
        words.update(names.words[index])

    def lacks(index: int, split: str) -> bool:
        if split == "variant":
            return not trained[place[held.variants[names.ids[index]]]]
        if split == "restyle":
            return len(hands[names.things[index]] - {families[names.sets[index]]}) < 2
        pairs = (pair for pair in held.pairs if names.words[index].issuperset(pair))
        return split == "compose" and not any(min(words[a], words[b]) >= 4 for a, b in pairs)

    return [index for index, split in enumerate(splits) if lacks(index, split)]


def choose(
    corpus: IconCorpus,
    drawn: looks.Looks,
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    limits: Limits,
    sets: Sequence[str],
) -> Closed:
    """Choose the closed splits of a corpus.

    Args:
        drawn: looks of all its drawings.
        embed: texts -> vectors of length 1.
        sets: held-out sets.
    """
    names, families = Names(corpus.entries), families_of(corpus)
    texts = {*names.of_text, *(word for text in names.of_text for word in text.split())}
    meaning = Meaning(texts, embed, limits.meaning)
    alike = drawn.graph(limits.sharp, limits.soft)
    chooser = Chooser(names, families, meaning, alike, limits)
    held = by_words(chooser, sets)
    splits = by_looks(chooser.splits, alike, limits.most_alike)
    while lacking := _without_counterpart(names, families, held, splits):
        for index in lacking:
            splits[index] = "near"
    judged = {own for own, split in zip(names.ids, splits, strict=True) if split == "variant"}
    variants = {own: base for own, base in held.variants.items() if own in judged}
    return Closed(
        data_sha256=corpus.data_sha256,
        made_with=asdict(limits),
        held_out=replace(held, variants=variants),
        splits=splits,
    )


def looks_of(corpus: IconCorpus) -> looks.Looks:
    """Return the looks of all drawings."""
    pictures = corpus.pictures(64)
    return looks.Looks(
        np.stack(
            [
                looks.cut_out(pictures[i])
                for i in make_bar(range(len(corpus)), desc="looks", unit="icon")
            ]
        )
    )


class Proof:
    """Looks for leaks in the shipped splits.

    Args:
        corpus: the bundled one.
        closed: its closed splits.
    """

    def __init__(self, corpus: IconCorpus, closed: Closed) -> None:
        self.names, self.families = Names(corpus.entries), families_of(corpus)
        self.closed = closed
        self.place = {own: index for index, own in enumerate(self.names.ids)}
        self.trained = [i for i, split in enumerate(closed.splits) if split == "train"]
        self.judged = [i for i, split in enumerate(closed.splits) if split in JUDGED]

    def by_words(self) -> list[str]:
        """Icons of `train` whose name, tag or set shows what is held out, and icons in a split that they don't fit."""
        names, splits, held = self.names, self.closed.splits, self.closed.held_out
        lines = [
            f"{names.ids[index]} is in train and {shown}"
            for index in self.trained
            if (shown := self._shown(index))
        ]
        for index in self.judged:
            split = splits[index]
            found = held.split_by_words(names.texts[index], names.tags[index])
            expected = split if split in ("unseen", "compose") else "train"
            in_set = (names.sets[index] in held.sets) == (split == "strangers")
            if found != expected or not in_set:
                lines.append(f"{names.ids[index]} is in {split}, but {found} by its words")
        lacking = _without_counterpart(names, self.families, held, splits)
        return lines + [f"{names.ids[index]} has no counterpart in train" for index in lacking]

    def _shown(self, index: int) -> str:
        """What an icon shows of what is held out; "" if nothing."""
        names, held = self.names, self.closed.held_out
        if names.sets[index] in held.sets:
            return "is of a held-out set"
        found = held.split_by_words(names.texts[index], names.tags[index])
        if found != "train":
            return f"shows what {found} holds out"
        family = self.families[names.sets[index]]
        if any(words <= names.words[index] for words in self._restyled[family]):
            return "shows what restyle holds out"
        style = names.styles[index]
        if any(
            words <= names.words[index] and own in ("", style)
            for words, own in self._variants[names.sets[index]]
        ):
            return "shows what variant holds out"
        return ""

    @cached_property
    def _restyled(self) -> dict[str, set[frozenset[str]]]:
        """Designer -> words of the things that are held out of their sets."""
        found: dict[str, set[frozenset[str]]] = defaultdict(set)
        for index in self.judged:
            if self.closed.splits[index] == "restyle":
                found[self.families[self.names.sets[index]]].add(self.names.words[index])
        return found

    @cached_property
    def _variants(self) -> dict[str, set[tuple[frozenset[str], str]]]:
        """Set -> words of its held-out variants, and their style if that alone is held out."""
        found: dict[str, set[tuple[frozenset[str], str]]] = defaultdict(set)
        names = self.names
        for own, base in self.closed.held_out.variants.items():
            index = self.place[own]
            same = names.texts[index] == names.texts[self.place[base]]
            style = names.styles[index] if same else ""
            found[names.sets[index]].add((names.words[index], style))
        return found

    def by_looks(self, drawn: looks.Looks) -> list[str]:
        """Icons of `train` that look like a held-out one."""
        made = self.closed.made_with
        first, second = np.array(self.judged, np.intp), np.array(self.trained, np.intp)
        return [
            f"{self.names.ids[other]} is in train and looks like {self.names.ids[index]}"
            for pairs in drawn.pairs(first, second, made["sharp"], made["soft"])
            for index, other in zip(*(own.tolist() for own in pairs), strict=True)
        ]

    def by_meaning(self, embed: Callable[[Sequence[str]], NDArray[np.float32]]) -> list[str]:
        """Names and tags of `train` that mean a held-out word."""
        names, held = self.names, self.closed.held_out
        texts = {text for i in self.trained for text in (names.texts[i], *names.tags[i])}
        texts |= {word for text in texts for word in text.split()}
        spelt = {word for text in names.of_text for word in text.split()}
        meaning = Meaning({*texts, *spelt}, embed, self.closed.made_with["meaning"])
        lines = []
        for word in held.words:
            found = texts.intersection(meaning.of(word))
            lines += [f"{text!r} is in train and means {word!r}" for text in sorted(found)]
        return lines
