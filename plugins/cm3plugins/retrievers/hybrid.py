"""`hybrid`: retrieves by what a text names, by meaning and by words together, then by its style.

A text such as "bell off, outline, lucide" names its subject before the first comma; what follows is its style. The score
of a subject is a convex combination of the cosine of an encoder and of the overlap of words, which is better than
either and keeps the scale of a cosine (Bruch et al. 2023, "An Analysis of Fusion Functions for Hybrid Retrieval").
Words find numbers and rare names, the encoder everything that is worded otherwise. Pictures are not read, unless a
query has no text.

Legend: M documents of the memory, S distinct subjects, H distinct styles, D dimension of the vectors.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.document import Document, text_of
from cm3core.errors import RecipeError
from cm3core.files import user_path
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder, EmbedderConfig, VectorArray
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3core.interfaces.retriever import Retrieved, Retriever, RetrieverConfig
from cm3plugins.retrievers.memory_vectors import read_texts
from cm3plugins.trained.bundled import bundled_file, is_bundled
from cm3run.prompting import Answer, AnsweringRetriever, AnsweringRetrieverConfig, Kind
from cm3run.words import nearest_word, words_of

if TYPE_CHECKING:
    from cm3plugins.retrievers.text_vectors import TextVectors

#: Scores are rounded to this many digits: the last bits depend on the machine.
_DIGITS = 6
#: Factor of the score if words of the query's subject are read as its style: "filled bell" is a bell that is filled, and
#: a "solar panel" is no panel of the set Solar.
_STYLE_IN_SUBJECT = 0.9
#: Share of `unasked_loss` for a document of exactly the query's subject: less than any other subject is away.
_SAME_SUBJECT = 0.1
#: Factor of the score if a style word that no document has is left out beside others that some have ("noto style").
_WITHOUT_WORD = 0.95
#: Factor of the score if typing errors are corrected.
_RESPELT = 0.9
#: Nearest names that an answer has.
_NEAR = 3
#: Least cosine of an unknown word to a style word that it stands for.
_SAME_STYLE = 0.7
#: Weight of the style words of a document that the query lacks, so that the usual styles come first.
_UNASKED = 0.05
#: An English article before a subject.
_ARTICLE = re.compile(r"^(?:an?|the) (?=\S)")

#: Documents among which the nearest names are looked for.
_MANY = 512
_Scores = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class HybridRetrieverConfig(AnsweringRetrieverConfig):
    """Retrieves documents whose text names the same subject, by meaning and by words, in the style that is asked for.

    For memories of short captions such as "bell off, outline, lucide": the subject stands before the first comma, the
    style after it. Scores are at most 1, for the same subject in the same style.

    Args:
        encoder: embedder of subjects, such as `minilm`; None: the recipe's.
        vectors: file of the vectors of texts, computed in advance by that embedder; "bundled:NAME": one that a distribution
            brings. Texts that are not in it are embedded. None: all are.
        words_share: weight of shared words in a subject's score, 0..1. The rest is the cosine of the encoder.
        style_share: weight of the style in a document's score, 0..1.
        only_if_asked: style words whose documents lose `unasked_loss` of their score unless the prompt asks for them,
            for styles that the model draws badly. A document of exactly the prompt's subject loses a tenth of it, and still
            comes before other subjects.
        unasked_loss: see `only_if_asked`.
        unknown_below: if the best document for a prompt is less similar than this, the commands say that the memory
            has no such thing. None: never.
        same_above: a subject that is at least as similar as this to the prompt's is the same thing. Prompts are then
            answered: a document of the thing in the style that is asked for is returned itself instead of a drawing.
            None: everything is drawn.
        pictures: retriever for queries without text, which reads the memory's pictures when the first comes; None: they
            find nothing.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "vectors": Outside(READS, "vectors of texts", shipped="bundled:"),
        "only_if_asked": TEXT,
    }
    not_in_outputs: ClassVar[tuple[str, ...]] = ("unknown_below", "same_above")
    only_in_generation: ClassVar[tuple[str, ...]] = ("unknown_below", "same_above")
    later_keys: ClassVar[tuple[str, ...]] = ("same_above",)
    default_embedder: ClassVar[str] = "minilm"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "words_share": (0.0, 1.0),
        "style_share": (0.0, 1.0),
        "unasked_loss": (0.0, 2.0),
    }

    encoder: EmbedderConfig | None = None
    vectors: str | None = None
    words_share: float = 0.2
    style_share: float = 0.1
    only_if_asked: list[str] = field(default_factory=list)
    unasked_loss: float = 0.15
    unknown_below: float | None = None
    same_above: float | None = None
    pictures: RetrieverConfig | None = None

    def requires(self) -> tuple[str, ...]:
        """The recipe's embedder, unless it has an encoder of its own."""
        return (*super().requires(), *(("embedder",) if self.encoder is None else ()))

    @property
    def answers(self) -> bool:
        """Whether `same_above` tells when a subject is the same thing."""
        return self.same_above is not None

    def needed(self) -> tuple[str, ...]:
        """An embedder, unless `encoder` is one."""
        return (*self.needs, *(("embedder",) if self.encoder is None else ()))

    def avoids(self, style: str) -> bool:
        """Whether a style has a word of `only_if_asked`."""
        return not {*self.only_if_asked}.isdisjoint(words_of(style))

    def check(self) -> None:
        """Reject unknown shipped files."""
        super().check()
        _ = self.vectors_file

    @property
    def vectors_file(self) -> Path | None:
        """The file of vectors; None: there is none.

        Raises:
            CheckpointError: no distribution brings it.
        """
        if self.vectors is None:
            return None
        if not is_bundled(self.vectors):
            return user_path(self.vectors, "retriever.vectors")
        return bundled_file(
            self.vectors,
            {},
            "hybrid",
            place="retriever.vectors",
            cause=f"is {self.vectors!r}, which is not shipped",
        )

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> HybridRetriever:
        """Index the texts of the memory.

        Raises:
            RecipeError: there is neither an encoder nor an embedder.
            DataError: the file of vectors can't be used.
        """
        from cm3plugins.retrievers.text_vectors import TextVectors

        self.check()
        encoder = embedder if self.encoder is None else self.encoder.build()
        if encoder is None:
            raise RecipeError(
                "retriever.encoder",
                "is not set, and the recipe has no embedder",
                "add retriever.encoder=minilm",
            )
        return HybridRetriever(self, memory, TextVectors(encoder, self.vectors_file), embedder)


@dataclass(frozen=True, eq=False)
class Compared:
    """How a memory's M documents compare with a text, in the reading that fits best.

    Args:
        reading: the reading.
        score_M: the documents' scores, float64.
        thing_M: how similar their subjects are, at most 1, float64; -inf without a text.
        hand_M: how well their styles fit, 0..1, float64.
        in_hand_M: whether they have all words of style that are asked for; none if there are `Reading.missing` ones.
        knows_a_word: whether some document's subject has a word of the reading's.
    """

    reading: Reading
    score_M: _Scores
    thing_M: _Scores
    hand_M: _Scores
    in_hand_M: npt.NDArray[np.bool_]
    knows_a_word: bool


class HybridRetriever(AnsweringRetriever):
    """Searches the subjects of a memory's texts, then their styles.

    Args:
        config: the weights.
        memory: M documents.
        vectors: vectors of texts.
        embedder: the recipe's, for `config.pictures`.
    """

    def __init__(
        self,
        config: HybridRetrieverConfig,
        memory: DocumentSource,
        vectors: TextVectors,
        embedder: Embedder | None,
    ) -> None:
        self._config, self._memory = config, memory
        self._vectors, self._embedder = vectors, embedder
        subjects: dict[str, int] = {}
        styles: dict[tuple[str, str], int] = {}
        self._subject_M = np.full(len(memory), -1, np.int64)
        self._style_M = np.zeros(len(memory), np.int64)
        for index, text in enumerate(read_texts(memory)):
            if text and not memory.is_withheld(index):
                subject, _, style = text.partition(",")
                self._subject_M[index] = subjects.setdefault(subject, len(subjects))
                key = style, memory.collection(index)
                self._style_M[index] = styles.setdefault(key, len(styles))
        texts, place_of = _distinct([plain(subject) for subject in subjects])
        has_text = self._subject_M >= 0
        self._subject_M[has_text] = np.asarray(place_of)[self._subject_M[has_text]]
        self._words = Overlap(texts)
        self._styles = Styles(
            [words_of(style) for style, _ in styles],
            self._style_M[has_text],
            [words_of(name) for _, name in styles],
        )
        self._vectors_SD = vectors.of_memory(texts)

    @property
    def memory(self) -> DocumentSource:
        """The documents that results index."""
        return self._memory

    @cached_property
    def pictures(self) -> Retriever | None:
        """The retriever for queries without text."""
        config = self._config.pictures
        return None if config is None else config.build(self._memory, self._embedder)

    @property
    def max_parts(self) -> int:
        """That of `pictures`."""
        return 0 if self.pictures is None else self.pictures.max_parts

    def retrieve_parts(
        self, queries: Sequence[Document], exclude: Sequence[Collection[str]] | None = None
    ) -> list[list[Retrieved]]:
        """See `Retriever.retrieve_parts`; queries with text have no parts, and open no index of pictures."""
        if all(map(text_of, queries)):
            return [[] for _ in queries]
        return super().retrieve_parts(queries, exclude)

    def _retrieve_parts(
        self, queries: Sequence[Document], exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        assert self.pictures is not None
        found: list[list[Retrieved]] = [[] for _ in queries]
        asked = [place for place, query in enumerate(queries) if not text_of(query)]
        own = [exclude[place] for place in asked]
        results = self.pictures.retrieve_parts([queries[place] for place in asked], own)
        for place, one in zip(asked, results, strict=True):
            found[place] = one
        return found

    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        results: list[list[Retrieved]] = [[] for _ in queries]
        texts = {place: text for place, query in enumerate(queries) if (text := text_of(query))}
        for place, scored in self._scored(texts).items():
            best_M = np.max([one for one, _ in scored], axis=0)
            results[place] = list(self.best(best_M, num_retrieved, exclude[place]))
        others = [place for place in range(len(queries)) if place not in texts]
        if others and self.pictures is not None:
            asked, banned = [queries[one] for one in others], [exclude[one] for one in others]
            found = self.pictures.retrieve(asked, num_retrieved, banned)
            for place, one in zip(others, found, strict=True):
                results[place] = one
        return results

    @property
    def answers(self) -> bool:
        """Those of the config."""
        return self._config.answers

    def likeness(self, texts: Sequence[str], others: Sequence[str]) -> VectorArray:
        """Cosines of the encoder's vectors."""
        first_ND, second_MD = self._vectors.of_queries(texts), self._vectors.of_queries(others)
        return first_ND @ second_MD.T

    @property
    def same_above(self) -> float:
        """The least similarity of the same thing; without one that of the same name."""
        least = self._config.same_above
        return 1 - 10**-_DIGITS if least is None else least

    def _answer(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[tuple[list[Retrieved], Answer | None]]:
        asked = zip(queries, exclude, strict=True)
        return [self._answer_one(query, num_retrieved, names) for query, names in asked]

    def _answer_one(
        self, query: Document, num_retrieved: int, exclude: Collection[str]
    ) -> tuple[list[Retrieved], Answer | None]:
        """See `_answer`. Its text is compared once, for what is retrieved and for what is answered."""
        text = text_of(query)
        if not text or not self._words.num:
            return self._retrieve([query], num_retrieved, [exclude])[0], None
        scored = self._scored({0: text}, by_name=True)[0]
        best_M = np.max([score_M for score_M, (one, _) in scored if not one.missing], axis=0)
        found = list(self.best(best_M, num_retrieved, exclude))
        return found, self.answered(self._compared(scored), exclude)

    def compared(self, text: str) -> Compared | None:
        """Compare a text with all documents; None: it is empty, or none of them has a text."""
        if not text or not self._words.num:
            return None
        return self._compared(self._scored({0: text}, by_name=True)[0])

    def _compared(self, scored: Sequence[tuple[_Scores, tuple[Reading, _Scores]]]) -> Compared:
        """Compare with all documents, by the scores of its readings."""
        score_M, (reading, subject_S) = max(scored, key=lambda one: float(one[0].max()))
        without = self._subject_M < 0
        thing_M = np.where(without, -np.inf, subject_S[self._subject_M])
        style = self._asked_style(reading)
        hand_H, whole_H = self._styles.scores(style), self._styles.have(style)
        in_hand_M = whole_H[self._style_M] & ~without & (not reading.missing)
        knows = any(map(self._words.has, words_of(reading.subject)))
        return Compared(reading, score_M, thing_M, hand_H[self._style_M], in_hand_M, knows)

    def _asked_style(self, reading: Reading) -> tuple[str, ...]:
        """The words of a reading's style, with those of `only_if_asked` that most documents of that style have: "noto"
        asks for colour."""
        implied = self._styles.implied(reading.style)
        more = [one for one in self._config.only_if_asked if one in implied]
        return tuple(dict.fromkeys((*reading.style, *more)))

    def answered(self, compared: Compared, exclude: Collection[str]) -> Answer | None:
        """What the memory has for a compared text, without the documents of `exclude`."""
        least, near = self._config.same_above, self._nearest_names(compared.thing_M, exclude)
        if least is None or not near:
            return None
        thing, score = near[0]
        is_found = (compared.thing_M >= least) & compared.in_hand_M
        number = int(is_found.sum())
        originals = tuple(
            replace(one, score=float(compared.thing_M[one.index]))
            for one in self.best(np.where(is_found, compared.score_M, -np.inf), number, exclude)
        )
        kind: Kind = "restyled" if score >= least else "composed"
        reading = compared.reading
        return Answer(
            "found" if originals else kind,
            reading.subject,
            thing,
            score,
            least,
            self._config.unknown_below,
            originals,
            near=near,
            respelt=reading.respelt,
            ignored=reading.ignored,
            missing=reading.missing,
            apart=() if self._styles.have(reading.style).any() else reading.style,
            knows_a_word=compared.knows_a_word,
        )

    def _nearest_names(
        self, thing_M: _Scores, exclude: Collection[str]
    ) -> tuple[tuple[str, float], ...]:
        """The different names that are most similar, with their similarities."""
        names: dict[str, float] = {}
        for one in self.best(thing_M, _MANY, exclude):
            name = text_of(self._memory.document(one.index)).partition(",")[0]
            names.setdefault(name, one.score)
            if len(names) == _NEAR:
                break
        return tuple(names.items())

    def _scored(
        self, texts: Mapping[int, str], *, by_name: bool = False
    ) -> dict[int, list[tuple[_Scores, tuple[Reading, _Scores]]]]:
        """Return for each text, by its place, the documents' scores [M] of each of its readings, with the reading and
        its subjects' similarities [S]. `by_name`: one of them leaves out the unknown words of a style, which may be its
        name, such as that of another set."""
        readings = {place: self._readings(text, by_name=by_name) for place, text in texts.items()}
        subjects = list(dict.fromkeys(one.subject for own in readings.values() for one in own))
        vectors = dict(zip(subjects, self._vectors.of_queries(subjects), strict=True))
        return {
            place: [self._of_reading(one, vectors[one.subject]) for one in own]
            for place, own in readings.items()
        }

    def _readings(self, text: str, *, by_name: bool = False) -> list[Reading]:
        """Return the ways to read a query; unknown words of its style are the nearest style word by meaning ("coloured" is
        colour), or belong to the subject."""
        nearest = {word: self._nearest_style(word) for word in self._styles.unknown(text)}
        found = self._styles.readings(text, nearest)
        missing = tuple(word for word, near in nearest.items() if near is None)
        before, _, after = text.partition(",")
        if by_name and missing and plain(before):
            known = " ".join(word for word in words_of(after) if word not in missing)
            first, *_ = self._styles.readings(f"{before},{known}", nearest)
            named = tuple(one for one in missing if one in self._styles.unknown_names(after))
            beside = tuple(one for one in missing if one not in named)
            weight = _STYLE_IN_SUBJECT if named else _WITHOUT_WORD
            found.append(replace(first, weight=weight, missing=named, ignored=beside))
        if by_name:
            found += [other for one in found if (other := self._respelt(one)) is not None]
        # An article names nothing, but moves the vector of "a bell" as far from "bell" as "bell off" is.
        bare = [replace(one, subject=_ARTICLE.sub("", one.subject)) for one in found]
        return [*found, *(one for one in bare if one.subject and one not in found)]

    def _respelt(self, reading: Reading) -> Reading | None:
        """A reading with the typing errors of its subject corrected; None: there are none."""
        words = words_of(reading.subject)
        known = self._words.words
        pairs = tuple(
            (word, near)
            for word in dict.fromkeys(words)
            if word not in known
            and not self._vectors.knows_word(word)  # "path" is no typing error of "patch"
            and (near := nearest_word(word, known)) is not None
        )
        if not pairs:
            return None
        subject = " ".join(dict(pairs).get(word, word) for word in words)
        return replace(reading, subject=subject, weight=_RESPELT * reading.weight, respelt=pairs)

    def _nearest_style(self, word: str) -> str | None:
        cosines = self._style_vectors @ self._vectors.of_queries([word])[0]
        place = int(cosines.argmax()) if len(cosines) else -1
        near = place >= 0 and cosines[place] >= _SAME_STYLE
        return self._styles.words[place] if near else None

    @cached_property
    def _style_vectors(self) -> VectorArray:
        return self._vectors.of_queries(self._styles.words)

    def _of_reading(
        self, one: Reading, vector: VectorArray
    ) -> tuple[_Scores, tuple[Reading, _Scores]]:
        """See `_scored`; of one reading, with its subject's vector."""
        by_words, by_style = self._config.words_share, self._config.style_share
        # one query at a time: products of several differ in the last bits
        cosines_S = (self._vectors_SD @ vector).astype(np.float64)
        words_S = self._words.of(one.subject)
        subject_S = (1 - by_words) * cosines_S + by_words * words_S
        if not len(subject_S):
            return np.full(len(self._memory), -np.inf), (one, subject_S)
        style = self._asked_style(one)
        style_H = by_style * self._styles.scores(style)
        lost_H = self._styles.has_one_of({*self._config.only_if_asked} - {*style})
        same_S = words_S > 1 - 10**-_DIGITS
        loss_S = self._config.unasked_loss * np.where(same_S, _SAME_SUBJECT, 1.0)
        scores_M = (1 - by_style) * subject_S[self._subject_M] + style_H[self._style_M]
        lost_M = loss_S[self._subject_M] * lost_H[self._style_M]
        scores_M = one.weight * scores_M - lost_M
        scores_M[self._subject_M < 0] = -np.inf
        return np.round(scores_M, _DIGITS), (one, np.round(subject_S, _DIGITS))

    def best(self, scores_M: _Scores, number: int, exclude: Collection[str]) -> Iterator[Retrieved]:
        """Yield the best allowed documents; ties in the memory's order."""
        width = min(len(scores_M), number + len(exclude) + 64)
        while True:
            least = np.partition(scores_M, -width)[-width] if width else np.inf
            some = np.flatnonzero((scores_M >= least) & np.isfinite(scores_M))
            order = some[np.lexsort((some, -scores_M[some]))].tolist()
            allowed = (index for index in order if not self.is_excluded(index, exclude))
            chosen = list(islice(allowed, number))
            if len(chosen) >= number or width == len(scores_M):
                break
            width = min(len(scores_M), 4 * width)
        for index in chosen:
            yield Retrieved(index, self._memory.id(index), float(scores_M[index]))


def plain(text: str) -> str:
    """Return a text's words in lower case; the text itself if it has none.

    >>> plain("Bell-off "), plain("...")
    ('bell off', '...')
    """
    return " ".join(words_of(text)) or text.strip()


def _distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return distinct texts, and the place of each text among them."""
    places: dict[str, int] = {}
    of_text = [places.setdefault(text, len(places)) for text in texts]
    return list(places), of_text


@dataclass(frozen=True)
class Reading:
    """One way to read a query.

    Args:
        subject: what it names.
        style: words of its style.
        weight: factor of the scores.
        missing: words of a part of its style of which no document has any, such as another set's name: not searched for,
            and no document is in such a style.
        ignored: other words of its style that no document has, such as the last of "noto style": not searched for.
        respelt: words as they were typed, each with the word in `subject` instead.
    """

    subject: str
    style: tuple[str, ...]
    weight: float
    missing: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    respelt: tuple[tuple[str, str], ...] = ()


def idf(num_documents: int, frequency: int) -> float:
    """Return a word's inverse document frequency, as in Lucene's BM25."""
    return math.log(1 + (num_documents - frequency + 0.5) / (frequency + 0.5))


class Overlap:
    """Compares the words of texts, and their pairs of neighbouring words: 1 for equal texts, 0 for no shared word.

    It is the weight of what two texts share, divided by the geometric mean of the weights of each. Pairs tell "arrow up down"
    from "arrow down up".

    Args:
        texts: S distinct ones, see `plain`.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        features = [_features(text) for text in texts]
        self.num = len(texts)
        self._frequencies = Counter(one for own in features for one in own)
        places: dict[str, list[int]] = {}
        for place, own in enumerate(features):
            for one in own:
                places.setdefault(one, []).append(place)
        self._places = {one: np.asarray(own, np.int64) for one, own in places.items()}
        weights = {one: idf(self.num, number) for one, number in self._frequencies.items()}
        self._whole_S = np.asarray([sum(weights[one] for one in own) for own in features])

    @cached_property
    def words(self) -> frozenset[str]:
        """All words of the texts."""
        return frozenset(one for one in self._frequencies if " " not in one)

    def has(self, word: str) -> bool:
        """Whether a text has this word."""
        return word in self._frequencies

    def of(self, text: str) -> _Scores:
        """Return the overlap of a text with each, float64 [S]."""
        shared_S = np.zeros(self.num)
        whole = 0.0
        for one in _features(text):
            weight = idf(self.num, self._frequencies[one])
            whole += weight
            if one in self._places:
                shared_S[self._places[one]] += weight
        if not whole:
            return shared_S
        overlap: _Scores = shared_S / np.sqrt(np.maximum(whole * self._whole_S, 1e-12))
        return overlap


def _features(text: str) -> list[str]:
    """Return the distinct words of a text and its pairs of neighbouring words, sorted: sums must not depend on their order.

    >>> _features("bell off")
    ['bell', 'bell off', 'off']
    """
    words = text.split()
    return sorted({*words, *map(" ".join, pairwise(words))})


class Styles:
    """The styles of a memory's texts, and how well each fits what is asked for.

    Args:
        styles: words of each style, [H].
        style_M: the style of each document with a text.
        collections: words of the name of each style's collection, [H]: a query may name it, too; () for none.
    """

    def __init__(
        self,
        styles: Sequence[Sequence[str]],
        style_M: npt.NDArray[np.int64],
        collections: Sequence[Sequence[str]] = (),
    ) -> None:
        self._styles = [frozenset(words) for words in styles]
        names = collections or [()] * len(styles)
        self._all = [own.union(more) for own, more in zip(self._styles, names, strict=True)]
        self._counts_H = np.bincount(style_M, minlength=len(styles))
        own, every = self._frequencies(self._styles), self._frequencies(self._all)
        self._weights = {word: idf(len(style_M), n) for word, n in own.items()}
        self._every = {word: idf(len(style_M), n) for word, n in every.items()} | self._weights

    def _frequencies(self, styles: Sequence[frozenset[str]]) -> Counter[str]:
        """The number of documents with each word."""
        found: Counter[str] = Counter()
        for words, number in zip(styles, self._counts_H.tolist(), strict=True):
            found.update(dict.fromkeys(words, number))
        return found

    @property
    def words(self) -> list[str]:
        """All words of styles."""
        return list(self._weights)

    def implied(self, asked: Collection[str]) -> frozenset[str]:
        """Return the words of style that more than half of the documents with all these words have."""
        if not asked:
            return frozenset()
        having_H = self.have(asked)
        number = int(self._counts_H[having_H].sum())
        chosen = [own for own, has in zip(self._styles, having_H.tolist(), strict=True) if has]
        counts = self._counts_H[having_H].tolist()
        found: Counter[str] = Counter()
        for words, count in zip(chosen, counts, strict=True):
            found.update(dict.fromkeys(words, count))
        return frozenset(word for word, count in found.items() if 2 * count > number)

    def unknown(self, text: str) -> list[str]:
        """Return the words after a query's comma that no style and no collection has."""
        return [word for word in words_of(text.partition(",")[2]) if word not in self._every]

    def unknown_names(self, style: str) -> frozenset[str]:
        """Return the words of those parts of a query's style, between commas, of which no style and no collection has any
        word."""
        parts = [words_of(part) for part in style.split(",")]
        unknown = [own for own in parts if not any(word in self._every for word in own)]
        return frozenset(word for own in unknown for word in own)

    def readings(self, text: str, nearest: Mapping[str, str | None]) -> list[Reading]:
        """Return the ways to read a query. Words after a comma that no style has belong to the subject, so that none is
        dropped; style words in the subject may be meant as such.

        Args:
            text: of the query.
            nearest: the style word for each of its unknown words; None: none is near.
        """
        before, _, after = text.partition(",")
        meant = [(word, nearest.get(word, word)) for word in words_of(after)]
        style = [other for _, other in meant if other is not None]
        subject = " ".join([plain(before), *(word for word, other in meant if other is None)])
        subject = subject.strip() or text
        found = [Reading(subject, tuple(style), 1.0)]
        inside = [word for word in subject.split() if word in self._weights]
        rest = " ".join(word for word in subject.split() if word not in self._weights)
        if inside and rest:
            found.append(Reading(rest, (*style, *inside), _STYLE_IN_SUBJECT))
        return found

    def has_one_of(self, words: Collection[str]) -> npt.NDArray[np.bool_]:
        """Return whether each style has one of some words, bool [H]."""
        return np.asarray([not own.isdisjoint(words) for own in self._styles], np.bool_)

    def have(self, words: Collection[str]) -> npt.NDArray[np.bool_]:
        """Return whether each style has all of some words, bool [H]."""
        return np.asarray([own.issuperset(words) for own in self._all], np.bool_)

    def scores(self, asked: Collection[str]) -> _Scores:
        """Return how well each style fits words of style, float64 [H], at most 1: the weight of asked words that it
        has, as a share of all asked words; words that were not asked for count little."""
        wanted = frozenset(asked)
        both = zip(self._styles, self._all, strict=True)
        return np.asarray([self._score(wanted, own, every) for own, every in both])

    def _score(self, wanted: frozenset[str], own: frozenset[str], every: frozenset[str]) -> float:
        there, absent, unasked = (
            sum(self._every[word] for word in sorted(words))
            for words in (wanted & every, wanted - every, own - wanted)
        )
        return (1 + there) / (1 + there + absent + _UNASKED * unasked)
