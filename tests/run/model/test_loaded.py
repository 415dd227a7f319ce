"""Pictures to the decoder's input and back, the sampler's config, the engine."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch

from cm3core.document import Image, Text
from cm3core.errors import CM3Error, DataError
from cm3core.plugins import load_registry
from toy_model import GreyTokenizer, picture


def test_a_picture_is_coded_and_decoded_apart_from_the_others(model, monkeypatch):
    """The batch size changes the last bits of floats, and these may change a pixel's rounding."""
    asked = []
    for name in ("encode", "decode"):
        plain = getattr(GreyTokenizer, name)
        monkeypatch.setattr(
            GreyTokenizer,
            name,
            lambda self, batch, plain=plain: asked.append(len(batch)) or plain(self, batch),
        )
    assert len(model.decode(model.encode([picture(), picture()]))) == 2
    assert asked == [1] * 4


def test_codes_keep_what_the_document_says_of_a_picture(model):
    """Also of one that was encoded before for a document that said something else."""
    asked = Image("grey", picture, response=True, starts_turn=True)
    for one in (replace(asked, response=False, starts_turn=False), asked):
        coded = model.coded((Text("red"), one, Text("blue")))
        assert coded[0] == Text("red")
        assert coded[1] == model.encode([picture()])[0]
        assert (coded[1].response, coded[1].starts_turn) == (one.response, one.starts_turn)


def test_another_sampler_keeps_what_both_have(model, monkeypatch):
    monkeypatch.setattr(model.components, "registry", load_registry())
    monkeypatch.setattr(model.recipe.sampler, "temperature", 0.25)
    config = model.sampler_config("top_p", top_k=3)
    assert (type(config).__name__, config.temperature, config.top_k) == (
        "TopPSamplerConfig",
        0.25,
        3,
    )
    for name in ("cd_k", "contrastive", "mixture", "edit_cfg"):
        assert model.generate("red", 1, sampler=name)[0].pixels.shape == (8, 8, 3)
    with pytest.raises(CM3Error, match="did you mean 'cd_k'"):
        model.generate("red", 1, sampler="cd_q")


def test_unreadable_pictures_are_data_errors(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        model.caption(tmp_path / "broken.png")


def test_the_engine_follows_the_decoders_weights(model):
    before = model.generate("red", 1, seed=1)[0]
    weight = model.components.decoder.embed_tokens.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    changed = model.generate("red", 1, seed=1)[0]
    with torch.no_grad():
        weight.copy_(kept)
    assert not np.array_equal(before.codes.codes, changed.codes.codes)
    assert np.array_equal(before.codes.codes, model.generate("red", 1, seed=1)[0].codes.codes)


def test_a_file_in_which_there_is_nothing_to_see_is_told(model, monkeypatch, tmp_path):
    """A white drawing on nothing is white on white; pixels in an array are what the caller made them."""
    told: list[str] = []
    monkeypatch.setattr(model, "told", told.append)
    clear = PIL.Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (4, 4, 12, 12))
    clear.save(tmp_path / "white.png")
    model.caption(tmp_path / "white.png")
    assert told == [
        f"{tmp_path}/white.png: the model sees a single colour; transparent parts are shown on white"
    ]
    clear.paste((0, 0, 0, 255), (4, 4, 12, 12))
    clear.save(tmp_path / "black.png")
    model.caption(tmp_path / "black.png")
    model.caption(np.full((8, 8, 3), 255, np.uint8))
    assert len(told) == 1


def test_a_picture_of_which_the_codes_keep_nothing_is_told(model, monkeypatch, tmp_path):
    """The toy's codes are means of 2 x 2 pixels. Of a chessboard of single pixels, black and white, they are all 127, drawn as
    120: an error of 127.5 ** 2 + 7.5 ** 2 where the variance is 127.5 ** 2. One of 2 x 2 pixels they show, one of 3 levels up
    and down is plain to the eye."""
    told: list[str] = []
    monkeypatch.setattr(model, "told", told.append)

    def shown(name, pixels):
        PIL.Image.fromarray(pixels).save(tmp_path / name)
        model.ask(tmp_path / name, "what", template="{question} {answer}", max_tokens=1)
        model.captions([pixels, tmp_path / name], max_tokens=1)

    chess = np.indices((8, 8)).sum(0)[..., None].repeat(3, -1) % 2
    shown("fine.png", (chess * 255).astype(np.uint8))
    assert told == 2 * [
        f"{tmp_path}/fine.png: the image tokenizer cannot represent it: its 16 codes keep 0% of the "
        "picture's variance, so the text may be wrong"
    ]
    shown("coarse.png", (chess[:4, :4] * 255).astype(np.uint8).repeat(2, 0).repeat(2, 1))
    shown("faint.png", (125 + chess * 6).astype(np.uint8))
    assert len(told) == 2


def test_codes_of_the_last_pictures_alone_are_remembered(model, monkeypatch):
    """A server is sent other pictures for as long as it runs."""
    monkeypatch.setattr("cm3run.model.loaded.MOST_CODED", 2)
    pictures = [Image(f"{side}", partial(picture, side, side)) for side in (8, 9, 10, 11)]
    together = model.coded(tuple(pictures))
    assert len(model._codes) == 2
    assert [model.coded((one,)) for one in pictures] == [(one,) for one in together]
    assert list(model._codes) == [one.key for one in pictures[2:]]
