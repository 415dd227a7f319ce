"""LPIPS beside the `lpips` package, on random weights with the published files' names and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm3core.errors import CheckpointError, DataError
from cm3core.files import sha256_file
from cm3core.interfaces.metric import MetricBatch
from cm3kits.metric import MetricContract
from cm3plugins.metrics import LPIPSConfig
from cm3plugins.metrics.lpips import BACKBONES
from messages import tells


def random_backbone(network: str) -> dict[str, torch.Tensor]:
    """torchvision's names: the convolutions, and a classifier, which is not used."""
    generator = torch.Generator().manual_seed(0)
    found = {"classifier.1.weight": torch.zeros(2, 2)}
    for one in BACKBONES[network].layers:
        shape = (one.num_out, one.num_in, one.kernel, one.kernel)
        found[f"features.{one.place}.weight"] = 0.1 * torch.randn(shape, generator=generator)
        found[f"features.{one.place}.bias"] = 0.1 * torch.randn(one.num_out, generator=generator)
    return found


def random_heads(network: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    widths = [one.num_out for one in BACKBONES[network].layers if one.compared]
    return {
        f"lin{place}.model.1.weight": torch.rand((1, width, 1, 1), generator=generator)
        for place, width in enumerate(widths)
    }


@pytest.fixture(scope="module", params=["alex", "vgg"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LPIPSConfig:
    return written(tmp_path_factory.mktemp(request.param), request.param)


def written(folder: Path, network: Any) -> LPIPSConfig:
    torch.save(random_backbone(network), folder / "backbone.pth")
    torch.save(random_heads(network), folder / "heads.pth")
    return LPIPSConfig(
        backbone=str(folder / "backbone.pth"), heads=str(folder / "heads.pth"), network=network
    )


def pictures(num: int, side: int = 40, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (side, side + 5, 3), np.uint8) for _ in range(num)]


def score(config: LPIPSConfig, one: list[Any], other: list[Any]) -> float:
    metric = config.build()
    metric.update(MetricBatch(range(len(one)), {"pictures": one, "reference_pictures": other}))
    return metric.result()[0].value


class LargerPictures(MetricContract):
    def column(self, name: str, num: int, rng: np.random.Generator) -> Any:
        return [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(num)]


@pytest.mark.slow
def test_the_laws(tmp_path: Path) -> None:
    contract: Any = LargerPictures.for_config(written(tmp_path, "alex"), max_examples=1)()
    for law in contract.laws():
        getattr(contract, f"test_{law}")()


def test_equal_to_the_package(config: LPIPSConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    lpips = pytest.importorskip("lpips", reason="the lpips package is the oracle")
    theirs = lpips.LPIPS(net=config.network, pretrained=False, pnet_rand=True, verbose=False)
    slices = [getattr(theirs.net, f"slice{k}") for k in range(1, 6)]
    own = random_backbone(config.network)
    names = {
        name: tensor for part in slices for name, tensor in part.state_dict(keep_vars=True).items()
    }
    assert {f"features.{name}" for name in names} == {k for k in own if k.startswith("features")}
    heads = random_heads(config.network)
    with torch.no_grad():
        for name, tensor in names.items():
            tensor.copy_(own[f"features.{name}"])
        for name, tensor in theirs.state_dict(keep_vars=True).items():
            if name in heads:
                tensor.copy_(heads[name])
    one, other = pictures(3), pictures(3, seed=1)
    with torch.no_grad():
        wanted = [
            float(
                theirs(
                    *(torch.from_numpy(x / 127.5 - 1).permute(2, 0, 1)[None].float() for x in pair)
                )
            )
            for pair in zip(one, other, strict=True)
        ]
    assert score(config, one, other) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_equal_pictures_are_at_no_distance(config: LPIPSConfig) -> None:
    same = pictures(2)
    assert score(config, same, same) == 0
    assert score(config, same, [255 - one for one in same]) > 0


def test_the_packages_own_heads_are_read(tmp_path: Path) -> None:
    """The published heads, which the package contains."""
    lpips = pytest.importorskip("lpips", reason="the lpips package has the heads")
    folder = Path(lpips.__file__).parent / "weights" / "v0.1"
    for network in ("alex", "vgg"):
        config: Any = written(tmp_path, network)
        config.heads = str(folder / f"{network}.pth")
        config.build()


def test_scores_state_the_files_hashes(config: LPIPSConfig) -> None:
    protocol = config.protocol()
    assert protocol["backbone"] == sha256_file(Path(config.backbone))
    assert protocol["heads"] == sha256_file(Path(config.heads))


def test_files_that_can_not_be_used(tmp_path: Path) -> None:
    config = written(tmp_path, "alex")

    def message(**changed: Any) -> str:
        values = {"backbone": config.backbone, "heads": config.heads} | changed
        with pytest.raises(CheckpointError) as caught:
            LPIPSConfig(**values).build()
        return str(caught.value)

    assert tells(
        message(backbone=str(tmp_path / "none")), f"{tmp_path / 'none'}: there is no such file"
    )
    assert tells(
        message(backbone=config.heads), "... has no tensor 'features.0.weight' ... 64 ... 3"
    )
    assert tells(message(network="vgg"), "... has shape [64, 3, 11 ... 11 ... 'features.0.weight'")
    assert tells(message(heads=config.backbone), "... next: get alex.pth from")
    torch.save([1], tmp_path / "list.pth")
    assert "holds no named tensors" in message(heads=str(tmp_path / "list.pth"))

    class Runs:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"features.0.weight": Runs()}, tmp_path / "runs.pth")
    assert "can't be read as tensors alone" in message(backbone=str(tmp_path / "runs.pth"))
    assert not (tmp_path / "ran").exists()


def test_small_pictures_are_refused(tmp_path: Path) -> None:
    small = pictures(1, side=24)
    with pytest.raises(DataError) as caught:
        score(written(tmp_path, "alex"), small, small)
    assert tells(caught.value, "a picture: is 29 x 24 ... needs 31")
