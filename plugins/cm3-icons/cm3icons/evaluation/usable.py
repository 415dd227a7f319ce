"""Whether drawings of icons are usable: the asked thing, in the asked hand, and no copy.

    thing   of 100 names of the hand, the drawing's own comes first
    hand    the drawing is no farther from the hand than nine in ten of its real drawings are (`hand_judge.py`)
    copy    nearness of 0.8 or more (`cm3run.nearness`) to a document before the prompt or to a drawing in the memory

A name's score is how near it is to what the drawing reads as (`cm3icons.judge.things`), and how near to the names of the
real drawings that read most alike. Those are by other designers and no copies of the asked drawing, so the judge never
compares with the drawing that is asked for. The other names are the asked one's parts, which the hand also has ("bell" for
"bell off"), then names of the hand in an order by a hash. Synonyms would be right too and are left out: names without a
common word whose vectors are near. A second judge goes by pixels alone: whether one of the five nearest real drawings has
a name that means the asked thing.

    judge = IconJudge(IconCorpus(held_out="closed"))
    asked = [Asked("bell off", set_name="lucide", style="outline rounded")]
    [verdict] = judge.judge(pictures, asked, documents=[[]])

Legend: N pictures, C names of a case, K real drawings, D numbers of a vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3icons.data import closed
from cm3icons.data.corpus import IconCorpus, set_of
from cm3icons.evaluation.hand_judge import HandJudge
from cm3icons.evaluation.real_drawings import Floats, Hand, RealDrawings
from cm3icons.judge.hands import HandReader
from cm3icons.judge.things import Names, ThingReader
from cm3run.nearness import NEARLY_A_COPY, nearness

NUM_NAMES = 100
#: Names of this cosine without a common word are synonyms; of this cosine, a neighbour's name means the thing.
SYNONYM = 0.6
#: Real drawings that read most alike, the temperature of their weights, the power of their names' cosines, and what they
#: count beside the reading itself. Chosen on drawings of `near`, from which nothing was learned and which are no test cases.
_ALIKE, _TEMPERATURE, _POWER, _WEIGHT = 10, 0.05, 8, 4.0
#: Nearest drawings by pixels, for the second judge.
_NEIGHBOURS = 5
#: The words of a name; each name is read once.
named = cache(closed.named)


@dataclass(frozen=True)
class Asked:
    """What a drawing is to show, and how.

    Args:
        thing: its name, "bell off".
        set_name, style: the hand, of the corpus.
        id: the corpus' own drawing of it, which is never compared with; "" if there is none.
        drawings: at least five real drawings of a hand that the corpus does not have, instead of `set_name`.
        names: names of that hand's drawings.
        instead: names that are wrong at any rate, such as what a variant is one of.
    """

    thing: str
    set_name: str = ""
    style: str = ""
    id: str = ""
    drawings: Sequence[PixelArray] = field(default=(), repr=False)
    names: Sequence[str] = ()
    instead: Sequence[str] = ()


@dataclass(frozen=True)
class Verdict:
    """What the judge found.

    Args:
        rank: place of the asked name, 1 is first; of names with the same score the asked one is last.
        read_as: the first name.
        hand: whether the drawing is in the hand.
        nearness: to the nearest document or drawing of the memory, 0..1.
        nearest: "document", or the id of the nearest drawing of the memory.
        neighbours: whether a neighbour by pixels means the thing.
    """

    rank: int
    read_as: str
    hand: bool
    nearness: float
    nearest: str
    neighbours: bool

    @property
    def thing(self) -> bool:
        """Whether it is the asked thing."""
        return self.rank == 1

    @property
    def copy(self) -> bool:
        """Whether it is nearly a copy."""
        return self.nearness >= NEARLY_A_COPY

    @property
    def usable(self) -> bool:
        """The asked thing, in the asked hand, and no copy."""
        return self.thing and self.hand and not self.copy


class IconJudge:
    """Judges drawings. Reading the real drawings takes some minutes of one core, once.

    Args:
        corpus: real drawings, with closed splits.
        indices: the drawings to know, by their positions; None: all grey ones.
    """

    def __init__(self, corpus: IconCorpus, indices: Sequence[int] | None = None) -> None:
        self.real = RealDrawings(corpus, ThingReader(), HandReader(), indices)
        self.hands, self._names = HandJudge(self.real), Names()
        self._chosen: dict[str, list[str]] = {}

    @property
    def fingerprint(self) -> str:
        """Hash of what verdicts depend on besides the pictures."""
        facts = (self.real.key, NUM_NAMES, SYNONYM, _ALIKE, _TEMPERATURE, _POWER, _WEIGHT)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def judge(
        self,
        pictures: Sequence[PixelArray],
        asked: Sequence[Asked],
        documents: Sequence[Sequence[PixelArray]],
    ) -> list[Verdict]:
        """Return a verdict of each picture.

        Args:
            pictures: uint8 [H, W, 3], of any sizes.
            asked: what each was to show.
            documents: pictures of the documents before each prompt.

        Raises:
            DataError: too few drawings of a hand are known.
        """
        things_ND = self.real.things.read(pictures)
        hands_NE = self.real.hands.read(pictures)
        columns = zip(pictures, asked, documents, things_ND, hands_NE, strict=True)
        return [self._verdict(*column) for column in columns]

    def things(
        self, pictures: Sequence[PixelArray], asked: Sequence[Asked]
    ) -> list[tuple[int, str]]:
        """Return rank and first name of each picture alone, see `Verdict`."""
        read_ND = self.real.things.read(pictures)
        return [self._ranked(one_D, own) for one_D, own in zip(read_ND, asked, strict=True)]

    def hand_margins(self, pictures: Sequence[PixelArray], asked: Sequence[Asked]) -> list[float]:
        """Return how much nearer each picture alone is to its hand than it must be, see `HandJudge.margin`.

        Args:
            pictures: uint8 [H, W, 3], of any sizes.
            asked: hands of the corpus.

        Raises:
            DataError: too few drawings of a hand are known.
        """
        read_NE = self.real.hands.read(pictures)
        return [
            self.hands.margin(one_E, (own.set_name, own.style), self.real.row(own.id))
            for one_E, own in zip(read_NE, asked, strict=True)
        ]

    def names(self, asked: Asked) -> list[str]:
        """Return the 100 names among which a drawing finds its own, which comes first.

        Raises:
            DataError: too few names are known.
        """
        key = (asked.thing, asked.set_name, asked.style, asked.id, asked.names, asked.instead)
        known = self._chosen.get(repr(key))
        if known is None:
            known = self._chosen[repr(key)] = self._choose(asked)
        return list(known)

    def _choose(self, asked: Asked) -> list[str]:
        own, chosen = named(asked.thing), {asked.thing: None}
        for name in [*asked.instead, *self._parts(asked)]:
            if named(name) != own:
                chosen.setdefault(name)
        for pool in self._pools(asked):
            order = sorted(pool, key=lambda name: _hash(asked.id or asked.thing, name))
            for name in self._no_synonyms(asked, order):
                if len(chosen) == NUM_NAMES:
                    return list(chosen)
                chosen.setdefault(name)
        cause = f"has {len(chosen)} names besides synonyms, but {NUM_NAMES} are needed"
        raise DataError("the judge", cause, "use the whole corpus, or give more names")

    def neighbours(self, picture: PixelArray, asked: Asked) -> bool:
        """Whether one of the five nearest real drawings by pixels has a name that means the asked thing."""
        among = self.real.foreign_to(asked.set_name, self.real.row(asked.id))
        near = self.real.likest(picture, among, _NEIGHBOURS)
        if not near:
            return False
        names_CD = self._names([asked.thing, *(self.real.words[row] for row, _ in near)])
        return bool((names_CD[1:] @ names_CD[0] >= SYNONYM).any())

    def _verdict(
        self,
        picture: PixelArray,
        asked: Asked,
        documents: Sequence[PixelArray],
        thing_D: Floats,
        hand_E: Floats,
    ) -> Verdict:
        rank, read_as = self._ranked(thing_D, asked)
        if asked.drawings:
            hand = self.hands.is_like(hand_E, asked.drawings)
        else:
            own = self.real.row(asked.id)
            hand = self.hands.is_in(hand_E, (asked.set_name, asked.style), own)
        near, nearest = self._nearest(picture, asked, documents)
        return Verdict(rank, read_as, hand, near, nearest, self.neighbours(picture, asked))

    def _ranked(self, thing_D: Floats, asked: Asked) -> tuple[int, str]:
        names = self.names(asked)
        names_CD = self._names(names)
        scores_C = names_CD @ thing_D + _WEIGHT * self._shared(thing_D, asked, names_CD)
        rank = 1 + int((scores_C[1:] >= scores_C[0]).sum())
        return rank, names[0] if rank == 1 else names[1 + int(scores_C[1:].argmax())]

    def _shared(self, thing_D: Floats, asked: Asked, names_CD: Floats) -> Floats:
        """How near each name is to those of the real drawings that read most alike, [C]."""
        among = self.real.foreign_to(asked.set_name, self.real.row(asked.id))
        alike = self.real.read_alike(thing_D, among, _ALIKE)
        if not alike:
            return np.zeros(len(names_CD), np.float32)
        cosines_K = np.array([cosine for _, cosine in alike], np.float32)
        weights_K = np.exp((cosines_K - cosines_K.max()) / _TEMPERATURE)
        theirs_KD = self._names([self.real.words[row] for row, _ in alike])
        near_KC = np.maximum(theirs_KD @ names_CD.T, 0) ** _POWER
        shared: Floats = (weights_K / weights_K.sum()) @ near_KC
        return shared

    def _nearest(
        self, picture: PixelArray, asked: Asked, documents: Sequence[PixelArray]
    ) -> tuple[float, str]:
        """The greatest nearness to a document or a drawing of the memory: those of `train`, and for a set that is held
        out whole its own other drawings."""
        row = self.real.row(asked.id)
        memory = self.real.of_split("train")
        own = self.real.of_set(asked.set_name)
        memory = memory.copy() if (memory & own).any() else memory | own
        if row is not None:
            memory[row] = False
        found = [(near, "document") for near in (nearness(picture, one) for one in documents)]
        for place, near in self.real.likest(picture, memory, 1):
            found.append((near, self.real.corpus.entries.ids[self.real.indices[place]]))
        return max(found, key=lambda one: one[0], default=(0.0, ""))

    def _no_synonyms(self, asked: Asked, names: Sequence[str]) -> Iterator[str]:
        """Those that are wrong answers: they share a word with the asked name and have others, or mean something else."""
        if not names:
            return
        own, own_D = named(asked.thing), self._names([asked.thing])[0]
        for start in range(0, len(names), 2 * NUM_NAMES):
            part = names[start : start + 2 * NUM_NAMES]
            for name, cosine in zip(part, self._names(part) @ own_D, strict=True):
                words = named(name)
                if words != own and (cosine < SYNONYM or not words.isdisjoint(own)):
                    yield name

    def _parts(self, asked: Asked) -> list[str]:
        """Names of the hand that have some of the asked name's words and no others."""
        own = named(asked.thing)
        pool = asked.names or self._of_set.get(asked.set_name, ())
        return [name for name in pool if named(name) and named(name) < own]

    def _pools(self, asked: Asked) -> Iterator[Iterable[str]]:
        """Names of the hand, then of its set, then all."""
        if asked.names:
            yield asked.names
        else:
            yield self._of_hand.get((asked.set_name, asked.style), ())
            yield self._of_set.get(asked.set_name, ())
        yield self._every

    @cached_property
    def _of_hand(self) -> dict[Hand, list[str]]:
        found: dict[Hand, dict[str, None]] = {}
        for words, hand in zip(self.real.words, self.real.hand_of, strict=True):
            found.setdefault(hand, {})[words] = None
        return {hand: sorted(own) for hand, own in found.items()}

    @cached_property
    def _of_set(self) -> dict[str, list[str]]:
        found: dict[str, set[str]] = {}
        for (set_name, _), own in self._of_hand.items():
            found.setdefault(set_name, set()).update(own)
        return {set_name: sorted(own) for set_name, own in found.items()}

    @cached_property
    def _every(self) -> list[str]:
        return sorted(set(self.real.words))


@cache
def icon_judge(sets: tuple[str, ...] = ()) -> IconJudge:
    """The judge of the bundled corpus, or of some of its sets."""
    corpus = IconCorpus(held_out="closed")
    if not sets:
        return IconJudge(corpus)
    sets_of = [set_of(name) for name in corpus.entries.ids]
    if unknown := sorted({*sets} - {*sets_of}):
        raise DataError(
            "the judge: sets",
            f"has {unknown[0]!r}, which is no set of the corpus",
            "see 'cm3 describe dataset icons' for the names",
        )
    return IconJudge(corpus, [place for place, name in enumerate(sets_of) if name in sets])


def _hash(*names: str) -> str:
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass")).hexdigest()
