"""Where a run begins: from scratch, other weights, its own checkpoint; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cm3apps.cli.main import main
from cm3core.errors import CheckpointError, RecipeError
from cm3core.plugins import Registry
from cm3core.plugins.registry import Writer
from cm3core.recipe import compose
from cm3core.recipe.merge import stored_recipe
from cm3run.checkpoint import WEIGHTS, CheckpointState, read_tensors
from cm3run.processes import Processes
from cm3run.training.loop import train
from cm3run.training.start import Origin
from cm3run.training.state import TrainResult
from messages import tells
from squares import PARTS, squares, weights


def test_what_each_origin_brings(
    whole: TrainResult, registry: Registry, cache: Path, tmp_path: Path
) -> None:
    out = whole.checkpoint.parents[1]
    recipe = squares(registry, cache, ["train.steps=20"])
    new = Origin.find(recipe, tmp_path, registry, resume=True)
    assert (new.folder, new.tokenizer_folder, new.resumed) == (None, None, False)
    assert new.in_words(tmp_path) == f"starts in {tmp_path}"
    other = squares(registry, cache, [f"train.start_from={out}", "train.steps=20"])
    tuned = Origin.find(other, tmp_path, registry, resume=True)
    assert (tuned.folder, tuned.resumed) == (whole.checkpoint, False)
    assert tuned.in_words(tmp_path).endswith(f"from the weights of {whole.checkpoint}")
    assert (new.counters, tuned.counters) == (CheckpointState(step=0), CheckpointState(step=0))
    resumed = Origin.find(recipe, out, registry, resume=True)
    assert (resumed.folder, resumed.resumed) == (whole.checkpoint, True)
    assert (resumed.counters.step, resumed.counters.tokens) == (20, whole.tokens)
    assert resumed.tokenizer_folder == whole.checkpoint / "text_tokenizer"


def test_a_run_keeps_its_number_of_loaders(
    whole: TrainResult, registry: Registry, cache: Path, tmp_path: Path
) -> None:
    """A new run has as many as processes; later, null stands for these, and so does their number."""
    out = whole.checkpoint.parents[1]
    two = Processes()
    two.world_size = 2
    for given, in_new_run in (("null", 2), ("4", 4)):
        recipe = squares(registry, cache, ["train.steps=20", f"data.num_streams={given}"])
        new = Origin.find(recipe, tmp_path, registry, resume=True)
        assert new.num_streams(recipe, two) == in_new_run
    for given in ("null", "1"):
        recipe = squares(registry, cache, ["train.steps=20", f"data.num_streams={given}"])
        assert Origin.find(recipe, out, registry, resume=True).num_streams(recipe, two) == 1
    recipe = squares(registry, cache, ["train.steps=20", "data.num_streams=2"])
    with pytest.raises(CheckpointError) as caught:
        Origin.find(recipe, out, registry, resume=True).num_streams(recipe, two)
    assert tells(
        caught.value,
        f"{whole.checkpoint}: was trained with data.num_streams=1, and it is 2 now ... data.num_streams=1 or null",
    )


def test_a_recipe_that_was_stored_without_the_key_had_one_loader(registry: Registry) -> None:
    text = compose("tiny", ["data.num_streams=7"], registry=registry).to_yaml()
    before = text.replace("  num_streams: 7\n", "")
    assert before != text
    for stored, number in ((text, 7), (before, 1)):
        found = stored_recipe(stored, registry, label="recipe.yaml", writer=Writer())
        assert found.data.num_streams == number


def test_starts_from_the_weights_of_another_run(
    whole: TrainResult,
    registry: Registry,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Almost no learning keeps the weights; other documents are accepted; resuming keeps its state."""
    own = [
        f"train.start_from={whole.checkpoint.parent.parent}",
        "train.steps=2",
        "train.learning_rate=1e-12",
        "train.optimizer=adamw",
        "dataset.num_documents=3",
        "train.start_from_codebook=true",
    ]
    result = train(squares(registry, cache, own), tmp_path, registry)
    assert f"from the weights of {whole.checkpoint}" in capsys.readouterr().err
    before, after = (read_tensors(found.checkpoint / WEIGHTS) for found in (whole, result))
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-9)
    again = train(squares(registry, cache, own), tmp_path, registry, progress=False)
    assert weights(again) == weights(result)


def test_a_start_that_does_not_fit_is_refused(
    whole: TrainResult, registry: Registry, cache: Path, tmp_path: Path
) -> None:
    origin = f"train.start_from={whole.checkpoint}"
    with pytest.raises(
        CheckpointError, match=r"decoder\.num_layers: 2 in the model, 1 in the recipe"
    ):
        train(
            squares(registry, cache, [origin, "train.steps=2", "decoder.num_layers=1"]),
            tmp_path / "a",
            registry,
        )
    with pytest.raises(CheckpointError, match="no installed plugin ships it"):
        train(
            squares(registry, cache, ["train.start_from=bundled:nothing", "train.steps=2"]),
            tmp_path / "b",
            registry,
        )
    assert not (tmp_path / "a" / "checkpoints").exists()


def test_changed_recipe_is_refused_with_the_difference(
    whole: TrainResult, registry: Registry, cache: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole.checkpoint.parents[1], tmp_path / "run"))
    changed = squares(
        registry,
        cache,
        [
            "train.steps=30",
            "train.learning_rate=0.1",
            "decoder.num_layers=3",
            "sampler.temperature=0.5",
        ],
    )
    with pytest.raises(CheckpointError) as caught:
        train(changed, out, registry, progress=False)
    assert tells(
        caught.value,
        f"{out / 'checkpoints' / 'step-00000020'}: was made under ... decoder.num_layers ... 2 ... 3",
    )


def test_a_finished_run_can_be_made_longer(
    whole: TrainResult, registry: Registry, cache: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole.checkpoint.parents[1], tmp_path / "run"))
    assert (
        train(squares(registry, cache, ["train.steps=20"]), out, registry, progress=False).step
        == 20
    ), "nothing left to do"
    assert (
        train(
            squares(
                registry,
                cache,
                ["train.steps=22", "train.log_every_steps=1", "train.decay_fraction=0.1"],
            ),
            out,
            registry,
            progress=False,
        ).step
        == 22
    )
    with pytest.raises(CheckpointError, match="already contains a run \\(step 22\\)"):
        train(
            squares(registry, cache, ["train.steps=22"]),
            out,
            registry,
            progress=False,
            resume=False,
        )


def test_other_data_is_refused(
    whole: TrainResult,
    registry: Registry,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = Path(shutil.copytree(whole.checkpoint.parents[1], tmp_path / "run"))
    path = whole.checkpoint.name
    state = json.loads((out / "checkpoints" / path / "state.json").read_text())
    state["fingerprints"]["dataset"] = "another"
    (out / "checkpoints" / path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="was trained on other data") as error:
        train(squares(registry, cache, ["train.steps=21"]), out, registry, progress=False)
    assert tells(error.value.next_step, "start in another ... train.start_from")


@pytest.mark.slow
def test_another_memory_bank_is_refused(registry: Registry, cache: Path, tmp_path: Path) -> None:
    """A bank that has grown since is refused; with its bytes restored, the run resumes."""
    bank, out = tmp_path / "bank", tmp_path / "run"

    def memory(action: str, *arguments: str) -> int:
        return main(
            [
                "--plugin",
                str(PARTS / "train_parts.py"),
                "memory",
                action,
                *arguments,
                "--quiet",
                f"data.cache_dir={cache}",
            ]
        )

    assert (
        memory("build", str(PARTS / "squares.yaml"), "-o", str(bank), "embedder=light_encoder") == 0
    )
    shutil.copytree(bank, tmp_path / "before")
    own = [
        "embedder=light_encoder",
        "retriever=dense",
        f"retriever.bank={bank}",
        "train.validation_splits=[]",
        "decoder.context_length=96",
    ]
    train(squares(registry, cache, [*own, "train.steps=2"]), out, registry, progress=False)
    assert memory("add", str(bank), str(PARTS / "squares.yaml"), "--id-prefix", "more/") == 0
    with pytest.raises(CheckpointError) as error:
        train(squares(registry, cache, [*own, "train.steps=3"]), out, registry, progress=False)
    assert tells(error.value, "... was trained with another memory bank")
    assert "start in another folder (-o), or restore the bank" in str(error.value)
    shutil.rmtree(bank)
    shutil.copytree(tmp_path / "before", bank)
    assert (
        train(squares(registry, cache, [*own, "train.steps=3"]), out, registry, progress=False).step
        == 3
    )


def test_a_data_set_that_can_not_be_used_ends_with_its_error(
    registry: Registry, cache: Path, tmp_path: Path
) -> None:
    """Raised as it is: an error that is its own cause has causes without an end."""
    recipe = squares(registry, cache, ["task=vqa"])
    with pytest.raises(RecipeError, match="has no usable document") as caught:
        train(recipe, tmp_path / "run", registry, progress=False)
    assert caught.value.__cause__ is not caught.value
