"""Weights of CLIP in every sort of file: the same network, and nothing in an archive is called."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_models import open_clip_names, scripted, written
from cm3core.errors import CheckpointError
from cm3plugins.embedders import CLIPConfig
from cm3plugins.embedders.clip.checkpoint import is_archive, read_archive, read_checkpoint
from cm3plugins.trained.inert_pickle import follow
from messages import tells


@pytest.mark.parametrize(
    "kind", ["TorchScript", "safetensors", "bin", "training", "CustomTextCLIP"]
)
def test_the_same_network_from_every_file(folder, tmp_path, kind):
    tensors = open_clip_names(folder)
    path = written(kind, tensors, tmp_path)
    found = read_checkpoint(path, quick_gelu=True)
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
    assert (
        found.sizes.resolution,
        found.sizes.patch,
        found.sizes.context_length,
        found.sizes.dimension,
    ) == (32, 8, 20, 24)
    assert (
        found.sizes.vision.num_layers,
        found.sizes.vision.mlp_width,
        found.sizes.text.num_layers,
    ) == (3, 80, 2)


def test_openais_archives_are_read_in_half_and_known_by_their_form(folder, tmp_path):
    path = written(
        "TorchScript",
        {name: tensor.half() for name, tensor in open_clip_names(folder).items()},
        tmp_path,
    )
    assert is_archive(path)
    assert not is_archive(folder / "model.safetensors")
    found = read_checkpoint(path)
    assert (
        found.summary
        == "OpenAI's CLIP with patches of 8 pixels, 32 px, 24 dimensions, QuickGELU (OpenAI's archive)"
    )
    assert found.sizes.vision.activation == found.sizes.text.activation == "quick_gelu"
    assert found.tensors["visual.proj"].dtype == torch.float32
    assert CLIPConfig(path=str(path)).build().embed_texts(["a dog"]).shape == (1, 24)


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-c](\.[a-c]){0,2}", fullmatch=True),
        st.lists(st.integers(1, 3), max_size=3),
        min_size=1,
    )
)
def test_an_archives_tensors_come_back(tmp_path_factory, shapes):
    shapes = {
        name: shape
        for name, shape in shapes.items()
        if not any(other.startswith(f"{name}.") for other in shapes)
    }
    path = tmp_path_factory.mktemp("archive") / "a.pt"
    tensors = {
        name: torch.randn(shape).to(torch.float16 if len(shape) % 2 else torch.float32)
        for name, shape in shapes.items()
    }
    torch.jit.save(scripted(tensors), path)
    found = read_archive(path)
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        for name, tensor in tensors.items()
    )


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_in_an_archive_is_called(tmp_path):
    pickled = pickle.dumps(Evil(tmp_path / "made"), protocol=2)
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/data.pkl", pickled)
        archive.writestr("evil/constants.pkl", pickled)
    assert follow(pickled).arguments == (str(tmp_path / "made"),)
    with pytest.raises(
        CheckpointError,
        match=r"is not a CLIP with a vision transformer \(visual.conv1.weight is missing\)",
    ):
        read_checkpoint(tmp_path / "evil.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "good.bin")
    (tmp_path / "evil.bin").write_bytes(pickled)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(tmp_path / "evil.bin")
    assert tells(refused.value, f"{tmp_path / 'evil.bin'}: does not hold ... UnpicklingError")
    assert not (tmp_path / "made").exists()


def test_a_damaged_archive_is_told(folder, tmp_path):
    path = written("TorchScript", open_clip_names(folder), tmp_path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "short.pt", "w") as short:
        for entry in archive.infolist():
            content = archive.read(entry)
            short.writestr(
                entry.filename, content[:-4] if entry.filename.endswith("data/0") else content
            )
    with pytest.raises(CheckpointError, match="is not a readable TorchScript archive") as refused:
        read_checkpoint(tmp_path / "short.pt")
    assert refused.value.next_step == "download it again, or use weights in safetensors format"
