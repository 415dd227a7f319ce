"""What implementations return is checked where they are called: a broken law names the component."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cm3apps.catalog import laws_of
from cm3core.document import MaskedSequence, Text
from cm3core.errors import PluginError
from cm3core.interfaces import (
    Embedder,
    ImageTokenizer,
    MaskingObjective,
    ObjectiveConfig,
    Retrieved,
    Retriever,
    TextTokenizer,
    Upscaler,
)
from cm3core.interfaces.component import ComponentOrigin, set_origin
from cm3core.plugins import KINDS, PluginInfo, Registry
from cm3core.plugins.registry import built
from cm3core.vocab import Vocabulary
from cm3kits.samples import ListSource
from cm3kits.strategies import make_sequence
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary
from messages import tells

VOCABULARY = CM3LeonVocabulary(num_text=20, num_image=8, num_sentinels=4)
SEQUENCE = make_sequence(VOCABULARY, [[("text", 4)]])
MEMORY = ListSource([(Text("one"),), (Text("two"),), (Text("three"),)])


def made(base: type[Any], **members: object) -> Any:
    """An instance of an interface with these members, and nothing for the other abstract ones."""
    rest = {name: None for name in base.__abstractmethods__ if name not in members}
    return type("Wrong", (base,), {**rest, **members})()


def objective(answer: object, max_added_tokens: int = 0) -> Callable[[], object]:
    subject = made(MaskingObjective, _mask=lambda *_: answer, max_added_tokens=max_added_tokens)
    return lambda: subject.mask(SEQUENCE, np.random.default_rng(0), 100)


def masked(**changed: object) -> MaskedSequence:
    values = {
        "tokens": SEQUENCE.tokens,
        "cells": SEQUENCE.cells,
        "weights": np.ones(len(SEQUENCE), np.float32),
    }
    return MaskedSequence(**{**values, **changed})


def retriever(answer: object, num: int = 2) -> Callable[[], object]:
    subject = made(Retriever, _retrieve=lambda *_: answer, memory=MEMORY)
    return lambda: subject.retrieve([MEMORY.document(0)], num, [{MEMORY.id(0)}])


def found(index: Any) -> Retrieved:
    return Retrieved(index, f"document {index}", 1.0)


def image_tokenizer(**members: object) -> ImageTokenizer:
    tokenizer: ImageTokenizer = made(
        ImageTokenizer, image_size=(2, 2), grid=(1, 2), codebook_size=3, **members
    )
    return tokenizer


PIXELS = np.zeros((1, 2, 2, 3), np.uint8)
MASK, FINDS = "shapes_and_types", "results_name_memory_documents_once"
CODES, PICTURES = "codes_have_the_stated_shape_and_range", "pictures_have_the_stated_shape"
CASES: dict[str, tuple[Callable[[], object], str, str]] = {
    "no mask": (objective(None), MASK, "it returned None, not a MaskedSequence"),
    "a list as mask": (objective([1, 2]), MASK, "it returned list, not a MaskedSequence"),
    "tokens of another type": (
        objective(masked(tokens=SEQUENCE.tokens.astype(np.int64))),
        MASK,
        "its tokens are int64 [6], not int32 [6]",
    ),
    "a mask as weights": (
        objective(masked(weights=np.ones(6, bool))),
        MASK,
        "its weights are bool [6], not float32 [6]",
    ),
    "too few cells": (
        objective(masked(cells=SEQUENCE.cells[1:])),
        MASK,
        "its cells are int32 [5], not int32 [6]",
    ),
    "a table of tokens": (
        objective(masked(tokens=SEQUENCE.tokens[None])),
        MASK,
        "its tokens are int32 [1, 6], not int32 [n]",
    ),
    "weights that are not finite": (
        objective(masked(weights=np.full(6, np.nan, np.float32))),
        MASK,
        "its weights are not all finite and at least 0",
    ),
    "too many tokens": (
        objective(
            MaskedSequence(np.zeros(9, np.int32), np.zeros(9, np.int32), np.zeros(9, np.float32)),
            2,
        ),
        "the_reserve_is_enough",
        "it made 6 tokens 9, of 6 to 8",
    ),
    "its own query": (
        retriever([[found(0)]]),
        "what_is_excluded_is_never_found",
        "it found document 'document 0' for a query of that document or its content",
    ),
    "no results": (retriever(None), "a_batch_is_its_queries", "it returned None for 1 queries"),
    "two lists": (
        retriever([[], []]),
        "a_batch_is_its_queries",
        "it returned 2 lists for 1 queries",
    ),
    "indices": (
        retriever([[1, 2]]),
        FINDS,
        "it found a list of int for a query, not a list of Retrieved",
    ),
    "more than asked": (
        retriever([[found(1), found(2)]], 1),
        FINDS,
        "it found 2 documents, but 1 were requested",
    ),
    "outside": (retriever([[found(3)]]), FINDS, "it found document 3, but the memory has 3"),
    "no whole number": (
        retriever([[found("1")]]),
        FINDS,
        "it found document '1', but the memory has 3",
    ),
    "codes as lists": (
        lambda: image_tokenizer(_encode=lambda *_: [[0, 1]]).encode(PIXELS),
        CODES,
        "it returned list, not int32 [1, 2]",
    ),
    "codes outside": (
        lambda: image_tokenizer(_encode=lambda *_: np.array([[0, 3]], np.int32)).encode(PIXELS),
        CODES,
        "it returned codes 0..3 of 3",
    ),
    "pixels as numbers": (
        lambda: image_tokenizer(_decode=lambda *_: PIXELS / 255).decode(np.zeros((1, 2), np.int32)),
        PICTURES,
        "it returned float64 [1, 2, 2, 3], not uint8 [1, 2, 2, 3]",
    ),
    "as small as before": (
        lambda: made(Upscaler, scale=2, _upscale=lambda _, x: x).upscale(PIXELS[0]),
        PICTURES,
        "it returned uint8 [1, 2, 2, 3], not uint8 [1, 4, 4, 3]",
    ),
    "one vector": (
        lambda: made(Embedder, dimension=2, _embed_texts=lambda *_: np.ones(2)).embed_texts(["a"]),
        "vectors_are_finite_unit_float32",
        "it returned float64 [2] for 1 texts, not float32 [1, 2]",
    ),
    "text as ids": (
        lambda: made(TextTokenizer, vocab_size=3, _encode=lambda _, x: x).encode("ab"),
        "ids_are_in_range",
        "it returned str, not a list of ids 0..2",
    ),
    "ids outside": (
        lambda: made(TextTokenizer, vocab_size=3, _encode=lambda *_: [0, 3]).encode("ab"),
        "ids_are_in_range",
        "it returned ids 0..3, not a list of ids 0..2",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_broken_law_is_named(name: str) -> None:
    call, law, cause = CASES[name]
    with pytest.raises(PluginError) as caught:
        call()
    assert caught.value.cause == f"breaks the law {law!r}: {cause}"
    assert caught.value.place.endswith(".Wrong")


def test_the_laws_are_those_of_the_kits() -> None:
    known = {law for kind in KINDS.values() for law in laws_of(kind)}
    assert {law for _, law, _ in CASES.values()} <= known


@dataclass(kw_only=True)
class NothingConfig(ObjectiveConfig):
    def build(self, vocabulary: Vocabulary) -> Any:
        return None


def test_the_component_is_named_once_it_is_built() -> None:
    registry = Registry()
    info = PluginInfo("ul2", "0.1", "cm3-ul2, ul2")
    registry.add(info, {"objective": {"spans": NothingConfig}}, {})
    subject = built(
        made(MaskingObjective, max_added_tokens=0, _mask=lambda *_: 3), NothingConfig(), registry
    )
    with pytest.raises(PluginError) as caught:
        subject.mask(SEQUENCE, np.random.default_rng(0), 100)
    assert tells(caught.value, "plugin 'ul2', objective 'spans': breaks the law")
    with pytest.raises(PluginError) as caught:
        built(None, NothingConfig(), registry)
    assert tells(caught.value, "plugin 'ul2', objective 'spans': breaks the law 'build'")


def test_components_with_slots_are_named_by_their_class() -> None:
    class Slotted:
        __slots__ = ()

    set_origin(Slotted(), ComponentOrigin("mine", "sampler", "x"))
