"""Checkpoints: complete or not there, refused when damaged, hostile or of another model; models for
shipping."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from cm3core.errors import CheckpointError, CM3Error, TrustError
from cm3core.plugins import Registry, load_registry
from cm3core.recipe import compose
from cm3plugins.image_tokenizers.vqgan import VQGANArchitecture, VQGANConfig
from cm3plugins.image_tokenizers.vqgan.model import VQModel
from cm3plugins.image_tokenizers.vqgan.tokenizer import save_weights
from cm3run.checkpoint import (
    OPTIMIZER,
    RECIPE,
    STATE,
    WEIGHTS,
    complete_checkpoints,
    export_model,
    find_checkpoint,
    latest_checkpoint,
    open_checkpoint,
    read_tensors,
)
from cm3run.training import train
from messages import tells

PARTS = Path(__file__).parents[2] / "fixtures" / "train"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry([PARTS / "train_parts.py"])


def run(registry: Registry, out: Path, overrides: Sequence[str] = ()) -> Path:
    recipe = compose(
        str(PARTS / "squares.yaml"),
        [f"data.cache_dir={out.parent / 'cache'}", *overrides],
        registry=registry,
    )
    return train(recipe, out, registry, progress=False).checkpoint


@pytest.fixture(scope="module")
def trained(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with checkpoints of steps 3 and 4."""
    out = tmp_path_factory.mktemp("run") / "out"
    run(registry, out, ["train.steps=4"])
    return out


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    newest = latest_checkpoint(trained)
    assert newest is not None
    return Path(shutil.copytree(newest, tmp_path / "step-00000004"))


def test_layout_and_newest(trained: Path) -> None:
    newest = latest_checkpoint(trained)
    assert newest == trained / "checkpoints" / "step-00000004"
    assert sorted(path.name for path in newest.iterdir()) == [
        "components.json",
        "model.safetensors",
        "optimizer.safetensors",
        "plugins",  # the fixture is a plugin file
        "plugins.json",
        "recipe.yaml",
        "state.json",
        "text_tokenizer",
        "words.txt",
    ]
    state = json.loads((newest / STATE).read_text())
    assert state["step"] == 4
    assert state["vocabulary"]["num_image"] == 5
    assert set(state["fingerprints"]) == {
        "text_tokenizer",
        "image_tokenizer",
        "vocabulary",
        "dataset",
    }
    assert "train_parts" in json.loads((newest / "plugins.json").read_text())


def test_keeps_only_the_newest(registry: Registry, tmp_path: Path) -> None:
    run(
        registry,
        tmp_path / "out",
        [
            "train.steps=4",
            "train.checkpoint_every_steps=1",
            "train.keep_checkpoints=1",
            "train.validation_splits=[]",
        ],
    )
    assert [path.name for path in complete_checkpoints(tmp_path / "out")] == ["step-00000004"]
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000004"]


def test_open_run_checkpoint_and_model(registry: Registry, trained: Path, tmp_path: Path) -> None:
    from_run = open_checkpoint(trained, registry)
    newest = latest_checkpoint(trained)
    assert newest is not None
    assert from_run.step == open_checkpoint(newest, registry).step == 4
    assert not from_run.components.decoder.training
    model = export_model(trained, tmp_path / "model", dtype="fp16")
    assert not (model / OPTIMIZER).exists()
    assert all(tensor.dtype == torch.float16 for tensor in read_tensors(model / WEIGHTS).values())
    opened = open_checkpoint(model, registry)
    exact = dict(from_run.components.decoder.named_parameters())
    shipped = dict(opened.components.decoder.named_parameters())
    assert exact.keys() == shipped.keys()
    for name, parameter in shipped.items():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter, exact[name].half().float(), atol=0, rtol=0)


@pytest.mark.slow
def test_a_moved_model_takes_its_image_tokenizer_along(
    registry: Registry, trained: Path, tmp_path: Path
) -> None:
    """The tokenizer's own file is gone, and the folder is elsewhere: all the same, the same codes.
    So is going on."""
    shape = VQGANConfig(
        resolution=8, ch=8, z_channels=4, embed_dim=2, codebook_size=5, patch_size=2, norm_groups=4
    )
    model, weights = VQModel(shape.architecture), tmp_path / "tokenizer.safetensors"
    save_weights(weights, shape.architecture, model.state_dict())
    own = [
        f"image_tokenizer.{item.name}={list(value) if isinstance(value, tuple) else value}"
        for item in fields(VQGANArchitecture)
        if (value := getattr(shape, item.name)) is not None
    ]
    overrides = [
        "image_tokenizer=vqgan",
        *own,
        f"image_tokenizer.weights={weights}",
        "train.validation_splits=[]",
    ]
    run(registry, tmp_path / "out", [*overrides, "train.steps=2"])
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    want = open_checkpoint(tmp_path / "out", registry).components.image_tokenizer.encode(pictures)
    exported = export_model(tmp_path / "out", tmp_path / "model")
    weights.unlink()
    shutil.rmtree(tmp_path / "cache")
    moved = exported.rename(tmp_path / "elsewhere")
    assert np.array_equal(
        open_checkpoint(moved, registry).components.image_tokenizer.encode(pictures), want
    )
    assert run(registry, tmp_path / "out", [*overrides, "train.steps=3"]).name == "step-00000003"
    assert np.array_equal(
        open_checkpoint(tmp_path / "out", registry).components.image_tokenizer.encode(pictures),
        want,
    )
    shutil.rmtree(moved / "image_tokenizer")
    with pytest.raises(
        TrustError, match=r"image_tokenizer\.weights reads .*tokenizer\.safetensors"
    ):
        open_checkpoint(moved, registry)
    with pytest.raises(CheckpointError, match=r"tokenizer\.safetensors: there is no such file"):
        open_checkpoint(moved, registry, trust_endpoints=[str(weights)])


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_export_replaces_an_older_model_but_nothing_else(
    registry: Registry, trained: Path, tmp_path: Path, dtype: str
) -> None:
    export_model(trained, tmp_path / "model")
    export_model(trained, tmp_path / "model", dtype=dtype)
    assert open_checkpoint(tmp_path / "model", registry).step == 4
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    with pytest.raises(CheckpointError, match="exists and is not a model folder"):
        export_model(trained, tmp_path / "photos")
    assert (tmp_path / "photos" / "me.jpg").exists()


def test_nothing_there(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "nowhere", registry)
    assert tells(caught.value, f"{tmp_path / 'nowhere'}: does not exist")


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def cut(copy: Path, target: Path) -> None:
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-1000])


def pickle_bomb(copy: Path, target: Path) -> None:
    (copy / WEIGHTS).write_bytes(pickle.dumps(Bomb(target)))


def torch_bomb(copy: Path, target: Path) -> None:
    torch.save(Bomb(target), copy / WEIGHTS)


def huge_header(copy: Path, target: Path) -> None:
    (copy / WEIGHTS).write_bytes((2**62).to_bytes(8, "little") + b"{}")


def lying_header(copy: Path, target: Path) -> None:
    header = json.dumps(
        {"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}
    ).encode()
    (copy / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)


def state_list(copy: Path, target: Path) -> None:
    (copy / STATE).write_text("[1, 2]")


def state_types(copy: Path, target: Path) -> None:
    (copy / STATE).write_text(json.dumps({**json.loads((copy / STATE).read_text()), "step": "4"}))


def yaml_code(copy: Path, target: Path) -> None:
    (copy / RECIPE).write_text(f"name: !!python/object/apply:os.mkdir ['{target}']\n")


@pytest.mark.parametrize(
    "spoil",
    [cut, pickle_bomb, torch_bomb, huge_header, lying_header, state_list, state_types, yaml_code],
)
def test_damaged_and_hostile_files_are_refused(
    spoil: Callable[[Path, Path], None], registry: Registry, copy: Path, tmp_path: Path
) -> None:
    spoil(copy, tmp_path / "ran")
    with pytest.raises(CM3Error) as caught:
        open_checkpoint(copy, registry)
    assert str(copy) in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_message_of_a_truncated_file(registry: Registry, copy: Path) -> None:
    cut(copy, copy)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(copy, registry)
    assert str(caught.value).startswith(f"{copy / WEIGHTS}: is not a complete safetensors file (")
    assert tells(caught.value, f"...   next: delete {copy} to")


def test_another_vocabulary(registry: Registry, copy: Path) -> None:
    state = json.loads((copy / STATE).read_text())
    state["vocabulary"]["num_text"] += 8
    (copy / STATE).write_text(json.dumps(state))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(copy, registry)
    here = state["vocabulary"]["num_text"] - 8
    assert tells(
        caught.value,
        f"{copy}: has another vocabulary ... num_text {here + 8} ... {here} ... 'vocabulary'",
    )


def test_another_image_tokenizer(registry: Registry, copy: Path) -> None:
    text = (copy / RECIPE).read_text()
    assert "variant: a" in text
    (copy / RECIPE).write_text(text.replace("variant: a", "variant: b"))
    with pytest.raises(
        CheckpointError,
        match="was made with another image tokenizer \\(fingerprint colours-a, here colours-b\\)",
    ):
        open_checkpoint(copy, registry)


def test_another_shape(registry: Registry, copy: Path) -> None:
    (copy / RECIPE).write_text(
        (copy / RECIPE).read_text().replace("num_layers: 2", "num_layers: 1")
    )
    with pytest.raises(CheckpointError, match="but this decoder needs nothing"):
        open_checkpoint(copy, registry)


def test_full_disk_leaves_the_old_checkpoint(
    registry: Registry, trained: Path, tmp_path: Path
) -> None:
    """A limit on file sizes stands in for a full disk: the write fails in the middle of a file
    either way."""
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    newest = latest_checkpoint(out)
    assert newest is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((newest / WEIGHTS).stat().st_size // 2, hard))
    try:
        with pytest.raises(CheckpointError) as caught:
            export_model(newest, out / "models" / "new", dtype="fp32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "can't be written" in str(caught.value)
    assert tells(caught.value.next_step, "check the disk's free space")
    assert "resumes" not in caught.value.next_step, "an export begins again"
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")} == before
    assert not list((out / "models").iterdir()), "nothing half-written is left"
    assert latest_checkpoint(out) == newest


def test_a_model_of_hugging_faces_format_is_to_be_converted(tmp_path: Path) -> None:
    (folder := tmp_path / "my model").mkdir()
    (folder / "config.json").write_text('{"model_type": "chameleon"}')
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(folder)
    assert tells(
        caught.value, f"{folder}: is a Hugging Face model ... '{folder}' ... 'my model-cm3'"
    )
    for text in ("{}", "[", '{"model_type": 3}', "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match="contains no checkpoint and no model"):
            find_checkpoint(folder)
