"""Finds the documents for a thing that a set lacks: of the thing in the memory, and of the set's hand; or the set's own parts
of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cm3core.document import Codes, Document, Image, PixelArray, Text, text_of
from cm3core.errors import DataError
from cm3icons.complete.canvas import reach
from cm3icons.complete.documents import (
    Documents,
    Shown,
    picture_of,
    style_of_caption,
    thing_of,
)
from cm3icons.complete.parts import Parts, parts_of
from cm3icons.facets import FacetsRetrieverConfig
from cm3run.attribution import Credit
from cm3run.nearness import nearness
from cm3run.prompting import AnsweringRetriever
from cm3run.words import words_of

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.retriever import Retriever
    from cm3icons.complete.sets import OwnSet
    from cm3run.model.model import Model

#: Documents of the memory that are searched for a thing: its versions in all sets.
_SEARCHED = 96
#: The most drawings of a set that are compared with a thing, spread over it.
_COMPARED = 1000
#: Drawings of a version's set that are compared with it: every so many of those so near in the memory. Nearly all reach as
#: far as this quantile.
_EVERY, _AROUND, _NEARLY_ALL = 5, 100, 0.1
#: The most examples by which one way of composing a thing is compared with others.
_TRIED = 12


class Finder:
    """Finds documents for things.

    Args:
        model: that draws after them.
        own: the set.
        memory: the model whose memory has the things.
    """

    def __init__(self, model: Model, own: OwnSet, memory: Model) -> None:
        self._model, self._own, self._memory = model, own, memory
        self._hands = FacetsRetrieverConfig().build(own.source, None)
        self._reaches: dict[str, float] = {}
        self._own_ids = frozenset(own.source.id(index) for index in range(len(own.source)))

    @cached_property
    def _retriever(self) -> Retriever | None:
        return self._memory.components.retriever

    def documents(self, name: str, number: int) -> Documents:
        """The documents for a thing, at most so many of each kind. The set's own drawing of it, and copies of that, are left
        out."""
        own = self._own
        place = own.index(name)
        banned = frozenset() if place is None else own.source.content_keys(place)
        things, known, remark = self._things(name, number, banned)
        if not known and (composed := self._of_parts(name, number, banned)) is not None:
            return composed
        hands = self._alike(things)
        if hands is None:
            [found] = self._hands.retrieve([(Text(own.caption(name)),)], 4 * number, [banned])
            hands = [one.index for one in found]
        others = (index for index in hands if not self._is_left_out(index, name, banned))
        return Documents(
            name,
            "restyled" if known else "composed",
            things,
            list(self._shown(own.source, others, number)),
            remark=remark,
        )

    def _is_left_out(self, place: int, name: str, banned: frozenset[str]) -> bool:
        """Whether a drawing of the set is of this thing, or excluded."""
        source = self._own.source
        keys = {source.id(place), *source.content_keys(place)}
        return source.group(place) == name or not banned.isdisjoint(keys)

    # ---- the set's own parts

    def _of_parts(self, name: str, number: int, banned: frozenset[str]) -> Documents | None:
        """The set's own parts of a thing; None: it has none. Of several ways to compose it the one whose words leave the
        examples' drawings most as they are without them: "file" and "minus" rather than "minus" and "file"."""
        source = self._own.source
        every = range(len(source))
        left_out = {place for place in every if self._is_left_out(place, name, banned)}
        ways = parts_of(name, [source.group(place) for place in every], left_out)
        if not ways:
            return None
        parts = max(ways, key=self._kept)
        base = list(self._shown(source, parts.base, number))
        alike = [one for one in self._alike(base) or () if one in parts.examples]
        order = dict.fromkeys((*alike, *parts.examples))
        found = (tuple(self._shown(source, (one, parts.examples[one]), 2)) for one in order)
        pairs = list(islice((pair for pair in found if len(pair) == 2), number))
        if not base or not pairs:
            return None
        examples, without = zip(*pairs, strict=True)
        return Documents(name, "composed", base, examples, without)

    def _kept(self, parts: Parts) -> float:
        """How near the examples are to what they show without the words, by the first of them."""
        source = self._own.source
        pairs = list(parts.examples.items())[:_TRIED]
        pictures = [[picture_of(source.document(one)) for one in pair] for pair in pairs]
        return float(np.mean([nearness(*pair) for pair in pictures]))

    # ---- the memory's versions, and the set's hand

    def _alike(self, things: Sequence[Shown]) -> Sequence[int] | None:
        """The set's drawings, those first that look most like a version of the thing: they show how the set draws what
        the thing has; None: there is no version, or the model has no embedder."""
        embedder = self._model.components.embedder
        if embedder is None or not things:
            return None
        indices, pictures_ND = self._compared
        things_MD = embedder.embed_images([one.pixels for one in things])
        order = np.argsort(-(pictures_ND @ things_MD.T).max(axis=1), kind="stable")
        return [indices[place] for place in order]

    @cached_property
    def _compared(self) -> tuple[Sequence[int], npt.NDArray[np.float32]]:
        """The set's drawings that are compared with things, and their embeddings."""
        source, embedder = self._own.source, self._model.components.embedder
        assert embedder is not None
        number = min(len(source), _COMPARED)
        indices = np.linspace(0, len(source) - 1, number).round().astype(int).tolist()
        pictures = [picture_of(source.document(index)) for index in indices]
        return indices, embedder.embed_images(pictures)

    def _things(
        self, name: str, number: int, banned: frozenset[str]
    ) -> tuple[list[Shown], bool, str]:
        """Versions of a thing from the memory, whether they show just that, by the retriever's meanings or else by
        words, and `Documents.remark`."""
        retriever = self._retriever
        if retriever is None:
            return [], False, ""
        others = banned if self._own.folder is not None else banned | self._own_ids
        query: Document = (Text(name),)
        answer = None
        if isinstance(retriever, AnsweringRetriever) and retriever.answers:
            [(found, answer)] = retriever.answer([query], _SEARCHED, [others])
        else:
            [found] = retriever.retrieve([query], _SEARCHED, [others])
        asked = tuple(words_of(name))
        texts = [(one.index, text_of(retriever.memory.document(one.index))) for one in found]
        things = list(self._shown(retriever.memory, self._in_order(asked, texts), number))
        if answer is not None:
            known = bool(things) and answer.kind != "composed"
            near = answer.nearest_in_words if answer.kind == "composed" else ""
            return things, known, "; ".join(filter(None, (near, answer.remarks)))
        return things, bool(things) and set(words_of(things[0].thing)) == set(asked), ""

    def _in_order(self, asked: Sequence[str], found: Sequence[tuple[int, str]]) -> list[int]:
        """The versions of the nearest thing, or of those that have exactly the words asked for; nearest in hand first,
        each drawing of a set only once."""
        if not found:
            return []
        exact = [one for one in found if set(words_of(thing_of(one[1]))) == set(asked)]
        first = set(words_of(thing_of(found[0][1])))
        chosen = exact or [one for one in found if set(words_of(thing_of(one[1]))) == first]
        wanted = set(words_of(self._own.style))

        def unlike(one: tuple[int, str]) -> int:
            return len(wanted ^ (set(words_of(style_of_caption(one[1])))))

        return [index for index, _ in sorted(chosen, key=unlike)]

    def _shown(self, source: DocumentSource, places: Iterable[int], number: int) -> Iterator[Shown]:
        """Yield the first documents that can be written in the model's codes."""
        for place in places:
            if number == 0:
                return
            document = source.document(place)
            picture = next((one for one in document if isinstance(one, Image)), None)
            try:
                coded = self._model.coded(document)
            except DataError:
                continue  # such as a drawing with more codes than a picture may have
            codes = next((one for one in coded if isinstance(one, Codes)), None)
            if picture is None or codes is None:
                continue
            name, of_set = source.id(place), source is self._own.source
            [pixels] = self._model.decode([codes])
            is_own = of_set and self._own.folder is not None
            original = None if of_set else source.original(place)
            yield Shown(
                name,
                text_of(document),
                coded,
                pixels,
                credit=None if is_own else Credit(name, source.provenance(place)),
                original=None if original is None else original.content,
                small=1.0 if of_set else self._small(source, place, picture.load()),
            )
            number -= 1

    def _small(self, source: DocumentSource, place: int, pixels: PixelArray) -> float:
        """How far a version's ink reaches, as a share of what nearly all drawings of its set do, at most 1."""
        name = _set_of(source.id(place))
        if name not in self._reaches:
            around = range(max(0, place - _AROUND), min(len(source), place + _AROUND), _EVERY)
            of_set = [one for one in around if _set_of(source.id(one)) == name] or [place]
            found = [reach(picture_of(source.document(one))) for one in of_set]
            self._reaches[name] = float(np.quantile(found, _NEARLY_ALL))
        usual = self._reaches[name]
        return min(1.0, reach(pixels) / usual) if usual else 1.0


def _set_of(name: str) -> str:
    """The set of a drawing by its id, such as "lucide/bell"."""
    return name.partition("/")[0]
