"""What each command can do with a recipe: by hand for the recipe `tiny`, and true for plugins' declarations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Codes, ImageHole, MaskedText, Text, TextHole
from cm3core.errors import RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3plugins.samplers.patch_knn import PatchKNNSamplerConfig
from cm3run.life import life_of, needs_of
from messages import tells

REGISTRY = load_registry()
PICTURE = Codes(np.zeros(4, np.int32), (2, 2))
HOLED = Codes(np.zeros(4, np.int32), (2, 2), np.array([False, True, False, False]))


def runs(*given: str, recipe: str = "tiny") -> dict[str, bool]:
    life = life_of(compose(recipe, list(given), registry=REGISTRY), REGISTRY, device="cpu")
    return {command: verdict.runs for command, verdict in life.items()}


def test_tiny_by_hand() -> None:
    """It trains on captioned pictures: on no edits, questions or conversations."""
    train = dict.fromkeys(["train", "resume", "export", "load"], True)
    plain = dict.fromkeys(["generate", "infill", "caption"], True)
    others = dict.fromkeys(["generate --condition", "edit", "ask", "chat"], False)
    assert runs() == train | plain | others
    assert runs("objective=causal") == train | others | {
        "generate": True,
        "infill": False,
        "caption": False,
    }


def test_tuned_by_hand() -> None:
    """An edit and a structure have two pictures of 66 tokens, which do not fit 132 beside a text; a question has one."""
    assert all(runs(recipe="icons-tuned").values())
    short = runs("decoder.context_length=132", "retriever=none", recipe="icons-tuned")
    assert [command for command, works in short.items() if not works] == [
        "generate --condition",
        "edit",
    ]


def test_what_force_changes() -> None:
    """`tiny` trains on no edits, and runs them with --force if it holds two pictures of 258 tokens and a text."""
    recipe = compose("tiny", ["decoder.context_length=700"], registry=REGISTRY)
    life = life_of(recipe, REGISTRY, device="cpu")
    untrained = ["generate --condition", "edit", "ask", "chat"]
    assert [command for command, verdict in life.items() if verdict.force] == untrained
    for command in untrained:
        error = life[command].error
        assert error is not None
        assert tells(error, f"{command}: the recipe trains on no such examples ... or give --force")
    short = life_of(compose("tiny", registry=REGISTRY), REGISTRY, device="cpu")
    assert [command for command, verdict in short.items() if verdict.force] == ["ask", "chat"]
    assert short["edit"].to_dict()["next_step"] == "train on some (docs/tuning.md)"
    causal = life_of(
        compose(
            "tiny", ["text_tokenizer=classes", "text_tokenizer.num_classes=9"], registry=REGISTRY
        ),
        REGISTRY,
    )
    assert not any(verdict.force for verdict in causal.values())


def test_a_reranker_that_hides_two_texts_at_once() -> None:
    """The texts of a structure's prompt are its name and what to draw; `fim` masks one span."""

    def follows(**changed: str) -> bool:
        given = {"reranker": "pmi", "objective": "fim", "generate.num_candidates": "2", **changed}
        context = "decoder.context_length=700"
        overrides = [context, *(f"{key}={value}" for key, value in given.items())]
        recipe = compose("tiny", overrides, registry=REGISTRY)
        life = life_of(recipe, REGISTRY, device="cpu")
        assert life["generate"].runs
        return life["generate --condition"].force

    assert not follows()
    assert follows(objective="cm3")
    assert follows(**{"generate.num_candidates": "1"})
    assert follows(**{"reranker.direction": "image"})


def test_what_a_sampler_needs_of_pictures() -> None:
    """`patch_knn` compares a code with three above it and one on its left."""
    sampler = PatchKNNSamplerConfig()
    sampler.check_pictures((2, 3), 16)
    for grid in ((1, 64), (64, 2)):
        with pytest.raises(RecipeError) as info:
            sampler.check_pictures(grid, 16)
        assert tells(
            info.value, f"sampler: patch_knn compares ... have {grid[0]} x {grid[1]} codes"
        )
    PatchKNNSamplerConfig(share=0).check_pictures((1, 64), 16)


def test_the_reason_names_what_to_write() -> None:
    life = life_of(compose("tiny", ["objective=causal"], registry=REGISTRY), REGISTRY)
    error = life["caption"].error
    assert error is not None
    assert tells(
        error, "caption: needs ... holes ... objective 'causal' ... train with objective=cm3"
    )
    assert life["caption"].to_dict()["next_step"] == "train with objective=cm3"


def test_what_a_machine_lacks_refuses_nothing() -> None:
    recipe = compose("tiny", ["attention=flex"], registry=REGISTRY)
    life = life_of(recipe, REGISTRY, device="cpu")
    assert life["train"].here
    assert not life["train"].runs
    assert life["generate"].runs, "flex runs on a CPU without gradients"
    assert life_of(recipe, REGISTRY, device="cuda")["train"].runs


def test_a_recipe_of_a_tokenizer_has_no_commands() -> None:
    assert runs(recipe="tokenizer-colour64") == {}


@pytest.mark.parametrize("kind", ["dataset", "image_tokenizer", "objective", "attention"])
def test_a_missing_section_is_refused(kind: str) -> None:
    with pytest.raises(RecipeError) as info:
        runs(f"{kind}=null")
    assert tells(info.value, f"{kind}: is not in the recipe (or null) ... add {kind}=NAME")


def test_what_prompts_need_by_hand() -> None:
    assert needs_of((Text("a"), ImageHole()), fills=True) == []
    assert needs_of((TextHole(), PICTURE), fills=True) == ["text", "prefix", "holes"]
    assert needs_of((PICTURE, TextHole()), fills=True) == ["text", "prefix"]
    assert needs_of((Text("a"), HOLED), fills=True) == ["prefix", "holes"]
    assert needs_of((TextHole(), HOLED), fills=True) == [
        *("text", "prefix", "holes", "several_holes")
    ]
    ends = (PICTURE, MaskedText(("a", TextHole())))
    assert needs_of(ends, fills=True) == ["text", "prefix", "holes"]
    assert needs_of(ends, fills=False) == ["text", "prefix"]


@given(st.lists(st.sampled_from([Text("a"), PICTURE, HOLED]), max_size=3), st.booleans())
def test_a_hole_at_the_end_alone_needs_no_holes(before: list[object], fills: bool) -> None:
    prompt = (*before, ImageHole())
    assert ("holes" in needs_of(prompt, fills=fills)) == (HOLED in before)
