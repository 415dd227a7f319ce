"""Retrieval figures of an embedder: the tables of `cm3 embedder eval`, for the bundled corpus and the icon corpus.

Retrieval among icons should find, for a caption, another drawing of the same object (equal `words`), preferably from the
same set. The memory is the split `train`, document vectors are computed as in retriever `dense`, and `bm25` answers the
same queries for comparison. Legend: Q queries, M documents of the memory, E dimension.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from cm3core.document import Document, PixelArray, Text
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder, VectorArray, normalise
from cm3plugins.datasets.emoji.corpus import EmojiEntry
from cm3plugins.datasets.icons.corpus import IconEntry
from cm3plugins.datasets.icons.splits import parts
from cm3plugins.retrievers.bm25 import BM25Retriever, BM25RetrieverConfig
from cm3run.progress import make_bar

_BLOCK = 512
T = TypeVar("T")


def in_blocks(
    items: Sequence[T], embed: Callable[[Sequence[T]], VectorArray], title: str, quiet: bool
) -> VectorArray:
    """Return vectors [N, E] of N items, at least one."""
    return np.concatenate(
        [
            embed(items[start : start + _BLOCK])
            for start in make_bar(
                range(0, len(items), _BLOCK), desc=title, unit="block", disable=quiet, leave=False
            )
        ]
    )


_TOP = (1, 5)


def recall(
    queries_QE: VectorArray,
    gallery_GE: VectorArray,
    query_concepts: Sequence[str],
    gallery_concepts: Sequence[str],
    banned_QG: npt.NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """Return R@1 and R@5: share of queries with an item of their concept among the gallery's first k.

    >>> eye = np.eye(3, dtype=np.float32)
    >>> recall(eye, eye[[1, 0, 2]], ["a", "b", "c"], ["a", "b", "c"])["R@1"]
    0.3333333333333333
    """
    scores_QG = queries_QE @ gallery_GE.T
    if banned_QG is not None:
        scores_QG[banned_QG] = -np.inf
    order_QG = np.argsort(-scores_QG, axis=1, kind="stable")[:, : max(_TOP)]
    hits = np.asarray(gallery_concepts)[order_QG] == np.asarray(query_concepts)[:, None]
    return {f"R@{k}": float(hits[:, :k].any(1).mean()) for k in _TOP}


def figures(
    embedder: Embedder,
    entries: Sequence[EmojiEntry],
    pictures: npt.NDArray[np.uint8],
    *,
    quiet: bool = True,
) -> dict[str, dict[str, float]]:
    """Return all figures, name -> R@k.

    Pictures in the split `comp` have held-out styles, those in `unseen` held-out concepts.

    Args:
        entries: the corpus.
        pictures: uint8 [num_entries, H, W, 3], its pictures.
        quiet: no progress bars.
    """

    def read(texts: Sequence[str]) -> VectorArray:
        return in_blocks(texts, embedder.embed_texts, "embedding texts", quiet)

    labels = {entry.concept: entry.label for entry in entries}
    images: list[PixelArray] = list(pictures)
    image_vectors = in_blocks(images, embedder.embed_images, "embedding pictures", quiet)
    label_vectors = read(list(labels.values()))
    found: dict[str, dict[str, float]] = {}
    for split in ("train", "comp", "unseen"):
        rows = [i for i, entry in enumerate(entries) if entry.split == split]
        concepts = [entries[i].concept for i in rows]
        own = sorted(set(concepts))
        own_vectors = label_vectors[[list(labels).index(concept) for concept in own]]
        found[f"{split}: picture -> all {len(labels)} labels"] = recall(
            image_vectors[rows], label_vectors, concepts, list(labels)
        )
        if split != "train":
            found[f"{split}: picture -> its {len(own)} labels"] = recall(
                image_vectors[rows], own_vectors, concepts, own
            )
            found[f"{split}: label -> its {len(rows)} pictures"] = recall(
                own_vectors, image_vectors[rows], own, concepts
            )
            found[f"{split}: label -> all {len(images)} pictures"] = recall(
                own_vectors, image_vectors, own, [entry.concept for entry in entries]
            )
    return found | _document_figures(read, entries, image_vectors)


def _document_figures(
    read: Callable[[Sequence[str]], VectorArray],
    entries: Sequence[EmojiEntry],
    image_vectors: VectorArray,
) -> dict[str, dict[str, float]]:
    """Return figures of realistic queries: captions with a style, against training documents of OTHER styles."""
    train = [i for i, entry in enumerate(entries) if entry.split == "train"]
    captions = [f"{entry.label}, {entry.style} style" for entry in entries]
    caption_vectors = read(captions)
    documents = normalise(caption_vectors[train] + image_vectors[train])
    concepts = [entries[i].concept for i in train]
    styles = np.array([entries[i].style for i in train])
    others = {(entries[i].concept, entries[i].style) for i in train}
    found: dict[str, dict[str, float]] = {}
    for split in ("train", "comp"):
        rows = [
            i
            for i, entry in enumerate(entries)
            if entry.split == split
            and any((entry.concept, style) in others for style in set(styles) - {entry.style})
        ]
        own = [entries[i].concept for i in rows]
        same_style = np.array([entries[i].style for i in rows])[:, None] == styles
        found[f"{split}: caption -> captions of other styles"] = recall(
            caption_vectors[rows], caption_vectors[train], own, concepts, same_style
        )
        found[f"{split}: caption -> documents of other styles"] = recall(
            caption_vectors[rows], documents, own, concepts, same_style
        )
        found[f"{split}: picture -> documents of other styles"] = recall(
            image_vectors[rows], documents, own, concepts, same_style
        )
        if split == "comp":
            plurals = read([f"some {entries[i].label}s in {entries[i].style} style" for i in rows])
            found[f"{split}: 'some ...s in ... style' -> documents of other styles"] = recall(
                plurals, documents, own, concepts, same_style
            )
    return found


Figures = dict[str, dict[str, float]]

TOP = 5
NUM_CHOICES = 100
"""Number of pictures that a caption chooses among."""
_EVERY = 10
"""Every tenth training caption is a query, which saves minutes and keeps standard errors below 0.005."""


@dataclass(frozen=True)
class Ground:
    """Evaluation data: entries, the canonical caption of each, and its picture.

    Args:
        entries: entries of all splits.
        captions: caption of each entry.
        picture: row -> uint8 [H, W, 3].
    """

    entries: Sequence[IconEntry]
    captions: Sequence[str]
    picture: Callable[[int], PixelArray]

    @cached_property
    def memory(self) -> list[int]:
        """Rows to search."""
        return self.rows("train")

    def rows(self, split: str) -> list[int]:
        """Return the rows of a split."""
        return [row for row, entry in enumerate(self.entries) if entry.split == split]


def icon_figures(embedder: Embedder, ground: Ground, *, quiet: bool = True) -> Figures:
    """Return all figures, name -> R@1 and R@5."""
    entries, memory = ground.entries, ground.memory
    captions = in_blocks(ground.captions, embedder.embed_texts, "embedding captions", quiet)
    pictures = in_blocks(
        range(len(entries)),
        lambda rows: embedder.embed_images([ground.picture(row) for row in rows]),
        "embedding pictures",
        quiet,
    )
    documents_ME = normalise(captions[memory] + pictures[memory])
    rows = _queries(ground)
    tail = [f", {caption.partition(', ')[2]}" for caption in ground.captions]
    forms: dict[str, Callable[[int], str]] = {
        "words alone": lambda row: entries[row].words,
        "words turned": lambda row: " ".join(reversed(entries[row].words.split())) + tail[row],
        "'some ...s in SET style'": lambda row: (
            f"some {entries[row].words}s in {tail[row].rpartition(', ')[2]} style"
        ),
    }
    comp, vectors = rows["comp"], {"caption": captions[rows["comp"]]}
    for name, form in forms.items():
        vectors[name] = embedder.embed_texts([form(row) for row in comp])
    vectors["picture"] = pictures[comp]
    nearest = _nearest(captions[rows["train"]], documents_ME, rows["train"], memory, quiet)
    found = version_figures("train: caption", rows["train"], nearest, ground, by_set=True)
    for name, queries_QE in vectors.items():
        nearest = _nearest(queries_QE, documents_ME, comp, memory, quiet)
        found |= version_figures(f"comp: {name}", comp, nearest, ground)
    nearest = _nearest(captions[comp], captions[memory], comp, memory, quiet)
    found |= version_figures("comp: caption, of captions alone", comp, nearest, ground)
    found |= _looks_figures(embedder, ground, pictures, quiet)
    for split in ("comp", "compose", "unseen"):
        own = ground.rows(split)
        choices = among(captions[own], pictures[own], [entries[row] for row in own])
        if choices:
            found[f"{split}: caption -> its picture among {NUM_CHOICES} of its style"] = choices
    return found


def _looks_figures(
    embedder: Embedder, ground: Ground, pictures: VectorArray, quiet: bool
) -> Figures:
    """Return figures of pictures compared with pictures alone, as in `retriever.compare: same`, over all
    splits, without the query itself."""
    everything = list(range(len(ground.entries)))
    looks = pictures
    if embedder.looks_fingerprint != embedder.fingerprint:
        looks = in_blocks(
            everything,
            lambda rows: embedder.embed_looks([ground.picture(row) for row in rows]),
            "embedding looks",
            quiet,
        )
    number = Counter(entry.words for entry in ground.entries)
    found: Figures = {}
    for split in ("comp", "unseen"):
        rows = [row for row in ground.rows(split) if number[ground.entries[row].words] > 1]
        if rows:
            hits = version_figures(
                "", rows, _nearest(looks[rows], looks, rows, everything, quiet), ground
            )
            found[f"{split}: picture -> versions among all pictures"] = hits[" -> versions"]
    return found


def bm25_figures(ground: Ground, *, quiet: bool = True) -> Figures:
    """Return the same caption figures for retriever `bm25`, which needs no embedder."""
    retriever = BM25Retriever(BM25RetrieverConfig(), _Captions(ground))
    found: Figures = {}
    for split, own in _queries(ground).items():
        nearest = np.full((len(own), TOP), -1)
        for query, row in enumerate(make_bar(own, desc="searching by words", disable=quiet)):
            document = (Text(ground.captions[row]),)
            (results,) = retriever.retrieve([document], TOP, [{ground.entries[row].id}])
            for rank, result in enumerate(results):
                nearest[query, rank] = ground.memory[result.index]
        name = f"{split}: caption, by bm25"
        found |= version_figures(name, own, nearest, ground, by_set=split == "train")
    return found


class _Captions(DocumentSource):
    """The memory's captions as documents."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def __len__(self) -> int:
        return len(self._ground.memory)

    def id(self, index: int) -> str:
        return self._ground.entries[self._ground.memory[index]].id

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        return (Text(self._ground.captions[self._ground.memory[index]]),)

    @property
    def fingerprint(self) -> str:
        return ""


def _queries(ground: Ground) -> dict[str, list[int]]:
    """Return the rows whose captions are queries: those with another version in the memory."""
    number = Counter(ground.entries[row].words for row in ground.memory)
    return {
        "train": [row for row in ground.memory[::_EVERY] if number[ground.entries[row].words] > 1],
        "comp": [row for row in ground.rows("comp") if number[ground.entries[row].words]],
    }


def _nearest(
    queries_QE: VectorArray,
    documents_ME: VectorArray,
    rows: Sequence[int],
    memory: Sequence[int],
    quiet: bool,
) -> npt.NDArray[np.int64]:
    """Return the rows of the nearest documents of each query except its own: [Q, TOP], best first."""
    place = {row: index for index, row in enumerate(memory)}
    found: list[npt.NDArray[np.int64]] = []
    blocks = range(0, len(rows), _BLOCK)
    for start in make_bar(blocks, desc="searching", unit="block", disable=quiet, leave=False):
        scores_QM = torch.from_numpy(queries_QE[start : start + _BLOCK] @ documents_ME.T)
        for query, row in enumerate(rows[start : start + _BLOCK]):
            if row in place:
                scores_QM[query, place[row]] = -torch.inf
        best = scores_QM.topk(min(TOP, len(memory)), dim=1).indices.numpy()
        found.append(np.asarray(memory)[best])
    return np.concatenate(found)


def version_figures(
    name: str,
    rows: Sequence[int],
    nearest_QK: npt.NDArray[np.int64],
    ground: Ground,
    *,
    by_set: bool = False,
) -> Figures:
    """Return the shares of queries whose first document, or one of the first five, is right.

    Args:
        name: name of the queries.
        rows: rows of the queries; each has a version in the memory.
        nearest_QK: rows of the documents found, best first; -1: none.
        ground: evaluation data.
        by_set: also return the first figure for the queries of each set.

    Returns:
        Shares for: a version of the same object; the same from the query's set, among queries that have one; objects
        that the corpus' splits treat as the same, ignoring order of words, plural endings and numbers.
    """
    entries = ground.entries
    same, same_set, alike = (np.zeros(nearest_QK.shape, bool) for _ in range(3))
    for query, row in enumerate(rows):
        own = entries[row]
        for rank, index in enumerate(nearest_QK[query].tolist()):
            if index >= 0:
                other = entries[index]
                same[query, rank] = own.words == other.words
                same_set[query, rank] = same[query, rank] and own.set_name == other.set_name
                alike[query, rank] = parts_of(own.words) == parts_of(other.words)
    number = Counter((entries[row].words, entries[row].set_name) for row in ground.memory)
    held = set(ground.memory)
    has_one = np.array(
        [number[entries[row].words, entries[row].set_name] > (row in held) for row in rows]
    )
    found = {f"{name} -> versions": _shares(same)}
    if has_one.any():
        found[f"{name} -> versions of its set, where there are"] = _shares(same_set[has_one])
    found[f"{name} -> versions, or other order, plural or number"] = _shares(same | alike)
    if by_set:
        sets = np.array([entries[row].set_name for row in rows])
        for one in sorted(set(sets.tolist())):
            found[f"{name} of {one} -> versions"] = _shares(same[sets == one])
    return found


@lru_cache(maxsize=1 << 17)
def parts_of(words: str) -> frozenset[str]:
    """Return the parts that the corpus' splits compare; the words themselves if they name nothing."""
    own = tuple(words.split())
    return parts(own) or frozenset(own)


def _shares(hits_QK: npt.NDArray[np.bool_]) -> dict[str, float]:
    return {f"R@{k}": float(hits_QK[:, :k].any(1).mean()) for k in (1, TOP)}


def among(
    captions_QE: VectorArray, pictures_QE: VectorArray, entries: Sequence[IconEntry]
) -> dict[str, float]:
    """Return the share of captions whose own picture is the nearest, or one of the nearest five, among `NUM_CHOICES`
    pictures in its style, all of different objects.

    The others are drawn at random with a fixed seed; captions of styles with fewer objects are left out. Returns nothing
    if no style has enough.
    """
    rng = np.random.default_rng(0)
    of_style: dict[str, list[int]] = {}
    for row, entry in enumerate(entries):
        of_style.setdefault(entry.style, []).append(row)
    ranks = []
    for rows in of_style.values():
        if len({entries[row].words for row in rows}) < NUM_CHOICES:
            continue
        for row in rows:
            chosen = {entries[row].words: row}
            for other in rng.permutation(rows).tolist():
                chosen.setdefault(entries[other].words, other)
                if len(chosen) == NUM_CHOICES:
                    break
            scores = pictures_QE[list(chosen.values())] @ captions_QE[row]
            ranks.append(int((scores[1:] >= scores[0]).sum()))
    return {f"R@{k}": float((np.array(ranks) < k).mean()) for k in (1, TOP)} if ranks else {}
