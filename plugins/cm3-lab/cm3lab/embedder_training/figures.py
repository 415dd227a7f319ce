"""Retrieval figures of an embedder on the bundled corpus: the table of `cm3 embedder eval`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cm3core.document import PixelArray
from cm3core.interfaces.embedder import Embedder, VectorArray, normalise
from cm3lab.embedder_training.blocks import in_blocks
from cm3plugins.datasets.emoji.corpus import EmojiEntry

_TOP = (1, 5)


def recall(
    queries_QE: VectorArray,
    gallery_GE: VectorArray,
    query_concepts: Sequence[str],
    gallery_concepts: Sequence[str],
    banned_QG: npt.NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """R@1 and R@5: share of queries with an item of their concept among the gallery's first k.

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
    """All figures, name -> R@k.

    Pictures of the split `comp` are of held-out styles, those of `unseen` of held-out concepts.

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
    """Queries as in practice: captions with a style, against training documents of OTHER styles."""
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
