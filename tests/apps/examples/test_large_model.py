"""examples/large_model: weights of a small size are written, converted and measured, by both ways."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from cm3apps.cli.main import main

EXAMPLE = Path(__file__).parents[3] / "examples" / "large_model"


@pytest.mark.slow
def test_weights_are_made_converted_and_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    make_weights, measure = (importlib.import_module(name) for name in ("make_weights", "measure"))
    folder = tmp_path / "small"
    sizes = ["--layers", "2", "--width", "64", "--heads", "2", "--d-ff", "96"]
    monkeypatch.setattr(make_weights, "FILE_BYTES", 900_000)
    assert make_weights.main(["-o", str(folder), *sizes]) == 0
    index = json.loads((folder / "hf" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    tokenizer = ["--tokenizer", str(folder / "tokenizer")]
    assert (
        main(["convert", str(folder / "hf"), "-o", str(folder / "own"), "--to", "cm3", *tokenizer])
        == 0
    )
    capsys.readouterr()
    threads = torch.get_num_threads()
    runs = ["theirs", "bf16", "stored", "int8", "int4"]
    options = ["--together", "--rounds", "1", "--tokens", "2", "--threads", "1", "--runs", *runs]
    try:
        assert measure.main([str(folder), *options]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["run"] for line in lines] == runs
    for line in lines:
        assert min(line["text"], line["picture"], line["of_floor"]) >= 0
    for name in ("make_weights", "measure"):
        sys.modules.pop(name)
