"""The recipe `emu3_5-lora` on an Emu3.5 of two layers: the pictures' loss falls, only adapters are trained, and a tuned
model is opened again with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_emu3_5 import converted
from tuned_pictures import losses, nats, tune, weights, write_pictures

pytest.importorskip("peft", reason="peft is not installed")


def test_adapters_learn_pictures(tmp_path: Path) -> None:
    both = converted(tmp_path)
    data = write_pictures(tmp_path / "data", (8, 12))
    run = tune(both.folder / "own", "emu3_5-lora", data, tmp_path / "run")
    found = losses(run)
    assert found[-1] < 0.8 * found[0]
    own = both.folder / "own"
    told = [nats(model, data.parent / "1.png", "emu3_5_draw") for model in (own, run)]
    assert told[1] < 0.5 * told[0]
    before, after = weights(own), weights(run)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert {name.partition(".weight")[0].rpartition(".")[2] for name in changed} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip  # one name per line is harder to read
