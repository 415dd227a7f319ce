"""Pictures generated for a prompt, edited, infilled and continued."""

from __future__ import annotations

import numpy as np
import pytest

from cm3core import images
from cm3core.document import Codes, Text
from cm3core.errors import GenerationError
from cm3core.plugins import load_registry
from cm3run.generation.engine import Engine, PictureGrown
from cm3run.model import ImageReady, Scored
from messages import tells
from toy_model import GRID, picture


def test_pictures_of_a_prompt_depend_on_its_seed_alone(model):
    four = model.generate("red", num_images=4, seed=5)
    assert [one.pixels.shape for one in four] == [(8, 8, 3)] * 4
    assert four[0].seed == 5
    for group in (
        model.generate("red", num_images=2, seed=5),
        model.generate(["blue", "red"], num_images=2, seed=5)[2:],
    ):
        assert all(
            np.array_equal(one.pixels, other.pixels)
            for one, other in zip(group, four, strict=False)
        )
    again = model.generate("red", num_images=1, seed=four[3].seed)[0]
    assert np.array_equal(again.pixels, four[3].pixels)
    assert len(model.generate("red")) == 2  # the recipe's number


def test_pictures_come_batch_by_batch_and_are_the_same_in_any_batches(model, monkeypatch):
    want = model.generate(["blue", "red"], num_images=4, seed=5)
    seen = []
    monkeypatch.setattr(Engine, "batch_size", 3)
    got = list(
        model.stream(
            ["blue", "red"], 4, seed=5, progress=lambda done, total: seen.append((done, total))
        )
    )
    assert [one.codes for one in got] == [one.codes for one in want]
    assert [(one.prompt, one.seed) for one in got] == [(one.prompt, one.seed) for one in want]
    assert seen == sorted(seen)
    assert seen[-1] == (8 * 16, 8 * 16)
    endless = model.stream("red", 10**12, seed=5)
    assert [next(endless).seed for _ in range(4)] == [one.seed for one in want[4:]]
    with pytest.raises(GenerationError, match="num_images: is 0"):
        model.stream("red", 0)  # at the call, not at the first picture


def test_sampler_keys_hold_for_one_call(model):
    before = model.generate("red", num_images=1)[0]
    greedy = [
        model.generate("red", num_images=1, seed=seed, temperature=0, guidance_scale=1)[0]
        for seed in (0, 1)
    ]
    assert greedy[0].codes == greedy[1].codes != before.codes
    assert model.generate("red", num_images=1)[0].codes == before.codes


def test_infilling_keeps_codes_and_pixels_outside_the_box(model):
    whole = picture(16, 20)
    result = model.infill(whole, (6, 4, 10, 12), "red")
    codes = model.encode([images.fit(whole, (8, 8))])[0].codes
    changed = np.zeros((4, 4), bool)
    changed[1:3, 1] = True
    assert np.array_equal(result.codes.codes[~changed.ravel()], codes[~changed.ravel()])
    assert result.codes.missing is None
    assert result.text == "red"
    assert result.decoded.shape == (8, 8, 3)
    outside = np.ones((16, 20), bool)
    outside[4:12, 6:10] = False
    assert result.pixels.shape == whole.shape
    assert np.array_equal(result.pixels[outside], whole[outside])
    assert model.infill(whole, (2, 0, 18, 16)).text  # without a text the model writes one


def test_truncation_reads_the_beginning(model):
    long, short = (
        model.generate(text, 1, truncate=True, num_retrieved=0)[0] for text in ("a" * 20, "a" * 12)
    )
    assert long.codes == short.codes
    assert long.prompt == "a" * 20


def test_events_end_with_the_pictures_of_generate(ranked):
    events = list(ranked.events("red", 2, seed=3, num_candidates=2))
    ready = [event for event in events if isinstance(event, ImageReady)]
    expected = ranked.generate("red", 2, seed=3, num_candidates=2)
    assert [event.request for event in ready] == [0, 2]
    assert all(
        np.array_equal(one.image.pixels, other.pixels)
        for one, other in zip(ready, expected, strict=True)
    )
    scored = {event.request: event.score for event in events if isinstance(event, Scored)}
    assert scored == dict(enumerate(expected[0].choice.scores + expected[1].choice.scores))
    grown = [
        event.codes for event in events if isinstance(event, PictureGrown) and event.request == 1
    ]
    assert [int(codes.missing.sum()) for codes in grown] == [12, 8, 4, 0]
    half = ranked.preview(grown[1])
    assert (half[4:] == 208).all()
    assert np.array_equal(half[:4], ranked.decode([Codes(grown[-1].codes, GRID)])[0][:4])


def test_a_mask_several_boxes_and_continuation_leave_the_rest(model, tmp_path):
    whole = picture(8, 8)
    codes = model.encode([whole])[0].codes
    mask = np.zeros((8, 8), np.bool_)
    mask[0:2, 0:2] = mask[5, 7] = True
    masked = model.infill(whole, mask=mask, text="red")
    touched = [0, 11]
    kept = np.delete(np.arange(16), touched)
    assert np.array_equal(masked.codes.codes[kept], codes[kept])
    assert np.array_equal(masked.pixels[~mask], whole[~mask])
    assert np.array_equal(masked.pixels[mask], masked.decoded[mask])
    assert masked.box == (0, 0, 8, 6)
    boxes = model.infill(whole, [(0, 0, 2, 2), (6, 4, 8, 6)], "red")
    assert np.array_equal(boxes.codes.codes, masked.codes.codes)
    images.save_png(
        tmp_path / "mask.png", np.repeat(mask[:, :, None] * 255, 3, 2).astype(np.uint8), {}
    )
    assert np.array_equal(
        model.infill(whole, mask=tmp_path / "mask.png", text="red").pixels, masked.pixels
    )
    below = model.continue_image(whole, 4, "red", seed=2)
    assert np.array_equal(below.codes.codes[:8], codes[:8])
    assert np.array_equal(below.pixels[:4], whole[:4])
    [drawn] = model.complete([(Text("red"), Codes(codes, GRID, np.arange(16) >= 8))], seed=2)
    # one has documents prepended
    assert np.array_equal(drawn.document[1].codes, below.codes.codes) or below.retrieved
    for arguments, message in (
        ({}, "infill: takes a box or a mask\n  next: give one of the two"),
        ({"box": []}, "box: is missing"),
    ):
        with pytest.raises(GenerationError) as error:
            model.infill(whole, **arguments)
        assert tells(error.value, message)
    with pytest.raises(
        GenerationError, match="keep: is 8, the model sees 8 rows of pixels\n  next: use 0 to 7"
    ):
        model.continue_image(whole, 8)


def test_editing(model, monkeypatch):
    monkeypatch.setattr(model.components, "registry", load_registry())
    one, two = model.edit(picture(8, 8), "redder", 2, seed=1, truncate=True)
    assert one.prompt == "redder"
    assert one.pixels.shape == two.pixels.shape == (8, 8, 3)
