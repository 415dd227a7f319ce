"""The forms of overrides, and what is said instead of forms that don't exist."""

from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import CM3Error, RecipeError
from cm3core.plugins.discovery import load_registry
from cm3core.recipe import compose, recipe_from_yaml
from cm3core.recipe.forms import alternatives, extends_of, next_step, path_of, plain, swept
from cm3core.recipe.recipe import Recipe
from messages import tells

REGISTRY = load_registry()


def composed(*overrides: str) -> Recipe:
    return compose("tiny", overrides, registry=REGISTRY)


def refused(*overrides: str) -> str:
    with pytest.raises(CM3Error) as error:
        composed(*overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (["+train.steps=5"], ["train.steps=5"]),
        (["++train.steps=5"], ["train.steps=5"]),
        (["+sampler=cfg"], ["sampler=cfg"]),
        (["sampler/cfg"], ["sampler=cfg"]),
        (["sampler/bundled/cfg"], ["sampler=bundled/cfg"]),
        (["train.betas[0]=0.8"], ["train.betas=[0.8, 0.95]"]),
        (["train.betas[1]=0.99", "+train.betas[0]=0.8"], ["train.betas=[0.8, 0.99]"]),
        (
            ["sampler={name: cfg, guidance_scale: 3}"],
            ["sampler=cfg", "sampler.guidance_scale=3"],
        ),
        (
            ["sampler={name: cfg}", "sampler.guidance_scale=3"],
            ["sampler=cfg", "sampler.guidance_scale=3"],
        ),
        (["~sampler"], ["sampler=null"]),
        (["train={steps: 5, seed: 2}"], ["train.steps=5", "train.seed=2"]),
        (["dataset=folder", "dataset.path=a,b"], ["dataset=folder", "dataset.path='a,b'"]),
    ],
)
def test_forms_that_mean_the_same(given: list[str], same: list[str]) -> None:
    assert composed(*given).to_yaml() == composed(*same).to_yaml()


def test_a_forgotten_key_has_its_default() -> None:
    recipe = composed("~train")
    assert (recipe.train.batch_rows, recipe.train.steps) == (8, None)
    recipe = composed("~train.batch_rows")
    assert (recipe.train.batch_rows, recipe.origins["train.batch_rows"]) == (8, "default")
    assert recipe.train.steps == composed().train.steps


def test_a_forgotten_part_is_gone() -> None:
    parts = ["embedder=light_encoder", "retriever=hybrid"]
    plain_recipe = composed(*parts)
    assert plain_recipe.origins["retriever.name"] == "command line"
    with pytest.raises(RecipeError) as error:
        composed("~decoder.d_modle")
    assert tells(error.value, "command line: decoder.d_modle: the decoder ... 'd_model'")


def test_items_of_lists_in_other_texts() -> None:
    text = "train: {betas: [0.5, 0.6]}\nvocabulary: {num_text: 300}"
    changed = recipe_from_yaml(text, REGISTRY, overrides=["train.betas[1]=0.7"])
    assert changed.train.betas == [0.5, 0.7]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.betas[2]=1"], "command line: train.betas[2]: the list has 2 items"),
        (
            ["train.steps[0]=1"],
            "command line: train.steps[0]: train.steps is 20, not a list\n  next: write train.steps=1",
        ),
        (["train[0]=1"], "command line: train: the section 'train' is not a list"),
        (["sampler[0]=1"], "command line: sampler: the sampler 'top_p' is not a list"),
        (["train.betas[0]=1", "train.betas=[1, 2]"], "command line: train.betas: is given twice"),
        (
            ["sampler={name: cfg}", "sampler=top_p"],
            "command line: sampler.name: is given twice",
        ),
        (
            ["sampler={name:", "cfg}"],
            "command line: sampler={name:: the value is not valid YAML: the shell split it ... "
            "'sampler={name: cfg}'",
        ),
        (["train.steps:5"], "command line: train.steps:5: is not key=value ... train.steps=5"),
        (["train.steps:", "5"], "command line: train.steps:: is not key=value ... train.steps=5"),
        (["~sampler=cfg"], "command line: ~sampler=cfg: is not key=value ... write ~sampler"),
        (["sampler@x=cfg"], "command line: sampler@x=cfg: is not key=value ... sampler=cfg"),
        (["sampler/cfg=x"], "command line: sampler.cfg: the sampler ... write sampler=cfg"),
        (
            ["sampler.cfg.guidance_scale=3"],
            "command line: sampler.cfg: the sampler ... write sampler=cfg sampler.guidance_scale=3",
        ),
        (["my/pictures"], "command line: my/pictures: is not key=value"),
    ],
)
def test_what_is_refused(overrides: list[str], message: str) -> None:
    assert tells(refused(*overrides), message)


# ---- several values for a key


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["retriever=none,bm25"], "cm3 sweep tiny retriever=none,bm25"),
        (
            ["train.batch_rows=1,2", "train.seed=3"],
            "cm3 sweep tiny train.batch_rows=1,2 train.seed=3",
        ),
        (
            ["train.optimizer=adamw,muon", "decoder.num_layers=1,2"],
            "cm3 sweep tiny train.optimizer=adamw,muon decoder.num_layers=1,2",
        ),
        (
            ["train.betas=[0.9,0.95],[0.8,0.9]"],
            "cm3 sweep tiny 'train.betas=[0.9,0.95],[0.8,0.9]'",
        ),
    ],
)
def test_a_sweep_is_typed_out(overrides: list[str], line: str) -> None:
    message = refused(*overrides)
    assert tells(message, f"command line: {overrides[0]}: has 2 values")
    assert message.endswith(f"train and evaluate each: {line}")


@pytest.mark.parametrize(
    "override", ["train.betas=0.9,0.95", "train.steps=1,many", "retriever=none,", "sampler=a,b"]
)
def test_no_sweep_of_what_no_recipe_has(override: str) -> None:
    assert "sweep" not in refused(override)


def test_alternatives_by_hand() -> None:
    assert alternatives("a.b=1, 'x,y',{c: [1,2]}") == ["a.b=1", "a.b='x,y'", "a.b={c: [1,2]}"]
    assert alternatives("a.b='1,2'") == []
    assert alternatives("a.b") == []


@given(st.lists(st.sampled_from(["1", "two", "[1,2]", "{a: 1}", "'a,b'"]), min_size=2, max_size=5))
def test_alternatives_are_what_was_joined(values: list[str]) -> None:
    assert alternatives(f"k={','.join(values)}") == [f"k={value}" for value in values]


@given(st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3)))
def test_only_wrong_values_are_swept(wrong: set[int], commas: set[int]) -> None:
    """A value with a comma is valid unless its key is wrong; single values always are."""

    def is_valid(overrides: list[str]) -> bool:
        return not any("," in one and int(one[1]) in wrong for one in overrides)

    overrides = [f"k{number}={'1,2' if number in commas else '1'}" for number in range(4)]
    assert swept(overrides, is_valid) == [f"k{one}=1,2" for one in sorted(wrong & commas)]


# ---- paths, texts


@given(st.text(max_size=30))
def test_any_argument_has_a_plain_form_or_a_next_step(text: str) -> None:
    once = plain(text, {"sampler"})
    assert "sampler/" in once or plain(once, {"sampler"}) == once or once.startswith("+")
    assert next_step(text)


def test_paths_by_hand() -> None:
    assert path_of("train.trackers[0].keys.1") == ("train", "trackers", 0, "keys", "1")


@pytest.mark.parametrize(
    ("entries", "lines"),
    [
        (["tiny", {"sampler": "cfg"}], ["extends: [tiny]", "sampler: cfg"]),
        (["base/tiny.yaml", "_self_"], ["extends: [base/tiny.yaml]"]),
        ([{"optional sampler": "cfg"}, {"retriever": None}], ["sampler: cfg", "retriever: null"]),
        ([{"/sampler/inner@sampler.inner": "cfg"}], ["sampler: {inner: cfg}"]),
        ("tiny", ["extends: [tiny]"]),
    ],
)
def test_defaults_of_hydra(entries: object, lines: list[str]) -> None:
    assert extends_of(entries, lambda name: name == "tiny") == lines


def test_a_file_with_defaults() -> None:
    with pytest.raises(RecipeError) as error:
        recipe_from_yaml("defaults: [tiny, {sampler: cfg}]", REGISTRY, label="mine.yaml")
    assert str(error.value).endswith("write instead:\n    extends: [tiny]\n    sampler: cfg")


# ---- anchors, standard input


def test_anchors_in_notes() -> None:
    text = "x-mine: &mine {top_p: 0.5}\nextends: tiny\nsampler: {<<: *mine, temperature: 0.5}\n"
    sys.stdin = io.StringIO(text)
    try:
        recipe = compose("-", ["train.steps=5"], registry=REGISTRY)
        again = compose("-", [], registry=REGISTRY)
    finally:
        sys.stdin = sys.__stdin__
    assert (recipe.name, recipe.train.steps, again.train.steps) == ("stdin", 5, 20)
    assert recipe.to_dict()["sampler"]["top_p"] == 0.5
    assert recipe.origins["sampler.top_p"] == "standard input"
    assert "mine" not in recipe.to_yaml()


def test_notes_are_on_top_only() -> None:
    with pytest.raises(RecipeError) as error:
        recipe_from_yaml("train: {x-mine: 1}", REGISTRY, label="mine.yaml")
    assert tells(error.value, "mine.yaml: train.x-mine: the section 'train' has no key")


def test_a_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(RecipeError) as error:
        compose("-", registry=REGISTRY)
    assert tells(error.value, "standard input: can't be read: it is closed")
