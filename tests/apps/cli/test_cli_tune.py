"""`cm3 tune` and `cm3 adapter merge`: the model gives what the recipe leaves out; what they say."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from cm3apps.cli.main import main
from cm3apps.cli.tune import note_on_retrieval, tuning_recipe, watched
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


def retrieving_base(folder: Path, retriever: str) -> str:
    """A copy of the base with a retriever; its name."""
    name = retriever.partition(",")[0].rpartition(" ")[2].strip("}") + "-base"
    (copy := folder / name).mkdir(exist_ok=True)
    shutil.copytree(find_checkpoint(folder / "base"), copy, dirs_exist_ok=True)
    stored = copy / "recipe.yaml"
    text = re.sub(r"cache_dir: .*", "cache_dir: null", stored.read_text())
    stored.write_text(f"{text}\nretriever: {retriever}\n")
    return name


def test_retrieval_is_carried_over(folder: Path) -> None:
    """With the model's keys but without its bank: the tuning data are the memory."""
    registry = load_registry([PLUGIN])
    model = retrieving_base(folder, "{name: bm25, num_ranks: 3, k1: 1.25, bank: there}")
    tuned = tuning_recipe(model, "pairs.yaml", [], registry)
    assert tuned.component_names["retriever"] == "bm25"
    assert tuned.retriever is not None
    assert (tuned.retriever.bank, tuned.retriever.num_ranks, tuned.retriever.k1) == (None, 3, 1.25)
    assert note_on_retrieval(model, tuned, registry) == (
        "like bm25-base, the tuned model retrieves (retriever bm25): its memory is the tuning data. retriever=none turns "
        "this off"
    )
    tuned = tuning_recipe("base", "pairs.yaml", [], registry)
    assert tuned.retriever is None
    assert note_on_retrieval("base", tuned, registry) is None, "the base has no retriever"
    random = retrieving_base(folder, "{name: none}")
    tuned = tuning_recipe(random, "pairs.yaml", [], registry)
    assert tuned.retriever is None, "it never finds anything"


def test_the_number_of_loaders_is_not_the_models(folder: Path) -> None:
    """It goes by the processes of the run that tunes."""
    registry = load_registry([PLUGIN])
    shutil.copytree(find_checkpoint(folder / "base"), folder / "streams")
    stored = folder / "streams" / "recipe.yaml"
    text = re.sub(r"cache_dir: .*", "cache_dir: null", stored.read_text())
    for written in ("  num_streams: 8\n", ""):
        stored.write_text(re.sub(r"  num_streams: .*\n", written, text))
        assert tuning_recipe("streams", "pairs.yaml", [], registry).data.num_streams is None
    own = tuning_recipe("streams", "pairs.yaml", ["data.num_streams=3"], registry)
    assert own.data.num_streams == 3


@pytest.mark.parametrize("own", ["retriever=random", "retriever=none", "retriever.name=random"])
def test_a_retriever_of_the_recipe_is_kept(own: str, folder: Path) -> None:
    registry = load_registry([PLUGIN])
    model = retrieving_base(folder, "{name: bm25, k1: 1.25}")
    tuned = tuning_recipe(model, "pairs.yaml", [own], registry)
    assert tuned.component_names["retriever"] == own.partition("=")[2]
    assert note_on_retrieval(model, tuned, registry) is None


@pytest.mark.parametrize("given", ["task=caption", "retriever=null"])
def test_retrieval_that_is_lost_is_said_before_the_first_step(given: str, folder: Path) -> None:
    """Answers to a picture are trained without documents."""
    registry = load_registry([PLUGIN])
    model = retrieving_base(folder, "{name: bm25, k1: 1.25}")
    tuned = tuning_recipe(model, "pairs.yaml", [given], registry)
    assert tuned.retriever is None
    assert note_on_retrieval(model, tuned, registry) == (
        "bm25-base retrieves (retriever bm25), but the tuned model will not: the recipe has no retriever. To train and "
        "draw with documents from the tuning data prepended, add retriever=bm25; to retrieve from a memory bank only "
        "when it draws, give the bank then (cm3 memory build, --bank)"
    )


def test_a_tuned_model_is_watched(folder: Path) -> None:
    """Unless the recipe says otherwise; what can't be drawn or is not held out is left out. A run of eight minutes is
    looked at as often as one of sixteen."""
    registry = load_registry([PLUGIN])

    def keys(*overrides: str) -> tuple[float | None, float | None, int]:
        section = watched(tuning_recipe("base", "pairs.yaml", [*overrides], registry)).train
        return section.validate_every_minutes, section.sample_every_minutes, section.patience

    held = "train.validation_splits=[held]"
    assert keys(held) == (2.0, 4.0, 5)
    assert keys(held, "train.minutes=8", "train.steps=null") == (1.0, 2.0, 5)
    assert keys(held, "train.patience=0", "train.sample_every_minutes=null") == (2.0, None, 0)
    assert keys("task=caption", held) == (2.0, None, 5)
    assert keys() == (None, 4.0, 0), "squares hold nothing out by themselves"


def test_the_length_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """`--minutes` and `--steps` replace the recipe's length; given twice, they are refused."""
    assert cm3("tune", "base", "pairs.yaml", "-o", "short", "--steps", "1", "--quiet") == 0
    assert "trained to step 1 " in capsys.readouterr().out
    assert cm3("tune", "base", "pairs.yaml", "-o", "short", "--steps", "1") == 0
    assert "train.minutes=null train.steps=2\n" in capsys.readouterr().out
    assert cm3("tune", "base", "pairs.yaml", "-o", "short", "--minutes", "3", "train.steps=3") == 2
    assert capsys.readouterr().err == (
        "error: --minutes: is given, and so is train.steps\n  next: give one of them\n"
    )


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


@pytest.mark.slow
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
