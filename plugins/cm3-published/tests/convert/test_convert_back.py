"""Emu3.5 and GLM-Image converted back: the same tensors; those of tuned models: `test_tuning_pictures`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_emu3_5
import tiny_glm_image
from cm3apps.cli.main import main
from messages import tells

PUBLISHED = {"emu3_5": "baai", "glm_image": "GLM-Image"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of both models: the published one, and `own`."""
    made = {}
    for name, module in (("emu3_5", tiny_emu3_5), ("glm_image", tiny_glm_image)):
        made[name] = tmp_path_factory.mktemp(name)
        module.converted(made[name])  # type: ignore[attr-defined]  # two modules with one function
    return made


def stage(folder: Path, name: str) -> Path:
    """The folder with the weights."""
    published = folder / PUBLISHED[name]
    return published / "vision_language_encoder" if name == "glm_image" else published


def back(folder: Path, name: str, out: Path) -> int:
    published = ["--to", "hf", "--tokenizer", str(folder / PUBLISHED[name])]
    return main(["convert", str(folder / "own"), "-o", str(out), *published])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_way_back_gives_the_same_tensors(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Of weights in bfloat16, too, which a tuned model has in float32."""
    folder = folders[name]
    shutil.copytree(folder, tmp_path / "files")
    file = stage(tmp_path / "files", name) / "model.safetensors"
    save_file({key: one.bfloat16() for key, one in load_file(file).items()}, file)
    for place in (folder, tmp_path / "files"):
        assert back(place, name, tmp_path / f"back-{place.name}") == 0
        found = load_file(tmp_path / f"back-{place.name}" / "model.safetensors")
        expected = load_file(stage(place, name) / "model.safetensors")
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert found[key].dtype == tensor.dtype
            assert torch.equal(found[key], tensor.float().to(tensor.dtype)), key
        written = tmp_path / f"back-{place.name}" / "config.json"
        assert written.read_bytes() == (stage(place, name) / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--to hf: needs the published folder"),
        (["--tokenizer", "other"], "config.json: attention_bias is true, but Emu3 has none"),
        (["--tokenizer", "own", "--resolution", "64"], "--resolution: does not work on the way back"),
    ],
)  # fmt: skip  # a case per line
def test_wrong_calls_are_refused(
    folders: dict[str, Path], tmp_path: Path, capsys: Any, more: list[str], message: str
) -> None:
    other = str(folders["glm_image"] / "GLM-Image" / "vision_language_encoder")
    source = str(folders["emu3_5"] / "own")
    given = [other if one == "other" else one for one in more]
    assert main(["convert", source, "-o", str(tmp_path / "out"), "--to", "hf", *given]) == 2
    assert tells(capsys.readouterr().err, f"... {message} ...")
    assert not (tmp_path / "out").exists()
