"""Weights that are loaded for generation alone: the same tokens as from all weights, which likelihoods and training get.

The device is the CPU here; `tests/gpu_pretended` counts bytes on a GPU that is pretended.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import cm3core
from cm3core.document import Text, TextHole
from cm3core.errors import CheckpointError
from cm3core.plugins import load_registry
from cm3run.checkpoint import find_model, generating, open_checkpoint, opening
from cm3run.checkpoint.layout import WEIGHTS, find_checkpoint, shards_of
from cm3run.generation.weights import GenerationWeights, joined, only_generates, sha256_of
from cm3run.mapped import map_tensors
from cm3run.model import Model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a bundled model with weights in float32 that bfloat16 can't hold, and no hashes: tests change them."""
    target = tmp_path_factory.mktemp("model") / "emoji"
    shutil.copytree(find_checkpoint(find_model("bundled:emoji64", load_registry())), target)
    weights = {name: one.float() * 1.001 for name, one in load_file(target / WEIGHTS).items()}
    save_file(weights, target / WEIGHTS)
    return target


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as if it were a GPU that multiplies bfloat16."""
    monkeypatch.setattr(opening, "only_generates", lambda *asked: asked[3] is not None)


def loaded(folder: Path) -> tuple[Model, GenerationWeights]:
    model = cm3core.load(folder, device="cpu", precision="bf16")
    own = model.components.own_decoder
    assert isinstance(own, GenerationWeights)
    return model, own


def parts_of(folder: Path, target: Path) -> Path:
    """The same checkpoint as several processes write it."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(WEIGHTS))
    place = target / shards_of(WEIGHTS)
    place.mkdir()
    weights = load_file(folder / WEIGHTS)
    save(
        weights,
        storage_writer=HuggingFaceStorageWriter(str(place), save_distributed=True),
        no_dist=True,
    )
    return target


def test_matrices_are_bfloat16_and_in_memory_once(folder: Path, narrow: None) -> None:
    model, own = loaded(folder)
    decoder = own.for_engine()[0]
    wide = {name for name, one in decoder.module.named_parameters() if one.dtype == torch.float32}
    assert wide == {
        name
        for name, _ in decoder.module.named_parameters()
        if name.endswith("_norm.weight")
        or name in ("embed_positions.weight", "embed_rows.weight", "embed_columns.weight")
    }
    exact = open_checkpoint(folder, load_registry()).components.decoder.module
    # joining queries, keys and values keeps their values, and makes them parts of one tensor
    model.engine  # noqa: B018  # it is built
    for name, one in decoder.module.named_parameters():
        assert torch.equal(one, exact.get_parameter(name).to(one.dtype)), name
        assert not one.requires_grad
        assert only_generates(one)
    block = decoder.blocks()[0]  # type: ignore[attr-defined]  # CM3LeonDecoder's
    three = [one.weight for one in (block.q_proj, block.k_proj, block.v_proj)]
    assert len({one.untyped_storage().data_ptr() for one in three}) == 1
    # another engine reads the same tensor
    places = [one.data_ptr() for one in three]
    together = joined(three)
    assert torch.equal(together, torch.cat(three))
    assert together.data_ptr() == places[0]
    assert [one.data_ptr() for one in three] == places


def test_the_same_tokens_as_in_bf16_with_all_weights(folder: Path, narrow: None) -> None:
    model, _ = loaded(folder)
    exact = open_checkpoint(folder, load_registry()).components.decoder
    with torch.no_grad():  # its table of tokens is rounded too
        exact.head_weight().copy_(exact.head_weight().bfloat16())
    arranged = [
        model.engine.inference,
        exact.for_inference("bf16"),
    ]
    found = []
    for one in arranged:
        tokens = torch.arange(40).reshape(2, 20) * 7
        with torch.inference_mode():
            cache = one.allocate_cache(2, 20)
            found.append(one.logits(one.hidden_states(tokens, cache=cache)))
    assert torch.equal(*found)


def test_likelihoods_and_training_get_all_weights(folder: Path, narrow: None) -> None:
    model, own = loaded(folder)
    before = model.engine
    assert model.components.context_length == before.inference.context_length
    assert own._whole is None  # nothing so far needed them
    plain = open_checkpoint(folder, load_registry()).components
    assert sha256_of(own) == sha256_of(plain.decoder)
    assert own._whole is None
    document = [(Text("red apple"), TextHole(4))]
    contents = [[plain.vocabulary.text.start + 70 + torch.arange(3).numpy()]]
    found, expected = (
        one.likelihood.log_probability(document, contents)[0].nats
        for one in (model.components, plain)
    )
    assert found == expected
    decoder = model.components.decoder
    for name, one in decoder.module.named_parameters():
        assert torch.equal(one, plain.decoder.module.get_parameter(name)), name
        assert one.requires_grad
        assert one.dtype == torch.float32
    assert model.components.decoder is decoder
    assert sha256_of(own) == sha256_of(plain.decoder)
    assert model.engine is before  # the weights are the same
    with torch.no_grad():
        decoder.module.get_parameter("embed_tokens.weight")[0].add_(1)
    assert sha256_of(own) != sha256_of(plain.decoder)
    assert model.engine is not before
    assert model.engine.decoder is decoder


def test_weights_of_training_alone_are_in_memory_once(folder: Path, narrow: None) -> None:
    model, own = loaded(folder)
    decoder = model.components.decoder
    assert own._decoder is None
    assert model.engine.decoder is decoder


# this process alone writes what several would
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_parts_of_several_processes(folder: Path, narrow: None, tmp_path: Path) -> None:
    """Read one tensor at a time; the whole decoder is the same."""
    read = generating.stored_weights(parts := parts_of(folder, tmp_path / "parts"))
    weights = load_file(folder / WEIGHTS)
    assert {name: (one.shape, one.dtype) for name, one in read.items()} == {
        name: (tuple(one.shape), one.dtype) for name, one in weights.items()
    }
    one, other = (loaded(place)[1] for place in (folder, parts))
    for own, same in zip(
        one.for_engine()[0].module.parameters(), other.for_engine()[0].module.parameters(),
        strict=True,
    ):  # fmt: skip  # one line per pair
        assert torch.equal(own, same)
    for name, own in other.whole.module.named_parameters():
        assert torch.equal(own, weights[name]), name


def test_at_most_one_tensor_is_read_at_a_time(
    folder: Path, narrow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is converted and released before the next."""
    events: list[str] = []
    mapped = map_tensors(folder / WEIGHTS)
    names = {one.data_ptr(): name for name, one in mapped.items()}
    monkeypatch.setattr(generating, "map_tensors", lambda path: mapped)
    monkeypatch.setattr(
        generating, "check_finite", lambda path, name, one: events.append(f"read {name}")
    )
    monkeypatch.setattr(
        generating, "release", lambda one: events.append(f"released {names[one.data_ptr()]}")
    )
    loaded(folder)
    assert events == [f"{what} {name}" for name in names.values() for what in ("read", "released")]


@pytest.mark.parametrize("precision", [None, "fp32", "int8"])
def test_other_precisions_load_all_weights(folder: Path, precision: str | None) -> None:
    recipe = open_checkpoint(folder, load_registry()).recipe
    cuda = torch.device("cuda")
    assert not generating.only_generates(folder, recipe, cuda, precision)
    assert not generating.only_generates(folder, recipe, CPU, "bf16")
    assert generating.only_generates(folder, recipe, cuda, "bf16")


def test_damaged_weights(folder: Path, narrow: None, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bad")
    path = tmp_path / "bad" / WEIGHTS
    weights = load_file(folder / WEIGHTS)
    name = "layers.0.fc1.weight"
    weights[name][0, 0] = float("nan")
    for changed, message in (
        (weights, f"tensor {name}: contains values that are not finite"),
        ({**weights, name: weights[name][1:]}, f"tensor {name}: the file has"),
    ):
        save_file({key: one.contiguous() for key, one in changed.items()}, path)
        with pytest.raises(CheckpointError, match=message):
            loaded(tmp_path / "bad")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        loaded(tmp_path / "bad")
