"""Pictures that are shown without colour unless their sources have some, or words ask for it (`finisher: icon`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cm3core.errors import RecipeError
from cm3icons.config import IconFinisherConfig
from cm3icons.ink import has_colour, without_colour
from cm3plugins.tasks.bundled import EditConfig, StructureConfig
from cm3run.model import Model
from cm3run.model.chatting import Conversation
from cm3run.model.jobs import results
from cm3run.model.loaded import known_by_codes
from cm3run.tasks import TunedTasks
from messages import tells
from toy_model import GreyTokenizer, toy_model

RED = np.full((8, 8, 3), (200, 10, 10), np.uint8)
WHITE = np.full((8, 8, 3), 255, np.uint8)


class TintedTokenizer(GreyTokenizer):
    """Decodes all greys as reds."""

    def _decode(self, codes_Nc):
        return super()._decode(codes_Nc) * np.array([1, 0, 0], np.uint8)


class RedOrGrey(GreyTokenizer):
    """Decodes white as it is, and all other pictures as reds."""

    def _decode(self, codes_Nc):
        decoded = super()._decode(codes_Nc)
        is_white = (decoded > 200).all(axis=(1, 2, 3), keepdims=True)
        return np.where(is_white, decoded, decoded * np.array([1, 0, 0], np.uint8))


@pytest.fixture
def model() -> Model:
    made = toy_model(max_text_tokens=60)
    made.components.image_tokenizer = TintedTokenizer()
    made.components.finisher = IconFinisherConfig(colour_words=["red", "full colour"]).build()
    return made


def test_by_hand() -> None:
    """Luminance: 0.299 red + 0.587 green + 0.114 blue."""
    three = np.array([[[100, 0, 0], [0, 100, 0], [0, 0, 100]]], np.uint8)
    assert without_colour(three).tolist() == [[[30] * 3, [59] * 3, [11] * 3]]
    assert not has_colour(np.full((8, 8, 3), (120, 110, 100), np.uint8))  # a tint
    assert has_colour(np.full((8, 8, 3), (121, 110, 100), np.uint8))
    speck = np.full((20, 20, 3), 255, np.uint8)
    speck[0, :2] = 200, 0, 0  # two of 400 pixels
    assert not has_colour(speck)
    speck[0, 2] = 200, 0, 0
    assert has_colour(speck)


@given(arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3))))
def test_what_is_left_has_no_colour(pixels: np.ndarray) -> None:
    grey = without_colour(pixels)
    assert grey.shape == pixels.shape
    assert not has_colour(grey)
    assert np.array_equal(without_colour(grey), grey)


@pytest.mark.parametrize(
    ("prompt", "options", "coloured"),
    [
        ("a bird", {}, False),  # its documents are grey
        ("a bird", {"num_retrieved": 0}, False),
        ("a bird", {"context": [(RED, "")]}, True),
        ("a bird", {"context": [(WHITE, "red")]}, False),  # of another picture
        ("a Red bird", {}, True),
        ("bird, full colour", {}, True),
        ("colour", {}, False),  # half of what asks for it
        ("reddish", {}, False),
    ],
)
def test_generated(model: Model, prompt: str, options: dict, coloured: bool) -> None:
    [made] = model.generate(prompt, 1, truncate=True, **options)
    [decoded] = model.decode([made.codes])
    assert has_colour(decoded)
    assert np.array_equal(made.pixels, decoded if coloured else without_colour(decoded))


@pytest.mark.parametrize(
    ("prompt", "options", "coloured"),
    [
        ("a red bird", {}, False),  # its documents are grey
        ("a bird", {"context": [(RED, "")]}, True),
        ("a bird", {"context": [(WHITE, "red")]}, False),
        ("a red bird", {"num_retrieved": 0}, True),  # no source tells, and it is no speck
    ],
)
def test_without_words_the_source_pictures_decide(
    model: Model, prompt: str, options: dict, coloured: bool
) -> None:
    model.components.finisher = IconFinisherConfig().build()
    [made] = model.generate(prompt, 1, **options)
    assert has_colour(made.pixels) == coloured
    model.components.finisher = IconFinisherConfig(colour_words=[]).build()
    [decoded] = model.generate(prompt, 1, **options)
    assert np.array_equal(decoded.pixels, model.decode([made.codes])[0])


def test_by_default_pictures_are_shown_as_decoded(model: Model) -> None:
    del model.components.finisher
    [made] = model.generate("a bird", 1)
    assert np.array_equal(made.pixels, model.decode([made.codes])[0])


@pytest.mark.parametrize(
    ("picture", "instruction", "coloured"),
    [(WHITE, "fill it", False), (RED, "fill it", True), (WHITE, "make it red", True)],
)
def test_edited(
    model: Model, tmp_path: Path, picture: np.ndarray, instruction: str, coloured: bool
) -> None:
    Image.fromarray(picture).save(tmp_path / "given.png")
    [made] = model.edit(tmp_path / "given.png", instruction, 1, force=True)
    assert has_colour(made.pixels) == coloured


@pytest.mark.parametrize("as_codes", [False, True])
@pytest.mark.parametrize(
    ("picture", "text", "coloured"),
    [(WHITE, "fill it", False), (RED, "fill it", True), (WHITE, "make it red", True)],
)
def test_by_a_task_of_any_fields(
    model: Model, picture: np.ndarray, text: str, coloured: bool, as_codes: bool
) -> None:
    """Also where the picture is given as its codes, and by `do`, which `cm3 upscale --model` calls."""
    model.tasks = TunedTasks({"edit": EditConfig()})
    model.components.image_tokenizer = RedOrGrey()
    given = model.encode([picture])[0] if as_codes else picture
    record = {"source": given, "instruction": text}
    jobs, _ = model.task_jobs("edit", record, text, 1)
    [made] = results(model.engine, jobs)
    assert has_colour(made.pixels) == coloured
    assert np.array_equal(model.do("edit", record)["target"], made.pixels)


@pytest.mark.parametrize(("width", "coloured"), [(2, False), (3, True)])
def test_a_picture_known_by_its_codes_may_have_specks(
    model: Model, width: int, coloured: bool
) -> None:
    """Of 64 pixels one is 1.6%, and two are 3.1%."""

    class Specked(GreyTokenizer):
        def _decode(self, codes_Nc):
            decoded = super()._decode(codes_Nc)
            decoded[:, 0, 0 : width - 1] = 200, 0, 0
            return decoded

    model.components.image_tokenizer = Specked()
    [codes] = model.encode([WHITE])
    shown = known_by_codes(model, codes)
    assert has_colour(shown) == coloured
    del model.components.finisher
    assert np.array_equal(known_by_codes(model, codes), model.decode([codes])[0])


def test_a_structure_tells_no_colours(model: Model) -> None:
    model.tasks = TunedTasks({"structure": StructureConfig()})
    record = {"feature": "edges", "condition": RED, "caption": "a bird"}
    assert not has_colour(model.do("structure", record)["image"])


@pytest.mark.parametrize(("picture", "coloured"), [(WHITE, False), (RED, True)])
def test_inpainted(model: Model, picture: np.ndarray, coloured: bool) -> None:
    made = model.infill(picture, (0, 0, 4, 4), "a bird")
    assert has_colour(made.pixels[:4, :4]) == coloured
    assert np.array_equal(made.pixels[4:], picture[4:])


def test_in_a_conversation(model: Model) -> None:
    """What has been said and drawn before counts as well."""
    talk = Conversation(model, force=True)
    assert not has_colour(talk.say("a bird", answer="image").pictures[0].pixels)
    assert not has_colour(talk.say("another", answer="image").pictures[0].pixels)
    assert has_colour(talk.say("a red bird", answer="image").pictures[0].pixels)
    assert has_colour(talk.say("another", answer="image").pictures[0].pixels)
    shown = Conversation(model, force=True)
    assert has_colour(shown.say("a bird", RED, answer="image").pictures[0].pixels)


def test_the_reranker_sees_what_is_shown(model: Model) -> None:
    seen = []

    class Looking:
        measure = "looks"

        def score(self, candidates):
            seen.extend(one.pixels[0] for one in candidates)
            return [0.0 for _ in candidates]

    model.components.reranker = Looking()
    [made] = model.generate("a bird", 1, num_candidates=2)
    assert not any(map(has_colour, seen))
    assert np.array_equal(seen[0], made.pixels)
    assert model.score(made) == 0.0  # afterwards, too
    assert np.array_equal(seen[-1], made.pixels)


def test_pictographs_are_words(model: Model) -> None:
    config = IconFinisherConfig(colour_words=["🎨"])
    config.check()
    model.components.finisher = config.build()
    assert has_colour(model.generate("a bird 🎨", 1)[0].pixels)
    assert not has_colour(model.generate("a bird", 1)[0].pixels)


def test_a_word_without_letters_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        IconFinisherConfig(colour_words=["red", "?"]).check()
    assert tells(caught.value, "finisher.colour_words: has '?', which")
