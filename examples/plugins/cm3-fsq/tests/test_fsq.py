"""The laws of image tokenizers, and the behaviour specific to this one."""

import numpy as np
import pytest
import torch
from cm3_fsq import FSQConfig
from cm3_fsq.tokenizer import FSQNetwork

from cm3core.errors import CM3Error
from cm3kits.image_tokenizer import ImageTokenizerContract

SMALL = {"resolution": 16, "levels": (4, 3), "channels": 8, "num_blocks": 1}


class TestFSQ(ImageTokenizerContract):
    config = FSQConfig()


def test_a_code_by_hand():
    """Digits 3 of 4 and 2 of 3 are 3 + 2 * 4 = 11, the last of 12 codes."""
    network = FSQNetwork(FSQConfig(**SMALL))
    assert network.code(torch.tensor([3, 2]).view(1, 2, 1, 1)).item() == 11
    codes = torch.arange(12).view(1, 3, 4)
    digits = network.digits_of(codes)
    assert digits.unique().tolist() == [0, 1, 2, 3]
    assert digits[:, 1].max() == 2
    assert torch.equal(network.code(digits), codes)


def test_all_levels_are_equally_wide_and_the_gradient_goes_straight_through():
    network = FSQNetwork(FSQConfig(**SMALL))
    # of 4 levels the first, of 3 the last
    place_D = torch.tensor([0.24, 0.99]).logit().requires_grad_()
    network.encoder = torch.nn.Identity()
    digits = network.digits(place_D.view(1, 2, 1, 1))
    assert digits.flatten().tolist() == pytest.approx([0, 2])
    digits.sum().backward()
    assert place_D.grad.tolist() == pytest.approx([4 * 0.24 * 0.76, 3 * 0.99 * 0.01], rel=1e-4)


def test_training_learns_and_its_file_is_read(tmp_path):
    halves = np.zeros((8, 16, 16, 3), np.uint8)
    halves[::2, :, 8:], halves[1::2, 8:] = 255, (255, 0, 0)

    def error(steps):
        path = FSQConfig(**SMALL).train(halves, tmp_path, steps=steps, show_progress=False)
        tokenizer = FSQConfig(**SMALL, weights=str(path)).build()
        return np.abs(tokenizer.decode(tokenizer.encode(halves)).astype(int) - halves).mean()

    assert error(50) < 0.9 * error(1)


def test_the_shipped_weights_keep_a_picture():
    picture = np.full((1, 64, 64, 3), 255, np.uint8)
    picture[:, 16:48, 16:48] = (200, 30, 40)
    tokenizer = FSQConfig().build()
    codes = tokenizer.encode(picture)
    error = (tokenizer.decode(codes).astype(float) - picture) ** 2
    assert 10 * np.log10(255**2 / error.mean()) > 22
    assert len(set(codes.reshape(16, 16)[:3, :3].flatten())) < 4, (
        "equal surroundings have equal codes"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"resolution": 65},
            "image_tokenizer.resolution: is not a multiple of image_tokenizer.patch_size\n  next: "
            "change one of them",
        ),
        (
            {"levels": (8, 1)},
            "image_tokenizer.levels: is [8, 1]\n  next: give each number 2 levels or more",
        ),
    ],
)
def test_what_cannot_be_is_refused(keys, message):
    with pytest.raises(CM3Error) as error:
        FSQConfig(**keys).check()
    assert str(error.value) == message


def test_weights_of_another_network_are_refused(tmp_path):
    path = FSQConfig(**SMALL).train(
        np.zeros((1, 16, 16, 3), np.uint8), tmp_path, steps=1, show_progress=False
    )
    for weights, cause in (
        (
            str(tmp_path / "none"),
            f"{tmp_path / 'none'}: holds no weights of this network (No such file",
        ),
        (str(path), f"{path}: holds no weights of this network (Error(s) in loading state_dict"),
    ):
        with pytest.raises(CM3Error) as error:
            FSQConfig(weights=weights).build()
        assert str(error.value).startswith(cause)
        assert str(error.value).endswith(
            "\n  next: give a file of `cm3 tokenizer train-image`, and the sizes that it was "
            "trained with"
        )
