"""`Model.generate` with a condition: the prompt is that of training, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from cm3core import images
from cm3core.document import Codes, Document, ImageHole, Text
from cm3core.errors import DataError, GenerationError, PluginError
from cm3core.interfaces.dataset import DocumentSourceConfig
from cm3core.plugins import PluginInfo
from cm3plugins.conditions import BoxesConfig, CannyConfig, ConditionConfig
from cm3plugins.datasets.coco import COCOConfig
from cm3plugins.datasets.conditioned import ConditionedConfig
from cm3plugins.datasets.mixture import MixtureConfig
from cm3plugins.datasets.picture_pairs import PicturePairsConfig
from cm3plugins.datasets.table import TableSourceConfig
from cm3plugins.samplers.cfg import (
    EditCFGSamplerConfig,
    StructureCFGSamplerConfig,
    TopPSamplerConfig,
)
from cm3plugins.tasks.bundled import CaptionConfig, EditConfig, StructureConfig
from cm3run.model import Model, conditions
from cm3run.model.conditions import LEAST_STRUCTURE, _what_works, condition_config
from cm3run.model.jobs import results
from cm3run.tasks import TunedTasks
from messages import tells
from toy_model import picture, toy_model


@pytest.fixture(autouse=True)
def whatever_the_codes_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's sixteen codes keep little of any structure, which two tests are about."""
    monkeypatch.setattr(conditions, "LEAST_STRUCTURE", 0.0)


@pytest.fixture(scope="module")
def model() -> Model:
    return toy_model(max_text_tokens=60)


def asked(model: Model, condition: Any, prompt: str = "red", **options: Any) -> Document:
    jobs, _ = model.image_jobs(prompt, 1, condition=condition, **options)
    return next(jobs).requests[0].document


def test_the_prompt_is_that_of_training(model: Model) -> None:
    large = picture(40, 24)
    document = asked(model, ("canny", large))
    drawn = CannyConfig().build().draw(large)
    [codes] = model.encode([images.fit(drawn, model.image_size)])
    assert document == (
        Text("Make high quality image from canny edge features"),
        codes,
        Text("red"),
        ImageHole(),
    )
    record = {
        "feature": "canny edge features",
        "condition": codes,
        "caption": "red",
        "image": codes,
    }
    assert StructureConfig().build().document(record)[:3] == document[:3]


def test_boxes_from_a_text_and_keys(model: Model) -> None:
    text = "bell at (10, 10) -> (240, 240)"
    document = asked(model, ("boxes", text, {"size": 64, "feature": "my boxes"}))
    assert document[0] == Text("Make high quality image from my boxes")
    drawn = BoxesConfig(size=64).build().draw(text)
    assert document[1] == model.encode([images.fit(drawn, model.image_size)])[0]


def test_pictures_are_made_and_nothing_is_retrieved(model: Model) -> None:
    given = ("canny", picture(16, 16))
    made = model.generate(["red", "blue"], 2, condition=given, seed=3)
    assert [one.prompt for one in made] == ["red", "red", "blue", "blue"]
    assert all(one.retrieved == () for one in made)
    again = model.generate("blue", 1, condition=given, seed=3)
    assert np.array_equal(again[0].pixels, made[2].pixels)
    assert model.generate("red", 1, condition=given, num_retrieved=1)[0].retrieved
    other = asked(model, ("as_is", picture(16, 16)))
    assert isinstance(other[1], Codes)
    assert other[1] != asked(model, given)[1]


def test_a_model_that_was_tuned_for_something_else_refuses(model: Model) -> None:
    tuned = toy_model()
    tuned.tasks = TunedTasks({"caption": CaptionConfig()})
    with pytest.raises(GenerationError) as error:
        asked(tuned, ("canny", picture()))
    assert tells(error.value, "task structure: the model was not tuned for")
    assert asked(tuned, ("canny", picture()), force=True, truncate=True)
    tuned.tasks = TunedTasks({"caption": CaptionConfig(), "structure": StructureConfig()})
    assert asked(tuned, ("canny", picture()), truncate=True)[0] == Text(
        "Make high quality image from canny edge features"
    )


@dataclass(kw_only=True)
class PlainConfig(DocumentSourceConfig):
    pass


def test_the_condition_is_the_one_of_training() -> None:
    tuned = toy_model()
    own = CannyConfig(low=30.0, feature="thin edges")
    data = ConditionedConfig(source=PlainConfig(), condition=own)
    tuned.recipe = replace(tuned.recipe, dataset=data)
    assert condition_config(tuned, "canny") == own
    assert condition_config(tuned, "canny", {"high": 90.0}) == replace(own, high=90.0)
    assert condition_config(tuned, "boxes") == BoxesConfig()
    section: ConditionConfig = BoxesConfig(size=99)
    tuned.recipe = replace(tuned.recipe, condition=section)
    assert condition_config(tuned, "boxes") == section


def pairs(feature: str) -> PicturePairsConfig:
    return PicturePairsConfig(format="controlnet", path="pairs", feature=feature)


def tuned_on(*data: DocumentSourceConfig) -> Model:
    tuned = toy_model(max_text_tokens=60)
    mixed = MixtureConfig(parts={str(number): part for number, part in enumerate(data)})
    tuned.recipe = replace(tuned.recipe, dataset=data[0] if len(data) == 1 else mixed)
    return tuned


def test_a_picture_as_it_is_has_the_words_of_training() -> None:
    """Pairs of a data set have no condition of the same name, whose words could be taken."""
    given = ("as_is", picture(16, 16))
    plain = TableSourceConfig(path="t.csv", columns={"caption": "text"}, pictures=[])
    poses = COCOConfig(form="pose", path="poses.json", pictures="pictures")
    for data in (pairs("my scribbles"), replace(plain, constants={"feature": "my scribbles"})):
        assert asked(tuned_on(data), given)[0] == Text("Make high quality image from my scribbles")
    assert asked(tuned_on(plain, poses), given)[0] == Text(
        "Make high quality image from human pose"
    )
    assert asked(tuned_on(plain), given)[0] == Text("Make high quality image from a structure")
    both = tuned_on(pairs("my scribbles"), poses)
    with pytest.raises(GenerationError) as error:
        asked(both, given)
    assert tells(error.value, "condition 'as_is': may be any structure, but the")
    chosen = (*given, {"feature": "human pose"})
    assert asked(both, chosen)[0] == Text("Make high quality image from human pose")


def test_a_structure_that_training_had_not_is_refused_or_told() -> None:
    told: list[str] = []
    tuned = tuned_on(pairs("scribbles"))
    tuned.told = told.append
    with pytest.raises(GenerationError) as error:
        asked(tuned, ("canny", picture(16, 16)))
    assert tells(error.value, "condition 'canny': the model was ... 'scribbles'")
    assert told == []
    asked(tuned, ("canny", picture(16, 16)), force=True)
    assert told == [
        "the model was tuned to draw after 'scribbles', not after 'canny edge features'"
    ]
    asked(tuned, ("canny", picture(16, 16), {"feature": "scribbles"}))
    asked(tuned, ("as_is", picture(16, 16)))
    assert len(told) == 1


def test_structures_and_edits_have_samplers_of_their_own() -> None:
    """Unless one is named; what is drawn says by which, and repeats by that."""
    tuned = toy_model(max_text_tokens=60)
    samplers = {
        "edit_cfg": EditCFGSamplerConfig,
        "structure_cfg": StructureCFGSamplerConfig,
        "top_p": TopPSamplerConfig,
    }
    info = PluginInfo("samplers", "1", "here")
    tuned.components.registry.add(info, {"sampler": samplers}, {})
    given = ("canny", picture(16, 16))
    drawn, edited = tuned.generate("red", 1, condition=given), tuned.edit(picture(), "red", 1)
    named = tuned.generate("red", 1, condition=given, sampler="top_p")
    plain = tuned.generate("red", 1)
    made = [drawn, edited, named, plain]
    assert [one[0].sampler for one in made] == ["structure_cfg", "edit_cfg", "top_p", "cfg"]
    again = tuned.generate("red", 1, condition=given, sampler="structure_cfg")
    assert np.array_equal(again[0].pixels, drawn[0].pixels)
    other = tuned.generate("red", 1, condition=given, picture_guidance_scale=1.0, guidance_scale=1)
    assert not np.array_equal(other[0].pixels, drawn[0].pixels)
    # the same by the task's name
    tuned.tasks = TunedTasks({"mine": StructureConfig(), "change": EditConfig()})
    record = {"feature": "canny edge features", "condition": given[1], "caption": "red"}
    jobs, _ = tuned.task_jobs("mine", record, "red", 1)
    [image] = results(tuned.engine, jobs)
    assert image.sampler == "structure_cfg"
    jobs, _ = tuned.task_jobs("change", {"source": picture(), "instruction": "red"}, "red", 1)
    [image] = results(tuned.engine, jobs)
    assert image.sampler == "edit_cfg"


def test_a_blank_structure_is_told() -> None:
    told: list[str] = []
    tuned = tuned_on(pairs("canny edge features"))
    tuned.told = told.append
    asked(tuned, ("canny", np.full((16, 16, 3), 255, np.uint8)))
    assert told == ["'canny' finds no structure in its input, so the result may be blank too"]


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        (
            "canny",
            GenerationError,
            "condition: is 'canny', must",
        ),
        (("canny",), GenerationError, "condition: is ('canny',), must be a name and"),
        (("cany", "x.png"), PluginError, "condition 'cany': no condition is called 'cany'"),
        (("canny", "no.png"), DataError, "no.png: there is no such file"),
        (("boxes", "bell"), DataError, "condition: 'bell' has 0 boxes, only 0 of them well formed"),
        (("boxes", picture()), DataError, "condition: its input is not a text"),
        (("canny", picture(), {"lo": 1}), GenerationError, "condition.lo: is not a key of this"),
        (
            ("canny", picture(), {"low": "x"}),
            GenerationError,
            "condition.low: is 'x', must be a number",
        ),
        (("canny", picture(), {"low": -1.0}), Exception, "condition.low: is -1"),
    ],
)
def test_what_is_refused(model: Model, condition: Any, error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        asked(model, condition)
    assert tells(caught.value, message)


def test_a_prompt_that_is_too_long_is_refused() -> None:
    short = toy_model(max_text_tokens=12)
    with pytest.raises(GenerationError, match="task structure"):
        asked(short, ("canny", picture()))


def square(side: int) -> np.ndarray:
    """A black square in the middle of a white picture of 32 pixels."""
    pixels = np.full((32, 32, 3), 255, np.uint8)
    start = 16 - side // 2
    pixels[start : start + side, start : start + side] = 0
    return pixels


def test_a_structure_that_the_codes_lose_is_refused(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy's codes are squares of one grey: a large shape stays, a chequered one is gone. What would work is found by
    the same measure, and forced drawing says what it is."""
    monkeypatch.setattr(conditions, "LEAST_STRUCTURE", LEAST_STRUCTURE)
    assert isinstance(asked(model, ("as_is", square(16)))[1], Codes)
    chequered = square(0)
    chequered[4:28:8, 4:28] = chequered[4:28, 4:28:8] = 0
    with pytest.raises(GenerationError) as caught:
        asked(model, ("as_is", chequered))
    assert caught.value.place == "condition 'as_is'"
    assert caught.value.next_step.endswith(
        "or a model with finer codes; force=True (--force) draws anyway"
    )
    told: list[str] = []
    model.told = told.append  # type: ignore[method-assign]  # for one test
    try:
        assert isinstance(asked(model, ("as_is", chequered), force=True)[1], Codes)
    finally:
        del model.told
    assert told == [f"condition 'as_is': {caught.value.cause}"]


def test_what_is_drawn_from_a_text_is_as_in_training(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thin boxes, which the toy's codes lose; a model that was tuned on them has seen nothing else."""
    monkeypatch.setattr(conditions, "LEAST_STRUCTURE", 1.1)
    assert isinstance(asked(model, ("boxes", "bell at (0, 0) -> (9, 9)"))[1], Codes)
    with pytest.raises(GenerationError):
        asked(model, ("as_is", square(16)))


def test_what_would_work_is_named(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thin lines are lost, broad ones stay; a condition that needs a file, and a text, are no advice."""
    monkeypatch.setattr(conditions, "LEAST_STRUCTURE", LEAST_STRUCTURE)
    step = _what_works(model, "canny", square(16))
    assert step.startswith("use the condition ")
    assert "as_is (" in step
    assert not any(f"{name} (" in step for name in ("canny", "boxes", "hed"))
    blank = _what_works(model, "canny", square(0))
    assert blank.startswith("use a picture with fewer and broader lines, or a model")
