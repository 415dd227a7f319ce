"""`cm3 convert` of Janus in DeepSeek's own form: the same model as of transformers' form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import JanusConfig, JanusForConditionalGeneration

import cm3core
from cm3apps.cli.main import main
from cm3core.document import ImageHole, Text
from cm3published.convert.janus import (
    DEEPSEEK,
    TRANSFORMERS,
    decoder_tensors,
    from_deepseek,
    num_levels,
)
from tiny_deepseek import PROCESSOR, config_of, of_transformers, write_deepseek
from tiny_janus import BOS, NUM_CODES, check_drawn, text_tokenizer, write_janus

FORMS: dict[str, dict[str, Any]] = {
    "one": {"files": 1},
    "three": {"files": 3},
    "safetensors": {"files": 2, "suffix": "safetensors"},
}


class Converted(NamedTuple):
    """A model of transformers, and what was made of both forms of its files."""

    folder: Path
    theirs: JanusForConditionalGeneration


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("janus")
    theirs = write_janus(folder / "hf")
    assert main(["convert", str(folder / "hf"), "-o", str(folder / "of-hf")]) == 0
    for name, options in FORMS.items():
        write_deepseek(theirs, folder / name, **options)
        assert main(["convert", str(folder / name), "-o", str(folder / f"of-{name}")]) == 0
    return Converted(folder, theirs)


@pytest.mark.parametrize("name", FORMS)
def test_both_forms_make_one_model(both: Converted, name: str) -> None:
    """Weights, image tokenizer, ids and layout; only the recipe's name differs."""
    one, other = both.folder / "of-hf", both.folder / f"of-{name}"
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert len(files) == 2
    for file in files:
        expected, found = load_file(one / file), load_file(other / file)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[part], expected[part]) for part in expected)
    for file in ("text_tokenizer/tokenizer.json", "state.json"):
        assert (other / file).read_bytes() == (one / file).read_bytes()
    stored = json.loads((other / "conversion.json").read_text())
    assert stored["from"] == "deepseek"
    assert list(stored["left_out"]) == ["vision_model.*", "aligner.*"]


def test_pictures_are_transformers(both: Converted) -> None:
    """Drawn from DeepSeek's files at temperature 0: each code that of transformers' own loop, and pixels
    to one level."""
    check_drawn(cm3core.load(both.folder / "of-three"), both.theirs, "a red apple")


def test_roles_are_those_of_the_first_janus(both: Converted, tmp_path: Path) -> None:
    out = tmp_path / "out"
    roles = ["--roles", "User", "Assistant"]
    assert main(["convert", str(both.folder / "one"), "-o", str(out), *roles]) == 0
    serializer = cm3core.load(out).components.serializer
    prompt = serializer.prompt((Text("a red apple"), ImageHole())).tokens.tolist()
    text = f"{BOS}User: a red apple\n\nAssistant:<begin_of_image>"
    assert prompt == text_tokenizer().encode(text).ids


#: Sizes of Janus-1.3B and Janus-Pro-1B, and of Janus-Pro-7B, whose file leaves out Llama's defaults.
PUBLISHED: dict[str, tuple[dict[str, int], int, tuple[str, ...]]] = {
    "1B": ({"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16}, 24, ()),
    "7B": (
        {"hidden_size": 4096, "intermediate_size": 11_008, "num_attention_heads": 32},
        30,
        ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    """Each name and shape of a model of the published size, on the meta device."""
    sizes, layers, absent = PUBLISHED[name]
    width = sizes["hidden_size"]
    text: dict[str, Any] = {
        **sizes,
        "model_type": "llama",
        "num_hidden_layers": layers,
        "vocab_size": 102_400,
    }
    text |= {"max_position_embeddings": 16_384, "num_key_value_heads": sizes["num_attention_heads"]}
    config = JanusConfig(
        text_config=text,
        vision_config={"num_hidden_layers": 1, "projection_dim": width},
        vq_config={"projection_dim": width, "image_token_embed_dim": width},
    )
    with torch.device("meta"):
        state = of_transformers(JanusForConditionalGeneration(config).state_dict())
    stated = config_of(config)
    for key in absent:
        del stated["language_config"][key]
    facts = from_deepseek(stated, "config.json", levels=num_levels(state))
    assert (facts.num_codes, facts.downsampling, facts.resolution) == (16_384, 16, 384)
    wanted = decoder_tensors(facts, DEEPSEEK, tied=False)
    others = (DEEPSEEK.image_tokenizer, *DEEPSEEK.reader)
    expected = {part: tuple(t.shape) for part, t in state.items() if not part.startswith(others)}
    assert {part: shape for part, (_, shape) in wanted.items()} == expected
    theirs = decoder_tensors(facts, TRANSFORMERS, tied=False)
    assert {ours for ours, _ in wanted.values()} == {ours for ours, _ in theirs.values()}


def edit(section: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        values[section]["params" if "params" in values[section] else "cls"].update(changes)
        path.write_text(json.dumps(values))

    return change


def edit_class(folder: Path) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["gen_vision_config"]["cls"] = "VQ-8"
    path.write_text(json.dumps(values))


def processor(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "processor_config.json").write_text(json.dumps(PROCESSOR | changes))

    return change


BAD: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "another class": (edit_class, [], "cls is 'VQ-8', but only 'VQ-16' is supported"),
    "a deeper aligner": (
        edit("gen_aligner_config", depth=3),
        [],
        "depth is 3, but only 2 is supported",
    ),
    "another width": (
        edit("gen_head_config", n_embed=64),
        [],
        "n_embed is 64, but must be language_config.hidden_size, which is 32",
    ),
    "another table": (
        edit("gen_head_config", image_token_size=99),
        [],
        "image_token_size is 99, but must be gen_vision_config.params.image_token_size, which is "
        f"{NUM_CODES}",
    ),
    "another head": (
        edit("gen_head_config", image_token_embed=64),
        [],
        "but the config implies [64, 32]",
    ),
    "another prompt": (
        processor(sft_format="plain"),
        [],
        "sft_format is 'plain', but only 'deepseek' is supported",
    ),
    "a tag that is no token": (processor(image_start_tag="<boi>"), [], "<boi>"),
    "a tag that is no text": (processor(pad_tag=3), [], "pad_tag is 3, must be a text"),
    "a missing file": (
        lambda folder: (folder / "pytorch_model-00002-of-00003.bin").unlink(),
        [],
        "is missing, one of 3 files listed in pytorch_model.bin.index.json",
    ),
    "no text tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), [], "has no "),
    "chat": (lambda folder: None, ["--chat"], "--chat: only works with Emu3"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(both: Converted, name: str, tmp_path: Path, capsys: Any) -> None:
    """Nothing is written."""
    change, arguments, words = BAD[name]
    source = tmp_path / "source"
    source.mkdir()
    for path in (both.folder / "three").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    change(source)
    before = sorted(tmp_path.iterdir())
    assert main(["convert", str(source), "-o", str(tmp_path / "out"), *arguments]) == 2
    assert sorted(tmp_path.iterdir()) == before
    message = capsys.readouterr().err
    assert words in message
    assert "  next: " in message


def test_a_model_that_only_reads_is_not_janus(tmp_path: Path, capsys: Any) -> None:
    """DeepSeek-VL has the same type, and no networks for drawing."""
    (tmp_path / "config.json").write_text('{"model_type": "multi_modality"}')
    assert main(["convert", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "model_type is 'multi_modality', not 'chameleon'" in capsys.readouterr().err
