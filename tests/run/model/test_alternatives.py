"""The pictures of one prompt take turns with its best documents, and a picture's seed alone says whose turn it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import GenerationError, RecipeError
from cm3run.generation.engine import MAX_SEED, candidate_seed, turn_of
from cm3run.model import Model
from messages import tells
from toy_model import Brightness, FirstRetriever, FirstRetrieverConfig, toy_model


@pytest.fixture(scope="module")
def model() -> Model:
    """Its three documents have the scores 1, 0.75 and 0.5."""
    return fresh()


def fresh() -> Model:
    model = toy_model()
    vars(model.components)["memory"] = FirstRetriever.memory
    return model


def fronts(model: Model, number: int, **options: object) -> list[list[str]]:
    return [[one.id for one in made.retrieved] for made in model.generate("red", number, **options)]


def test_pictures_take_turns_with_what_is_near_enough(model: Model) -> None:
    two = model.with_memory(num_retrieved=1, num_alternatives=3, alternative_margin=0.3)
    assert fronts(two, 5) == [["red"], ["green"], ["red"], ["green"], ["red"]]
    three = model.with_memory(num_retrieved=1, num_alternatives=3, alternative_margin=0.5)
    assert fronts(three, 4) == [["red"], ["green"], ["blue"], ["red"]]
    fewer = model.with_memory(num_retrieved=1, num_alternatives=2, alternative_margin=0.5)
    assert fronts(fewer, 3) == [["red"], ["green"], ["red"]]
    # of several documents, the one whose turn it is comes first, and the best of the others follow
    pairs = model.with_memory(num_alternatives=3, alternative_margin=0.5)
    assert fronts(pairs, 3) == [["red", "green"], ["green", "red"], ["blue", "red"]]
    # by default, and with a document given by hand or none, all have the same
    assert fronts(model, 3) == [["red", "green"]] * 3
    assert fronts(three, 2, num_retrieved=0) == [[], []]
    # a picture that is edited or repaired has the best in front
    white = np.full((8, 8, 3), 255, np.uint8)
    assert [one.id for one in three.infill(white, (0, 0, 4, 4), "red").retrieved] == ["red"]


def test_all_candidates_of_a_picture_have_its_document_in_front(model: Model) -> None:
    three = model.with_memory(num_retrieved=1, num_alternatives=3, alternative_margin=0.5)
    three.components.reranker = Brightness()
    jobs, _ = three.image_jobs(["red", "blue"], 3, num_candidates=2)
    inside = [[str(request.retrieved[0][0].text) for request in job.requests] for job in jobs]
    assert inside == [[name] * 2 for name in ("red", "green", "blue")] * 2


@given(st.integers(0, 2**40), st.integers(1, 6), st.integers(1, 3))
def test_a_pictures_seed_alone_makes_it_again(seed: int, number: int, alternatives: int) -> None:
    model = MODEL.with_memory(num_alternatives=alternatives, alternative_margin=1.0)
    made = model.generate("red", number, seed=seed)
    last = made[-1]
    [again] = model.generate("red", 1, seed=last.seed)
    assert again.codes == last.codes
    assert [one.id for one in again.retrieved] == [one.id for one in last.retrieved]
    # and the first pictures are the same for any number of them
    assert model.generate("red", number + 1, seed=seed)[-2].codes == last.codes


MODEL = fresh()


@given(st.integers(0, MAX_SEED), st.integers(1, 2000), st.integers(0, 2000))
def test_a_seed_carries_its_turn(seed: int, index: int, turn: int) -> None:
    derived = candidate_seed(seed, index, turn)
    assert 2**62 <= derived <= MAX_SEED
    assert turn_of(derived) == turn % 840
    assert turn_of(seed) == 0 or seed >= 2**62
    assert candidate_seed(derived, 0, turn) == derived


def test_wrong_numbers_are_refused(model: Model) -> None:
    for settings, message in (
        (
            {"num_alternatives": 0},
            "retriever.num_alternatives: is 0, must ... least 1",
        ),
        (
            {"alternative_margin": -0.1},
            "retriever.alternative_margin: is -0.1, must ... least 0.0",
        ),
    ):
        with pytest.raises(RecipeError) as error:
            FirstRetrieverConfig(**settings).check()
        assert tells(error.value, message)
        with pytest.raises((RecipeError, GenerationError)):
            model.with_memory(**settings)
