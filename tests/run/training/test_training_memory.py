"""The estimate of training's memory: its parts, refusals before any work, and real runs."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cm3apps.cli.main import main
from cm3core.errors import DeviceError, RecipeError
from cm3core.plugins.discovery import load_registry
from cm3core.recipe import Recipe, compose
from cm3run.machine_memory import MachineMemory
from cm3run.training import loop
from cm3run.training.memory import check_training_fits, training_memory

GB = 10**9


def recipe(*overrides: str, name: str = "tiny") -> Recipe:
    return compose(name, list(overrides), registry=load_registry())


def test_the_parts_of_the_paper_s_350m_model() -> None:
    paper = recipe("train.batch_rows=1", "train.precision=fp32", name="cm3leon-350m")
    estimate = training_memory(paper)
    assert estimate is not None
    assert estimate.decoder is not None
    number = estimate.decoder.matrix_parameters + estimate.decoder.other_parameters
    assert (estimate.weights, estimate.gradients) == (4 * number, 4 * number)
    assert estimate.optimizer == 8 * number
    assert 5 * GB < estimate.activations < 9 * GB
    assert estimate.total() - estimate.total(on_cpu=False) == estimate.program


@pytest.mark.parametrize(
    ("override", "least", "most"),
    [
        ("train.batch_rows=8", 1.7, 2.0),
        ("decoder.num_layers=24", 1.5, 2.0),
        ("decoder.activation_checkpointing=true", 0.1, 0.5),
        ("attention=reference", 1.3, 3.0),
    ],
)
def test_what_changes_activations(override: str, least: float, most: float) -> None:
    values = {"decoder.d_model": 128, "decoder.num_layers": 12, "train.batch_rows": 4}
    key, value = override.split("=")
    before, after = (
        training_memory(recipe(*(f"{name}={one}" for name, one in chosen.items())))
        for chosen in (values, {**values, key: value})
    )
    assert before is not None
    assert after is not None
    assert least < after.activations / before.activations <= most


def test_muon_keeps_half_of_adamw_s_state_for_matrices() -> None:
    adamw, muon = (
        training_memory(
            recipe("decoder.d_model=512", "train.batch_rows=64", f"train.optimizer={name}")
        )
        for name in ("adamw", "muon")
    )
    assert adamw is not None
    assert muon is not None
    assert muon.decoder is not None
    assert adamw.optimizer - muon.optimizer == 4 * muon.decoder.matrix_parameters


def test_refused_warned_or_passed() -> None:
    tiny = recipe("train.batch_rows=64")
    estimate = training_memory(tiny)
    assert estimate is not None
    needed = estimate.total()
    assert check_training_fits(tiny, MachineMemory(2 * needed, "this machine")) is None
    swapping = MachineMemory(needed - 1, "this machine", swap=GB)
    assert "will swap" in (check_training_fits(tiny, swapping) or "")
    busy = MachineMemory(2 * needed, "this machine", free=needed // 2)
    assert "free now" in (check_training_fits(tiny, busy) or "")
    with pytest.raises(RecipeError) as caught:
        check_training_fits(tiny, MachineMemory(needed - 1, "this machine"))
    text = str(caught.value)
    for part in (
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "program and data",
        "this machine has",
        "train.batch_rows (now 64",
        "decoder.context_length",
        "activation_checkpointing=true",
        "CM3_MEMORY_GB",
    ):
        assert part in text
    with pytest.raises(RecipeError, match=r"lower decoder\.num_layers, decoder\.d_model"):
        check_training_fits(
            recipe("decoder.d_model=4096", "decoder.num_layers=16", "train.batch_rows=1"),
            MachineMemory(GB, "this machine"),
        )


def test_training_refuses_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CM3_MEMORY_GB", "8")
    out = ["-o", str(tmp_path / "run")]
    assert main(["train", "tiny", "train.batch_rows=100000", *out]) == 2
    shown = capsys.readouterr()
    assert "error: recipe tiny: training takes about" in shown.err
    assert "CM3_MEMORY_GB has 8.00 GB" in shown.err
    assert not (tmp_path / "run").exists()


def test_a_recipe_for_a_larger_machine_is_valid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CM3_MEMORY_GB", "8")
    codes = ["dataset=emoji", "image_tokenizer.train_minutes=600"]
    assert main(["recipe", "check", "cm3leon-350m", *codes]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("cm3leon-350m: valid (hash ")
    assert re.search(r"\ntraining takes about \d\d\.\d\d GB \(weights 1\.50, ", shown.out)
    assert re.search(
        r"  no   train, resume: this machine can't: training takes about \d\d\.\d\d GB \(.*\), but "
        r"CM3_MEMORY_GB has 8\.00 GB; lower train\.batch_rows .*; or set CM3_MEMORY_GB to the number of GB of the "
        r"machine that will train it\n",
        shown.out,
    )
    assert main(["recipe", "check", "cm3leon-350m", *codes, "decoder.num_heads=7"]) == 2
    wrong = capsys.readouterr()
    assert wrong.out == ""
    assert wrong.err.startswith("error: ")
    monkeypatch.setenv("CM3_MEMORY_GB", "1000")
    assert main(["recipe", "check", "tiny"]) == 0
    fits = capsys.readouterr()
    assert re.search(r"training takes about 0\.\d\d GB \(weights 0\.00", fits.out)
    assert fits.err == ""


@pytest.mark.slow
def test_memory_refused_in_the_middle_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        torch.empty(1 << 55, dtype=torch.uint8)
        return 0

    monkeypatch.setattr(loop, "_step", refuse)
    registry = load_registry()
    with pytest.raises(DeviceError, match="training: does not fit into memory"):
        loop.train(recipe("train.steps=1"), tmp_path / "run", registry, progress=False)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS")
def test_a_limit_on_address_space_is_a_limit() -> None:
    shown = subprocess.run(
        [
            *(sys.executable, "-m", "cm3apps.cli.main", "recipe", "check", "cm3leon-350m"),
            *("dataset=emoji", "image_tokenizer.train_minutes=600"),
        ],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)),
    )
    assert shown.returncode == 0
    assert "train, resume: this machine can't: training takes about" in shown.stdout
    assert "the limit on address space (ulimit -v) has 8.59 GB" in shown.stdout
    assert "Traceback" not in shown.stderr


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ru_maxrss in KiB")
@pytest.mark.parametrize(
    "overrides",
    [
        ("train.batch_rows=32",),
        (
            "train.batch_rows=1",
            "decoder.d_model=768",
            "decoder.num_heads=12",
            "decoder.num_layers=4",
        ),
    ],
)
def test_the_estimate_is_what_a_run_takes(overrides: tuple[str, ...], tmp_path: Path) -> None:
    own = [*overrides, "train.precision=fp32", "train.steps=3", "train.validation_splits=[]"]
    estimate = training_memory(recipe(*own))
    assert estimate is not None
    shown = subprocess.run(
        [sys.executable, "-m", "cm3apps.cli.main", "train", "tiny", "-o", str(tmp_path), *own],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.search(r"peak memory ([\d.]+) GiB", shown)
    assert found is not None
    assert 0.9 < estimate.total() / (float(found[1]) * 2**30) < 1.3
