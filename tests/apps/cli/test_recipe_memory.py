"""`cm3 recipe memory`: arithmetic by hand, refusals, and what is not known."""

from __future__ import annotations

import re

import pytest

from cm3apps.cli.main import main
from cm3core.plugins.discovery import load_registry
from cm3core.recipe import compose
from cm3run.training.memory import training_memory
from messages import tells

#: cm3leon-7b: 32 layers of 12 * 4,096^2, a table of 66,176 ids and 4,096 positions.
LAYER, TABLES = 12 * 4096**2, (66_176 + 4_096) * 4096
PARAMETERS = 32 * LAYER + TABLES


def rows(text: str) -> list[tuple[str, float]]:
    found = re.findall(r"^  (\S.*?) +([\d,]+\.\d\d)$", text, re.MULTILINE)
    return [(name, float(value.replace(",", ""))) for name, value in found]


def test_the_7b_model_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """AdamW: 16 bytes a parameter, an eighth each. Generation: 4 + 2 bytes a parameter, and 2 x 4,096
    tokens of a key and a value of 4,096 numbers in 2 bytes, in 32 layers."""
    assert main(["recipe", "memory", "cm3leon-7b", "--devices", "8", "--gb", "1000"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "cm3leon-7b on 8 GPUs, bf16 products; GB (10^9 bytes) on each\ntraining\n"
    )
    assert tells(out, "... note: computed, not measured; torchrun ... --shard 8 ... CPUs")
    table = rows(out)
    assert table[:3] == [
        ("weights, fp32, 1/8", round(4 * PARAMETERS / 8e9, 2)),
        ("gradients, 1/8", round(4 * PARAMETERS / 8e9, 2)),
        ("adamw's state, 1/8", round(8 * PARAMETERS / 8e9, 2)),
    ]
    assert table[3][0] == "activations, gathered weights (4 x 4,096 tokens)"
    assert table[4] == ("in all", pytest.approx(sum(value for _, value in table[:4]), abs=0.03))
    cache = 2 * 2 * 4096 * 32 * 4096 * 2
    assert table[5:] == [
        ("weights, bf16", round(2 * PARAMETERS / 1e9, 2)),
        ("keys and values (2 x 4,096 tokens)", round(cache / 1e9, 2)),
        ("in all", round((2 * PARAMETERS + cache) / 1e9, 2)),
    ]
    assert main(["recipe", "memory", "cm3leon-7b", "--on", "cpu", "--gb", "1000"]) == 0
    assert rows(capsys.readouterr().out)[-4:-2] == [
        ("weights, fp32", round(4 * PARAMETERS / 1e9, 2)),
        ("their copy in 32 bits", round(4 * PARAMETERS / 1e9, 2)),
    ]


def test_the_7b_recipe_fits_eight_of_80_gb(capsys: pytest.CaptureFixture[str]) -> None:
    """As it is shipped; with all activations kept it would not."""
    eight = ["recipe", "memory", "cm3leon-7b", "--on", "gpu", "--devices", "8", "--gb", "80"]
    assert main(eight) == 0
    assert dict(rows(capsys.readouterr().out.partition("generation")[0]))["in all"] < 60
    assert main([*eight, "decoder.activation_checkpointing=false"]) == 2


def test_what_is_gathered_is_two_blocks_and_the_tables() -> None:
    """With gradients and what is summed of them; one device holds bf16 copies of everything instead."""
    recipe = compose("cm3leon-7b", registry=load_registry())
    one, eight = (
        training_memory(recipe, bf16=True, on_cpu=False, devices=number) for number in (1, 8)
    )
    assert one is not None
    assert eight is not None
    assert one.activations - eight.activations == 2 * PARAMETERS - 10 * (2 * LAYER + TABLES)


def test_what_can_t_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """16 bytes a parameter alone are more than 80 GB."""
    assert main(["recipe", "memory", "cm3leon-7b", "--on", "gpu", "--gb", "80"]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"error: recipe cm3leon-7b: training takes about [\d.]+ GB on the device, and a device has "
        r"80\.00 GB\n  next: lower .*, or divide it among more devices \(--devices\)\n",
        error,
    ), error
    assert main(["recipe", "memory", "cm3leon-7b", "--devices", "8", "--gb", "8"]) == 2
    assert "on each of 8 devices, and a device has 8.00 GB" in capsys.readouterr().err


def test_on_a_cpu_the_program_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "memory", "tiny", "--on", "cpu", "train.precision=fp32"]) == 0
    table = dict(rows(capsys.readouterr().out.partition("generation")[0]))
    estimate = training_memory(compose("tiny", ["train.precision=fp32"], registry=load_registry()))
    assert estimate is not None
    assert table["in all"] == round(estimate.total() / 1e9, 2)
    assert table["program and data"] == round(estimate.program / 1e9, 2)


def test_a_recipe_without_a_decoder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "memory", "tokenizer-emoji64", "--gb", "8", "--on", "gpu"]) == 2
    assert "its memory is unknown" in capsys.readouterr().err
