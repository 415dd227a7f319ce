"""`cm3 convert --to opt`: what OPT can't compute, and OPTs that are no model's, are refused with nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import OPTConfig, OPTForCausalLM

from cm3apps.cli.main import main
from cm3core.errors import CheckpointError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3plugins.decoders.places import PlacesConfig
from cm3published.convert import opt
from messages import tells
from tiny_opt import write_own


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    own = write_own(folder / "own")
    assert main(["convert", str(own), "-o", str(folder / "opt"), "--to", "opt"]) == 0
    return folder / "opt"


def refusal(arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a command that writes nothing."""
    before = sorted(out.parent.iterdir())
    assert main(["convert", *arguments, "-o", str(out)]) == 2
    assert sorted(out.parent.iterdir()) == before, "nothing is written"
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("decoder.grid_positions=true", "decoder.grid_positions adds embeddings of rows"),
        ("decoder.code_axes={y: 16, x: 16}", "decoder.code_axes adds embeddings ... {}"),
        ("decoder.token_shift=true", "decoder.token_shift mixes the inputs"),
        ("decoder.qk_norm=true", "decoder.qk_norm normalises queries ... (decoder.qk_norm=false)"),
    ],
)
def test_options_that_opt_lacks_are_refused(override: str, words: str) -> None:
    own = [] if "grid_positions" in override else ["decoder.grid_positions=false"]
    recipe = compose("tiny", [*own, override], registry=load_registry())
    with pytest.raises(CheckpointError) as error:
        opt.check_decoder(recipe, "recipe.yaml")
    assert tells(error.value, f"recipe.yaml: {words}")


def test_other_decoders_are_refused() -> None:
    recipe = compose("cm3leon-modern", registry=load_registry())
    with pytest.raises(CheckpointError) as error:
        opt.check_decoder(recipe, "recipe.yaml")
    assert tells(error.value, "recipe.yaml: the decoder is llama, but only cm3leon ... --to hf")
    recipe.decoder = PlacesConfig()  # derived from cm3leon's, with more embeddings
    with pytest.raises(CheckpointError):
        opt.check_decoder(recipe, "recipe.yaml")


def test_a_bundled_model_is_refused_with_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundled = load_registry().models()["lab:icons64"]
    message = refusal([str(bundled), "--to", "opt"], tmp_path / "out", capsys)
    assert tells(message, "... recipe.yaml: decoder.grid_positions adds ... cm3 serve")


def test_opts_with_biases_and_norms_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published OPTs, such as facebook/opt-125m."""
    small: dict[str, Any] = {
        "hidden_size": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = OPTConfig(vocab_size=64, max_position_embeddings=32, **small)
    OPTForCausalLM(config).save_pretrained(tmp_path / "facebook")
    message = refusal([str(tmp_path / "facebook")], tmp_path / "out", capsys)
    words = "enable_bias is true; layer_norm_elementwise_affine is true: ... no biases"
    assert tells(message, f"... config.json: {words}")


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _weights(folder: Path, **changes: Any) -> None:
    """Replace tensors by the ends of their names; None removes them."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for end, new in changes.items():
        [name] = [one for one in tensors if one.endswith(f"layers.0.{end}.weight")]
        del tensors[name]
        if new is not None:
            tensors[name] = new
    save_file(tensors, path, {"format": "pt"})


def _head(folder: Path, change: float) -> None:
    """Add a head to a tied model: the embeddings plus a number."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"] + change
    save_file(tensors, path, {"format": "pt"})


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "norms after branches": (
        lambda f: _config(f, do_layer_norm_before=False),
        "config.json: do_layer_norm_before is false: the decoder cm3leon",
    ),
    "no last norm": (
        lambda f: _config(f, _remove_final_layer_norm=True),
        "config.json: _remove_final_layer_norm is true",
    ),
    "projected": (
        lambda f: _config(f, word_embed_proj_dim=32),
        "config.json: word_embed_proj_dim is 32, not hidden_size",
    ),
    "other sizes": (
        lambda f: _config(f, num_hidden_layers=3),
        "config.json: num_hidden_layers is 3, but the model's is 2 ... --tokenizer MODEL",
    ),
    "other positions": (
        lambda f: _config(f, max_position_embeddings=386),
        "config.json: max_position_embeddings is 386, but the model's is 384",
    ),
    "a tensor lost": (
        lambda f: _weights(f, fc1=None),
        "opt: tensors missing: model.decoder.layers.0.fc1.weight",
    ),
    "another shape": (
        lambda f: _weights(f, fc1=torch.zeros(4, 64)),
        "layers.0.fc1.weight is [4, 64], but the config implies [256, 64]",
    ),
    "not finite": (
        lambda f: _weights(f, fc1=torch.full((256, 64), torch.inf)),
        "layers.0.fc1.weight contains non-finite values",
    ),
    "whole numbers": (
        lambda f: _weights(f, fc1=torch.ones(256, 64, dtype=torch.int64)),
        "layers.0.fc1.weight has the dtype int64",
    ),
    "a head of its own": (
        lambda f: _head(f, 1.0),
        "opt: has a head (lm_head.weight) that differs from the embeddings",
    ),
    "no recipe": (
        lambda f: (f / "cm3/recipe.yaml").unlink(),
        "opt: has no folder cm3 with a recipe ... --tokenizer MODEL",
    ),
    "another tokenizer": (
        lambda f: _state(f),
        "cm3: was made with another text tokenizer",
    ),
}


def _state(folder: Path) -> None:
    path = folder / "cm3/state.json"
    values = json.loads(path.read_text())
    values["fingerprints"]["text_tokenizer"] = "another"
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_exports_are_refused(
    case: str, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "opt"
    shutil.copytree(export, source)
    damage, expected = BAD[case]
    damage(source)
    assert tells(refusal([str(source)], tmp_path / "out", capsys), f"... {expected}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "hf"], "--to hf: doesn't work with an OPT"),
        (["--shards", "2"], "--shards: doesn't work with an OPT"),
        (["--chat"], "--chat: doesn't work with an OPT"),
        (["--tokenizer", "nowhere"], "nowhere: does not exist"),
    ],
)
def test_other_models_options_are_refused(
    arguments: list[str],
    words: str,
    export: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tells(refusal([str(export), *arguments], tmp_path / "out", capsys), f"... {words}")


def test_only_own_models_become_opts(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    message = refusal([str(tmp_path / "empty"), "--to", "opt"], tmp_path / "out", capsys)
    assert tells(message, "... empty: is not a model of this framework")
    own = [str(export.with_name("own")), "--to", "opt", "--tokenizer", "x"]
    assert tells(
        refusal(own, tmp_path / "out", capsys), "... --tokenizer: doesn't work with --to opt"
    )


def test_a_damaged_model_is_not_exported(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "own"
    shutil.copytree(export.with_name("own"), source)
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    message = refusal([str(source), "--to", "opt"], tmp_path / "out", capsys)
    assert tells(message, "... model.safetensors: has changed since it was written")


def test_a_copy_of_the_embeddings_and_short_names_are_read(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of OPTModel lack `model.`; other tools write tied heads, too."""
    source = tmp_path / "opt"
    shutil.copytree(export, source)
    _head(source, 0.0)
    path = source / "model.safetensors"
    tensors = {name.removeprefix("model."): one for name, one in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    assert main(["convert", str(source), "-o", str(tmp_path / "own")]) == 0
    before, after = (
        load_file(one / "model.safetensors") for one in (export.with_name("own"), tmp_path / "own")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_export_is_checked(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(export), "--check"]) == 0
    assert "every tensor exists with the right size and can be read" in capsys.readouterr().out
