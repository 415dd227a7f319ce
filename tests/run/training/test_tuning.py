"""Runs that tune a model: what is trained and stored, exact resumption, and bases that don't fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cm3core.errors import CheckpointError, CM3Error, RecipeError
from cm3core.plugins import Registry
from cm3core.recipe import Recipe
from cm3run.checkpoint import (
    OPTIMIZER,
    TASKS,
    WEIGHTS,
    load_weights,
    merge_adapter,
    open_checkpoint,
    read_state,
    read_tasks,
    read_tensors,
    tasks_of,
)
from cm3run.training.loop import train
from cm3run.training.memory import training_memory
from cm3run.training.state import TrainResult, TrainState
from cm3run.tuning import ADAPTER, ADAPTER_CONFIG, add_adapters, load_adapters
from messages import tells
from squares import squares

pytest.importorskip("peft", reason="peft is not installed")

METHODS: dict[str, list[str]] = {
    "lora": ["tune.rank=2", "tune.dropout=0.1"],
    "dora": ["tune.rank=2", "tune.parameters=[embed_tokens]"],
    "head": [],
    "embeddings": [],
    "layers": ["tune.parameters=[layers.1.fc2]"],
}


@pytest.fixture(scope="module")
def base(whole: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to tune: a run's folder of its own."""
    out = tmp_path_factory.mktemp("base") / "run"
    return Path(shutil.copytree(whole.checkpoint.parents[1], out))


@pytest.fixture
def make(registry: Registry, cache: Path, base: Path) -> Any:
    """Recipe of a run on the base, by method and overrides."""

    def make(method: str, *overrides: str, model: Path | None = None) -> Recipe:
        own = [
            f"train.start_from={model or base}",
            "train.steps=6",
            "train.warmup_steps=0",
            "train.checkpoint_every_steps=3",
            "train.validation_splits=[]",
            f"tune.method={method}",
        ]
        given = [*own, *METHODS.get(method, []), *overrides]
        last = {one.partition("=")[0]: one for one in given}
        return squares(registry, cache, list(last.values()))

    return make


def run(recipe: Recipe, out: Path, registry: Registry, **options: Any) -> TrainResult:
    return train(recipe, out, registry, progress=False, **options)


def logits(folder: Path, registry: Registry, **options: Any) -> torch.Tensor:
    opened = open_checkpoint(folder, registry, **options)
    decoder = opened.components.decoder
    tokens = torch.randint(0, opened.vocabulary.size, (2, 20), generator=torch.Generator())
    with torch.no_grad():
        return decoder.logits(decoder.hidden_states(tokens))


@pytest.mark.parametrize("method", METHODS)
def test_the_rest_keeps_its_bits_and_costs_no_optimiser_state(
    method: str, make: Any, registry: Registry, base: Path, tmp_path: Path
) -> None:
    """The optimiser's file holds two numbers for each trained parameter, its steps, the generator
    and a header: nothing of frozen ones."""
    seen: dict[str, int] = {}

    def count(state: TrainState) -> None:
        seen["trained"] = sum(parameter.numel() for parameter in state.optimizer.parameters)
        seen["tensors"] = len(state.optimizer.parameters)
        seen["whole"] = sum(p.numel() for p in state.decoder.parameters() if p.ndim)

    result = run(make(method), tmp_path, registry, callbacks=[count])
    assert seen["trained"] < seen["whole"] / 4
    tensors = read_tensors(result.checkpoint / OPTIMIZER)
    generator = tensors.pop("generator::cpu")
    assert sum(tensor.numel() for tensor in tensors.values()) == (
        2 * seen["trained"] + seen["tensors"]
    )
    size = (result.checkpoint / OPTIMIZER).stat().st_size
    data = 4 * (2 * seen["trained"] + seen["tensors"]) + generator.numel()
    assert data < size < data + 200 * (3 * seen["tensors"] + 2)
    before = read_tensors(base / "checkpoints" / "step-00000020" / WEIGHTS)
    if method in ("lora", "dora"):
        assert not (result.checkpoint / WEIGHTS).exists()
        return
    after = read_tensors(result.checkpoint / WEIGHTS)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert (
        changed
        == {
            "head": {"embed_tokens.weight"},
            "embeddings": {"embed_tokens.weight"},
            "layers": {"layers.1.fc2.weight"},
        }[method]
    )
    if method == "head":
        rows = (before["embed_tokens.weight"] != after["embed_tokens.weight"]).any(1)
        image = open_checkpoint(result.checkpoint, registry).vocabulary.image
        assert set(rows.nonzero().flatten().tolist()) <= set(image)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumes_exactly(method: str, make: Any, registry: Registry, tmp_path: Path) -> None:
    whole = run(make(method), tmp_path / "whole", registry)
    for path in sorted((tmp_path / "whole" / "checkpoints").glob("*3")):
        shutil.copytree(path, tmp_path / "cut" / "checkpoints" / path.name)
    again = run(make(method), tmp_path / "cut", registry)
    assert (again.step, again.checkpoint.name) == (6, whole.checkpoint.name)
    names = [ADAPTER, ADAPTER_CONFIG] if method in ("lora", "dora") else [WEIGHTS]
    for name in (*names, OPTIMIZER):
        assert (again.checkpoint / name).read_bytes() == (whole.checkpoint / name).read_bytes()


@pytest.fixture(scope="module")
def tuned(
    registry: Registry, cache: Path, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run that trained an adapter on the base."""
    own = ["train.steps=6", "train.warmup_steps=0", "train.validation_splits=[]"]
    own += [
        f"train.start_from={base}",
        "tune.method=lora",
        "tune.rank=2",
        "train.learning_rate=0.05",
    ]
    out = tmp_path_factory.mktemp("tuned") / "run"
    run(squares(registry, cache, own), out, registry)
    return out


def newest(out: Path) -> Path:
    return max((out / "checkpoints").iterdir())


def test_an_adapter_is_merged_in_memory_and_in_a_folder(
    tuned: Path, base: Path, registry: Registry, tmp_path: Path
) -> None:
    opened = open_checkpoint(base, registry)
    decoder = opened.components.decoder
    module = decoder.module
    add_adapters(module, open_checkpoint(tuned, registry).recipe.tune)
    load_adapters(module, read_tensors(newest(tuned) / ADAPTER), "file")
    tokens = torch.randint(0, opened.vocabulary.size, (2, 20), generator=torch.Generator())
    with torch.no_grad():
        live = decoder.logits(decoder.hidden_states(tokens))
    assert (live - logits(base, registry)).abs().max() > 0.1, "it learned something"
    torch.testing.assert_close(logits(tuned, registry), live, atol=1e-4, rtol=0)  # rounding
    folder = merge_adapter(tuned, tmp_path / "model", registry)
    torch.testing.assert_close(logits(folder, registry), live, atol=1e-4, rtol=0)
    assert not (folder / ADAPTER).exists()
    load_weights(open_checkpoint(base, registry).components.decoder.module, folder)
    assert read_state(folder).base == read_state(newest(tuned)).base
    half = merge_adapter(tuned, tmp_path / "model", registry, dtype="fp16")
    assert read_tensors(half / WEIGHTS)["embed_tokens.weight"].dtype == torch.float16


def test_the_base_is_stored_and_must_be_the_same(
    tuned: Path, base: Path, whole: TrainResult, registry: Registry, tmp_path: Path
) -> None:
    state = read_state(newest(tuned))
    sha = read_state(newest(base)).files[WEIGHTS]["sha256"]
    assert state.base == {"model": str(base.absolute()), "sha256": sha}
    other = run_of_another_seed(whole, tmp_path)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tuned, registry, base=other)
    assert tells(
        error.value,
        f"{newest(tuned)}: contains an adapter ... SHA ... {sha[:16]}... ... {other} ... {newest(tuned)} --base MODEL",
    )
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tuned, registry, base=tuned)
    assert "has an adapter" in str(error.value)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(base, registry, base=tuned)
    assert "contains a whole model, which has no base" in str(error.value)


def run_of_another_seed(whole: TrainResult, folder: Path) -> Path:
    """A copy of the run's checkpoint with one weight changed, and its hash."""
    from safetensors.torch import save_file

    from cm3core.files import sha256_file

    copy = Path(shutil.copytree(whole.checkpoint, folder / "other"))
    tensors = read_tensors(copy / WEIGHTS)
    tensors["embed_tokens.weight"][0, 0] += 1
    save_file(tensors, copy / WEIGHTS)
    state = json.loads((copy / "state.json").read_text())
    state["files"][WEIGHTS]["sha256"] = sha256_file(copy / WEIGHTS)
    state["files"][WEIGHTS]["bytes"] = (copy / WEIGHTS).stat().st_size
    (copy / "state.json").write_text(json.dumps(state))
    return copy


def test_a_base_that_moved_and_one_that_was_trained_further(
    make: Any, base: Path, registry: Registry, tmp_path: Path
) -> None:
    moving = Path(shutil.copytree(base, tmp_path / "base"))
    out = tmp_path / "out"
    run(make("lora", "train.steps=2", model=moving), out, registry)
    expected = logits(out, registry)
    moving.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(out, registry)
    assert tells(
        error.value,
        f"{newest(out)}: contains an adapter ... {moving} ... {newest(out)} --base MODEL",
    )
    assert torch.equal(logits(out, registry, base=tmp_path / "elsewhere"), expected)
    folder = merge_adapter(out, tmp_path / "model", registry, base=tmp_path / "elsewhere")
    torch.testing.assert_close(logits(folder, registry), expected, atol=1e-6, rtol=0)
    (tmp_path / "elsewhere").rename(moving)
    with pytest.raises(CheckpointError, match="is the base model"):
        merge_adapter(out, newest(moving), registry)
    with pytest.raises(CheckpointError, match="is a run's checkpoint"):
        merge_adapter(out, newest(out), registry)
    with pytest.raises(CheckpointError, match="exists and is not a model folder"):
        merge_adapter(out, out, registry)
    with pytest.raises(CheckpointError, match="contains a whole model, and no adapter to merge"):
        merge_adapter(moving, tmp_path / "again", registry)
    (newest(out) / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"is missing, but adapter_config\.json is there"):
        merge_adapter(out, tmp_path / "again", registry)


def test_adapters_are_no_base(tuned: Path, make: Any, registry: Registry, tmp_path: Path) -> None:
    for method in ("lora", "full"):
        with pytest.raises(CheckpointError) as error:
            run(make(method, model=tuned), tmp_path, registry)
        assert tells(
            error.value,
            f"{newest(tuned)}: contains an adapter, but training starts ... {tuned} ... FOLDER",
        )
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_part_of_nothing_is_refused(registry: Registry, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        run(squares(registry, cache, ["tune.method=head"]), tmp_path, registry)
    assert tells(error.value, "tune.method: is 'head', but ... MODEL RECIPE")


@pytest.mark.parametrize(
    ("override", "cause"),
    [
        (
            "decoder.num_heads=4",
            "has another decoder ... decoder.num_heads ... 2 ... 4",
        ),
        (
            "decoder=llama",
            "    decoder.name: 'cm3leon' in the ... 'llama'",
        ),
        ("vocabulary.num_sentinels=9", "has another vocabulary (num_sentinels 8 there, 9 here)"),
        ("image_tokenizer.variant=b", "was made with another image tokenizer (fingerprint"),
        (
            "text_tokenizer=byte",
            "has another text ... text_tokenizer.name ... 'characters'",
        ),
    ],
)
def test_recipes_that_contradict_the_model(
    override: str, cause: str, make: Any, registry: Registry, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(CM3Error) as error:
        run(make("full", override), tmp_path, registry)
    assert tells(error.value, f"... {cause}")
    assert "\n  next: " in str(error.value)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_keys_that_only_concern_training_may_differ(
    make: Any, registry: Registry, tmp_path: Path
) -> None:
    options = ["decoder.dropout=0.0", "decoder.activation_checkpointing=true", "train.steps=1"]
    assert run(make("lora", *options), tmp_path, registry).step == 1


def test_spoiled_adapters(tuned: Path, registry: Registry, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    copy = Path(shutil.copytree(newest(tuned), tmp_path / "copy"))
    tensors = read_tensors(copy / ADAPTER)
    name = "base_model.model.layers.0.fc1.lora_A.weight"

    def refused(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, copy / ADAPTER)
        state = json.loads((copy / "state.json").read_text())
        state["files"].pop(ADAPTER, None)
        (copy / "state.json").write_text(json.dumps(state))
        with pytest.raises(CheckpointError) as error:
            open_checkpoint(copy, registry, trust_endpoints=[str(tmp_path.parent)])
        return str(error.value)

    place = f"{copy / ADAPTER}, tensor {name}: "
    assert tells(
        refused({**tensors, name: tensors[name][:1].clone()}),
        f"{place}the file has ... 1 ... 32 ... 2",
    )
    assert "the file has float64 [2, 32]" in refused({**tensors, name: tensors[name].double()})
    assert "the file has nothing" in refused({k: v for k, v in tensors.items() if k != name})
    assert "the adapters of this recipe need nothing" in refused(
        {**tensors, "more": torch.zeros(1)}
    )
    assert "contains values that are not finite" in refused(
        {**tensors, name: tensors[name] * torch.nan}
    )
    recipe = (copy / "recipe.yaml").read_text()
    for key, value in (
        ("dropout: 0.0", "dropout: 7.0"),
        ("rank: 2", "rank: 33"),
        ("rank: 2", "rank: 3"),
    ):
        assert key in recipe
        (copy / "recipe.yaml").write_text(recipe.replace(key, value))
        with pytest.raises(
            (RecipeError, CheckpointError), match=key.partition(":")[0] + "|the file has"
        ):
            open_checkpoint(copy, registry, trust_endpoints=[str(tmp_path.parent)])
    (copy / "recipe.yaml").write_text(recipe.replace("method: lora", "method: full"))
    with pytest.raises(CheckpointError, match="its recipe says tune"):
        open_checkpoint(copy, registry, trust_endpoints=[str(tmp_path.parent)])
    (copy / "recipe.yaml").write_text(recipe)
    (copy / ADAPTER).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        open_checkpoint(copy, registry, trust_endpoints=[str(tmp_path.parent)])
    (copy / ADAPTER_CONFIG).write_text("{}")
    shutil.copy(newest(tuned) / ADAPTER, copy / ADAPTER)
    with pytest.raises(CheckpointError, match="has changed since it was written"):
        open_checkpoint(copy, registry, trust_endpoints=[str(tmp_path.parent)])


def test_sample_pictures_of_an_unmerged_adapter(
    make: Any, registry: Registry, tmp_path: Path
) -> None:
    recipe = make("lora", "train.sample_every_steps=2", "train.steps=2")
    run(recipe, tmp_path, registry)
    assert (tmp_path / "samples" / "step-00000002.png").is_file()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_memory_is_counted_for_what_is_trained(optimizer: str, make: Any) -> None:
    estimates = {
        method: training_memory(make(method, f"train.optimizer={optimizer}"))
        for method in ("full", "lora", "head")
    }
    full, lora, head = (estimates[method] for method in ("full", "lora", "head"))
    assert full is not None
    assert lora is not None
    assert head is not None
    # squares: 2 blocks of width 32, rank 2: 4 x (32 + 32) and 2 x (32 + 128) inputs and outputs
    trained = 2 * 2 * (4 * 64 + 2 * 160)
    assert lora.gradients == 4 * trained
    assert lora.weights == full.weights + 4 * trained
    assert lora.optimizer < full.optimizer / 3
    assert head.optimizer < full.optimizer / 2


def test_a_mixture_of_tasks_on_responses_alone(
    make: Any, registry: Registry, tmp_path: Path
) -> None:
    """Both parts are counted, and the tasks are stored beside the adapter."""
    mixture = [
        "dataset=mixture",
        "dataset.parts={draw: squares, name: squares}",
        "dataset.tasks={name: caption}",
        "objective.response_only=true",
        "train.log_every_steps=1",
    ]
    result = run(make("lora", *mixture), tmp_path, registry)
    counted = {key for key in result.metrics if key.startswith("train/part/")}
    assert {key.split("/")[2] for key in counted} == {"draw", "name"}
    assert all(result.metrics[key] > 0 for key in counted)
    tuned = read_tasks(result.checkpoint, registry)
    assert (set(tuned.configs), tuned.plain) == ({"caption"}, True)
    assert tuned.retrieving == set(), "nothing was retrieved"
    assert (result.checkpoint / ADAPTER).is_file()


@pytest.mark.parametrize(
    ("keys", "titles"),
    [
        ((), ["caption", "vqa"]),
        (("dataset.memory=draw",), []),
        (("dataset.memory=draw", "dataset.retrieving=[draw, answer]"), ["vqa"]),
    ],
)
def test_the_tasks_with_documents_in_front_are_stored(
    keys: tuple[str, ...], titles: list[str], make: Any
) -> None:
    """Those of the parts that retrieve: by default all, with a memory that memory alone, else as named."""
    mixture = [
        "dataset=mixture",
        "dataset.parts={draw: squares, name: squares, answer: squares}",
        "dataset.tasks={name: caption, answer: vqa}",
        "retriever=random",
        *keys,
    ]
    stored = tasks_of(make("full", *mixture))
    assert stored is not None
    assert stored.get("retrieving", []) == titles
    assert "retrieving" not in (tasks_of(make("full", *mixture, "retriever=none")) or {})


def test_a_list_of_tasks_with_documents_that_is_none(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / TASKS).write_text('{"plain": true, "tasks": {}, "retrieving": "vqa"}')
    with pytest.raises(CheckpointError, match="retrieving is 'vqa', must be a list"):
        read_tasks(tmp_path, registry)
