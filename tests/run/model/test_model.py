"""Arguments that a model refuses, completing any documents, and models found by name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cm3core.document import Codes, Image, ImageHole, MaskedText, Text, TextHole
from cm3core.errors import CheckpointError, CM3Error
from cm3core.images import open_image
from cm3run.checkpoint import find_model
from messages import tells
from toy_model import picture, toy_model


def test_complete_takes_any_documents(model):
    documents = [
        (Text("a"), ImageHole()),
        (MaskedText(("x", TextHole(2))), Image("p", picture)),
        (TextHole(3), ImageHole()),
    ]
    first, second, third = model.complete(
        documents, retrieved=[[], [(Text("b"), Image("p", picture))], []]
    )
    assert isinstance(first.document[1], Codes)
    assert second.document[0].text.startswith("x")
    assert isinstance(second.document[1], Codes)
    assert isinstance(third.document[0], Text)
    assert model.decode([first.document[1]])[0].shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model: model.ask(np.zeros((8, 8, 3), np.uint8), " ", force=True),
            "question: is empty\n  next: ask something about the picture",
        ),
        (
            lambda model: model.edit(np.zeros((8, 8, 3), np.uint8), "", force=True),
            "instruction: is empty\n  next: say what to change",
        ),
        (lambda model: model.generate(" "), "prompt: is empty\n  next: say what the picture shows"),
        (
            lambda model: model.generate("a" * 13),
            "prompt: is 13 tokens ... most 12 ... of 128",
        ),
        (lambda model: model.generate("a", 0), "num_images: is 0\n  next: use 1 or more"),
        (lambda model: model.generate("a", seed=-1), "seed: is -1\n  next: use 0 to 2**63 - 1"),
        (
            lambda model: model.generate("a", num_retrieved=-1),
            "num_retrieved: is -1\n  next: use 0 or more",
        ),
        (
            lambda model: model.generate("a", temprature=2),
            "sampler.temprature: is not a key of this ... 'temperature'",
        ),
        (
            lambda model: model.generate("a", top_k="many"),
            "sampler.top_k: is 'many', must be a whole number\n  next: write sampler.top_k=0",
        ),
        (
            lambda model: model.generate("a", top_p=2.0),
            "sampler.top_p: is 2.0 ... than 0 ... most 1",
        ),
        (
            lambda model: model.caption(picture().astype(float)),
            "picture: is float64 [8, 8 ... 3 ... RGB",
        ),
        (
            lambda model: model.caption(picture(), max_tokens=0),
            "max_tokens: is 0\n  next: use 1 or more",
        ),
        (
            lambda model: model.infill(picture(), (3, 3, 3, 5)),
            "box 3,3,3,5: is empty",
        ),
    ],
)
def test_bad_input_is_named(model, call, message):
    with pytest.raises(CM3Error) as error:
        call(model)
    assert tells(error.value, message)


def test_models_are_found_by_plugin_and_name(tmp_path):
    registry = SimpleNamespace(models=lambda: {"bundled:emoji64": tmp_path}, plugins=())
    assert find_model("bundled:emoji64", registry) == tmp_path
    assert find_model(tmp_path / "run", registry) == tmp_path / "run"
    with pytest.raises(CheckpointError) as error:
        find_model("bundled:emoji65", registry)
    assert tells(error.value, "model 'bundled:emoji65': no installed plugin ships it")


def test_a_question_may_hold_the_templates_marks(model):
    """It is text: only the template's own marks are filled."""
    job, _ = model.ask_job(picture(), "{answer}", template="{question}{answer}", max_tokens=4)
    assert job.requests[0].document[0] == MaskedText(("{answer}", TextHole(4)))


def test_results_show_themselves_in_notebooks():
    model = toy_model()
    [drawn] = model.generate("red", 1, seed=1)
    filled = model.infill(drawn.pixels, (0, 0, 4, 4), "red", seed=1)
    for result in (drawn, filled, drawn.retrieved[0]):
        data = result._repr_png_()
        assert data is not None
        assert (open_image(data) == result.pixels).all()
    assert replace(drawn.retrieved[0], pixels=None)._repr_png_() is None
    assert open_image(replace(drawn, upscaled=picture(16, 16))._repr_png_()).shape == (16, 16, 3)


def test_a_list_of_results_shows_itself_as_a_sheet(model):
    pictures = model.generate(["red", "blue"], 3, seed=1)
    sheet = open_image(pictures._repr_png_())
    # two rows of at most four, 8 pixels times 20 wide, a line of text below each, and gaps of 6
    assert sheet.shape[:2] == (2 * (160 + 16) + 3 * 6, 4 * 160 + 5 * 6)
    assert (sheet[6:166, 6:166] == np.repeat(np.repeat(pictures[0].pixels, 20, 0), 20, 1)).all()
    assert pictures == list(pictures)
    assert type(pictures)([])._repr_png_() is None
