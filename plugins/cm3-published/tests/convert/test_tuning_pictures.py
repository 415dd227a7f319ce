"""The recipes `emu3_5-lora` and `glm-image-lora` on models of two layers: the pictures' loss falls, only adapters are
trained, and a tuned model is opened again with them, and converted back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny_emu3_5
import tiny_glm_image
from cm3apps.cli.main import main
from tuned_pictures import losses, nats, tune, weights, write_pictures

pytest.importorskip("peft", reason="peft is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "recipe", "size", "words"),
    [
        (
            tiny_emu3_5,
            "emu3_5-lora",
            (8, 12),
            "You are a helpful assistant for t2i task. USER: ",
        ),
        (tiny_glm_image, "glm-image-lora", (32, 64), ""),
    ],
)
def test_adapters_learn_pictures(
    tmp_path: Path, module: Any, recipe: str, size: tuple[int, int], words: str
) -> None:
    own = module.converted(tmp_path).folder / "own"
    data = write_pictures(tmp_path / "data", size)
    run = tune(own, recipe, data, tmp_path / "run")
    found = losses(run)
    assert found[-1] < 0.8 * found[0]
    told = [nats(one, data.parent / "1.png", f"{words}a red apple 1") for one in (own, run)]
    assert told[1] < 0.5 * told[0]
    before, after = weights(own), weights(run)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert {name.partition(".weight")[0].rpartition(".")[2] for name in changed} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip  # one name per line is harder to read
    _is_converted_back(run, tmp_path, module)


def _is_converted_back(run: Path, folder: Path, module: Any) -> None:
    """Merged, then in its publisher's format, and converted again, it has the same weights."""
    published = folder / ("GLM-Image" if module is tiny_glm_image else "baai")
    tokenizers = published / "processor" if module is tiny_glm_image else folder / "vision"
    merged, theirs, again = (folder / name for name in ("merged", "theirs", "again"))
    assert main(["adapter", "merge", str(run), "-o", str(merged)]) == 0
    back = ["--to", "hf", "--tokenizer", str(published)]
    assert main(["convert", str(merged), "-o", str(theirs), *back]) == 0
    more = ["--tokenizer", str(tokenizers), *module.SIZE]
    assert main(["convert", str(theirs), "-o", str(again), *more]) == 0
    expected, found = weights(merged), weights(again)
    assert expected.keys() == found.keys()
    assert all(tensor.equal(found[name]) for name, tensor in expected.items())
