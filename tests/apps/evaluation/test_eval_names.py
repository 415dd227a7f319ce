"""Metrics by name: of a plugin that has the name of a bundled one, and of one that only a plugin has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3apps.cli.main import main
from cm3apps.evaluation.shipped import find_protocol, shipped
from cm3core.errors import PluginError
from cm3core.images import save_png
from cm3core.plugins import Registry, load_registry
from cm3plugins.metrics import KIDConfig
from cm3run.evaluation.protocol import Protocol, measured_name, score_configs
from messages import tells

#: A plugin that has a metric and an extractor with names of bundled ones, and a metric of its own.
PLUGIN = '''
from dataclasses import dataclass

from cm3core.hookspecs import hookimpl
from cm3core.interfaces import Metric, MetricConfig, Score
from cm3plugins.extractors import PixelsConfig

CM3_API = 1


@dataclass(kw_only=True)
class CountConfig(MetricConfig):
    """Counts pictures."""

    def build(self):
        return Count()


class Count(Metric):
    needs = (("pictures",),)

    def __init__(self):
        super().__init__()
        self.num = 0

    def _update(self, group, indices, columns):
        self.num += len(indices)

    def _merge(self, other):
        self.num += other.num

    def _result(self):
        return [Score("count", float(self.num), self.num, True)]


@dataclass(kw_only=True)
class OwnPixels(PixelsConfig):
    """The same pixels."""

    def build(self):
        return PixelsConfig(side=self.side, blur=self.blur).build()


@hookimpl
def cm3_metrics():
    return {"kid": CountConfig, "count": CountConfig}


@hookimpl
def cm3_extractors():
    return {"pixels": OwnPixels}
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "counting.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(scope="module")
def registry(plugin: Path) -> Registry:
    return load_registry([plugin], environ={})


def configs(protocol: Protocol, registry: Registry) -> list[Any]:
    found = []
    for score in protocol.scores:
        if score.get("extractor", {}).get("name") in ("inception", "by_embedder"):
            continue  # takes a file of the user's
        found.append(score_configs(score, registry, protocol.name, protocol.writer))
    return found


@pytest.mark.slow
def test_shipped_protocols_mean_the_bundled_metrics(registry: Registry) -> None:
    """A plugin's names break none of them: they measure as without the plugin."""
    for name in shipped():
        protocol = find_protocol(name)
        assert configs(protocol, registry) == configs(protocol, load_registry(environ={}))


def test_an_unchanged_copy_of_a_shipped_one_means_the_same(
    registry: Registry, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.json"
    copy.write_bytes(shipped()["emoji-comp-v1"].read_bytes())
    assert configs(find_protocol(str(copy)), registry)


def own_protocol(folder: Path, *names: str) -> Protocol:
    values = {
        "format": "cm3 protocol 1",
        "name": "own",
        "title": "",
        "task": {"name": "documents"},
        "scores": [{"metric": {"name": name}} for name in names],
    }
    (folder / "own.json").write_text(json.dumps(values))
    return find_protocol(str(folder / "own.json"))


def test_a_protocol_of_ones_own_names_the_plugin(registry: Registry, tmp_path: Path) -> None:
    protocol = own_protocol(tmp_path, "counting/kid", "bundled/kid", "count")
    theirs, ours, other = [config for config, _ in configs(protocol, registry)]
    assert type(theirs) is type(other) is registry.config_class("metric", "counting/kid")
    assert type(ours) is KIDConfig


def test_a_name_of_two_plugins_is_refused_with_both_spellings(
    registry: Registry, tmp_path: Path
) -> None:
    with pytest.raises(PluginError) as error:
        configs(own_protocol(tmp_path, "kid"), registry)
    assert tells(error.value, "own: metric.name: the metric 'kid' ... bundled/kid")


def test_a_measurement_tells_them_apart(registry: Registry) -> None:
    """cm3leon's own by the bare name, as it always was; others by `plugin/name`, however they are
    written."""
    theirs = registry.config_class("metric", "counting/kid")()
    for name, config, measured in [
        ("kid", KIDConfig(), "kid"),
        ("bundled/kid", KIDConfig(), "kid"),
        ("counting/kid", theirs, "counting/kid"),
        ("count", theirs, "counting/count"),
    ]:
        assert measured_name("metric", name, config, registry) == measured


def test_hashes_of_shipped_protocols_are_unchanged() -> None:
    for name, path in shipped().items():
        protocol = find_protocol(name)
        stored = json.loads(path.read_text())
        assert stored["sha256"] == protocol.sha256


def test_scores_of_folders_name_the_plugin(
    plugin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("made", "real"):
        for number in range(4):
            pixels = np.random.default_rng([number, ord(folder[0])]).integers(0, 256, (8, 8, 3))
            (tmp_path / folder).mkdir(exist_ok=True)
            save_png(tmp_path / folder / f"{number}.png", pixels.astype(np.uint8))
    score = ["eval", "score", str(tmp_path / "made"), str(tmp_path / "real"), "--extractor"]
    keys = ["--set", "metric.subset_size=2", "--set", "metric.num_subsets=2"]
    shown = []
    assert main([*score, "pixels", "--metric", "kid", *keys]) == 0
    shown.append(capsys.readouterr().out)
    own = ["--plugin", str(plugin), *score]
    assert main([*own, "bundled/pixels", "--metric", "bundled/kid", *keys]) == 0
    shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1], "value and hash"
    assert main([*own, "bundled/pixels", "--metric", "kid"]) == 2
    assert "write bundled/kid or counting/kid" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped())
def test_every_shipped_protocol_is_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And printed as the file that it is."""
    assert main(["eval", "show", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: ")
    assert out.count("  metric ") == len(find_protocol(name).scores)
    assert main(["eval", "show", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(shipped()[name].read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"task": {"name": "document"}},
            "protocol: task.name: is 'document'\n  next: did you mean",
        ),
        (
            {"task": {"name": "documents", "splt": "a"}},
            "protocol: task.splt: the task 'documents' ... 'split'",
        ),
        (
            {"scores": [{"metric": {"name": "kidd"}}]},
            "protocol own: scores 0: metric.name ... 'kidd'",
        ),
        (
            {"scores": [{"metric": {"name": "kid", "subset": 3}}]},
            "protocol own: scores 0: metric.subset ... 'kid' ... 'subset'",
        ),
        (
            {"scores": [{"metric": {"name": "kid", "subset_size": 0}}]},
            "metric.subset_size: is 0, must be",
        ),
        ({"sizes": 3}, "own.json: has the unknown key 'sizes'"),
    ],
)
def test_a_wrong_file_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_protocol(tmp_path, "psnr")
    values = json.loads((tmp_path / "own.json").read_text()) | change
    (tmp_path / "own.json").write_text(json.dumps(values))
    assert main(["eval", "show", str(tmp_path / "own.json")]) == 2
    assert tells(capsys.readouterr().err, f"... {message}")


def pictures(folder: Path, *seeds: int, side: int = 16, names: str = "abc") -> Path:
    folder.mkdir()
    for name, seed in zip(names, seeds, strict=False):
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3))
        save_png(folder / f"{name}.png", pixels.astype(np.uint8))
    return folder


def test_pictures_are_scored_against_those_of_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plugin: Path
) -> None:
    made, real = pictures(tmp_path / "made", 1, 2, 3), pictures(tmp_path / "real", 4, 5, 6)
    from cm3core.images import open_image

    errors = [
        np.mean(
            (open_image(made / f"{name}.png") - open_image(real / f"{name}.png").astype(float)) ** 2
        )
        for name in "abc"
    ]
    wanted = np.mean([10 * np.log10(255**2 / error) for error in errors])
    assert main(["eval", "score", str(made), str(real), "--metric", "psnr"]) == 0
    name, value, *_ = capsys.readouterr().out.split()
    assert (name, float(value)) == ("psnr", pytest.approx(wanted, rel=1e-4))
    assert main(["eval", "score", str(made), str(real), "--metric", "ssim"]) == 0
    assert capsys.readouterr().out.startswith("ssim")
    # a metric that reads one folder only needs no other
    assert main(["--plugin", str(plugin), "eval", "score", str(made), "--metric", "count"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["count", "3"]


@pytest.mark.parametrize(
    ("others", "options", "message"),
    [
        ({"names": "abd"}, [], "c.png: has no counterpart in "),
        ({"side": 8}, [], "a.png: is 16 x 16 pixels, "),
        ({}, ["--extractor", "pixels"], "reads pictures, not their features"),
    ],
)
def test_pictures_that_are_not_pairs_are_refused(
    others: dict[str, Any],
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made, real = (
        pictures(tmp_path / "made", 1, 2, 3),
        pictures(tmp_path / "real", 4, 5, 6, **others),
    )
    assert main(["eval", "score", str(made), str(real), "--metric", "psnr", *options]) == 2
    assert message in capsys.readouterr().err
