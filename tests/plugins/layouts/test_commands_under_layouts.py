"""Every command that generates, on small models with the layouts of Chameleon, Lumina-mGPT and Emu3: through
their tasks, or a refusal that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

import cm3core
from cm3apps.cli.main import main
from cm3core import images
from cm3run.model import Model
from tiny_chameleon import write_cm3

#: A model with Emu3's layout, its ids in a smaller table: 64 codes of squares, texts in bytes.
EMU3 = """
text_tokenizer: {name: byte}
image_tokenizer: {name: patches, resolution: 8, patch_size: 2, codebook_size: 64, weights: codes/model.safetensors}
layout:
  {name: emu3, begin: 300, padding: 301, end: 302, picture_begin: 303, picture_end: 304, picture_start: 305,
   row_end: 306, frame_end: 307, first_code: 308, vocab_size: 372}
objective: {name: causal}
decoder: {name: llama, num_layers: 2, d_model: 32, num_heads: 2, d_ff: 48, context_length: 200, init_std: 0.3}
attention: {name: sdpa}
sampler: {name: cfg, guidance_scale: 3.0}
dataset: {name: folder, path: data, split: all}
data: {max_text_tokens: 60}
generate: {max_text_tokens: 16}
train: {steps: 1, batch_rows: 1, learning_rate: 1.0e-9, validation_splits: [], num_threads: 1}
"""


def emu3(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data = folder / "data"
    data.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        PILImage.fromarray(pixels).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(f"a red apple {number}")
    monkeypatch.chdir(folder)
    (folder / "recipe.yaml").write_text(EMU3)
    codes = ["image_tokenizer.weights=null", "-o", "codes", "--quiet"]
    assert main(["tokenizer", "train-image", "recipe.yaml", *codes]) == 0
    assert main(["train", "recipe.yaml", "-o", "run", "--quiet"]) == 0
    return folder / "run"


@pytest.fixture(scope="module", params=["chameleon", "lumina", "emu3"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a model with each layout."""
    own = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        yield emu3(own, patch) if request.param == "emu3" else write_cm3(own, request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return cm3core.load(folder)


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    path = tmp_path / "shown.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    PILImage.fromarray(pixels).save(path)
    return path


def cm3(folder: Path, command: str, *arguments: Any) -> int:
    return main([command, *map(str, arguments), "--model", str(folder)])


def test_generate(folder: Path, model: Model, tmp_path: Path) -> None:
    assert (
        cm3(folder, "generate", "a red apple", "--n", 2, "--seed", 3, "-o", tmp_path / "out") == 0
    )
    own = model.generate("a red apple", num_images=2, seed=3)
    for number, picture in enumerate(own):
        written = images.open_image(tmp_path / "out" / f"{number:03d}.png")
        assert np.array_equal(written, picture.pixels)
    assert not np.array_equal(own[0].codes.codes, own[1].codes.codes)


def test_caption(folder: Path, model: Model, shown: Path, capsys: Any) -> None:
    """The picture comes first: without sentinels only a document's end can be written."""
    assert cm3(folder, "caption", shown, "--max-tokens", 5) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert model.caption(shown, max_tokens=5).text == model.caption(shown, max_tokens=5).text


def test_ask(folder: Path, model: Model, shown: Path, capsys: Any) -> None:
    tuned = bool(model.tasks.names)
    asked = ("ask", shown, "what is it?", "--max-tokens", 5)
    assert cm3(folder, *asked) == (0 if tuned else 2)
    if not tuned:
        assert "was not tuned for questions" in capsys.readouterr().err
        assert cm3(folder, *asked, "--force") == 0
    # an answer in the text before the picture would need a mask token
    template = ("--template", "{question} {answer}")
    assert cm3(folder, *asked, "--force", *template) == 2
    assert "has no sentinels" in capsys.readouterr().err


def test_edit(folder: Path, model: Model, shown: Path, tmp_path: Path, capsys: Any) -> None:
    asked = ("edit", shown, "now blue", "--n", 1, "-o", tmp_path / "out")
    assert cm3(folder, *asked) == 2
    assert "not tuned for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cm3(folder, *asked, "--force") == 0
    assert images.open_image(tmp_path / "out" / "000.png").shape == (8, 8, 3)


def test_infill_is_refused(
    folder: Path, model: Model, shown: Path, tmp_path: Path, capsys: Any
) -> None:
    where = ("--box", "0,0,4,4", "--text", "a", "-o", tmp_path / "out.png")
    assert cm3(folder, "infill", shown, *where) == 2
    name = model.components.serializer.layout.name
    assert f"but the layout {name!r} has no sentinels" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()
    # but the end of a picture can be drawn
    below = model.continue_image(shown, 4, "a red apple")
    assert np.array_equal(
        below.codes.codes[:8], model.encode([images.open_image(shown)])[0].codes[:8]
    )


def test_chat(folder: Path, model: Model, shown: Path, tmp_path: Path, capsys: Any) -> None:
    """In turns where the layout has them; with Emu3's, one text about the picture, if forced."""
    said = ("--message", "what is it?", "--image", shown, "--max-tokens", 3, "--json")
    out = ("-o", tmp_path / "out")
    if model.components.serializer.layout.has_turns:
        assert cm3(folder, "chat", *said, *out) == 0
        assert json.loads(capsys.readouterr().out)["turns_read"] == 0
        return
    assert cm3(folder, "chat", *said, *out) == 2
    assert "was not tuned for conversations" in capsys.readouterr().err
    assert cm3(folder, "chat", *said, *out, "--force") == 0
    [part] = json.loads(capsys.readouterr().out)["content"]
    assert part["type"] == "text"
