"""The conditions that networks draw: as the package's own loading draws them, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cm3core.config.schema import check_config
from cm3core.errors import CheckpointError, CM3Error, MissingPackageError, RecipeError
from cm3plugins.conditions import (
    CannyConfig,
    DepthConfig,
    HEDConfig,
    NetworkConfig,
    NormalsConfig,
    PoseConfig,
)
from messages import tells

CONFIGS: dict[str, type[NetworkConfig]] = {
    "hed": HEDConfig,
    "pose": PoseConfig,
    "depth": DepthConfig,
    "normals": NormalsConfig,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_without_a_file_it_is_named(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    step = f"give the file {config.file}, published at https://huggingface.co/lllyasviel/Annotators"
    with pytest.raises(CM3Error) as error:
        config().build()
    cause = f"condition.path: is not set; {name!r} needs weights"
    assert str(error.value) == f"{cause}\n  next: {step}"
    with pytest.raises(RecipeError) as refused:
        check_config(config(), "dataset.condition", lambda part: part.check_ready())
    assert str(refused.value) == f"dataset.{error.value}"
    with pytest.raises(CheckpointError) as error:
        config(path=str(tmp_path / "none.pth")).build()
    cause = f"{tmp_path / 'none.pth'}: no such weights file"
    assert str(error.value) == f"{cause}\n  next: {step}"


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "ControlNetHED.pth").write_bytes(b"weights")
    monkeypatch.setattr("cm3plugins.conditions.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError) as error:
        HEDConfig(path=str(tmp_path / "ControlNetHED.pth")).build()
    assert tells(error.value, "condition 'hed': the package 'controlnet_aux'")


@pytest.fixture(scope="module")
def annotators() -> Any:
    """The package, whose import takes seconds and warns of packages that are not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "controlnet_aux", reason="needs pip install 'cm3leon[controlnet]'"
        )


def published(name: str, folder: Path) -> Path:
    """A file with random weights, under the names and in the shapes of the published one."""
    from cm3plugins.conditions.networks import NETWORKS, _quiet

    torch.manual_seed(3)
    with _quiet():
        state = NETWORKS[name].make().state_dict()
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    }
    if name == "pose":  # the file names layers without the branches that they are in
        state = {key.partition(".")[2]: value for key, value in state.items()}
    content: dict[str, Any] = state
    if name == "depth":  # it ends in a ReLU: nothing is far away
        state["scratch.output_conv.4.bias"] += 1
    if name == "normals":  # of a training on several GPUs
        content = {"model": {f"module.{key}": value for key, value in state.items()}}
    path = folder / CONFIGS[name].file
    torch.save(content, path)
    return path


@pytest.fixture
def file(request: Any, annotators: Any, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    path = published(request.param, tmp_path)
    yield request.param, path
    path.unlink()  # up to 250 MB


def loaded_by_the_package(annotators: Any, name: str, folder: Path) -> Any:
    names = {"hed": "HEDdetector", "depth": "MidasDetector", "normals": "NormalBaeDetector"}
    from cm3plugins.conditions.networks import _quiet

    with _quiet():
        if name == "pose":
            from controlnet_aux.open_pose.body import Body

            body = Body(str(folder / PoseConfig.file))
            return annotators.OpenposeDetector(body)
        return getattr(annotators, names[name]).from_pretrained(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_canny_draws_what_the_package_draws(seed: int, annotators: Any) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC))
    options = {"detect_resolution": 256, "image_resolution": 256, "output_type": "np"}
    theirs = annotators.CannyDetector()(picture, 100, 200, **options)
    assert theirs.any()
    assert np.array_equal(CannyConfig().build().draw(picture), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("file", CONFIGS, indirect=True)
def test_it_draws_what_the_package_draws(file, annotators) -> None:
    """At a size that neither scales: the package opens the file by itself."""
    name, path = file
    picture = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    condition = CONFIGS[name](path=str(path), resolution=64).build()
    drawn = condition.draw(picture)
    theirs = loaded_by_the_package(annotators, name, path.parent)
    sizes = {"detect_resolution": 64, "image_resolution": 64}
    assert np.array_equal(drawn, theirs(picture, output_type="np", **sizes))
    assert name == "pose" or len(np.unique(drawn)) > 2  # random weights see no body
    assert condition.fingerprint.startswith(f"{name} 1 64 ")
    if name == "hed":
        again = HEDConfig(path=str(path), resolution=64).build()
        assert again.fingerprint == condition.fingerprint
        # any size, also a strip, has a structure of its size
        for shape in ((1, 90, 3), (70, 33, 3), (300, 40, 3)):
            small = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
            one = condition.draw(small, np.random.default_rng(2))
            assert one.shape == shape
            assert np.array_equal(one, again.draw(small))


@pytest.mark.slow
def test_weights_of_another_network(annotators, tmp_path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"norm": torch.zeros(1, 3, 1, 1), "weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError) as error:
        HEDConfig(path=str(path)).build()
    assert tells(error.value, f"{path}: has no tensor 'block1.convs.0.weight' ... 64 ... 3")
    path.write_bytes(b"\x80\x04no pickle of tensors")
    with pytest.raises(CheckpointError) as error:
        HEDConfig(path=str(path)).build()
    assert str(error.value).startswith(f"{path}: is not a readable file of tensors (")
