"""Cards of models: written from stored results, refused for other weights, and the bundled ones up to date."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from cm3apps.cli.main import main
from cm3apps.evaluation.card import check_card
from cm3apps.evaluation.card_text import (
    Evaluated,
    ModelFacts,
    Stated,
    card_text,
    facts_of,
    mark,
    marked_weights,
    read_result,
)
from cm3core.errors import DataError
from cm3core.files import user_path
from cm3core.images import open_image, save_png
from cm3core.plugins import load_registry
from cm3run.checkpoint import bundled_models, find_model
from cm3run.model import load
from messages import tells

REGISTRY = load_registry()
WEIGHTS = "ab" * 32
SCORE = {
    "name": "judge_r1-lite1",
    "value": 40.0,
    "spread": 13.1,
    "num": 3,
    "higher_is_better": True,
    "hash": "0123456789ab",
    "measurement": {"metric": {"name": "judge"}},
    "beside": {"real": 100.0, "copied": 33.333},
}


def facts(**changed: Any) -> ModelFacts:
    row = {"licence": "MIT", "source": "npm <b>", "attribution": "me | you", "documents": 7}
    given: dict[str, Any] = {
        "name": "runs/mine",
        "recipe": "icons",
        "recipe_hash": "f00",
        "weights_sha256": WEIGHTS,
        "components": {"decoder": "cm3leon"},
        "num_parameters": 1000,
        "num_bytes": 4_400_000,
        "image_size": (64, 64),
        "num_codes": 64,
        "codebook_size": 4096,
        "context_length": 512,
        "max_text_tokens": 32,
        "steps": 10,
        "tokens": 5000,
        "seconds": 7200.0,
        "tasks": (),
        "data_set": "icons",
        "split": "train",
        "trained_on": [row],
        "retrieves_from": [row],
    }
    return ModelFacts(**(given | changed))


def evaluation(folder: Path, weights: str = WEIGHTS, **changed: Any) -> Path:
    """A finished evaluation of three pictures."""
    for place in range(3):
        save_png(folder / "pictures" / f"{place:06d}.png", np.full((8, 8, 3), 80 * place, np.uint8))
    rows = [
        {"index": i, "prompt": f"thing {i}", "picture": f"pictures/{i:06d}.png"} for i in range(3)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "format": "cm3 scores 1",
        "protocol": {"name": "toy-v1", "sha256": "c0ffee" * 10},
        "measurement": {},
        "model": {
            "weights_sha256": weights,
            "sampler": {"name": "cfg", "temperature": 0.5},
            "num_retrieved": 1,
            "memory_split": "train",
        },
        "leakage": {},
        "scores": [SCORE, {"name": "fid", "skipped": "no file"}],
    }
    (folder / "scores.json").write_text(json.dumps(values | changed))
    return folder


def text_of(*results: Evaluated, **changed: Any) -> str:
    given: dict[str, Any] = {
        "licence": "MIT",
        "machine": "a laptop",
        "notes": "- Draws cats badly.",
        "command": "cm3",
    }
    sheets = {"toy-v1": "CARD toy.png"}
    own = {key: changed.pop(key) for key in ("licence", "machine") if key in changed}
    return card_text(facts(**changed), results, sheets, Stated(**(given | own)))


def test_what_a_card_says(tmp_path: Path) -> None:
    text = text_of(read_result(evaluation(tmp_path / "a"), WEIGHTS))
    head = yaml.safe_load(text.split("---")[1])
    assert head == {"license": "mit", "library_name": "cm3leon", "pipeline_tag": "text-to-image"}
    assert marked_weights(text) == WEIGHTS
    for line in (
        "| `judge_r1-lite1` | 40 \u00b1 13 | higher | real 100, copied 33.33 | `0123456789ab` |",
        "| `fid` | n/a |  | no file |  |",
        "Protocol `toy-v1#c0ffeec0ffee`: `cm3 eval run runs/mine toy-v1 --memory-split train`;",
        "sampler `cfg`, temperature 0.5, 1 document prepended.",
        "| 7 | MIT | npm &#60;b&#62; | me &#124; you |",
        "10 steps, 5,000 tokens, 2.0 hours on a laptop; about 3.0e+07 floating-point",
        "![the first pictures of toy-v1](CARD%20toy.png)",
        "It retrieves from the same documents.",
        "- It was not tuned: it draws, captions and inpaints, and neither edits by instruction nor answers questions.",
        "- Draws cats badly.",
    ):
        assert line in text.splitlines(), line


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (
            "eval run runs/old my/own.json --num-retrieved 2 --memory-split train -o out --device cpu",
            "cm3 eval run runs/mine my/own.json --num-retrieved 2 --memory-split train",
        ),
        (
            "eval --temperature=0.50 m toy-v1 --allow-leaks --label x --plugin a.py -v --threads 2",
            "cm3 --plugin a.py eval run runs/mine toy-v1 --temperature 0.5 --allow-leaks",
        ),
        (
            "eval run m toy-v1 --precision auto --candidates 4",
            "cm3 eval run runs/mine toy-v1 --candidates 4",
        ),
        ("eval m 'my own.json'", "cm3 eval run runs/mine 'my own.json'"),
        # not of an evaluation of a model: what is known otherwise is said
        ("-q tests/apps", "cm3 eval run runs/mine toy-v1 --memory-split train"),
        ("eval run toy-v1 --from x", "cm3 eval run runs/mine toy-v1 --memory-split train"),
        ("eval card m x", "cm3 eval run runs/mine toy-v1 --memory-split train"),
    ],
)
def test_the_command_of_a_card_can_be_repeated(
    tmp_path: Path, arguments: str, command: str
) -> None:
    folder = evaluation(tmp_path / "a")
    (folder / "environment.json").write_text(json.dumps({"arguments": shlex.split(arguments)}))
    text = text_of(read_result(folder, WEIGHTS))
    assert f"Protocol `toy-v1#c0ffeec0ffee`: `{command}`;" in text.splitlines()


@pytest.mark.parametrize("damaged", ["{", "[]", '{"arguments": 3}', '{"arguments": [[]]}'])
def test_a_damaged_environment_spoils_no_card(tmp_path: Path, damaged: str) -> None:
    folder = evaluation(tmp_path / "a")
    (folder / "environment.json").write_text(damaged)
    assert "`cm3 eval run runs/mine toy-v1 " in text_of(read_result(folder, WEIGHTS))


def test_what_is_not_known_is_said() -> None:
    text = text_of(licence=None, machine=None, retrieves_from=[], tasks=("edit",))
    assert "license" not in text.split("---")[1]
    assert "None were given to the command that wrote this card." in text
    assert "on a machine that was not stated;" in text
    assert "| licence of the weights | not stated |" in text
    assert "It retrieves nothing." in text
    assert "It was not tuned" not in text


def test_many_sources_are_summed_up() -> None:
    rows = [{"licence": f"L{i % 2}", "source": str(i), "documents": 1} for i in range(70)]
    text = text_of(trained_on=rows, retrieves_from=[])
    assert "| 10 | L0, L1 | 10 more sources |  |" in text
    assert "Trained on 70 documents" in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "scores.json").unlink(), "holds no scores.json"),
        (lambda f: (f / "scores.json").write_text("{"), "is not of the format 'cm3 scores 1'"),
        (lambda f: (f / "samples.jsonl").write_text("[]"), "samples.jsonl: is missing or damaged"),
        (
            lambda f: (f / "samples.jsonl").write_text('{"prompt": "a", "picture": "../x.png"}'),
            "samples.jsonl: is missing or damaged",
        ),
        (
            lambda f: evaluation(f, "cd" * 32),
            "is of the weights cdcdcdcdcdcd..., the",
        ),
        (lambda f: evaluation(f, model={}), "is of no model's weights, the model has"),
    ],
)
def test_results_that_can_not_be_used(tmp_path: Path, damage: Any, message: str) -> None:
    folder = evaluation(tmp_path / "a")
    damage(folder)
    with pytest.raises(DataError) as caught:
        read_result(folder, WEIGHTS)
    assert tells(caught.value, f"... {message}")


@pytest.mark.slow
def test_the_memory_is_the_one_that_it_draws_with(tmp_path: Path) -> None:
    """A run keeps what it retrieved from while it was trained; `generate.memory_split` is more of the data."""
    run = tmp_path / "run"
    folder = run / "checkpoints" / "step-00000001"
    shutil.copytree(find_model("bundled:emoji64", REGISTRY), folder)
    (folder / "provenance.json").unlink()  # a run has it beside its checkpoints
    row = {"licence": "MIT", "source": "", "attribution": "", "documents": 7}
    kept = {"format": "cm3 provenance 1", "trained_on": [row], "memory": [row]}
    (run / "provenance.json").write_text(json.dumps(kept))
    model = load(str(run))
    model.components.memory_split = None
    assert facts_of(str(run), model, REGISTRY).retrieves_from == [row]
    model.components.memory_split = "all"
    facts = facts_of(str(run), model, REGISTRY)
    assert facts.trained_on == [row]
    assert sum(one["documents"] for one in facts.retrieves_from) == 200


@pytest.mark.slow
def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("bundled:emoji64", registry=REGISTRY)
    monkeypatch.setattr("cm3run.model.load", lambda *_, **__: model)
    weights = facts_of("bundled:emoji64", model, REGISTRY).weights_sha256
    results, card = evaluation(tmp_path / "eval", weights), tmp_path / "CARD.md"
    write = ["eval", "card", "bundled:emoji64", str(results), "--pictures", "2", "-o", str(card)]
    assert main(write) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'CARD-toy-v1.png'}\n{card}\n"
    first = card.read_text()
    assert "Trained on 185 documents of the data set `emoji`, split `train`:" in first
    assert open_image(tmp_path / "CARD-toy-v1.png").shape[1] > 2 * 96
    assert main(["eval", "card", "bundled:emoji64", "--check", str(card)]) == 0
    assert "was written for the weights of bundled:emoji64" in capsys.readouterr().out

    # interrupted, the old card stays whole
    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cm3core.images.save_png", stopped)
        assert main(write) == 130
    assert card.read_text() == first
    assert main(write) == 0

    (tmp_path / "mine.md").write_text("my own")
    new = tmp_path / "new.md"
    card.write_text(first.replace(weights, WEIGHTS))
    for wrong, message in (
        (["-o", str(tmp_path / "mine.md")], "is there already, and was not written by cm3leon"),
        (["--check", str(tmp_path / "mine.md")], "is not a card of `cm3 eval card`"),
        (
            ["--check", str(card)],
            f"was written for the weights abababababab..., the model has {weights[:12]}",
        ),
        (["--check", str(tmp_path / "none.md")], "none.md: there is no such file"),
        ([], "neither -o nor --check is given"),
        (["-o", str(card), "--check", str(card)], "-o and --check are given"),
        ([str(results), str(results), "-o", str(new)], "have two evaluations by toy-v1"),
        (["-o", str(new), "--notes", str(tmp_path / "none.md")], "none.md: there is no such file"),
    ):
        assert main(["eval", "card", "bundled:emoji64", *wrong]) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "mine.md").read_text() == "my own"


@pytest.mark.parametrize("name", sorted(bundled_models(REGISTRY)))
def test_the_card_of_a_bundled_model_is_of_its_weights(name: str) -> None:
    """Older than the weights, it must be written again: `cm3 eval run`, then `cm3 eval card`."""
    folder = user_path(str(bundled_models(REGISTRY)[name]))
    text = (folder / "CARD.md").read_text(encoding="utf-8")
    check_card(text, name, load(name, registry=REGISTRY))
    assert "`cm3 eval run " in text, "a card without figures"
    for picture in [part.partition(")")[0] for part in text.split("](")[1:] if ".png)" in part]:
        assert open_image(folder / picture).size


def test_a_card_of_other_weights_is_found() -> None:
    module = torch.nn.Linear(2, 2)
    model: Any = SimpleNamespace(
        components=SimpleNamespace(own_decoder=SimpleNamespace(module=module))
    )
    from cm3apps.evaluation.made import weights_sha256

    text = mark(weights_sha256(model))
    check_card(text, "CARD.md", model)
    with torch.no_grad():
        module.bias[1] += 1e-6
    with pytest.raises(DataError) as caught:
        check_card(text, "CARD.md", model)
    assert tells(caught.value, "... next: evaluate the model, and write the")
