"""Bundled upscalers: the kit's laws, the network against Pillow, tiles, weights, recipes, other
people's networks, messages."""

from __future__ import annotations

import json
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from safetensors import safe_open
from safetensors.torch import save_file

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError, DataError, DeviceError, MissingPackageError, RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3kits.upscaler import UpscalerContract
from cm3plugins.image_tokenizers.vqgan import VQGANConfig
from cm3plugins.upscalers import EDSRConfig, ExternalUpscalerConfig, LanczosUpscalerConfig
from cm3plugins.upscalers.edsr import upscaler as edsr
from cm3plugins.upscalers.edsr.upscaler import (
    EDSR,
    EDSRUpscaler,
    load_weights,
    save_weights,
    to_input,
    to_pixels,
)
from cm3plugins.upscalers.external import ExternalUpscaler
from cm3plugins.upscalers.tiles import upscale_in_tiles
from cm3run.build import build
from cm3run.evaluation.quality import evaluate_upscaler, lanczos
from messages import tells
from upscaler_parts import compact_state, config

ARCHITECTURE_KEY = "edsr_architecture"


def noise(*shape: int, seed: int = 0) -> PixelArray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tiny_model(**shape: Any) -> EDSR:
    """Random weights, the last layer's too (which training starts at 0)."""
    torch.manual_seed(0)
    model = EDSR(config(**shape).architecture)
    torch.nn.init.normal_(model.tail.weight, std=0.05)
    return model


class TestLanczos(UpscalerContract):
    config = LanczosUpscalerConfig()
    flat_tolerance = 0
    batch_tolerance = 0


class TestUntrainedEDSR(UpscalerContract):
    flat_tolerance = 0

    def make(self) -> EDSRUpscaler:
        return EDSRUpscaler(tiny_model())


class TestBundledEDSR(UpscalerContract):
    config = EDSRConfig(device="cpu")
    flat_tolerance = 0


class TestExternal(UpscalerContract):
    def make(self) -> ExternalUpscaler:
        return ExternalUpscaler(compact_network(), tile=8, margin=4)

    def waive_flat_pictures_stay_flat(self) -> str:
        return "the weights are random"

    def waive_parts_stay_in_their_places(self) -> str:
        return "the weights are random"


def compact_network() -> Any:
    """A network of spandrel's (SRVGGNetCompact, Real-ESRGAN's small one) with random weights, 4
    times."""
    from spandrel import ModelLoader

    return ModelLoader("cpu").load_from_state_dict(compact_state())


# --- the network


def test_an_untrained_network_is_pillows_bicubic() -> None:
    """The last layer starts at 0, so only the interpolation is left. Pillow rounds (and clamps)
    between its two passes."""
    pixels = noise(2, 9, 14, 3) // 2 + 64
    found = EDSRUpscaler(EDSR(config().architecture)).upscale_batch(pixels)
    expected = np.stack(
        [
            np.asarray(Pillow.fromarray(picture).resize((56, 36), Pillow.Resampling.BICUBIC))
            for picture in pixels
        ]
    )
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found == expected).mean() > 0.7


def test_the_network_by_hand() -> None:
    """One channel, one block, centre taps: the head doubles (red - 0.5), the block adds relu, the
    tail serves one subpixel."""
    model = EDSR(replace(config(), scale=2, num_channels=1, num_blocks=1).architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head.weight[0, 0, 1, 1] = 2.0
        model.blocks[0].conv1.weight[0, 0, 1, 1] = model.blocks[0].conv2.weight[0, 0, 1, 1] = 1.0
        # channel 0 of the picture, row 1, column 1 of its four subpixels
        model.tail.weight[3, 0, 1, 1] = 0.1
        pixels = torch.full((1, 3, 1, 9), 0.75)
        pixels[..., 8] += 1 / 255
        found = model(pixels)
    # Column 6 sees column 8, one level lighter: contrast 1/2. Column 5 does not, and all around it
    # is flat. x = 2 (0.75 - 0.5) = 0.5; blocks(x) = x + relu(x) = 1.0; the outer skip makes 1.5; a
    # tenth of it, halved, is added
    assert found[0, 0, :, 10:12].flatten().tolist() == pytest.approx([0.75] * 4)
    assert found[0, 0, :, 12:14].flatten().tolist() == pytest.approx(
        [0.75, 0.75, 0.75, 0.75 + 0.075], abs=2e-4
    )
    assert found[0, 1:, :, :14].flatten().tolist() == pytest.approx([0.75] * 56, abs=2e-4)


def test_pixels_there_and_back() -> None:
    pixels = noise(2, 3, 5, 3)
    assert np.array_equal(to_pixels(to_input(pixels)), pixels)
    assert to_pixels(torch.tensor([-1.0, 0.5019, 2.0]).view(1, 3, 1, 1)).tolist() == [
        [[[0, 128, 255]]]
    ]


@pytest.mark.parametrize("size", [(1, 1), (23, 40), (37, 31)])
def test_tiles_leave_no_seam(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 13 pixels give what the whole picture gives, and so does a margin that is no larger
    than it must be."""
    upscaler, pixels = EDSRUpscaler(tiny_model(num_blocks=1)), noise(2, *size, 3)
    whole = upscaler.upscale_batch(pixels)
    calls: list[tuple[int, ...]] = []
    forward = upscaler._forward
    monkeypatch.setattr(
        upscaler, "_forward", lambda part: calls.append(part.shape) or forward(part)
    )  # type: ignore[func-returns-value]  # `append` returns None, so what follows `or` counts
    monkeypatch.setattr(edsr, "TILE", 13)
    assert np.abs(upscaler.upscale_batch(pixels).astype(int) - whole).max() <= 1
    side = 13 + 2 * upscaler.model.radius
    assert all(num * height * width <= side**2 for num, height, width, _ in calls)
    assert len(calls) > 1 or size == (1, 1)


@given(
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_tiles_of_a_blur(
    num: int, height: int, width: int, tile: int, radius: int, scale: int
) -> None:
    """A mean over `radius` pixels around, where there are any, does not depend on the tiles when
    the margin is the radius."""

    def blurred(pixels_NHWC: PixelArray) -> PixelArray:
        _, rows, columns, _ = pixels_NHWC.shape
        out = np.empty_like(pixels_NHWC)
        for y in range(rows):
            for x in range(columns):
                window = pixels_NHWC[
                    :, max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1
                ]
                out[:, y, x] = window.mean(axis=(1, 2))
        return out.repeat(scale, axis=1).repeat(scale, axis=2)

    pixels = noise(num, height, width, 3)
    assert np.array_equal(upscale_in_tiles(pixels, scale, tile, radius, blurred), blurred(pixels))


# --- the bundled weights


@pytest.mark.slow
def test_bundled_weights_beat_lanczos_on_pictures_never_seen() -> None:
    """Eight pictures of held-out concepts, shrunk, and redrawn by the bundled tokenizer."""
    from cm3plugins.datasets.emoji.corpus import EmojiCorpus

    corpus = EmojiCorpus()
    unseen = [index for index, entry in enumerate(corpus.entries) if entry.split == "unseen"][::40]
    large = np.stack([corpus.render(index, 256) for index in unseen])
    report = evaluate_upscaler(EDSRConfig(device="cpu").build(), VQGANConfig().build(), large)
    for sort, gain in (("shrunk", 1.0), ("reconstructed", 0.2)):
        base, ours = report.quality[sort]
        assert ours.psnr > base.psnr + gain, sort
        assert ours.ssim > base.ssim, sort


def test_bundled_weights_are_small_and_say_how_they_were_made() -> None:
    path = edsr.weights_file("bundled:emoji256")
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118 (not a dict)
    recipe = compose("upscaler-emoji256", registry=load_registry())
    assert isinstance(recipe.upscaler, EDSRConfig)
    run, made = json.loads(metadata["run"]), recipe.upscaler
    assert run["architecture"] == json.loads(metadata[ARCHITECTURE_KEY]) == vars(made.architecture)
    differing = {
        key
        for key, value in run["training"].items()
        if value != _plain(getattr(made.training, key))
    }
    assert differing == set()
    assert sum(item.stat().st_size for item in path.parent.iterdir()) < 2e6
    assert vars(EDSRConfig().architecture) == vars(made.architecture), (
        "the defaults are those of the bundled weights"
    )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


# --- weights files


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_weights(path, config().architecture, tiny_model().state_dict(), {"seconds": "1"})
    return path


def test_a_file_gives_back_the_network_rounded(weights: Path) -> None:
    upscaler = replace(config(), weights=str(weights)).build()
    stored = tiny_model().state_dict()
    assert all(
        torch.equal(tensor, stored[name].half().float())
        for name, tensor in upscaler.model.state_dict().items()
    )
    assert upscaler.scale == 4


def message(error: type[Exception], made: Any) -> str:
    with pytest.raises(error) as caught:
        made.build()
    return str(caught.value)


def test_weights_that_are_not_there() -> None:
    assert tells(
        message(CheckpointError, config()), "upscaler.weights: is null: there are no weights"
    )
    assert tells(
        message(CheckpointError, EDSRConfig(weights="nowhere.safetensors")),
        "nowhere.safetensors: there is no such file ... `cm3 upscaler train`",
    )
    assert tells(
        message(CheckpointError, EDSRConfig(weights="bundled:emoji512")),
        "upscaler.weights=bundled:emoji512: no such bundled upscaler",
    )


def test_weights_of_another_shape(weights: Path) -> None:
    assert tells(
        message(CheckpointError, replace(config(), weights=str(weights), scale=2, num_blocks=3)),
        f"{weights}: has another ... is 4 ... and 2 ... num_blocks",
    )


def test_weights_with_wrong_keys(weights: Path) -> None:
    arch, state = load_weights(weights)
    state["heads.weight"] = state.pop("head.weight")
    save_weights(weights, arch, state)
    assert tells(
        message(CheckpointError, replace(config(), weights=str(weights))),
        f'{weights}: the weights do ... state_dict ... "heads.weight"',
    )


def test_files_that_are_no_weights_of_ours(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    assert tells(
        message(CheckpointError, replace(config(), weights=str(other))),
        f"{other}: has no 'edsr_architecture' in its metadata",
    )
    save_file({"x": torch.zeros(1)}, other, {ARCHITECTURE_KEY: json.dumps({"depth": 3})})
    assert "its architecture can't be read (" in message(
        CheckpointError, replace(config(), weights=str(other))
    )
    weights.write_bytes(pickle.dumps({"a": 1}))
    assert f"{weights}: is not a readable safetensors file (" in message(
        CheckpointError, replace(config(), weights=str(weights))
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(weights: Path) -> None:
    assert message(DeviceError, replace(config(), weights=str(weights), device="cuda")).startswith(
        "device 'cuda': can't be used here ("
    )


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (
            EDSRConfig(num_blocks=0),
            "upscaler.num_blocks: is 0, must ... least 1",
        ),
        (
            EDSRConfig(scale=0),
            "upscaler.scale: is 0, must ... least 1",
        ),
        (
            LanczosUpscalerConfig(scale=0),
            "upscaler.scale: is 0, must ... least 1",
        ),
        (
            ExternalUpscalerConfig(path="x.pth", tile=-1),
            "upscaler.tile: is -1, must ... least 0",
        ),
        (
            config(replace(config().training, reconstructed_share=1.5)),
            "upscaler.training.reconstructed_share: is 1.5, must",
        ),
    ],
)
def test_values_that_cannot_be(made: Any, told: str) -> None:
    assert tells(message(RecipeError, made), told)
    with pytest.raises(RecipeError):
        made.check()


def test_recipes_name_upscalers() -> None:
    registry = load_registry()
    recipe = compose("tiny", ["upscaler=edsr"], registry=registry)
    assert recipe.upscaler == EDSRConfig()
    recipe.check()
    assert compose(
        "tiny", ["upscaler=lanczos", "upscaler.scale=3"], registry=registry
    ).upscaler == LanczosUpscalerConfig(scale=3)
    assert compose("tiny", registry=registry).upscaler is None


# --- other people's networks


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_network_of_a_file(tmp_path: Path, ending: str) -> None:
    """Both kinds of files, the second as Real-ESRGAN's are wrapped; what spandrel computes is what
    comes out, in [0, 255]."""
    path = tmp_path / f"compact.{ending}"
    if ending == "pth":
        torch.save({"params_ema": compact_state()}, path)
    else:
        save_file(compact_state(), path)
    upscaler = ExternalUpscalerConfig(path=str(path), scale=4, device="cpu").build()
    pixels = noise(2, 6, 9, 3)
    expected = compact_network()(torch.from_numpy(pixels[1]).permute(2, 0, 1)[None] / 255)[
        0
    ].permute(1, 2, 0)
    found = upscaler.upscale_batch(pixels)
    assert upscaler.scale == 4
    assert np.abs(found[1] - expected.numpy() * 255).max() <= 0.51
    assert np.array_equal(found[1], upscaler.upscale(pixels[1]))
    in_tiles = ExternalUpscalerConfig(path=str(path), tile=4, margin=6, device="cpu").build()
    assert np.abs(in_tiles.upscale(pixels[0]).astype(int) - found[0]).max() <= 1
    assert tells(
        message(CheckpointError, ExternalUpscalerConfig(path=str(path), scale=2)),
        f"{path}: upscales each side by 4 ... upscaler.scale is 2",
    )


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch hostile-code-ran",)


def test_files_that_are_no_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tell = lambda name: message(CheckpointError, ExternalUpscalerConfig(path=name))  # noqa: E731 (short and local)
    assert (
        tell("net.onnx")
        == "net.onnx: is neither a .safetensors nor a .pth file\n  next: use a file of weights"
    )
    assert tell("net.pth") == "net.pth: there is no such file\n  next: correct upscaler.path"
    for name in ("net.pth", "net.safetensors"):
        Path(name).write_bytes(pickle.dumps(Hostile()))
        told = tell(name)
        assert told.startswith(f"{name}: does not hold plain tensors (")
        assert tells(told, "...   next: save only the weights; files that")
    torch.save({"params": Hostile()}, "net.pth")
    assert tell("net.pth").startswith("net.pth: does not hold plain tensors (")
    assert not Path("hostile-code-ran").exists()
    torch.save(torch.zeros(3), "net.pth")
    assert (
        tell("net.pth")
        == "net.pth: holds a Tensor instead of named weights\n  next: save only the weights"
    )
    save_file({"layer.weight": torch.zeros(3, 3)}, "net.safetensors")
    assert tell("net.safetensors") == (
        "net.safetensors: is not a network that spandrel recognises by its weights\n"
        "  next: use weights of an architecture supported by spandrel"
    )


def test_a_damaged_network_and_a_grey_one(tmp_path: Path) -> None:
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

    path = tmp_path / "net.safetensors"
    state = compact_state()
    state["body.2.weight"] = torch.zeros(5, 5, 3, 3)
    save_file(state, path)
    told = message(CheckpointError, ExternalUpscalerConfig(path=str(path)))
    assert told.startswith(f"{path}: spandrel can't load it (RuntimeError: ")
    save_file(
        SRVGGNetCompact(num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=2, upscale=2).state_dict(),
        path,
    )
    assert tells(
        message(CheckpointError, ExternalUpscalerConfig(path=str(path))),
        f"{path}: its network (RealESRGAN ... RGB ... RGB",
    )


def test_without_spandrel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.safetensors"
    save_file(compact_state(), path)
    monkeypatch.setitem(sys.modules, "spandrel", None)
    assert tells(
        message(MissingPackageError, ExternalUpscalerConfig(path=str(path))),
        "upscaler external: the package 'spandrel'",
    )


def test_lanczos_of_one_pixel_and_large_ones() -> None:
    upscaler = LanczosUpscalerConfig(scale=2).build()
    assert upscaler.upscale(np.array([[[9, 8, 7]]], np.uint8)).tolist() == [[[9, 8, 7]] * 2] * 2
    pixels = noise(1, 5, 4, 3)
    assert np.array_equal(upscaler.upscale_batch(pixels), lanczos(pixels, 2))
    with pytest.raises(DataError, match="are more than 64,000,000"):
        upscaler.upscale(np.zeros((4001, 4000, 3), np.uint8))


def test_a_recipes_components_have_its_upscaler() -> None:
    """Built when first asked for, once; None without the section."""
    registry = load_registry()
    recipe = compose(
        "tiny", ["text_tokenizer=byte", "upscaler=lanczos", "upscaler.scale=2"], registry=registry
    )
    components = build(recipe, registry, stage="generate")
    assert components.upscaler is not None
    assert components.upscaler.scale == 2
    assert components.upscaler is components.upscaler
    components.recipe = replace(recipe, upscaler=None)
    del components.upscaler
    assert components.upscaler is None


def test_a_second_gpu_may_be_named_and_nonsense_not() -> None:
    EDSRConfig(device="cuda:1").check()
    ExternalUpscalerConfig(path="x.pth", device="cuda:1").check()
    with pytest.raises(RecipeError) as caught:
        EDSRConfig(device="gpu one").check()
    assert tells(caught.value, "upscaler.device: is 'gpu one' ... 1")
