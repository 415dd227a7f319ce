"""`--device` and `--precision`: which commands take them, and that the device is the whole command's."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cm3apps.cli import _data_encode, _memory_build, _training, kinds
from cm3apps.cli.commands import COMMANDS
from cm3apps.cli.main import main
from cm3core import images
from cm3core.errors import RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3run import devices
from cm3run.devices import choose_device, default_device
from messages import tells

#: Commands that run no network on a device: they read, write, compare, search or count.
NO_NETWORK = {
    "adapter merge",
    "export",
    "tokenizer train-text",
    "data validate",
    "data show",
    "data export",
    "icons build",
    "memory remove",
    "memory merge",
    "memory stat",
    "provenance",
    "task list",
    "task show",
    "recipe list",
    "recipe show",
    "recipe check",
    "recipe memory",
    "recipe diff",
    "recipe hash",
    "recipe schema",
    "kinds",
    "describe",
    "completion",
    "plugin list",
    "plugin new",
    "plugin check",
    "convert",
    "eval compare",
    "eval table",
    "bench compare",
    "bench shards",
    "postgres init",
    "postgres index",
    "postgres push",
    "postgres pull",
    "postgres remove",
    "postgres stat",
    "eval card",
    "eval protocols",
    "eval show",
    "eval prompts",
    "eval export",
    "eval import",
    "bench retrieval",
}
#: Networks of metrics run on the CPU, and what measures its time.
ON_THE_CPU = {"eval score", "bench metrics", "bench first-picture"}
#: These run networks whose precision is their own, or measure all of them.
OWN_PRECISION = {
    "tokenizer eval",
    "upscale",
    "upscaler eval",
    "data encode",
    "memory build",
    "memory add",
    "memory recall",
    "bench kernels",
    "bench precision",
    "sweep",
}


def commands() -> Iterator[tuple[str, set[str]]]:
    """Every command and action, with its options."""
    registry = load_registry()
    for name in sorted({*COMMANDS, *registry.commands()}):
        module = COMMANDS.get(name, ("", ""))[0]
        parser = argparse.ArgumentParser()
        configure = importlib.import_module(module).configure if module else registry.command(name)
        assert configure is not None
        configure(parser)
        yield from leaves(name, parser)


def leaves(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, set[str]]]:
    groups = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    for group in groups:
        for action, inner in group.choices.items():
            yield from leaves(f"{name} {action}", inner)
    if not groups:
        yield name, {text for one in parser._actions for text in one.option_strings}


def test_every_command_that_runs_a_network_takes_a_device_and_a_precision():
    found = dict(commands())
    assert found.keys() >= NO_NETWORK | ON_THE_CPU | OWN_PRECISION, "one of them is gone"
    without = {name for name, options in found.items() if "--device" not in options}
    assert without == NO_NETWORK | ON_THE_CPU
    imprecise = {name for name, options in found.items() if "--precision" not in options}
    assert imprecise == NO_NETWORK | ON_THE_CPU | OWN_PRECISION


def test_the_device_of_a_command_is_that_of_all_it_does(monkeypatch):
    seen = []

    def configure(parser):
        parser.add_argument("--device")

    monkeypatch.setattr(kinds, "configure", configure)
    monkeypatch.setattr(kinds, "run", lambda args: seen.append(str(choose_device(None))) or 0)
    assert main(["kinds", "--device", "meta"]) == 2  # it can't compute
    monkeypatch.setattr(devices.torch, "ones", lambda *_, device: devices.torch.zeros(1))
    assert main(["kinds", "--device", "cuda:1"]) == 0
    assert main(["kinds"]) == 0
    assert seen == ["cuda:1", "cpu"]


@pytest.mark.slow
def test_a_device_that_is_not_there(capsys):
    for command in (
        ["tokenizer", "eval", "quickstart", "--num", "1"],
        ["bench", "precision"],
    ):
        assert main([*command, "--device", "cuda:7"]) == 2
        assert "error: device 'cuda:7': can't be used here (" in capsys.readouterr().err


def test_a_named_device_comes_before_that_of_the_command():
    with default_device("cuda:7"):
        assert choose_device("cpu").type == "cpu"
    with default_device("cpu"):
        assert choose_device(None).type == "cpu"


def test_the_precision_of_what_trains_a_component():
    recipe = compose("tokenizer-emoji64", [], registry=load_registry())
    assert recipe.image_tokenizer is not None
    config = _training.with_precision(recipe.image_tokenizer, "bf16")
    assert config.training.precision == "bfloat16"
    assert _training.with_precision(recipe.image_tokenizer, None) is recipe.image_tokenizer
    with pytest.raises(RecipeError) as caught:
        _training.with_precision(recipe.image_tokenizer, "auto")
    assert tells(caught.value, "--precision auto: VQGANConfig trains in")
    with pytest.raises(RecipeError) as caught:
        _training.with_precision(recipe.text_tokenizer, "bf16")
    assert "trains in a precision of its own\n  next: leave it out" in str(caught.value)


def test_processes_that_share_work_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all the first: those of `cm3 data encode` and of `cm3 memory build`."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    parser = argparse.ArgumentParser()
    _data_encode.configure(parser)
    args = parser.parse_args(["-o", "out"])
    args.plugin, args.target, args.overrides = [], "tiny", []
    command = _data_encode._command(args, 0, 4, 3)
    assert command[command.index("--device") + 1] == "cuda:3"

    parser = argparse.ArgumentParser()
    _memory_build.configure(parser)
    args = parser.parse_args(["tiny", "-o", "out"])
    args.plugin = []
    sent = io.BytesIO()
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: argparse.Namespace(stdin=sent))
    _memory_build._start(args, 2)
    assert json.loads(sent.getvalue())["device"] == "cuda:2"


@pytest.mark.parametrize("options", [[], ["--upscaler", "edsr"]])
def test_upscale_runs_on_the_named_gpu(
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cm3plugins.upscalers.edsr import upscaler

    asked: list[object] = []

    def pretended(device: object) -> torch.device:
        asked.append(device)
        return torch.device("cpu")

    images.save_png(tmp_path / "small.png", np.zeros((8, 8, 3), np.uint8))
    command = ["upscale", str(tmp_path / "small.png"), *options, "-o", str(tmp_path / "large.png")]
    assert main([*command, "--device", "cuda:99"]) == 2
    assert "error: device 'cuda:99': can't be used here (" in capsys.readouterr().err
    monkeypatch.setattr(upscaler, "choose_device", pretended)
    assert main([*command, "--device", "cuda:1"]) == 0
    assert asked == ["cuda:1"]
    assert main([*command, "--device", "second"]) == 2
    assert tells(capsys.readouterr().err, "error: upscaler.device: is 'second'")


def test_keys_of_devices_name_any_gpu() -> None:
    registry = load_registry()
    clip = ["embedder=clip", "embedder.path=here"]
    vqgan = ["image_tokenizer=vqgan"]
    for own, key in ((clip, "embedder.device"), (vqgan, "image_tokenizer.training.device")):
        compose("quickstart", [*own, f"{key}=cuda:1"], registry=registry).check()
        with pytest.raises(RecipeError) as caught:
            compose("quickstart", [*own, f"{key}=second"], registry=registry).check()
        assert tells(caught.value, f"{key}: is 'second' ... use auto, cpu, cuda, or cuda:1")
