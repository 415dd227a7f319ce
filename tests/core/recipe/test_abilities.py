"""What a recipe's components offer and require together: by hand, for abilities that a plugin brought, and for every
order of components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import RecipeError
from cm3core.interfaces import ComponentConfig, SamplerConfig
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3core.recipe.abilities import ABILITIES, check_required, lack_of
from messages import tells

REGISTRY = load_registry()


@dataclass(kw_only=True)
class Part(ComponentConfig):
    """Offers and requires what it is given."""

    kind = "part"
    offered: dict[str, bool] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    def offers(self) -> Mapping[str, bool]:
        return self.offered

    def requires(self) -> tuple[str, ...]:
        return self.required


def parts(*given: tuple[dict[str, bool], tuple[str, ...]]) -> dict[str, tuple[str, Part]]:
    return {
        f"kind{number}": (f"name{number}", Part(offered=offered, required=required))
        for number, (offered, required) in enumerate(given)
    }


def test_one_that_offers_suffices_and_one_that_rules_out_forbids() -> None:
    assert lack_of(parts(({"flies": True}, ()), ({}, ())), "flies") is None
    forbidden = lack_of(parts(({"flies": True}, ()), ({"flies": False}, ())), "flies")
    assert forbidden is not None
    assert forbidden.cause == "kind1 'name1' rules out 'flies'"
    assert lack_of(parts(({}, ())), "flies") is not None
    assert lack_of(parts(({}, ())), "prefix") is None, "usual where nobody says anything"


def test_what_is_required_is_refused_by_place_and_cause() -> None:
    with pytest.raises(RecipeError) as info:
        check_required(parts(({"flies": False}, ()), ({}, ("flies",))))
    assert tells(
        info.value, "kind1: 'name1' needs a model that has 'flies', but kind0 'name0' rules"
    )
    check_required(parts(({"flies": True}, ()), ({}, ("flies",))))


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from([*ABILITIES, "own"]), st.booleans(), max_size=3),
            st.just(()),
        ),
        max_size=4,
    ),
    st.sampled_from([*ABILITIES, "own"]),
    st.randoms(),
)
def test_the_order_of_components_decides_nothing(given: list, ability: str, rng) -> None:  # type: ignore[no-untyped-def,type-arg]  # a generator of Hypothesis
    components = parts(*given)
    items = list(components.items())
    rng.shuffle(items)
    assert (lack_of(components, ability) is None) == (lack_of(dict(items), ability) is None)
    stated = [offered[ability] for offered, _ in given if ability in offered]
    usual = ability in ABILITIES and ABILITIES[ability].usual
    assert (lack_of(components, ability) is None) == (all(stated) and (bool(stated) or usual))


@dataclass(kw_only=True)
class Wrapping(SamplerConfig):
    """A sampler around another one."""

    inner: SamplerConfig


def test_what_an_inner_component_requires_counts() -> None:
    recipe = compose("outlines-tiny", ["sampler=mixture"], registry=REGISTRY)
    recipe.check()
    inner = compose("outlines-tiny", ["sampler=patch_knn"], registry=REGISTRY).sampler
    assert inner is not None
    recipe.sampler = Wrapping(inner=inner)
    with pytest.raises(RecipeError) as info:
        recipe.check()
    assert tells(info.value, "sampler: 'mixture' needs ... 'outlines' has no vectors of codes")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["objective=causal", "reranker=likelihood"], "reranker: 'likelihood' needs ... 'causal'"),
        (
            ["objective.max_spans=0", "reranker=pmi"],
            "reranker: 'pmi' needs ... objective 'cm3' only continues documents ... objective=cm3",
        ),
        (
            ["retriever=hybrid", "decoder.context_length=700"],
            "retriever: 'hybrid' needs the section 'embedder'",
        ),
        (["layout=janus", "objective=causal"], "layout: 'janus' needs ... named tokens"),
        (["decoder=glm_image"], "decoder.grids: have 1,280 codes ... 256"),
        (["task=edit"], "task: 'edit' needs the field 'source' ... 'emoji' have image, caption"),
    ],
)
def test_what_the_recipe_alone_shows_is_refused(given: list[str], words: str) -> None:
    with pytest.raises(RecipeError) as info:
        compose("tiny", given, registry=REGISTRY).check()
    assert tells(info.value, words)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("image_tokenizer=ordered", "image_tokenizer.weights: is null ... train-image"),
        ("text_tokenizer=hf", "text_tokenizer.path: is null"),
        ("text_tokenizer=classes", "text_tokenizer.num_classes: is null ... path"),
        ("image_tokenizer=llamagen", "image_tokenizer.weights: is null ... vq_ds16_c2i.pt"),
        (
            "dataset={name: folder, path: no/such}",
            "dataset.path: is 'no/such', and there is no such file or folder",
        ),
        (
            "retriever={name: bm25, bank: no/such}",
            "retriever.bank: is 'no/such', and there is no such",
        ),
    ],
)
def test_what_is_missing_is_refused_when_it_is_to_be_built(given: str, words: str) -> None:
    section, _, keys = given.partition("={name: ")
    overrides = [given]
    if keys:
        name, _, rest = keys.rstrip("}").partition(", ")
        key, _, value = rest.partition(": ")
        overrides = [f"{section}={name}", f"{section}.{key}={value}"]
    recipe = compose("tiny", [*overrides, "decoder.context_length=1100"], registry=REGISTRY)
    recipe.check()
    with pytest.raises(RecipeError) as info:
        recipe.check(ready=True)
    assert tells(info.value, words)
    recipe.check(ready=True, carried=[section.partition("=")[0]])
