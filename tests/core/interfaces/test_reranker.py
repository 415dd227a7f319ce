"""The interface of rerankers: candidates, what a plugin's mistakes come to, and the recipe's side
of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cm3core.document import Codes, ImageHole, MaskedText, Text, TextHole
from cm3core.errors import CM3Error, DocumentError, GenerationError, RecipeError
from cm3core.interfaces.reranker import Candidate, Reranker
from cm3core.plugins import Registry, load_registry
from cm3core.recipe import Recipe, compose
from cm3kits.reranker import BOX, GRID, pixels_of
from cm3run.build import build
from messages import tells

PARTS = Path(__file__).parents[2] / "fixtures" / "train"
APPLE = Codes(np.arange(6, dtype=np.int32), GRID)
PEAR = Codes(np.array([0, 3, 3, 3, 0, 5], np.int32), GRID)
PICTURES = [
    Candidate((Text("red"), ImageHole()), (Text("red"), picture), pixels_of)
    for picture in (APPLE, PEAR, APPLE)
]


class Given(Reranker):
    """Scores as they are given, or an error."""

    measure = "luck"

    def __init__(self, *scores: object, error: Exception | None = None) -> None:
        self.scores, self.error = scores, error

    def _score(self, candidates: Sequence[Candidate]) -> Sequence[float]:
        if self.error is not None:
            raise self.error
        return self.scores  # type: ignore[return-value]  # a plugin gives what it likes


# ---- candidates


def test_what_a_candidate_holds() -> None:
    """Drawn pictures are those that the request asked for, whole or in part; the others were
    given."""
    boxed = Codes(APPLE.codes, GRID, BOX)
    one = Candidate(
        (Text("a"), APPLE, TextHole(3), ImageHole(), boxed, MaskedText(("b", TextHole(2)))),
        (Text("a"), APPLE, Text(""), PEAR, APPLE, Text("bc")),
        pixels_of,
    )
    assert one.texts == ("a", "bc")
    assert one.drawn == (PEAR, APPLE)
    assert one.given == (APPLE,)
    assert [pixels.tolist() for pixels in one.pixels] == [
        pixels_of(PEAR).tolist(),
        pixels_of(APPLE).tolist(),
    ]


def test_pictures_are_decoded_when_they_are_asked_for_and_once() -> None:
    decoded: list[Codes] = []

    def decode(codes: Codes) -> np.ndarray:
        decoded.append(codes)
        return pixels_of(codes)

    one = Candidate((Text("a"), ImageHole()), (Text("a"), PEAR), decode)
    assert decoded == []
    assert one.pixels[0] is one.pixels[0]
    assert decoded == [PEAR]


# ---- scores


def test_scores_come_back_as_floats() -> None:
    scores = Given(np.float32(0.5), 2, np.array(-1.0)).score(PICTURES)
    assert scores == [0.5, 2.0, -1.0]
    assert {type(score) for score in scores} == {float}
    assert Given().score([]) == []


@pytest.mark.parametrize(
    ("reranker", "message"),
    [
        (
            Given(1.0, 2.0),
            "reranker (luck): returned 2 scores for 3",
        ),
        (
            Given(1.0, float("nan"), 2.0),
            "reranker (luck): returned nan for candidate 1",
        ),
        (
            Given(1.0, 2.0, float("-inf")),
            "reranker (luck): returned -inf for candidate 2",
        ),
        (
            Given("best", 2.0, 1.0),
            "reranker (luck): returned 'best' for candidate 0",
        ),
        (
            Given(1.0, None, 1.0),
            "reranker (luck): returned None for candidate 1",
        ),
        (
            Given(error=ZeroDivisionError("division by zero")),
            "reranker (luck): failed with ZeroDivisionError ... 'reranker'",
        ),
    ],
)
def test_a_plugins_mistake_names_the_reranker(reranker: Reranker, message: str) -> None:
    with pytest.raises(GenerationError) as caught:
        reranker.score(PICTURES)
    assert tells(caught.value, message)


def test_a_plugins_exception_is_kept_as_the_cause() -> None:
    error = ZeroDivisionError("division by zero")
    with pytest.raises(GenerationError) as caught:
        Given(error=error).score(PICTURES)
    assert caught.value.__cause__ is error


def test_an_error_with_a_next_step_keeps_it_and_its_class() -> None:
    with pytest.raises(CM3Error) as caught:
        Given(error=DocumentError("candidate 1", "is empty", "draw it again")).score(PICTURES)
    assert type(caught.value) is DocumentError
    assert str(caught.value) == "reranker (luck), candidate 1: is empty\n  next: draw it again"


def test_an_interrupt_is_no_mistake() -> None:
    class Interrupted(Given):
        def _score(self, candidates: Sequence[Candidate]) -> Sequence[float]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Interrupted().score(PICTURES)


def test_candidates_of_two_requests_are_a_bug() -> None:
    other = Candidate((Text("blue"), ImageHole()), (Text("blue"), PEAR), pixels_of)
    with pytest.raises(AssertionError, match="of one request"):
        Given(1.0, 2.0).score([PICTURES[0], other])


# ---- recipes


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry([PARTS / "train_parts.py"])


def squares(registry: Registry, *overrides: str) -> Recipe:
    recipe = compose(str(PARTS / "squares.yaml"), overrides, registry=registry)
    recipe.check()
    return recipe


def test_a_recipe_without_a_reranker_has_none(registry: Registry) -> None:
    components = build(squares(registry), registry, stage="train")
    assert components.recipe.generate.num_candidates == 1
    assert components.reranker is None


def test_a_recipe_builds_its_reranker_over_its_own_decoder(registry: Registry) -> None:
    components = build(
        squares(registry, "reranker=likelihood", "generate.num_candidates=8"),
        registry,
        stage="train",
    )
    components.decoder.eval()
    codes = [Codes(np.full(16, colour, np.int32), (4, 4)) for colour in range(3)]
    scores = components.reranker.score(
        [Candidate((Text("red"), ImageHole()), (Text("red"), one), pixels_of) for one in codes]
    )
    [expected, *_] = components.likelihood.log_probability(
        [(TextHole(components.recipe.data.max_text_tokens), codes[0])],
        [[components.serializer.text_tokens("red")]],
    )
    assert scores[0] == pytest.approx(expected.per_token)
    assert components.likelihood.decoder is components.decoder


def test_the_section_is_stored_and_read_again(registry: Registry) -> None:
    recipe = squares(
        registry, "reranker=pmi", "reranker.direction=image", "generate.num_candidates=4"
    )
    assert recipe.to_dict()["reranker"] == {
        "name": "pmi",
        "direction": "image",
        "with_retrieved": False,
    }
    assert recipe.to_dict()["generate"]["num_candidates"] == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["reranker=clip"],
            "reranker: 'clip' needs the ... 'embedder' ... NAME",
        ),
        (
            ["generate.num_candidates=8"],
            "generate.num_candidates: is 8, but ... use 1",
        ),
        (
            ["generate.num_candidates=0"],
            "generate.num_candidates: is 0, must ... least 1",
        ),
    ],
)
def test_recipes_that_can_not_be(registry: Registry, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        squares(registry, *overrides)
    assert tells(caught.value, message)


def test_a_direction_that_is_not_known(registry: Registry) -> None:
    with pytest.raises(RecipeError) as caught:
        squares(registry, "reranker=pmi", "reranker.direction=sideways")
    assert tells(
        caught.value, "command line: reranker.direction: is 'sideways', must be text or image"
    )


def test_configs_and_interface_import_nothing_heavy() -> None:
    code = "import cm3core.interfaces, cm3plugins.rerankers, sys; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert run.stdout == "False\n"
