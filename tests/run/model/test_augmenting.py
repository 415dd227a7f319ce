"""Documents prepended to a prompt, and another memory or retriever for a model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cm3core.document import Image, Text, content_keys
from cm3core.errors import CM3Error, DataError, GenerationError
from cm3core.interfaces import Provenance, Retrieved, RetrieverConfig
from cm3core.plugins import PluginInfo, Registry
from cm3core.recipe.recipe import Recipe
from cm3run.model import Model
from cm3run.model.searching import ReadDocuments
from messages import tells
from toy_model import MEMORY, Colours, FirstRetriever, picture


def test_retrieved_documents_that_do_not_fit_are_left_out_and_it_is_said(
    model, monkeypatch, capsys
):
    monkeypatch.setattr(model.components.decoder, "context_length", 70)
    for call in (
        lambda: model.generate("red", 1, num_retrieved=3)[0],
        lambda: model.caption(picture(), num_retrieved=3),
        lambda: model.infill(picture(), (2, 2, 6, 6), "red", num_retrieved=3),
    ):
        assert [document.id for document in call().retrieved] == ["red", "green"]
        assert tells(capsys.readouterr().err, "note: the decoder's context of 70 ... last 1 of 3")
    model.generate("red", 1, num_retrieved=99)
    # of those that there are
    assert f"no room for the last {len(MEMORY) - 2} of {len(MEMORY)} " in capsys.readouterr().err
    assert (
        model.generate("red", 1, num_retrieved=3)[0].codes
        == model.generate("red", 1, num_retrieved=2)[0].codes
    )
    [one] = model.generate("red", 1, num_retrieved=3, context=[(picture(), "by hand")])
    assert [document.id for document in one.retrieved] == ["context 0", "red"]
    # documents given by hand are not dropped
    with pytest.raises(GenerationError, match="the prompt is"):
        model.generate("red", 1, num_retrieved=1, context=[(picture(), "by hand")] * 3)


def test_retrieved_documents_and_context_come_with_the_picture(model):
    assert [one.id for one in model.generate("red", num_images=1)[0].retrieved] == ["red", "green"]
    [one] = model.generate(
        "red", num_images=1, num_retrieved=1, context=[(picture(9, 12), "by hand")]
    )
    assert [(document.id, document.score, document.text) for document in one.retrieved] == [
        ("context 0", None, "by hand"),
        ("red", 1.0, "red"),
    ]
    assert one.retrieved[0].pixels.shape == (8, 8, 3)
    # of a document given by hand nothing is known
    assert [document.provenance for document in one.retrieved] == [
        Provenance(),
        Provenance(
            "CC-BY-4.0",
            "npm colours 1.2.0",
            "Ann Colour",
            "colours",
            "red",
            "https://example.org/colours",
        ),
    ]
    assert (
        model.generate("red", num_images=1, context=[(picture(), "by hand")])[0].retrieved[1:] == ()
    )
    with_none, with_two = (
        model.generate("red", num_images=1, num_retrieved=number)[0] for number in (0, 2)
    )
    assert with_none.retrieved == ()
    assert with_none.codes != with_two.codes


def test_too_many_documents_in_front_say_what_fits(model):
    with pytest.raises(
        GenerationError,
        match=r"the prompt is 1\d\d tokens and 16 are to be generated, \d+ more than",
    ):
        model.generate("red", context=[(picture(), "abc")] * 7)


def test_a_model_without_retriever_says_so(model):
    recipe = Recipe(name="bare", sampler=model.recipe.sampler)
    with pytest.raises(GenerationError) as error:
        Model(recipe, model.components).generate("a", num_retrieved=1)
    assert tells(error.value, "num_retrieved: is 1, but ... 'bare' ... use 0")


def test_a_document_with_the_picture_that_is_asked_about_is_never_retrieved(model, monkeypatch):
    """Neither for a caption nor for infilling; a picture is identified by its codes, not its file."""
    asked = []

    def retrieve(self, queries, num_retrieved, exclude):
        asked.append(exclude)
        return [[] for _ in queries]

    monkeypatch.setattr(FirstRetriever, "_retrieve", retrieve)
    own = content_keys((model.encode([picture()])[0],))
    model.caption(picture())
    model.infill(picture(), (2, 2, 6, 6), "red")
    model.ask(picture(), "a?", num_retrieved=1, template="{question}{answer}")
    model.generate("Red ", 1)
    assert asked == [[own], [own], [own], [content_keys((Text("red"),))]]


def test_a_retrieved_document_that_cannot_be_read_gives_way(model, monkeypatch, capsys):
    def broken():
        raise DataError("red.png", "is truncated", "replace it")

    model.documents = ReadDocuments()  # that of the other tests knows this one
    plain = Colours._document
    monkeypatch.setattr(
        Colours,
        "_document",
        lambda self, index, rng: (
            (Text("red"), Image("broken", broken)) if index == 0 else plain(self, index, rng)
        ),
    )
    assert [document.id for document in model.generate("red", 1)[0].retrieved] == ["green"]
    assert tells(
        capsys.readouterr().err, "note: retrieved document red is left out: red.png: is truncated"
    )


def test_another_memory_shares_the_weights_and_leaves_the_model_as_it_was(model, monkeypatch):
    monkeypatch.setitem(vars(model.components), "memory", FirstRetriever.memory)
    fewer = model.with_memory(num_retrieved=1)
    assert [document.id for document in fewer.generate("red", 1)[0].retrieved] == ["red"]
    assert len(model.generate("red", 1)[0].retrieved) == 2
    assert fewer.components.decoder is model.components.decoder
    for call, message in (
        (
            lambda: model.with_memory(min_similarity=0.3),
            "retriever.min_similarity: is not a key of this",
        ),
        (
            lambda: model.with_memory(num_retrieved="two"),
            "retriever.num_retrieved: is 'two', must be a whole number",
        ),
        (
            lambda: model.with_memory("nowhere"),
            "nowhere: does not exist ... 'cm3 memory build'",
        ),
        (
            lambda: Model(
                Recipe(name="bare", sampler=model.recipe.sampler), model.components
            ).with_memory(num_retrieved=1),
            "retriever: the model's recipe 'bare'",
        ),
    ):
        with pytest.raises(CM3Error) as error:
            call()
        assert tells(error.value, message)


class WordRetriever(FirstRetriever):
    """The last first."""

    def _retrieve(self, queries, num_retrieved, exclude):
        return [
            [Retrieved(index, MEMORY[index], 1.0) for index in (2, 1, 0)[:num_retrieved]]
            for _ in queries
        ]


@dataclass(kw_only=True)
class WordRetrieverConfig(RetrieverConfig):
    def build(self, memory, embedder):
        return WordRetriever()


@dataclass(kw_only=True)
class VectorRetrieverConfig(WordRetrieverConfig):
    needs = ("embedder",)


def test_another_retriever_searches_the_same_memory(model, monkeypatch):
    registry = Registry()
    brought = {"words": WordRetrieverConfig, "vectors": VectorRetrieverConfig}
    registry.add(PluginInfo("mine", "1", "here"), {"retriever": brought}, {})
    monkeypatch.setattr(model.components, "registry", registry)
    monkeypatch.setitem(vars(model.components), "memory", FirstRetriever.memory)
    other = model.with_memory(retriever="words")
    assert [document.id for document in other.generate("red", 1)[0].retrieved] == [
        "blue",
        "green",
    ], "two, as the recipe says"
    assert other.recipe.component_names["retriever"] == "words"
    assert [document.id for document in model.generate("red", 1)[0].retrieved] == ["red", "green"]
    bare = Model(Recipe(name="bare", sampler=model.recipe.sampler), model.components)
    assert [
        document.id
        for document in bare.with_memory(retriever="words").generate("red", 1)[0].retrieved
    ] == ["blue"]
    for name, message in (
        ("word", "retriever: no retriever is ... 'word' ... 'words'"),
        (
            "vectors",
            "retriever: no embedder is named, and no plugin ... provides a default one",
        ),
    ):
        with pytest.raises(CM3Error) as error:
            model.with_memory(retriever=name)
        assert tells(error.value, message)


def test_documents_stand_in_the_order_in_which_the_prompt_mentions_them(model):
    prompt = "green, red"
    by_rank = model.generate(prompt, 1, num_retrieved=3)[0]
    assert [one.id for one in by_rank.retrieved][:2] == ["red", "green"]
    model.recipe.retriever.order = "mention"
    mentioned = model.generate(prompt, 1, num_retrieved=3)[0]
    assert [one.id for one in mentioned.retrieved][:2] == ["green", "red"]
    assert {one.id for one in mentioned.retrieved} == {one.id for one in by_rank.retrieved}
    assert mentioned.codes != by_rank.codes
    # the caller's documents stay in front
    [one] = model.generate(prompt, 1, num_retrieved=2, context=[(picture(), "by hand")])
    assert [document.id for document in one.retrieved] == ["context 0", "green", "red"]
