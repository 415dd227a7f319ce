"""A trained model draws with every installed retriever, whichever it was trained with, and builds what that needs once."""

from __future__ import annotations

import pytest

from cm3core.config.schema import needs_of
from cm3core.errors import CM3Error, DataError
from cm3core.plugins import load_registry
from cm3core.recipe import Recipe
from cm3plugins.retrievers import memory_vectors
from cm3run.model import Model
from messages import tells
from toy_model import Colours, picture, toy_model

REGISTRY = load_registry()
#: Those with a memory of their own, such as a database, have tests of their own.
NAMES = [
    name
    for name in REGISTRY.names("retriever")
    if not REGISTRY.config_class("retriever", name).own_memory
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("CM3_CACHE", str(folder))
    return folder


@pytest.fixture
def model():
    """Trained with two documents of a retriever that no plugin has, and without an embedder."""
    toy = toy_model()
    toy.components.registry = REGISTRY
    toy.components.memory = Colours()
    return toy


@pytest.fixture(params=["with a retriever", "without one"])
def trained(request, model):
    if request.param == "with a retriever":
        return model
    bare = Model(Recipe(name="bare", sampler=model.recipe.sampler), model.components)
    bare.components.recipe = bare.recipe
    return bare


@pytest.mark.parametrize("name", NAMES)
def test_every_task_works_with_every_retriever(trained, name):
    changed = trained.with_memory(retriever=name)
    retrieves = REGISTRY.config_class("retriever", name).retrieves
    [drawn] = changed.generate("red", 1)
    assert bool(drawn.retrieved) == retrieves
    assert changed.recipe.component_names["retriever"] == name
    changed.caption(picture())
    changed.infill(picture(), (2, 2, 6, 6), "red")
    changed.edit(
        picture(), "red", 1, force=True, truncate=True, num_retrieved=1 if retrieves else 0
    )
    changed.ask(picture(), "a?", template="{question}{answer}", num_retrieved=1 if retrieves else 0)
    assert changed.components.decoder is trained.components.decoder


@pytest.mark.parametrize("name", NAMES)
def test_what_a_retriever_needs_is_built_once(model, name, cache, capsys):
    def files():
        return {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}

    first = model.with_memory(retriever=name).generate("red", 1)[0]
    built = files()
    capsys.readouterr()
    second = model.with_memory(retriever=name).generate("red", 1)[0]
    assert files() == built
    assert capsys.readouterr() == ("", ""), "there is nothing to wait for"
    assert [one.id for one in first.retrieved] == [one.id for one in second.retrieved]


@pytest.mark.parametrize("name", ["dense", "usearch"])
def test_another_memory_or_embedder_is_another_index(model, name, cache):
    if name == "usearch":
        pytest.importorskip("usearch")

    def vectors():
        return {path.name for path in (cache / "embeddings").glob("*.npy")}

    model.with_memory(retriever=name)
    assert len(vectors()) == 1
    model.with_memory(retriever=name, embedder="minilm")
    assert len(vectors()) == 2

    class Greyer(Colours):
        fingerprint = "other colours"

    model.components.memory = Greyer()
    model.with_memory(retriever=name)
    assert len(vectors()) == 3


def test_no_documents(model):
    """`none` draws what no retrieved documents give, and reads no memory: that may be elsewhere."""
    expected = model.generate("red", 1, num_retrieved=0)[0]

    class Absent(Colours):
        def _document(self, index, rng):
            raise DataError("the data set", "is not here", "copy it")

    del model.components.memory
    model.components.memory_of_split = lambda name: Absent()
    [drawn] = model.with_memory(retriever="none").generate("red", 1)
    assert drawn.codes == expected.codes
    assert drawn.retrieved == ()
    with pytest.raises(CM3Error) as error:
        model.with_memory(retriever="none").generate("red", 1, num_retrieved=1)
    assert tells(error.value, "num_retrieved: is 1, but ... 'toy' has no retriever ... use 0")


def test_a_model_without_an_embedder_gets_the_retrievers_default_one(model):
    for name, embedder in (("dense", "light_encoder"), ("hybrid", "minilm")):
        told = []
        model.told = told.append
        changed = model.with_memory(retriever=name)
        assert changed.recipe.component_names["embedder"] == embedder
        [note] = told
        assert tells(note, f"the model has no embedder, so {name!r} uses {embedder!r}")
    told.clear()
    changed = model.with_memory(retriever="dense", embedder={"name": "minilm"})
    assert changed.recipe.component_names["embedder"] == "minilm"
    assert told == [], "the user named it"
    again = changed.with_memory(retriever="dense", embedder={"batch_size": 3})
    assert again.recipe.embedder.batch_size == 3, "of the embedder that it has"
    assert model.recipe.embedder is None


@pytest.mark.parametrize(
    ("embedder", "words"),
    [
        ("clipp", "embedder: no embedder is called 'clipp' ... 'clip'"),
        ({"name": "light_encoder", "paht": "x"}, "embedder.paht: is not a key ... 'path'"),
        ({"batch_size": "many"}, "embedder.batch_size: is 'many', must be a whole number"),
    ],
)
def test_a_wrong_embedder_is_refused(model, embedder, words):
    with pytest.raises(CM3Error) as error:
        model.with_memory(retriever="dense", embedder=embedder)
    assert tells(error.value, words)


def test_hybrid_needs_an_embedder_unless_it_has_its_own():
    config = REGISTRY.config_class("retriever", "hybrid")
    assert needs_of(config()) == ("embedder",)
    encoder = REGISTRY.config_class("embedder", "minilm")()
    assert needs_of(config(encoder=encoder)) == ()


def test_the_time_of_embedding_is_told(model, monkeypatch, capsys):
    """By the rate of the first seconds: 500 documents, a second each."""
    now = [0.0]
    monkeypatch.setattr("cm3run.progress.time.monotonic", lambda: now[0])
    embed = memory_vectors.embed_part

    def slow(embedder, part, documents):
        now[0] += len(documents)
        return embed(embedder, part, documents)

    class Many(Colours):
        def __len__(self):
            return 500

        def id(self, index):
            return str(index)

        def _document(self, index, rng):
            return super()._document(index % 3, rng)

    monkeypatch.setattr(memory_vectors, "embed_part", slow)
    model.components.memory = Many()
    model.with_memory(retriever="dense")
    assert (
        "note: embedding the memory, 500 documents, takes about 8 minutes; done once, then cached\n"
        in capsys.readouterr().err
    )
    model.with_memory(retriever="dense")
    assert capsys.readouterr().err == ""
