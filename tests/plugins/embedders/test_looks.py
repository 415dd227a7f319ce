"""How `light_encoder` compares pictures: each step by hand, and what leaves a vector as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cm3core.errors import CheckpointError
from cm3plugins.embedders import LightEncoderConfig
from cm3plugins.embedders.light_encoder.embedder import LightEncoder, Towers, TowerSizes
from cm3plugins.embedders.light_encoder.looks import (
    DIMENSION,
    NUM_FEATURES,
    Looks,
    boxed,
    features,
    filled,
    gradients,
    ink,
)
from messages import tells


def ring(side: int = 64, start: int = 16, stop: int = 48, width: int = 4) -> np.ndarray:
    """A black square outline on white: uint8 [side, side, 3]."""
    picture = np.full((side, side, 3), 255, np.uint8)
    picture[start:stop, start:stop] = 0
    picture[start + width : stop - width, start + width : stop - width] = 255
    return picture


def test_ink_is_the_distance_from_the_borders_colour():
    pixels = torch.full((1, 3, 4, 4), 0.75)
    pixels[0, 1, 1, 1], pixels[0, :, 2, 2] = 0.25, 1.0
    found = ink(pixels)[0]
    assert (found[1, 1], found[2, 2], found.sum()) == (1.0, 0.5, 1.5)
    assert not ink(torch.full((1, 3, 4, 4), 0.75)).any()


def test_a_box_fills_the_middle():
    """Ink of 4 x 2 pixels: scaled by 7, 28 x 14 in a square of 32."""
    picture = torch.zeros(1, 16, 16)
    picture[0, 3:7, 5:7] = 1
    found = boxed(picture)[0]
    assert found.shape == (32, 32)
    torch.testing.assert_close(found[6:26, 13:19], torch.ones(20, 6))  # edges are ramps
    rows, columns = (found > 0.5).nonzero(as_tuple=True)
    assert [int(side) for side in (rows.min(), rows.max(), columns.min(), columns.max())] == [
        2,
        29,
        9,
        22,
    ]


def test_a_ring_is_filled_and_a_cup_is_not():
    picture = torch.zeros(2, 5, 5)
    picture[:, 1:4, 1:4] = 1
    picture[:, 2, 2] = 0
    picture[1, 1, 2] = 0.25  # a gap that is nearly open
    assert filled(picture)[:, 2, 2].tolist() == [1.0, 0.25]
    assert filled(picture)[0].sum() == 9


def test_gradients_of_a_step():
    """A vertical edge has one orientation, whichever side is dark; a horizontal one is half of the bins away."""
    step = torch.zeros(1, 8, 8)
    step[:, :, 4:] = 1
    right, left, down = (
        gradients(one)[0, :, 0].sum(1) for one in (step, step.flip(2), step.transpose(1, 2))
    )
    assert right.argmax() == left.argmax() == 0
    assert down.argmax() == 4
    assert gradients(step).shape == (1, 8, 2, 2)
    assert not gradients(torch.zeros(1, 8, 8)).any()


def test_colour_ground_place_and_size_change_little():
    """Of the shipped weights; another thing for comparison."""
    embedder = LightEncoderConfig().build()
    own = ring()
    red_on_blue = np.where(own == 0, np.uint8([200, 30, 30]), np.uint8([20, 40, 180]))
    same = [
        255 - own,
        red_on_blue,
        ring(start=8, stop=40),
        ring(128, 32, 96, 8),
        ring(start=20, stop=44, width=3),
    ]
    cross = np.full((64, 64, 3), 255, np.uint8)
    cross[30:34, 12:52] = cross[12:52, 30:34] = 0
    scores = embedder.embed_looks([own]) @ embedder.embed_looks([*same, cross]).T
    assert scores[0, :3] == pytest.approx(1, abs=0.01)
    assert min(scores[0, 3:5]) > 0.9 > 0.5 > scores[0, 5]
    solid = ring(width=32)
    assert embedder.embed_looks([own]) @ embedder.embed_looks([solid]).T > scores[0, 5]


def test_a_blank_picture_has_a_vector():
    looks = LightEncoderConfig().build().embed_looks([np.full((5, 9, 3), 255, np.uint8)])
    assert np.linalg.norm(looks) == pytest.approx(1, abs=1e-5)
    assert not features(torch.ones(1, 3, 64, 64)).any()


def test_pictures_of_looks_are_refused_as_others_are():
    embedder = LightEncoderConfig().build()
    assert embedder.embed_looks([]).shape == (0, 128)
    with pytest.raises(Exception, match=r"^picture 0: uint8 \[2, 3\]"):
        embedder.embed_looks([np.zeros((2, 3), np.uint8)])


def test_files_and_fingerprints(tmp_path):
    """Other looks leave the embedder's fingerprint, and with it banks, as they are."""
    torch.manual_seed(0)
    path = tmp_path / "looks.safetensors"
    header = {"cm3leon": '{"format": "cm3leon looks 1"}'}
    tensors = {
        "mean_F": torch.zeros(NUM_FEATURES),
        "projection_FE": torch.randn(NUM_FEATURES, DIMENSION),
    }
    save_file(tensors, path, header)
    shipped, own = LightEncoderConfig().build(), LightEncoderConfig(looks=str(path)).build()
    assert shipped.fingerprint == own.fingerprint
    assert shipped.looks_fingerprint != own.looks_fingerprint
    save_file({"mean_F": torch.zeros(3)}, path, header)
    with pytest.raises(CheckpointError, match="its tensors don't match its sizes"):
        LightEncoderConfig(looks=str(path)).build()
    with pytest.raises(CheckpointError) as missing:
        LightEncoderConfig(looks=str(tmp_path / "none")).build()
    assert tells(missing.value, f"{tmp_path / 'none'}: there is no such file ... embedder.looks")


@pytest.mark.parametrize("dimension", [12, 160])
def test_towers_of_another_width(dimension: int):
    """The first directions, or all and zeros."""
    looks = Looks(torch.zeros(NUM_FEATURES), torch.eye(NUM_FEATURES, DIMENSION))
    embedder = LightEncoder(
        Towers(TowerSizes(num_buckets=8, dimension=dimension)), "towers", looks=(looks, "looks")
    )
    vector = embedder.embed_looks([ring()])[0]
    assert vector.shape == (dimension,)
    assert not vector[DIMENSION:].any()


def test_without_looks_it_is_the_picture_tower():
    embedder = LightEncoder(Towers(TowerSizes(num_buckets=8)), "towers")
    assert embedder.looks_fingerprint == "towers"
    assert np.array_equal(embedder.embed_looks([ring()]), embedder.embed_images([ring()]))
