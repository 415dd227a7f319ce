"""The bundled extractors: the laws, the real file's tensors, and the codes of FID beside ours."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm3core.errors import CheckpointError, CM3Error
from cm3core.interfaces.component import choose
from cm3kits.extractor import ExtractorContract
from cm3plugins import extractors
from cm3plugins.embedders import LightEncoderConfig
from cm3plugins.extractors.inception import Inception2015, InceptionExtractor, _scaled_cleanly
from messages import tells


class TestPixels(ExtractorContract):
    config = extractors.PixelsConfig()


class TestEmbedder(ExtractorContract):
    config = extractors.EmbedderExtractorConfig(embedder=LightEncoderConfig())
    max_examples = 5


def random_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """The real file's names and shapes, without the counters that it does not hold."""
    torch.manual_seed(seed)
    network = Inception2015()
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.ndim == 4:
            torch.nn.init.kaiming_normal_(value)
    return {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(random_weights(), path)
    return path


def inception(weights: Path, **keys: Any) -> Any:
    return extractors.InceptionConfig(path=str(weights), sha256=None, **keys)


@pytest.fixture(scope="module")
def pictures() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, np.uint8) for size in ((64, 64, 3), (300, 256, 3))]


class TestBlurredPixels(ExtractorContract):
    config = extractors.PixelsConfig(side=6, blur=True)


@pytest.mark.slow
def test_the_laws_of_inception(weights: Path) -> None:
    """One pass of each law: the network takes a second a picture."""
    contract = ExtractorContract.for_config(inception(weights), max_examples=1)()
    for law in contract.laws():
        getattr(contract, f"test_{law}")()


def test_the_networks_tensors_are_the_files(weights: Path) -> None:
    """94 convolutions with their normalisation and a classifier: what pytorch-fid loads from the file,
    strictly."""
    theirs = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid knows the file")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            theirs,
            "load_state_dict_from_url",
            lambda *_, **__: torch.load(weights, weights_only=True),
        )
        network = theirs.fid_inception_v3()
    own = Inception2015().state_dict()
    assert {k: v.shape for k, v in own.items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }
    numbers = sum(v.numel() for k, v in own.items() if not k.endswith("num_batches_tracked"))
    assert 4 * numbers < 95_628_359 < 4 * numbers + 200_000  # the published file's bytes


def test_features_equal_pytorch_fid(weights: Path, pictures: list[Any]) -> None:
    theirs = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is the oracle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            theirs,
            "load_state_dict_from_url",
            lambda *_, **__: torch.load(weights, weights_only=True),
        )
        network = theirs.InceptionV3().eval()
    found = inception(weights).build().extract(pictures)
    for row, picture in zip(found, pictures, strict=True):
        batch = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            wanted = network(batch)[0][0, :, 0, 0].numpy()
        assert np.abs(row - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_scaling_equals_clean_fid(pictures: list[Any]) -> None:
    theirs = pytest.importorskip("cleanfid.resize", reason="clean-fid is the oracle")
    resize = theirs.build_resizer("clean")
    for picture in pictures:
        wanted = (resize(picture).transpose(2, 0, 1) - 128) / 128
        assert np.abs(_scaled_cleanly(picture).numpy() - wanted).max() < 1e-6


@pytest.mark.slow
def test_the_two_scalings_have_two_names(weights: Path, pictures: list[Any]) -> None:
    torch_like, clean = (inception(weights, resize=how).build() for how in ("torch", "clean"))
    assert (torch_like.label, clean.label) == ("pytorch", "clean")
    assert torch_like.fingerprint != clean.fingerprint
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert torch_like.fingerprint == f"inception-2015 1 torch {sha256}"
    assert not np.allclose(torch_like.extract(pictures[:1]), clean.extract(pictures[:1]))


def test_a_missing_file_is_named_with_its_hash(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        extractors.InceptionConfig(path=str(tmp_path / "none.pth")).build()
    assert tells(caught.value, f"{tmp_path / 'none.pth'}: there is no such file; its")


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda path: path.write_bytes(b"no zip"), "can't be read as tensors alone"),
        (lambda path: torch.save([1], path), "holds no named tensors"),
        (lambda path: torch.save({"fc.bias": torch.zeros(3)}, path), "has no tensor"),
        (
            lambda path: torch.save(random_weights() | {"more": torch.zeros(1)}, path),
            "the unknown tensor 'more'",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, spoil: Any, cause: str) -> None:
    path = tmp_path / "weights.pth"
    spoil(path)
    with pytest.raises(CheckpointError, match=cause):
        inception(path).build()
    with pytest.raises(CheckpointError, match=r"has the sha256 [0-9a-f]{64}, not 6726825d"):
        extractors.InceptionConfig(path=str(path)).build()


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"fc.bias": Runs()}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="can't be read as tensors alone"):
        inception(tmp_path / "weights.pth").build()
    assert not (tmp_path / "ran").exists()


def test_a_torchscript_archive_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form of NVIDIA's file: refused by its parts, and nothing of torch that runs programs is called."""
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 4, 3)), path)
    for name in ("torch.jit.load", "torch.load"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("a file was opened by torch"))
    with pytest.raises(CheckpointError) as caught:
        inception(path).build()
    assert tells(caught.value, f"{path}: is a TorchScript ... NVIDIA ... inception-2015-12-05.pt")
    with pytest.raises(CheckpointError, match="has the sha256"):
        extractors.InceptionConfig(path=str(path)).build()


def test_an_embedder_gives_its_name_to_scores() -> None:
    config = LightEncoderConfig()
    assert extractors.EmbedderExtractorConfig(embedder=config).build().label == "lightencoder"
    choose(config, "bundled/light_encoder")
    extractor: Any = extractors.EmbedderExtractorConfig(embedder=config).build()
    assert extractor.label == "light_encoder"
    assert extractor.embedder_fingerprint == config.build().fingerprint
    with pytest.raises(CM3Error, match="reads pictures only"):
        extractors.PixelsConfig().build().extract_texts(["a"])


def test_pixels_are_means_of_parts() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:2, 2:] = 255
    found = extractors.PixelsConfig(side=2).build().extract([picture])
    assert found.tolist() == [[0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]]


def test_it_is_an_extractor_of_its_own() -> None:
    assert issubclass(InceptionExtractor, extractors.Extractor)


def test_blurred_pixels_forgive_a_shift() -> None:
    """A line moved by a pixel is nearer than one that is left out; unblurred it is farther."""
    line, moved, none = (np.zeros((32, 32, 3), np.uint8) for _ in range(3))
    line[:, 10], moved[:, 11] = 255, 255
    found = {}
    for blur in (False, True):
        extractor: Any = extractors.PixelsConfig(side=32, blur=blur).build()
        a, b, c = extractor.extract([line, moved, none]).astype(float)
        found[extractor.label] = ((a - b) ** 2).sum() < ((a - c) ** 2).sum()
    assert found == {"pixels32": False, "blurred32": True}
