"""The recipes `chameleon-lora` and `chameleon-head` on a Chameleon of two layers: what is trained, that
losses are finite, that the result converses, and that it is converted back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file
from torch import Tensor
from transformers import ChameleonForConditionalGeneration

import cm3core
from cm3apps.cli.main import main
from cm3core.document import Text
from tiny_chameleon import NUM_CODES, write_cm3

CODES = slice(4, 4 + NUM_CODES)
QUICK = ("train.steps=3", "train.accumulate=1", "train.warmup_steps=0", "dataset.split=all")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`own`, `hf` and data: conversations with pictures on both sides, and captioned pictures."""
    folder = tmp_path_factory.mktemp("tuning")
    write_cm3(folder)
    for number in range(4):
        PILImage.new("RGB", (8, 8), (60 * number, 0, 99)).save(folder / f"{number}.png")
    talks = [
        {
            "id": str(number),
            "image": [f"{number}.png", f"{(number + 1) % 4}.png"],
            "conversations": [
                {"from": "human", "value": "<image>\nwhat is in the picture?"},
                {"from": "gpt", "value": "a red apple"},
                {"from": "human", "value": "on a table"},
                {"from": "gpt", "value": "here:\n<image>"},
            ],
        }
        for number in range(4)
    ]
    (folder / "talks.json").write_text(json.dumps(talks))
    lines = [{"image": f"{number}.png", "text": f"a red apple {number}"} for number in range(4)]
    (folder / "pictures.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def tuned(folder: Path, method: str, data: str, *overrides: str) -> Path:
    """The run of a recipe."""
    out = folder / f"run-{method}-{overrides[0]}" if overrides else folder / f"run-{method}"
    given = [f"dataset.path={folder / data}", *QUICK, *overrides]
    recipe = f"chameleon-{method}"
    assert main(["tune", str(folder / "own"), recipe, *given, "-o", str(out), "--quiet"]) == 0
    return out


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        value
        for row in rows
        for key, value in row.items()
        if "loss" in key or key in ("train/image", "train/text")
    ]


def weights(model: Path) -> dict[str, Tensor]:
    parameters = cm3core.load(model).components.decoder.module.named_parameters()
    return {name: parameter.detach().clone() for name, parameter in parameters}


def test_the_loss_of_transformers_is_infinite(folder: Path) -> None:
    """Why these models are not tuned there: image codes have the smallest logit there is."""
    theirs = ChameleonForConditionalGeneration.from_pretrained(folder / "hf").eval()
    ids = torch.tensor([[0, 5, 6, 7]])
    assert not math.isfinite(theirs(ids, labels=ids).loss.item())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_conversations_are_tuned_on(folder: Path, tmp_path: Path, method: str, capsys: Any) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    full = ["tune.method=full"] if method == "full" else []
    rank = [] if full else ["tune.rank=2"]
    run = tuned(folder, "lora", "talks.json", *full, *rank)
    found = losses(run)
    assert found
    assert all(math.isfinite(one) and one < 50 for one in found)
    before, after = weights(folder / "own"), weights(run)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "layers.0.q_proj.weight" in changed
    assert ("embed_tokens.weight" in changed) == bool(full)
    talk = ["--message", "what is in the picture?", "--image", str(folder / "0.png")]
    options = ["--max-tokens", "3", "--json", "-o", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(["chat", "--model", str(run), *talk, *options]) == 0
    assert json.loads(capsys.readouterr().out)["content"]
    if not full:
        assert main(["convert", str(run), "-o", str(tmp_path / "no")]) == 2
        assert "holds an adapter, but converting needs complete weights" in capsys.readouterr().err
        merged = tmp_path / "merged"
        assert main(["adapter", "merge", str(run), "-o", str(merged)]) == 0
        run = merged
    _is_converted_back(run, after, tmp_path)


def _is_converted_back(model: Path, own: dict[str, Tensor], folder: Path) -> None:
    """transformers computes what the tuned model does, and so does Meta's form, converted twice."""
    theirs = folder / "theirs"
    assert main(["convert", str(model), "-o", str(theirs)]) == 0
    network = ChameleonForConditionalGeneration.from_pretrained(theirs).eval()
    ids = torch.tensor([[0, *range(40, 60)]])
    decoder = cm3core.load(model).components.decoder.for_inference("fp32")
    cache = decoder.allocate_cache(1, ids.shape[1])
    with torch.no_grad():
        expected = network.lm_head(network.model(ids).last_hidden_state)[0]
        logits = decoder.logits(decoder.hidden_states(ids, cache=cache)[0]).float()
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.slow
def test_only_rows_of_image_codes_are_tuned(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """Anole's: the head's rows of codes, nothing else; the request is no part of the loss."""
    run = tuned(folder, "head", "pictures.jsonl")
    assert all(math.isfinite(one) and one < 50 for one in losses(run))
    before, after = weights(folder / "own"), weights(run)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["embed_output.weight"]
    rows = (before[changed[0]] != after[changed[0]]).any(dim=1)
    assert rows[CODES].all()
    rows[CODES] = False
    assert not rows.any()
    [picture] = cm3core.load(run).generate("a red apple", num_images=1, seed=1)
    assert picture.pixels.shape == (8, 8, 3)
    _is_converted_back(run, after, tmp_path)


def test_a_converted_model_is_converted_back(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """Bit by bit, in both of the publishers' forms."""
    own = str(folder / "own")
    assert main(["convert", own, "-o", str(tmp_path / "hf"), "--to", "hf"]) == 0
    theirs, again = (
        load_file(one / "model.safetensors") for one in (folder / "hf", tmp_path / "hf")
    )
    kept = {name: tensor for name, tensor in theirs.items() if "vqmodel" not in name}
    assert kept.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in kept.items())
    assert main(["convert", own, "-o", str(tmp_path / "no"), "--to", "cm3"]) == 2
    assert "--to cm3" in capsys.readouterr().err
    # Meta's form has one norm for the heads of a file, and these differ
    assert main(["convert", own, "-o", str(tmp_path / "meta"), "--to", "meta"]) == 2
    assert "has different values for each head" in capsys.readouterr().err


def test_other_models_are_not_converted(tmp_path: Path, capsys: Any) -> None:
    from cm3run.checkpoint import bundled_models

    model = bundled_models()["bundled:emoji64"]
    assert main(["convert", str(model), "-o", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert "recipe.yaml: decoder is" in shown
    assert "convert a model created from Chameleon's weights" in shown
    assert not (tmp_path / "out").exists()


def test_marked_turns_are_the_layouts(folder: Path) -> None:
    """The first of the data set's documents, as ids: nothing but turn ends between turns."""
    from cm3plugins.datasets.conversations import ConversationsConfig

    config = ConversationsConfig(path=str(folder / "talks.json"), turns="marked", split="all")
    assert config.has_turns
    document = config.build().document(0)
    model = cm3core.load(folder / "own")
    coded = model.coded(document)
    parts = model.components.serializer
    written, codes = (
        parts.text_tokenizer.encode,
        [one for one in coded if not isinstance(one, Text)],
    )
    pictures = [[29, *(4 + one.codes).tolist(), 28] for one in codes]
    end = parts.layout.end[0]
    assert parts.sequence(coded).tokens.tolist() == [
        *(0, *pictures[0], *written("what is in the picture?"), end, *written("a red apple"), end),
        *(*written("on a table"), end, *written("here:"), *pictures[1], end),
    ]
    assert np.all([one.starts_turn for one in coded] == [1, 0, 1, 1, 1, 0])
