"""`cm3 tune` and `cm3 adapter merge`: the model gives what the recipe leaves out; what they say."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from cm3apps.cli.main import main
from cm3apps.cli.tune import lost_retrieval, tuning_recipe
from cm3core.plugins import load_registry
from cm3core.recipe import diff
from cm3run.checkpoint import find_checkpoint, open_checkpoint, read_recipe
from messages import tells
from squares import PARTS

PLUGIN = PARTS / "train_parts.py"
#: What to train on, and how: all that a recipe for tuning needs.
PAIRS = """
dataset: squares
train: {steps: 2, batch_rows: 2, learning_rate: 1.0e-2, num_threads: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model in `base`, and a recipe."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "pairs.yaml").write_text(PAIRS)
    options = ["train.steps=2", "train.validation_splits=[]", f"data.cache_dir={folder / 'cache'}"]
    recipe = str(PARTS / "squares.yaml")
    command = ["--plugin", str(PLUGIN), "train", recipe, "-o", str(folder / "base"), "--quiet"]
    assert main([*command, *options]) == 0
    return folder


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def cm3(*arguments: str) -> int:
    return main(["--plugin", str(PLUGIN), *arguments])


@pytest.mark.slow
def test_a_recipe_says_only_what_to_train_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but data and training is the model's; the run finds its base from anywhere."""
    assert cm3("tune", "base", "pairs.yaml", "-o", "full", "sampler.temperature=0.5") == 0
    assert "from the weights of" in capsys.readouterr().err
    registry = load_registry([PLUGIN])
    base, tuned = (read_recipe(folder / name, registry) for name in ("base", "full"))
    changed = {key for key, _, _ in diff(base, tuned)}
    assert {key for key in changed if not key.startswith("train.")} == {"sampler.temperature"}
    assert tuned.train.start_from == str(folder / "base")
    assert (tuned.name, tuned.train.warmup_steps) == ("pairs", 100), "the model's was 4"


def test_retrieval_that_is_lost_is_said_before_the_first_step(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model that retrieves, unless the recipe says what becomes of it."""
    registry = load_registry([PLUGIN])
    tuned = tuning_recipe("base", "pairs.yaml", [], registry)
    assert lost_retrieval("base", tuned, registry) is None, "the base has no retriever"
    (retrieving := folder / "retrieving").mkdir()
    shutil.copytree(find_checkpoint(folder / "base"), retrieving, dirs_exist_ok=True)
    stored = retrieving / "recipe.yaml"
    stored.write_text(stored.read_text() + "\nretriever: {name: bm25}\n")
    assert lost_retrieval("retrieving", tuned, registry) == (
        "retrieving retrieves (retriever bm25), but the tuned model will not: the recipe has no retriever. To train and "
        "draw with documents from the tuning data prepended, add retriever=bm25; to retrieve from a memory bank only "
        "when it draws, give the bank then (cm3 memory build, --bank)"
    )
    kept = tuning_recipe("base", "pairs.yaml", ["retriever=bm25"], registry)
    assert lost_retrieval("retrieving", kept, registry) is None
    none = tuning_recipe("base", "pairs.yaml", ["retriever=none"], registry)
    assert lost_retrieval("retrieving", none, registry) is None


def test_what_is_tuned_is_said_and_the_command_that_resumes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["tune.method=layers", "tune.parameters=[layers.1]"]
    assert cm3("tune", "base", "pairs.yaml", "-o", "part", *options) == 0
    parameters = 4 * 32 * 32 + 2 * 32 * 128
    assert f"parameters, {parameters:,} of them trained, 20 documents" in capsys.readouterr().err
    assert cm3("tune", "base", "pairs.yaml", "-o", "part", *options) == 0
    out = capsys.readouterr().out
    assert f"cm3 --plugin {PLUGIN} tune base pairs.yaml -o part" in out
    assert out.rstrip().endswith("step-00000002")


def test_an_adapter_from_pairs_to_a_whole_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    options = ["tune.method=lora", "tune.rank=2"]
    assert cm3("tune", "base", "pairs.yaml", "-o", "lora", *options) == 0
    assert cm3("generate", "red corner 1", "--n", "1", "--model", "lora", "-o", "a.png") == 0
    capsys.readouterr()
    assert cm3("adapter", "merge", "lora", "-o", "merged") == 0
    assert capsys.readouterr().out == "merged\n"
    assert cm3("generate", "red corner 1", "--n", "1", "--model", "merged", "-o", "b.png") == 0
    registry = load_registry([PLUGIN])
    logits = []
    for name in ("lora", "merged"):
        decoder = open_checkpoint(folder / name, registry).components.decoder
        with torch.no_grad():
            logits.append(decoder.logits(decoder.hidden_states(torch.arange(20)[None])))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=0)
    # a merged model is a base like any other
    assert cm3("tune", "merged", "pairs.yaml", "-o", "again", *options) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["tune", "base", "pairs.yaml", "train.start_from=other"],
            "error: command line: train.start_from: is given ... 'base'",
        ),
        (
            ["tune", "bsae", "pairs.yaml"],
            "error: bsae: does not exist",
        ),
        (
            ["tune", "base", "pairs.yaml", "tune.method=lorra"],
            "error: command line: tune.method: is 'lorra'",
        ),
        (
            ["tune", "base", "pairs.yaml", "tune.rank=64"],
            "error: command line: tune.rank: is given ... 'full'",
        ),
        (
            ["tune", "base", "pairs.yaml", "tune.method=lora", "tune.targets=[q_porj]"],
            "error: tune.targets: 'q_porj' is no ... 'q_proj'",
        ),
        (
            ["tune", "base", "pairs.yaml", "-o", "base"],
            "base/checkpoints/step-00000002: was made under another recipe",
        ),
        (
            ["adapter", "merge", "base", "-o", "x"],
            "step-00000002: contains a whole model, and no adapter to merge\n",
        ),
        (
            ["adapter", "merge", "bundled:emoji64", "-o", "x"],
            "models/emoji64: contains a whole model, and no",
        ),
    ],
)
def test_what_is_refused(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.glob("base/**/*"))
    assert cm3(*arguments) == 2
    assert tells(capsys.readouterr().err, f"... {message}")
    assert sorted(folder.glob("base/**/*")) == before


def test_peft_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert cm3("tune", "base", "pairs.yaml", "-o", "missing", "tune.method=dora") == 2
    assert tells(capsys.readouterr().err, "... error: tune.method=dora: the package 'peft'")
